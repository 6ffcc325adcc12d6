//! The operating system's errors in words.
//!
//! Knows: error numbers. Must never know: which file, which command.

/// The text of an error number.
pub fn strerror(errno: i32) -> String {
    words(&std::io::Error::from_raw_os_error(errno))
}

/// An error's text, without Rust's "(os error N)".
pub fn words(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}
