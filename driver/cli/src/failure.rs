//! Failures in words: what went wrong, with which file, on stderr.
//!
//! Knows: the driver's errors, the name that the program was called by. Must never know: how to recover.

use quod::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;

static PROGRAM: OnceLock<String> = OnceLock::new();

/// The name that messages begin with. The first call decides.
pub fn set_program(name: &str) {
    PROGRAM.get_or_init(|| name.to_string());
}

/// The name that messages begin with.
pub fn program() -> &'static str {
    PROGRAM.get().map_or("quod", String::as_str)
}

/// Prints a message on stderr; the exit code of a failed command.
pub fn fail(text: impl std::fmt::Display) -> ExitCode {
    eprintln!("{}: {text}", program());
    ExitCode::FAILURE
}

/// The operating system's text for an error number.
pub fn strerror(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_string(),
        None => text,
    }
}

/// Why an image could not be opened, in QEMU's words where it has some.
pub fn why_not_opened(path: &Path, error: &Error) -> String {
    let text = match error {
        Error::Io { path: file, errno, .. } if !file.as_os_str().is_empty() => {
            format!("Could not open '{}': {}", file.display(), strerror(*errno))
        }
        Error::Locked { path: file, lock } => {
            format!("Failed to get \"{lock}\" lock\nIs another process using the image [{}]?", file.display())
        }
        other => qemus_words(other).unwrap_or_else(|| other.to_string()),
    };
    match file_of(error) {
        Some(file) if file != path => format!("Could not open backing file: {text}"),
        _ => text,
    }
}

/// What QEMU says of a header that contradicts its format. It names no field and no value.
fn qemus_words(error: &Error) -> Option<String> {
    match error {
        Error::Corrupt { place, .. } => {
            let words = match place.strip_prefix("QED header field ")? {
                "magic" => "Image not in QED format",
                "cluster_size" => "QED cluster size is invalid",
                "table_size" => "QED table size is invalid",
                "image_size" => "QED image size is invalid",
                "l1_table_offset" | "header_size" => "QED table offset is invalid",
                _ => return None,
            };
            Some(words.to_string())
        }
        Error::Unsupported { what, .. } => {
            let bits = what.strip_prefix("QED header field features: unknown bits 0x")?;
            Some(format!("Unsupported QED features: {bits}"))
        }
        _ => None,
    }
}

/// Which field, which value, what is wrong: for a header that is a QED header, but a broken one.
fn detail(error: &Error) -> Option<String> {
    match error {
        Error::Corrupt { place, value, what, .. } if !place.ends_with("magic") => {
            Some(format!("{place} = {value:#x}: {what}"))
        }
        _ => None,
    }
}

fn file_of(error: &Error) -> Option<&Path> {
    match error {
        Error::Unsupported { path, .. }
        | Error::Corrupt { path, .. }
        | Error::Device { path, .. }
        | Error::NoSpace { path }
        | Error::Poisoned { path }
        | Error::Locked { path, .. }
        | Error::Io { path, .. }
            if !path.as_os_str().is_empty() =>
        {
            Some(path)
        }
        _ => None,
    }
}

/// Said when an image is opened for writing that nobody called raw.
pub fn warn_about_probing(path: &Path) {
    eprintln!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
        path.display()
    );
}

/// Ends a command with the reason why its image could not be opened.
pub fn could_not_open(path: &Path, error: &Error) -> ExitCode {
    let text = format!("Could not open '{}': {}", path.display(), why_not_opened(path, error));
    match detail(error).filter(|_| qemus_words(error).is_some()) {
        Some(detail) => fail(format!("{text} ({detail})")),
        None => fail(text),
    }
}
