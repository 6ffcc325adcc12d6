//! The options that `-o` takes, format by format: names, kinds, defaults, in the order in which QEMU prints
//! them.
//!
//! Knows: texts of options and QEMU's complaints about them. Must never know: what an option does to an
//! image.
//! Invariant: what a kind accepts was checked when a value is asked for.

use crate::words::keyval;
use crate::words::sizes::option as size;
use quod::Format;

/// What the value of an option is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OptionKind {
    Text,
    Size,
    Number,
    Switch,
    /// QEMU has it, quod does not.
    Refused,
}

/// One option.
struct Desc {
    name: &'static str,
    kind: OptionKind,
    /// What is printed, and meant, when nothing is said.
    default: Option<&'static str>,
    help: &'static str,
}

const fn desc(
    name: &'static str,
    kind: OptionKind,
    default: Option<&'static str>,
    help: &'static str,
) -> Desc {
    Desc { name, kind, default, help }
}

const SIZE: Desc = desc("size", OptionKind::Size, None, "Virtual disk size");
const BACKING_FILE: Desc = desc("backing_file", OptionKind::Text, None, "File name of a base image");
const BACKING_FMT: Desc = desc("backing_fmt", OptionKind::Text, None, "Image format of the base image");
const NOCOW: Desc = desc("nocow", OptionKind::Refused, None, "");
const EXTENT_SIZE_HINT: Desc = desc("extent_size_hint", OptionKind::Size, None, "");

/// How far deflate refers back, where clusters are written compressed: full or compat.
pub const WINDOW: &str = "compression_window";

const RAW: &[Desc] = &[SIZE, desc("preallocation", OptionKind::Text, None, ""), NOCOW, EXTENT_SIZE_HINT];

const QED: &[Desc] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FMT,
    desc("cluster_size", OptionKind::Size, Some("65536"), "Cluster size (in bytes)"),
    desc("table_size", OptionKind::Size, None, "L1/L2 table size (in clusters)"),
    NOCOW,
    EXTENT_SIZE_HINT,
];

const QCOW2: &[Desc] = &[
    desc("encryption", OptionKind::Refused, None, ""),
    desc("encrypt.format", OptionKind::Refused, None, ""),
    desc("encrypt.key-secret", OptionKind::Refused, None, ""),
    desc("encrypt.cipher-alg", OptionKind::Refused, None, ""),
    desc("encrypt.cipher-mode", OptionKind::Refused, None, ""),
    desc("encrypt.ivgen-alg", OptionKind::Refused, None, ""),
    desc("encrypt.ivgen-hash-alg", OptionKind::Refused, None, ""),
    desc("encrypt.hash-alg", OptionKind::Refused, None, ""),
    desc("encrypt.iter-time", OptionKind::Refused, None, ""),
    desc("cluster_size", OptionKind::Size, Some("65536"), "qcow2 cluster size"),
    desc("extended_l2", OptionKind::Switch, Some("off"), "Extended L2 tables"),
    desc(
        "preallocation",
        OptionKind::Text,
        None,
        "Preallocation mode (allowed values: off, metadata, falloc, full)",
    ),
    desc(
        "compression_type",
        OptionKind::Text,
        Some("zlib"),
        "Compression method used for image cluster compression",
    ),
    // ours, of `convert -c` alone: how far back what is written refers
    desc(WINDOW, OptionKind::Text, None, ""),
    SIZE,
    desc("compat", OptionKind::Text, None, "Compatibility level (v2 [0.10] or v3 [1.1])"),
    BACKING_FILE,
    BACKING_FMT,
    desc("data_file", OptionKind::Text, None, "File name of an external data file"),
    desc("data_file_raw", OptionKind::Switch, None, "The external data file must stay valid as a raw image"),
    desc("lazy_refcounts", OptionKind::Switch, Some("off"), "Postpone refcount updates"),
    desc("refcount_bits", OptionKind::Number, Some("16"), "Width of a reference count entry in bits"),
    NOCOW,
    EXTENT_SIZE_HINT,
];

const fn descs(format: Format) -> &'static [Desc] {
    match format {
        Format::Raw => RAW,
        Format::Qed => QED,
        Format::Qcow2 => QCOW2,
    }
}

/// What `-o help` prints: the options that quod does, by name.
pub fn help(format: Format) -> String {
    let mut descs: Vec<&Desc> = descs(format).iter().filter(|desc| !desc.help.is_empty()).collect();
    descs.sort_by_key(|desc| desc.name);
    let mut text = format!("Supported {} options:\n", format.name());
    for Desc { name, kind, help, .. } in descs {
        let kind = match kind {
            OptionKind::Text | OptionKind::Refused => "str",
            OptionKind::Size => "size",
            OptionKind::Number => "num",
            OptionKind::Switch => "bool (on/off)",
        };
        let shape = format!("{name}=<{kind}>");
        text += &format!("  {shape:<22} - {help}\n");
    }
    text
}

/// Why options are refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// The list is no list.
    List(String),
    /// One option is wrong.
    Item(String),
}

/// The options of one image.
#[derive(Clone, Debug)]
pub struct Values {
    format: Format,
    /// Of an option that was given twice, the last one counts.
    given: Vec<(&'static str, String)>,
}

impl Values {
    /// Nothing said.
    pub fn new(format: Format) -> Values {
        Values { format, given: Vec::new() }
    }

    /// Adds the options of one list.
    pub fn read(&mut self, list: &str) -> Result<(), Refused> {
        for (name, value) in keyval::parse(list).ok_or_else(|| Refused::List(list.to_string()))? {
            self.add(&name, value).map_err(Refused::Item)?;
        }
        Ok(())
    }

    /// Is there an option of this name?
    pub fn knows(&self, name: &str) -> bool {
        descs(self.format).iter().any(|desc| desc.name == name)
    }

    /// Adds one option.
    pub fn add(&mut self, name: &str, value: String) -> Result<(), String> {
        let desc = descs(self.format).iter().find(|desc| desc.name == name);
        let desc = desc.ok_or_else(|| format!("Invalid parameter '{name}'"))?;
        match desc.kind {
            OptionKind::Text => {}
            OptionKind::Size => drop(size(name, &value)?),
            OptionKind::Number => drop(number(name, &value)?),
            OptionKind::Switch => drop(switch(name, &value)?),
            OptionKind::Refused => return Err(format!("The option '{name}' is not supported")),
        }
        self.set(desc.name, value);
        Ok(())
    }

    /// Sets an option that the command line has a word of its own for.
    pub fn set(&mut self, name: &'static str, value: String) {
        self.given.retain(|(known, _)| *known != name);
        self.given.push((name, value));
    }

    /// What was said, or else the default.
    pub fn text(&self, name: &str) -> Option<&str> {
        let given = self.given.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_str());
        given.or_else(|| {
            descs(self.format).iter().find(|desc| desc.name == name).and_then(|desc| desc.default)
        })
    }

    /// A size in bytes.
    pub fn size(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|text| size(name, text).ok())
    }

    /// A number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.text(name).and_then(|text| number(name, text).ok())
    }

    /// On or off; off when nothing is said.
    pub fn switch(&self, name: &str) -> bool {
        self.text(name).and_then(|text| switch(name, text).ok()).unwrap_or(false)
    }

    /// The options as the line "Formatting ..." has them.
    pub fn announce(&self) -> String {
        let mut line = String::new();
        for Desc { name, kind, .. } in descs(self.format) {
            let Some(text) = self.text(name) else { continue };
            let value = match kind {
                // as it would be typed: commas doubled
                OptionKind::Text => text.replace(',', ",,"),
                OptionKind::Size => self.size(name).unwrap_or(0).to_string(),
                // QEMU prints it with a sign
                OptionKind::Number => (self.number(name).unwrap_or(0) as i64).to_string(),
                OptionKind::Switch | OptionKind::Refused => text.to_string(),
            };
            line += &format!(" {name}={value}");
        }
        line
    }
}

/// A number as C's strtoull reads it: 0x hexadecimal, 0 octal, a sign wraps around.
fn number(name: &str, text: &str) -> Result<u64, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, radix) = match (lower.strip_prefix("0x"), lower.strip_prefix('0')) {
        (Some(hex), _) => (hex, 16),
        (None, Some(rest)) if !rest.is_empty() => (rest, 8),
        _ => (lower.as_str(), 10),
    };
    if digits.is_empty() || !digits.chars().all(|digit| digit.is_digit(radix)) {
        return Err(format!("Parameter '{name}' expects a number"));
    }
    let value = u64::from_str_radix(digits, radix)
        .map_err(|_| format!("Value '{text}' is too large for parameter '{name}'"))?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

fn switch(name: &str, text: &str) -> Result<bool, String> {
    match text {
        "on" | "yes" | "true" | "y" => Ok(true),
        "off" | "no" | "false" | "n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_as_c_reads_them() {
        let read = |text: &str| number("n", text).ok();
        assert_eq!(
            ["16", "0x10", "010", "-1", "+2", "0"].map(read),
            [Some(16), Some(16), Some(8), Some(u64::MAX), Some(2), Some(0)]
        );
        assert_eq!(["", "x", "16k", "1.5", "09", "0x"].map(read), [None; 6]);
    }

    #[test]
    fn the_last_word_counts() {
        let mut values = Values::new(Format::Qcow2);
        values.read("lazy_refcounts,cluster_size=4k").unwrap();
        assert!(values.switch("lazy_refcounts") && !values.switch("extended_l2"));
        values.read("lazy_refcounts=off,backing_file=a,,b").unwrap();
        assert!(!values.switch("lazy_refcounts"));
        assert_eq!((values.size("cluster_size"), values.text("backing_file")), (Some(4096), Some("a,b")));
        assert!(values.announce().contains(" backing_file=a,,b lazy_refcounts=off refcount_bits=16"));
    }
}
