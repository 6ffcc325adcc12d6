//! What quod does not do.
//!
//! Knows: what opening and the tools are asked for. Must never know: what QEMU says of it.

use crate::gate::Role;
use quod_states::Format;
use quod_states::qcow2::Compression;
use std::fmt;

/// What quod does not do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Lack {
    /// What the image's format has, or may be asked for.
    Format(quod_states::Lack),
    /// To decompress: quod was built without this decoder, which is the feature `deflate` or `zstd`.
    Decoder(Compression),
    /// To find the data file of an image that does not name it.
    UnnamedDataFile,
    /// To open what is no file's name but a protocol's.
    Protocol {
        /// What the image names it for.
        role: Role,
        /// The name.
        name: String,
    },
    /// To create an image with a data file of this name, which is no file's.
    DataFileName(String),
    /// To change the backing file of a damaged image,
    RebaseDamaged,
    /// or of one of this format.
    Rebase(Format),
    /// To check a raw image.
    CheckRaw,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::Format(lack) => write!(f, "{lack}"),
            Lack::Decoder(kind) => {
                let feature = match kind {
                    Compression::Deflate => "deflate",
                    Compression::Zstd => "zstd",
                };
                write!(f, "compressed clusters: quod was built without its feature `{feature}`")
            }
            Lack::UnnamedDataFile => f.write_str("a qcow2 external data file that the header does not name"),
            Lack::Protocol { role, name } => {
                write!(f, "{} file '{name}' is not a file's name but a protocol's", role.name())
            }
            Lack::DataFileName(name) => write!(f, "the data file '{name}', which is no file's name"),
            Lack::RebaseDamaged => f.write_str("changing the backing file of a damaged image"),
            Lack::Rebase(format) => write!(f, "this for the format {}", format.name()),
            Lack::CheckRaw => f.write_str("checking the format raw"),
        }
    }
}
