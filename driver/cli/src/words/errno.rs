//! The operating system's errors in words.
//!
//! Knows: error numbers. Must never know: which file, which command.

use quod::describe;

/// An error's text, without Rust's "(os error N)".
pub fn words(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), describe)
}
