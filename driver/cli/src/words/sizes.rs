//! Sizes as text: parsing with units (b k K M G T P E, 1024 based) and printing, as QEMU's tools do both.
//!
//! Knows: decimal numbers, fractions, hexadecimal, units. Must never know: what a size is for.
//! Invariant: what is parsed fits an i64, because offsets of files do.

/// Why a text is no size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SizeError {
    /// Not a number, or something behind it that is no unit.
    NotANumber,
    /// Negative, or beyond i64.
    OutOfRange,
}

/// Parses `1536`, `1.5k`, `0x600`; a unit is a power of 1024, and a fraction needs one. No exponent,
/// no sign but `+`.
pub fn parse(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim_start();
    if let Some(rest) = trimmed.strip_prefix('-') {
        // a plain negative number is out of range; anything else was no number to begin with
        let plain = !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit());
        return Err(if plain { SizeError::OutOfRange } else { SizeError::NotANumber });
    }
    let unsigned = trimmed.strip_prefix('+').unwrap_or(trimmed);
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        return parse_hex(hex);
    }
    parse_decimal(unsigned)
}

/// The value of an option; refused in QEMU's words.
pub fn option(name: &str, text: &str) -> Result<u64, String> {
    let hint = "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
                and exabytes, respectively.";
    let negative = text.strip_prefix('-').and_then(|rest| rest.parse::<u64>().ok()).is_some();
    parse(text).map_err(|error| match error {
        SizeError::OutOfRange if negative => format!("Value '{text}' is out of range for parameter '{name}'"),
        _ => format!("Parameter '{name}' expects a non-negative number below 2^64\n{hint}"),
    })
}

fn parse_hex(digits: &str) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(SizeError::NotANumber);
    }
    u64::from_str_radix(digits, 16).ok().filter(|&value| fits(value)).ok_or(SizeError::OutOfRange)
}

fn parse_decimal(text: &str) -> Result<u64, SizeError> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let (number, unit) = text.split_at(text.find(|c| !is_number(c)).unwrap_or(text.len()));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return Err(SizeError::NotANumber);
    }
    let shift = match unit {
        "" | "b" | "B" => 0,
        _ => unit_shift(unit).ok_or(SizeError::NotANumber)?,
    };
    let has_fraction = fraction.bytes().any(|byte| byte != b'0');
    if has_fraction && shift == 0 {
        return Err(SizeError::NotANumber);
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| SizeError::OutOfRange)? };
    let scaled = u128::from(whole) << shift;
    let part = if has_fraction { scale_fraction(fraction, shift) } else { 0 };
    u64::try_from(scaled + part).ok().filter(|&value| fits(value)).ok_or(SizeError::OutOfRange)
}

fn unit_shift(unit: &str) -> Option<u32> {
    let mut letters = unit.chars();
    let place = "kmgtpe".find(letters.next()?.to_ascii_lowercase())?;
    letters.next().is_none().then_some(10 * (place as u32 + 1))
}

/// `0.<digits>` times 2^shift, to the nearest. Digits beyond the 18th change nothing that an i64 can show.
fn scale_fraction(digits: &str, shift: u32) -> u128 {
    let mut numerator: u128 = 0;
    let mut denominator: u128 = 1;
    for digit in digits.bytes().take(18) {
        numerator = numerator * 10 + u128::from(digit - b'0');
        denominator *= 10;
    }
    ((numerator << shift) + denominator / 2) / denominator
}

fn fits(value: u64) -> bool {
    i64::try_from(value).is_ok()
}

/// `64 KiB`, `1.500 GiB`, `512 bytes`: three decimals, none if they are zero. Given as a float
/// because rates are.
pub fn short(value: f64) -> String {
    const UNITS: [(&str, u32); 6] =
        [("EiB", 60), ("PiB", 50), ("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        let scale = (1u64 << shift) as f64;
        if value >= scale {
            return format!("{} {unit}", without_zeros(format!("{:.3}", value / scale)));
        }
    }
    format!("{} bytes", without_zeros(format!("{value:.6}")))
}

fn without_zeros(number: String) -> String {
    match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|byte| byte == b'0') => whole.to_string(),
        _ => number,
    }
}

/// `64 KiB`, `1.36 TiB`, `0 B`: three significant digits, as `info` prints sizes.
pub fn rounded(value: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // the next unit starts at 1000, so that three digits are enough
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 1000.0 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{} {}", three_digits(scaled), UNITS[unit])
}

/// C's `%0.3g` for 0 and for values from 0.9 up to 1024.
fn three_digits(value: f64) -> String {
    let decimals = match value {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_what_qemu_io_parses() {
        let good = [
            ("0x10", 16),
            ("1.5k", 1536),
            (".5k", 512),
            ("5.", 5),
            ("5.k", 5120),
            ("+5", 5),
            (" 5", 5),
            ("08", 8),
            ("1.0", 1),
            ("1.0b", 1),
            ("1B", 1),
            ("1.1k", 1126),
            ("3.7k", 3789),
            ("1.9999k", 2048),
            ("0x1b", 27),
            ("0X1f", 31),
            ("1.0000000001k", 1024),
            ("0.0009765625k", 1),
            ("7E", 7 << 60),
            ("1m", 1 << 20),
            ("9223372036854775807", i64::MAX as u64),
            ("2147483137", 2147483137),
            ("1T", 1 << 40),
            ("1p", 1 << 50),
        ];
        for (text, value) in good {
            assert_eq!(parse(text), Ok(value), "{text}");
        }
        let not = [
            "", "x", ".", ".b", "k", "1x", "1kk", "1kB", "1KiB", "1e3", "1.5", "0.5b", "1.1b", "0x", "0xg",
            "0x1.8k", "0x10k", "0x1p", "inf", "nan", "--", "0b10", "-1k", "00x5", "1,5k", "1s", "1.2.3k",
        ];
        for text in not {
            assert_eq!(parse(text), Err(SizeError::NotANumber), "{text}");
        }
        let large = [
            "8E",
            "9223372036854775808",
            "18446744073709551616",
            "0x8000000000000000",
            "-1",
            "-0",
            "16777216T",
        ];
        for text in large {
            assert_eq!(parse(text), Err(SizeError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn prints_what_qemu_io_prints() {
        let table = [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (1000448.0, "977 KiB"),
            (1049088.0, "1 MiB"),
            (1572864.0, "1.500 MiB"),
            (1.5e12, "1.364 TiB"),
            (i64::MAX as f64, "8 EiB"),
            (0.387474, "0.387474 bytes"),
        ];
        for (value, text) in table {
            assert_eq!(short(value), text);
        }
        let table = [
            (0, "0 B"),
            (512, "512 B"),
            (1000, "0.977 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1049088, "1 MiB"),
            (1_500_000_000_000, "1.36 TiB"),
            (102400, "100 KiB"),
            (593920, "580 KiB"),
            (999 << 10, "999 KiB"),
            (1 << 50, "1 PiB"),
        ];
        for (value, text) in table {
            assert_eq!(rounded(value), text, "{value}");
        }
    }

    proptest! {
        #[test]
        fn plain_numbers_are_themselves(value in 0..=i64::MAX as u64) {
            prop_assert_eq!(parse(&value.to_string()), Ok(value));
            prop_assert_eq!(parse(&format!("{value:#x}")), Ok(value));
        }

        #[test]
        fn units_are_powers_of_1024(value in 0u64..8, unit in 0usize..6) {
            let text = format!("{value}{}", ["k", "M", "g", "T", "P", "e"][unit]);
            prop_assert_eq!(parse(&text), Ok(value << (10 * (unit + 1))));
        }

        #[test]
        fn fractions_of_a_unit_are_the_nearest_byte(numerator in 0u64..10_000_000) {
            let text = format!("0.{numerator:07}G");
            let exact = numerator as f64 * 1e-7 * f64::from(1u32 << 30);
            let parsed = parse(&text).unwrap();
            prop_assert!((parsed as f64 - exact).abs() <= 0.500001, "{} {}", parsed, exact);
        }

        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = parse(&text);
        }

        #[test]
        fn what_is_printed_is_short(value in 0u64..) {
            prop_assert!(short(value as f64).len() <= 12);
            prop_assert!(rounded(value).len() <= 9);
        }
    }
}
