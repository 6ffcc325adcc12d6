//! Ctrl-C: a command that was asked to end ends in order, if it can, and by the signal in the end.
//!
//! Knows: signals. Must never know: what is interrupted.
//! Invariants: without [`watch`] a signal does what it always does; the second one does so anyway; a signal
//! that was ignored when the command started stays ignored, but for that of a file's limit.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::low_level::{self, pipe};
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
/// The signal that asked.
static SIGNAL: AtomicUsize = AtomicUsize::new(0);

/// The signals that are looked at, a bit each.
static WATCHED: AtomicU64 = AtomicU64::new(0);

/// From now on [`asked`] is to be looked at.
pub fn watch() {
    let ignored = ignored();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if ignored & (1 << (signal - 1)) != 0 {
            continue;
        }
        // in this order: the first sets what the second finds. What cannot be registered acts as always
        WATCHED.fetch_or(1 << (signal - 1), Ordering::SeqCst);
        let _ = flag::register_conditional_default(signal, &ASKED)
            .and_then(|_| flag::register_usize(signal, &SIGNAL, signal as usize))
            .and_then(|_| flag::register(signal, &ASKED));
    }
}

/// From now on a signal that asks for an end is told to this stream, a byte each; the second one acts as
/// always.
pub fn tell(stream: &UnixStream) -> io::Result<()> {
    watch();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if watches(signal) {
            pipe::register(signal, stream.try_clone()?)?;
        }
    }
    Ok(())
}

/// What was asked for was done: the command ends as any other.
pub fn forget() {
    ASKED.store(false, Ordering::SeqCst);
}

/// A limit of a file's length is an error of the write that meets it (EFBIG), and not the command's end.
pub fn survive_file_limits() {
    // nobody looks at the flag: a handler that is there is enough. Without it the signal acts as always
    let _ = flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Nothing that asks for an end ends the command.
pub fn survive() {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let _ = flag::register(signal, Arc::new(AtomicBool::new(false)));
    }
}

/// The signals that whoever started the command wants ignored (nohup, a background job of a script).
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Does this signal only ask for an end?
pub fn watches(signal: i32) -> bool {
    (1..=64).contains(&signal) && WATCHED.load(Ordering::SeqCst) & (1 << (signal - 1)) != 0
}

/// Has somebody asked for an end?
pub fn asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// The end of the command: by the signal if there was one, so that the shell knows.
pub fn end(code: ExitCode) -> ExitCode {
    if asked() {
        raise(SIGNAL.load(Ordering::SeqCst) as i32);
    }
    code
}

/// Does what the signal does if nobody watches.
pub fn raise(signal: i32) {
    let _ = low_level::emulate_default_handler(signal);
}
