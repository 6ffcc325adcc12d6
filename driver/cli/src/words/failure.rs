//! Failures in words: what went wrong, with which file, on stderr.
//!
//! Knows: the driver's errors, the name that the program was called by. Must never know: how to recover.

use crate::out::{fail, program};
use crate::words::errno::strerror;
use quod::{Bitmaps, DiskInfo, Error, Format, Named, Role};
use quod_tools as tools;
use std::path::Path;
use std::process::ExitCode;

/// Why an image could not be opened, in QEMU's words where it has some.
pub fn why_not_opened(path: &Path, error: &Error) -> String {
    let text = match error {
        Error::Io { path: file, op: quod::error::OPEN_DIRECT, .. } => {
            format!("Could not open '{}': filesystem does not support O_DIRECT", file.display())
        }
        Error::Io { path: file, errno, .. } if !file.as_os_str().is_empty() => {
            let hint = if *errno == libc::ENOENT { namesake(path, file) } else { None };
            format!("Could not open '{}': {}{}", file.display(), strerror(*errno), hint.unwrap_or_default())
        }
        Error::Locked { path: file, lock } => {
            format!("Failed to get \"{lock}\" lock\nIs another process using the image [{}]?", file.display())
        }
        Error::Foreign { path: file, format } => {
            let raw = match file == path {
                true => "'-f raw' takes its bytes as they are",
                false => "an image that names its backing format 'raw' takes its bytes as they are",
            };
            let (file, format) = (file.display(), format.name());
            format!("'{file}' is a {format} image; quod reads raw, qed and qcow2, and {raw}")
        }
        other => qemus_words(other).unwrap_or_else(|| other.to_string()),
    };
    match file_of(error) {
        Some(file) if file != path && !is_data_file(path, file) => {
            format!("Could not open backing file: {text}")
        }
        _ => text,
    }
}

/// A name that led to nothing from the working directory would have led to a file from the image's folder.
fn namesake(image: &Path, file: &Path) -> Option<String> {
    let beside = image.parent()?.join(file);
    let other = file != image && !file.is_absolute() && beside != file && beside.exists();
    other.then(|| format!(" (it starts at the working directory; '{}' is another file)", beside.display()))
}

/// Is it the file that the image's guest data is in?
fn is_data_file(image: &Path, file: &Path) -> bool {
    let named = tools::info(image, None, true).ok().and_then(|info| info.info.data_file);
    named.is_some_and(|name| Named { image, name: &name, role: Role::Data }.path().as_deref() == Some(file))
}

/// What QEMU says of a header that contradicts its format. It names no field and no value.
fn qemus_words(error: &Error) -> Option<String> {
    match error {
        Error::Corrupt { place, value, what, .. } if place.starts_with("qcow2 ") => {
            qcow2_words(place, *value, what)
        }
        Error::Unsupported { what, .. } if what.starts_with("qcow2 ") || what.starts_with("a qcow2 ") => {
            qcow2_lacks(what)
        }
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
        Error::Unsupported { what, .. } if what.starts_with("the backing format ") => {
            let name = what.split('"').nth(1)?;
            Some(format!("Could not open backing file: Unknown driver '{name}'"))
        }
        Error::Unsupported { what, .. } => {
            let bits = what.strip_prefix("QED header field features: unknown bits 0x")?;
            Some(format!("Unsupported QED features: {bits}"))
        }
        _ => None,
    }
}

fn qcow2_words(place: &str, value: u64, what: &str) -> Option<String> {
    let table = |name: &str| {
        let large = what.ends_with("too large");
        format!("{name} {}", if large { "too large" } else { "offset invalid" })
    };
    let words = match place.strip_prefix("qcow2 header ")? {
        "field magic" => "Image is not in qcow2 format",
        "field cluster_bits" if !what.starts_with("is too small") => {
            return Some(format!("Unsupported cluster size: 2^{value}"));
        }
        "field header_length" if value < 104 => "qcow2 header too short",
        "field header_length" => "qcow2 header exceeds cluster size",
        "field backing_file_offset" => "Invalid backing file offset",
        "field backing_file_size" => "Backing file name too long",
        "field compression_type" if value == 0 => {
            "qcow2: Compression type incompatible feature bit must not be set"
        }
        "field compression_type" => "qcow2: Compression type incompatible feature bit must be set",
        "field incompatible_features" => "qcow2: Image is corrupt; cannot be opened read/write",
        "field refcount_order" => "Reference count entry width too large; may not exceed 64 bits",
        "field refcount_table_clusters" => "Image does not contain a reference count table",
        "field refcount_table_offset" => return Some(table("Reference count table")),
        "field snapshots_offset" => return Some(table("Snapshot table")),
        "field l1_table_offset" => return Some(table("Active L1 table")),
        "field l1_size" => "L1 table is too small",
        "field size" => "Image is too big",
        "extension" => "Header extension too large",
        _ => return None,
    };
    Some(words.to_string())
}

fn qcow2_lacks(what: &str) -> Option<String> {
    if let Some(version) = what.strip_prefix("qcow2 version ") {
        return Some(format!("Unsupported qcow2 version {version}"));
    }
    if let Some(kind) = what.strip_prefix("qcow2 compression type ") {
        return Some(format!("qcow2: unknown compression type: {kind}"));
    }
    if what.ends_with("external data file that the header does not name") {
        return Some("'data-file' is required for this image".into());
    }
    let features = what.strip_prefix("qcow2 feature(s): ")?;
    let features = features.replace("unknown incompatible bits 0x", "Unknown incompatible feature: ");
    Some(format!("Unsupported qcow2 feature(s): {features}"))
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
        | Error::Foreign { path, .. }
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
    complain!(
        "WARNING: Image format was not specified for '{}' and probing guessed raw.\n         \
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be \
         restricted.\n         Specify the 'raw' format explicitly to remove the restrictions.",
        path.display()
    );
}

/// Said before an image is changed for the first time, if that ends bitmaps that were valid until now.
pub fn warn_about_bitmaps(path: &Path, bitmaps: &Bitmaps) {
    let names: Vec<String> = bitmaps
        .names
        .iter()
        .map(|name| format!("\"{}\"", String::from_utf8_lossy(name).escape_debug()))
        .collect();
    let several = bitmaps.valid > 1;
    let list = match (names.len() as u32, bitmaps.valid) {
        (0, valid) => format!("{valid} persistent bitmap{}", if several { "s" } else { "" }),
        (known, valid) => {
            let more = if known < valid { format!(" and {} more", valid - known) } else { String::new() };
            format!("the persistent bitmap{} {}{more}", if several { "s" } else { "" }, names.join(", "))
        }
    };
    let why = match bitmaps.dropped {
        true => "the image was not closed cleanly, and its repair makes",
        false => "changing the image makes",
    };
    complain!("{}: warning: '{}': {why} {list} inconsistent", program(), path.display());
}

/// The same of a disk that was just opened, which is about to be changed.
pub fn warn_of_change(path: &Path, disk: Option<&DiskInfo>) {
    if let Some(bitmaps) = disk.and_then(|disk| disk.layers.first()?.info.bitmaps.as_ref()) {
        warn_about_bitmaps(path, bitmaps);
    }
}

/// Ends a command with the reason why its image could not be opened.
pub fn could_not_open(path: &Path, error: &Error) -> ExitCode {
    let text = format!("Could not open '{}': {}", path.display(), why_not_opened(path, error));
    match detail(error).filter(|_| qemus_words(error).is_some()) {
        Some(detail) => fail(format!("{text} ({detail})")),
        None => fail(text),
    }
}

/// Rules of formats that QEMU has words of its own for.
pub fn resize_rule(format: Format, old: u64, new: u64) -> Option<&'static str> {
    match format {
        Format::Qed if !new.is_multiple_of(512) => Some("Invalid image size specified"),
        Format::Qed if new < old => Some("Shrinking images is currently not supported"),
        Format::Qcow2 if !new.is_multiple_of(512) => Some("The new size must be a multiple of 512"),
        _ => None,
    }
}
