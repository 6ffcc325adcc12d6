//! Words and numbers of the two measuring command lines, turned into values.
//!
//! Knows: text. Must never know: which command it came from.

use quod::{BackendKind, Format, Gate};

/// `image`, `new-table`, `table` or `cluster`.
pub fn gate(text: &str) -> Result<Gate, String> {
    match text {
        "image" => Ok(Gate::Image),
        "new-table" => Ok(Gate::NewTable),
        "table" => Ok(Gate::Table),
        "cluster" => Ok(Gate::Cluster),
        _ => Err(format!("'{text}' is not a gate: image, new-table, table or cluster")),
    }
}

/// The word of a gate.
pub fn gate_name(gate: Gate) -> &'static str {
    match gate {
        Gate::Image => "image",
        Gate::NewTable => "new-table",
        Gate::Table => "table",
        Gate::Cluster => "cluster",
    }
}

/// `auto`, `uring` or `threads`.
pub fn backend(text: &str) -> Result<BackendKind, String> {
    match text {
        "auto" => Ok(BackendKind::Auto),
        "uring" => Ok(BackendKind::Uring),
        "threads" => Ok(BackendKind::Threads),
        _ => Err(format!("'{text}' is not a backend: auto, uring or threads")),
    }
}

/// `raw`, `qed` or `qcow2`.
pub fn format(text: &str) -> Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qed" => Ok(Format::Qed),
        "qcow2" => Ok(Format::Qcow2),
        _ => Err(format!("Unknown driver '{text}'")),
    }
}

/// The word of a format.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qed => "qed",
        Format::Qcow2 => "qcow2",
    }
}

/// A number as QEMU's tools take them, messages included: decimal or 0x..., with `suffixes` also a fraction and a
/// unit (b, k, M, G, T, P, E: powers of 1024).
pub fn number(what: &str, text: &str, min: u64, max: u64, suffixes: bool) -> Result<u64, String> {
    let out_of_range = || format!("Invalid {what} specified. Must be between {min} and {max}.");
    if text.len() > 1 && text.starts_with('-') && text[1..].bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(out_of_range());
    }
    let value = parse(text, suffixes).ok_or_else(|| format!("Invalid {what} specified: '{text}'."))?;
    u64::try_from(value).ok().filter(|value| (min..=max).contains(value)).ok_or_else(out_of_range)
}

/// Larger values than fit stop at the largest.
fn parse(text: &str, suffixes: bool) -> Option<u128> {
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return u64::from_str_radix(digits, 16).ok().map(u128::from);
    }
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, letter)) if suffixes && letter.is_ascii_alphabetic() => (&text[..at], unit(letter)?),
        _ => (text, 1),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !plain(whole) || !plain(fraction) || (digits.contains('.') && unit == 1) {
        return None;
    }
    let whole = whole.bytes().fold(0u128, |sum, digit| (sum * 10 + u128::from(digit - b'0')).min(1 << 64));
    let part = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse::<f64>().ok()? };
    Some((whole * unit).min(u128::MAX >> 2) + (part * unit as f64) as u128)
}

fn unit(letter: char) -> Option<u128> {
    let power = "bkmgtpe".find(letter.to_ascii_lowercase())?;
    Some(1 << (10 * power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_as_qemu_takes_them() {
        let size = |text| number("size", text, 0, i64::MAX as u64, true);
        for (text, value) in [
            ("0", 0),
            ("4096", 4096),
            ("1.5k", 1536),
            ("64K", 65536),
            ("1M", 1 << 20),
            ("0x10", 16),
            ("7b", 7),
        ] {
            assert_eq!(size(text), Ok(value));
        }
        for text in ["", "x", "k", "1Q", "1KB", "1.5", "1..5k", "0xg", "1 k", "-x"] {
            assert_eq!(size(text), Err(format!("Invalid size specified: '{text}'.")));
        }
        for text in ["-5", "8E", "99999999999999999999999999999999999999999999"] {
            assert_eq!(
                size(text),
                Err("Invalid size specified. Must be between 0 and 9223372036854775807.".into())
            );
        }
        assert_eq!(
            number("queue depth", "1k", 1, 9, false),
            Err("Invalid queue depth specified: '1k'.".into())
        );
    }

    #[test]
    fn names_are_read_back() {
        for gate_value in [Gate::Image, Gate::NewTable, Gate::Table, Gate::Cluster] {
            assert_eq!(gate(gate_name(gate_value)), Ok(gate_value));
        }
        for format_value in [Format::Raw, Format::Qed, Format::Qcow2] {
            assert_eq!(format(format_name(format_value)), Ok(format_value));
        }
        assert!(gate("").is_err() && backend("aio").is_err() && format("vmdk").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}", digits in "-?[0-9]{0,45}[.]?[0-9]{0,400}[a-zA-Z]?") {
            for text in [text, digits] {
                let _ = (number("x", &text, 1, 5, true), number("x", &text, 0, u64::MAX, false));
            }
        }
    }
}
