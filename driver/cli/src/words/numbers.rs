//! Numbers as C reads them.
//!
//! Knows: digits. Must never know: what is counted.

/// A number as C's strtol reads it: 0x hexadecimal, 0 octal, nothing behind it.
pub fn c_integer(text: &str) -> Option<i64> {
    let text = text.trim_start();
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let value = match lower.strip_prefix("0x") {
        Some(hex) => i64::from_str_radix(hex, 16),
        None if lower.starts_with('0') && lower.len() > 1 => i64::from_str_radix(&lower, 8),
        None if lower.starts_with(['+', '-']) => return None,
        None => lower.parse(),
    };
    value.ok().map(|value| if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_as_c_reads_them() {
        assert_eq!(["0x55", "010", "-1", "7", "0", "+3"].map(c_integer), [85, 8, -1, 7, 0, 3].map(Some));
        assert_eq!(["", "x", "5k", "1.5", "--", "08", "0x", "++1"].map(c_integer), [None; 8]);
    }
}
