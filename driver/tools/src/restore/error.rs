//! What came of putting metadata back, and why it was not.
//!
//! Knows: the words of both. Must never know: how it is done.

use quod::{Error, Format};
use std::io;

/// What was put back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Restored {
    /// Bytes that the text says otherwise than the image did.
    pub bytes: u64,
    /// Runs of them.
    pub places: u64,
}

/// Why a text does not fit an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfit {
    /// The text is of a file of so many bytes, and this one has others.
    Length {
        /// What the text says.
        text: u64,
        /// What the file has.
        file: u64,
    },
    /// The text is of one format, and the image of another.
    Format {
        /// What the text says.
        text: Format,
        /// What the image is.
        image: Format,
    },
    /// Both headers are sound, and the disks have other sizes or clusters.
    Disk,
}

/// Why metadata was not put back. Nothing was written, unless it is `Image`.
#[derive(Debug)]
pub enum RestoreError {
    /// The image could not be opened, read or written.
    Image(Error),
    /// The text could not be read.
    Text(io::Error),
    /// A line of the text makes no sense.
    Line(u64, TextFault),
    /// The text is of another image; [`force`](crate::RestoreOptions::force) puts it there nevertheless.
    Unfit(Unfit),
    /// There is no place for what is to be written, before it is.
    Spool(io::Error),
}

impl From<Error> for RestoreError {
    fn from(error: Error) -> RestoreError {
        RestoreError::Image(error)
    }
}

/// What is wrong with a line of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TextFault {
    /// The text is none of a dump, or of another version.
    NoDump,
    /// It says no format that quod dumps.
    Format,
    /// It says no length of the file.
    Length,
    /// It has more bytes than any line has.
    TooLong,
    /// It is not UTF-8, or its words are none.
    Words,
    /// There is no section of this kind.
    Section,
    /// It stands in no section.
    Outside,
    /// A field is not told as fields are.
    Field,
    /// An entry is not told as its section's are.
    Entry,
    /// It is about bytes or entries that its section does not have.
    Beyond,
    /// Its index is not behind that of the line before.
    Order,
    /// The value does not fit the entry.
    TooLarge,
    /// The section goes beyond the file.
    BeyondFile,
    /// The text ends before its last line: it was cut off.
    CutOff,
}

impl std::fmt::Display for TextFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            TextFault::NoDump => "this is no text of 'quod dump', or of another version of it",
            TextFault::Format => "no format is named (qed or qcow2)",
            TextFault::Length => "no length of the file is named",
            TextFault::TooLong => "is too long",
            TextFault::Words => "cannot be read",
            TextFault::Section => "there is no such section",
            TextFault::Outside => "stands in no section",
            TextFault::Field => "a field is OFFSET NAME VALUE",
            TextFault::Entry => "an entry is INDEX[..INDEX] VALUE",
            TextFault::Beyond => "is not in its section",
            TextFault::Order => "is not behind the line before it",
            TextFault::TooLarge => "the value does not fit",
            TextFault::BeyondFile => "the section goes beyond the file",
            TextFault::CutOff => "the text ends without its last line, 'end'",
        })
    }
}

impl std::fmt::Display for RestoreError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RestoreError::Image(error) => write!(f, "{error}"),
            RestoreError::Text(error) => write!(f, "the text could not be read: {error}"),
            RestoreError::Line(line, why) => write!(f, "line {line} of the text: {why}"),
            RestoreError::Unfit(Unfit::Length { text, file }) => {
                write!(f, "the text is of a file of {text} bytes, and this one has {file}")
            }
            RestoreError::Unfit(Unfit::Format { text, image }) => {
                write!(f, "the text is of a {} image, and this one is {}", text.name(), image.name())
            }
            RestoreError::Unfit(Unfit::Disk) => {
                f.write_str("the text is of an image with another disk: its size or its clusters differ")
            }
            RestoreError::Spool(error) => write!(f, "no temporary file for what is to be written: {error}"),
        }
    }
}

impl std::error::Error for RestoreError {}
