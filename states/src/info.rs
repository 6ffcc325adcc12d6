//! What an image says of itself when it is opened.
//!
//! Knows: facts that headers state. Must never know: how they were read, or what they mean to the host.

use crate::qcow2::{self, Compression};
use crate::qed::Header;
use alloc::vec::Vec;

/// An image format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// No format: guest offset = host offset.
    Raw,
    /// QED.
    Qed,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// As qemu-img calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qed => "qed",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// What an image says about its backing file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backing {
    /// The name as it stands in the image: bytes, relative to the image's folder if relative.
    pub name: Vec<u8>,
    /// The format if the image names one; None: probe.
    pub format: Option<Format>,
    /// The format's name as it stands in the image. An image whose backing format is one that quod does not
    /// read is not opened: only the tool that describes images tells of it.
    pub format_name: Option<Vec<u8>>,
}

/// Persistent bitmaps of an image that is open for writing. Those that are enabled are kept up: they are in
/// use, in the file, from before the first change on, and stored when the image is closed or made quiet. Where
/// that cannot be (`kept`), and when the disk gets another size, all of them are made invalid, durably,
/// before anything else is written.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Bitmaps {
    /// How many are valid, as far as it is known.
    pub valid: u32,
    /// Their names, as far as they are known: those in the first 64 KiB of the directory.
    pub names: Vec<Vec<u8>>,
    /// The opening itself had to repair the image, which was dirty: they are invalid already.
    pub dropped: bool,
    /// Those that are enabled are kept up while the image is written: the directory has 64 KiB at most, and
    /// the bits of each of them 32 MiB.
    pub kept: bool,
}

/// Facts about an open image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    /// Its format.
    pub format: Format,
    /// Size of the guest disk, bytes: whole sectors. As QEMU counts them, a part of one at the end is shown
    /// of a raw file, and not of a qcow2 image.
    pub virtual_size: u64,
    /// Bytes; 0 for raw.
    pub cluster_size: u32,
    /// Bytes that have space of their own, or have not: a cluster, or one of its subclusters; 0 for raw.
    pub unit: u32,
    /// Clusters of a table (QED: 1 to 16); 0 if the format does not choose.
    pub table_size: u32,
    /// The version of its format (qcow2: 2 or 3); 0 if the format has no versions.
    pub version: u32,
    /// The need-check or dirty bit stood in the header when it was opened.
    pub dirty: bool,
    /// Its backing file.
    pub backing: Option<Backing>,
    /// How its compressed clusters are compressed (qcow2).
    pub compression: Compression,
    /// Its persistent bitmaps, if it has valid ones and is open for writing (qcow2).
    pub bitmaps: Option<Bitmaps>,
    /// The external data file that holds its guest data (qcow2): the name as it stands in the image, as for
    /// the backing file; of no bytes if the image names none.
    pub data_file: Option<Vec<u8>>,
    /// The data file is the guest disk byte for byte, also without the image.
    pub data_file_raw: bool,
}

impl Info {
    /// Of a raw file of this length: its last sector is whole.
    #[doc(hidden)]
    pub const fn of_raw(file_len: u64) -> Info {
        Info {
            format: Format::Raw,
            virtual_size: file_len.next_multiple_of(512),
            cluster_size: 0,
            unit: 0,
            table_size: 0,
            version: 0,
            dirty: false,
            backing: None,
            compression: Compression::Deflate,
            bitmaps: None,
            data_file: None,
            data_file_raw: false,
        }
    }

    /// Of a QED image with this header and this name of a backing file, which stands beside the header.
    #[doc(hidden)]
    pub fn of_qed(header: &Header, backing: Option<&[u8]>) -> Info {
        let format = header.backing_raw().then_some(Format::Raw);
        let format_name = format.map(|format| format.name().as_bytes().to_vec());
        // a name of no bytes is no backing file, as for QEMU
        let name = backing.filter(|name| !name.is_empty());
        debug_assert!(name.is_none() || header.backing_name().is_some(), "the header says that there is one");
        Info {
            format: Format::Qed,
            virtual_size: header.image_size,
            cluster_size: header.cluster_size,
            unit: header.cluster_size,
            table_size: header.table_size,
            dirty: header.need_check(),
            backing: name.map(|name| Backing { name: name.to_vec(), format, format_name }),
            ..Info::of_raw(0)
        }
    }

    /// Of a qcow2 image with this header.
    #[doc(hidden)]
    pub fn of_qcow2(header: &qcow2::Header) -> Info {
        let format_name = header.backing_format().map(<[u8]>::to_vec);
        let format = match header.backing_format() {
            Some(b"raw" | b"file" | b"host_device") => Some(Format::Raw),
            Some(b"qed") => Some(Format::Qed),
            Some(b"qcow2") => Some(Format::Qcow2),
            _ => None,
        };
        let backing = header.backing();
        let unit = (1 << header.cluster_bits) / if header.shape().extended { 32 } else { 1 };
        debug_assert!(unit >= 512, "smaller subclusters were refused");
        Info {
            format: Format::Qcow2,
            virtual_size: header.guest_size(),
            cluster_size: 1 << header.cluster_bits,
            unit,
            table_size: 0,
            version: header.version,
            dirty: header.is_dirty(),
            backing: backing.map(|name| Backing { name: name.to_vec(), format, format_name }),
            compression: header.compression,
            bitmaps: None,
            data_file: header.has_data_file().then(|| header.data_file().unwrap_or_default().to_vec()),
            data_file_raw: header.data_file_raw(),
        }
    }
}
