//! Formats by name.
//!
//! Knows: the names on the command line. Must never know: how a format is laid out.

use quod::Format;

/// The format of this name; formats that quod does not do are refused by name.
pub fn parse(name: &str) -> Result<Format, String> {
    match name {
        "raw" => Ok(Format::Raw),
        "qed" => Ok(Format::Qed),
        "qcow2" => Ok(Format::Qcow2),
        other => Err(format!("Unknown driver '{other}'")),
    }
}

/// Its name.
pub fn name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qed => "qed",
        Format::Qcow2 => "qcow2",
    }
}

/// How `info`, `check` and `map` answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Human,
    /// For programs.
    Json,
}
