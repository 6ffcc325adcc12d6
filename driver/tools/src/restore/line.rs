//! One line of a dump's text, taken apart.
//!
//! Knows: words, numbers, strings. Must never know: sections, the image.
//!
//! Invariant: any line is read or refused; none takes more memory than it has bytes.

/// What a field or an entry is said to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Value {
    /// A number of as many bytes as it has digits for two, the highest first.
    Number(Vec<u8>),
    /// Bytes as they stand in the file.
    Bytes(Vec<u8>),
    /// A decimal number.
    Decimal(u64),
    /// How far one entry is behind that before.
    Step(u64),
    /// Several indexes.
    Range(u64, u64),
    /// Any other word.
    Word(String),
}

/// The words of a line before its comment. None: it makes no sense.
pub(super) fn words(line: &str) -> Option<Vec<Value>> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let (value, behind) = match rest.strip_prefix('"') {
            Some(text) => string(text)?,
            None => {
                let end = rest.find([' ', '\t', '#']).unwrap_or(rest.len());
                (word(&rest[..end])?, &rest[end..])
            }
        };
        words.push(value);
        rest = behind.trim_start();
    }
    Some(words)
}

fn word(word: &str) -> Option<Value> {
    if let Some(hex) = word.strip_prefix("hex:") {
        return Some(Value::Bytes(bytes(hex)?));
    }
    if let Some(digits) = word.strip_prefix("0x") {
        // one digit too few is half a byte
        let even = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits.to_string() };
        return Some(Value::Number(bytes(&even).filter(|bytes| !bytes.is_empty())?));
    }
    if let Some(step) = word.strip_prefix("+0x") {
        return u64::from_str_radix(step, 16).ok().map(Value::Step);
    }
    if !word.starts_with(|first: char| first.is_ascii_digit()) {
        return Some(Value::Word(word.to_string()));
    }
    match word.split_once("..") {
        Some((first, last)) => Some(Value::Range(decimal(first)?, decimal(last)?)),
        None => decimal(word).map(Value::Decimal),
    }
}

fn decimal(digits: &str) -> Option<u64> {
    // no sign, which `parse` would take
    digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    let (pairs, odd) = hex.as_bytes().as_chunks::<2>();
    if !odd.is_empty() {
        return None;
    }
    pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect()
}

/// A string from behind its first quote, and what stands behind its last.
fn string(text: &str) -> Option<(Value, &str)> {
    let mut value = Vec::new();
    let mut rest = text;
    loop {
        let mut chars = rest.chars();
        match chars.next()? {
            '"' => return Some((Value::Bytes(value), chars.as_str())),
            '\\' => match chars.next()? {
                'x' => {
                    let hex = chars.as_str().get(..2)?;
                    value.extend(bytes(hex)?);
                    rest = &chars.as_str()[2..];
                    continue;
                }
                escaped @ ('"' | '\\') => value.push(escaped as u8),
                _ => return None,
            },
            other => value.extend(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        rest = chars.as_str();
    }
}

#[cfg(test)]
mod tests {
    use super::Value::*;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines() {
        let bytes = |bytes: &[u8]| Bytes(bytes.to_vec());
        assert_eq!(words("  # nothing"), Some(vec![]));
        assert_eq!(words("  5..7 0x1 +0x10#x"), Some(vec![Range(5, 7), Number(vec![1]), Step(16)]));
        assert_eq!(
            words("0x0102 zeros 12"),
            Some(vec![Number(vec![1, 2]), Word("zeros".into()), Decimal(12)])
        );
        assert_eq!(words("\"a#\\\"\\\\\\xff\" x # \""), Some(vec![bytes(b"a#\"\\\xff"), Word("x".into())]));
        assert_eq!(words("hex: hex:0aFf"), Some(vec![bytes(&[]), bytes(&[10, 255])]));
        for bad in [
            "\"",
            "\"\\",
            "\"\\x0\"",
            "\"\\xé\"",
            "\"\\n\"",
            "hex:0",
            "hex:zz",
            "0x",
            "0xg",
            "1..",
            "..",
            "1x",
            "+0x",
        ] {
            // two dots are a word, which no section knows
            assert_eq!(words(bad).is_none(), bad != "..", "{bad}");
        }
        assert_eq!(words("18446744073709551616"), None);
    }

    proptest! {
        #[test]
        fn any_line(line in ".{0,60}") {
            let _ = words(&line);
        }
    }
}
