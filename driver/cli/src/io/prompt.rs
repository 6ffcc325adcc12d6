//! Commands from stdin: a prompt, a line, and meanwhile whatever ends.
//!
//! Knows: descriptors and lines. Must never know: commands.

use super::shell;
use super::tool::Tool;
use crate::interrupt;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

/// Longest sleep: a signal that comes just before one does not end it.
const NAP: Duration = Duration::from_secs(1);

/// Reads and runs lines until there are no more. True: a line failed.
pub fn run(tool: &mut Tool) -> bool {
    let mut input = Input { bytes: Vec::new(), ended: false };
    let mut any_failed = false;
    while !tool.leaving && !interrupt::asked() {
        tool.say("qemu-io> ");
        tool.show();
        let Some(line) = input.line(tool) else { break };
        any_failed |= shell::line(tool, &line).is_err();
    }
    any_failed
}

struct Input {
    bytes: Vec<u8>,
    ended: bool,
}

impl Input {
    /// The next line; requests that end before it is there are reported.
    fn line(&mut self, tool: &mut Tool) -> Option<String> {
        loop {
            if interrupt::asked() {
                return None;
            }
            if tool.target.is_some() {
                // an error here comes back with the next command
                let _ = tool.with(|target| target.turn());
                tool.show();
            }
            if let Some(end) = self.bytes.iter().position(|&byte| byte == b'\n') {
                let line = self.bytes.drain(..=end).take(end).collect();
                return Some(text(line));
            }
            if self.ended {
                return (!self.bytes.is_empty()).then(|| text(std::mem::take(&mut self.bytes)));
            }
            if stdin_is_ready(tool) {
                self.fill();
            }
        }
    }

    fn fill(&mut self) {
        let mut piece = [0; 4096];
        // unbuffered as far as it matters: nobody else reads stdin
        match std::io::stdin().lock().read(&mut piece) {
            Ok(0) | Err(_) => self.ended = true,
            Ok(read) => self.bytes.extend_from_slice(&piece[..read]),
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for stdin, the driver, or the driver's next timeout; true if it was stdin.
fn stdin_is_ready(tool: &Tool) -> bool {
    let stdin = std::io::stdin();
    let mut fds = vec![PollFd::new(&stdin, PollFlags::IN)];
    let driver = tool.target.as_ref().map(|target| target.driver());
    let descriptor = driver.map(|driver| driver.as_fd());
    if let Some(descriptor) = &descriptor {
        fds.push(PollFd::new(descriptor, PollFlags::IN));
    }
    let timeout = driver.and_then(|driver| driver.next_timeout()).map_or(NAP, |time| time.min(NAP));
    let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) => !fds[0].revents().is_empty(),
        Err(rustix::io::Errno::INTR) => false,
        // stdin cannot be waited for; reading tells why
        Err(_) => true,
    }
}
