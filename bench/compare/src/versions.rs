//! Which versions were compared, on what, and what could not be compared at all.
//!
//! Knows: programs' words for their versions, this package's lock file. Must never know: works.

use std::process::Command;

const LOCK: &str = include_str!("../Cargo.lock");

/// The first line that a program says, or that it is not there.
fn first_line(program: &str, word: &str) -> String {
    let output = Command::new(program).arg(word).output().ok();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let line = text.as_deref().and_then(|text| text.lines().next()).map(str::to_owned);
    line.unwrap_or_else(|| format!("{program} is not installed: its rows are missing"))
}

/// The version of a library that this program was built with.
fn locked(name: &str) -> String {
    let after = LOCK.split_once(&format!("name = \"{name}\"\nversion = \"")).map(|(_, rest)| rest);
    let version = after.and_then(|rest| rest.split_once('"')).map_or("?", |(version, _)| version);
    format!("{name} {version}")
}

/// One line each.
pub fn all() -> Vec<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    vec![
        format!("quod {}, Linux {}, {cores} processors", env!("CARGO_PKG_VERSION"), kernel.trim()),
        first_line("qemu-img", "--version"),
        first_line("fio", "--version"),
        locked("imago"),
        format!("{} on {}", locked("qcow2-rs"), locked("tokio-uring")),
        "not compared: qemu-storage-daemon, whose disks are reached by NBD, vhost-user or FUSE alone: \
         the protocol would be measured; its block layer is that of qemu-img bench"
            .to_owned(),
    ]
}
