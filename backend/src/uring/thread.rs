//! A ring belongs to one thread: the error of another one.
//!
//! Knows: how the kernel says it. Must never know: what was asked.

use std::io;

/// What the kernel says with EEXIST.
#[derive(Debug)]
struct WrongThread;

impl std::fmt::Display for WrongThread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a ring belongs to the thread that submitted to it first")
    }
}

impl std::error::Error for WrongThread {}

/// The ring was entered by another thread than the one that it belongs to; it is as it was.
pub fn is_wrong_thread(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<WrongThread>())
}

/// The kernel's error, said in these words if it is that.
pub(super) fn wrong_thread(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => io::Error::other(WrongThread),
        _ => error,
    }
}
