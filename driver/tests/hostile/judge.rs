//! What all hostile images have in common: work that must end, within bounds; errors that name their file;
//! how outcomes are told in docs/hostile.md.

use quod::{Error, ErrorKind, Fault, Format};
use quod_tools::{CheckReport, RestoreOptions, dump, restore};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// What the process of these tests may hold in memory, and what it may have reserved (threads reserve much).
const HELD_MAX: u64 = 1 << 30;
const RESERVED_MAX: u64 = 8 << 30;
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs something that must end; panics where it hangs, or panics itself, or was greedy.
pub fn ends<T: Send + 'static>(story: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = channel();
    let listed = LISTED.get();
    let thread = std::thread::spawn(move || {
        LISTED.set(listed);
        let _ = send.send(work());
    });
    let result = match receive.recv_timeout(PATIENCE) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => panic!("{story}: hangs"),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => {
                eprintln!("{story}: panicked");
                std::panic::resume_unwind(panic)
            }
            Ok(()) => unreachable!("it sends before it ends"),
        },
    };
    let (held, reserved) = (most("VmHWM:"), most("VmPeak:"));
    assert!(held < HELD_MAX && reserved < RESERVED_MAX, "{story}: {held} bytes held, {reserved} reserved");
    result
}

/// The most memory that there ever was, by its name in /proc/self/status.
fn most(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Every error tells which file it is about.
pub fn names_its_file(path: &Path, error: &Error) {
    let text = error.to_string();
    let folder = path.parent().and_then(Path::to_str).unwrap();
    assert!(text.contains(folder) || text.contains("/dev/zero"), "{text:?} names no file");
    if let Some(ErrorKind::Corrupt(fault)) = error.kind() {
        meet(fault);
    }
}

thread_local! {
    /// The thread works on an image of the list: what other tests of this program meet at the same time does
    /// not count.
    static LISTED: Cell<bool> = const { Cell::new(false) };
}

/// From now on this thread works on images of the list.
pub fn works_on_the_list() {
    LISTED.set(true);
}

/// The faults that were met in images of the list, by place and what is wrong there.
static MET: Mutex<BTreeSet<(&str, &str)>> = Mutex::new(BTreeSet::new());

fn meet(fault: &Fault) {
    if LISTED.get() {
        MET.lock().unwrap().insert(fault.prose());
    }
}

/// Was this fault met in an image of the list until now?
pub fn was_met(fault: &Fault) -> bool {
    MET.lock().unwrap().contains(&fault.prose())
}

/// The exit code that `qemu-img check` would give.
pub fn exit_code(report: &Result<CheckReport, Error>) -> i32 {
    match report {
        Err(_) => 1,
        Ok(report) if report.corruptions > 0 => 2,
        Ok(report) if report.check_errors > 0 => 1,
        Ok(report) if report.leaks > 0 => 3,
        Ok(_) => 0,
    }
}

/// An image of the list.
pub struct Row {
    pub name: String,
    pub about: String,
    /// What came of opening, reading, writing, checking, repairing it.
    pub outcomes: [String; 5],
}

/// An error in few words: whose fault, and where.
pub fn words(error: &Error) -> String {
    let Some(kind) = error.kind() else { return error.to_string() };
    match kind {
        ErrorKind::Corrupt(fault) => {
            let (place, _) = fault.prose();
            place.replace("qcow2 header field", "field").replace("QED header field", "field")
        }
        ErrorKind::Unsupported(_) => "not supported".to_string(),
        ErrorKind::BackingLoop { .. } => "a loop".to_string(),
        ErrorKind::TooDeep { .. } => "too deep".to_string(),
        ErrorKind::NotAllowed { .. } => "not allowed".to_string(),
        ErrorKind::Io { op, errno } => format!("{op}: error {errno}"),
        ErrorKind::Device { op, errno, .. } => format!("{op}: error {errno}"),
        ErrorKind::NoSpace | ErrorKind::DeviceTooSmall { .. } => "no space".to_string(),
        ErrorKind::NoSnapshot => "no such snapshot".to_string(),
        ErrorKind::NoBitmap => "no such bitmap".to_string(),
        ErrorKind::Occupied { .. } => "allocated already".to_string(),
        ErrorKind::Poisoned => "poisoned".to_string(),
        ErrorKind::Gone { errno } => format!("gone: error {errno}"),
        ErrorKind::Foreign(_) | ErrorKind::Ambiguous { .. } | ErrorKind::Locked(_) => error.to_string(),
    }
}

pub fn report(result: &Result<CheckReport, Error>) -> String {
    match result {
        Err(error) => words(error),
        Ok(report) => {
            for problem in &report.problems {
                if let quod_states::Error::Corrupt(fault) = &problem.what {
                    meet(fault);
                }
            }
            let counts = [
                (report.corruptions, "corruptions"),
                (report.leaks, "leaks"),
                (report.check_errors, "errors"),
            ];
            let counts = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}"));
            let text = counts.collect::<Vec<String>>().join(", ");
            if text.is_empty() { "sound".to_string() } else { text }
        }
    }
}

/// Its metadata is told, whatever it says, and its own text changes nothing in it.
pub fn told(path: &Path, format: Format) {
    let mut text = Vec::new();
    if let Err(error) = dump(path, Some(format), false, || false, &mut text) {
        panic!("{}: {error}", path.display());
    }
    let options = RestoreOptions { force: true, dry_run: true, ..RestoreOptions::default() };
    match restore(path, &mut text.as_slice(), options) {
        Ok(done) => assert_eq!(done.bytes, 0, "{}: {}", path.display(), String::from_utf8_lossy(&text)),
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

/// The table of one format.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| image | what is wrong | open | read | write | check | repair |\n");
    text += "| --- | --- | --- | --- | --- | --- | --- |\n";
    for row in rows {
        let outcomes = row.outcomes.join(" | ");
        text += &format!("| {} | {} | {outcomes} |\n", row.name, row.about);
    }
    text
}
