//! What an image, or a request, asks for that quod does not do.
//!
//! Knows: the features by their bits and numbers. Must never know: whether QEMU does them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Why a persistent bitmap of an image cannot be added, changed or merged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BitmapLack {
    /// The format of this name has none,
    Format(&'static str),
    /// and neither has version 2 of qcow2.
    Version2,
    /// There is one of that name.
    Exists,
    /// It was not stored when the image was last written: nobody knows its bits.
    InUse,
    /// More bitmaps than an image may have, or a longer directory of them.
    TooMany,
    /// More bits than a bitmap may have: a bit has to stand for more.
    TooLarge,
    /// The disk has no byte that could change.
    EmptyDisk,
    /// The bits that are to be merged are those of a disk of another size: the image's, theirs.
    OtherSize(u64, u64),
    /// More bits than are merged at once.
    TooLargeToMerge,
    /// The first cluster has no room for where the bitmaps lie, beside its name of a backing file.
    HeaderFull,
}

impl fmt::Display for BitmapLack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BitmapLack::Format(format) => write!(f, "the format {format} has no persistent bitmaps"),
            BitmapLack::Version2 => f.write_str("version 2 of qcow2 has no persistent bitmaps"),
            BitmapLack::Exists => f.write_str("the image has a bitmap of that name"),
            BitmapLack::InUse => f.write_str(
                "the bitmap was not stored when the image was last written: it can only be removed",
            ),
            BitmapLack::TooMany => f.write_str("more than 65535 bitmaps, or 64 MiB of a directory of them"),
            BitmapLack::TooLarge => f.write_str("a bitmap of more than 512 MiB; use a larger granularity"),
            BitmapLack::EmptyDisk => f.write_str("a bitmap of a disk without a byte"),
            BitmapLack::OtherSize(own, theirs) => {
                write!(f, "bits of a disk of {theirs} bytes do not fit one of {own} bytes")
            }
            BitmapLack::HeaderFull => {
                f.write_str("bitmaps in an image whose first cluster has no room for more")
            }
            BitmapLack::TooLargeToMerge => f.write_str("merging bitmaps of more than 32 MiB"),
        }
    }
}

/// What quod does not do.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Lack {
    /// Feature bits of a QED header that nobody may use who does not know them.
    QedFeatures(u64),
    /// Compatible feature bits of a QED header whose backing file is to change.
    QedCompatFeatures(u64),
    /// A version of qcow2.
    Version(u32),
    /// Incompatible feature bits of a qcow2 header.
    Features {
        /// Names that the image gives to some of them.
        named: Vec<String>,
        /// The others.
        unknown: u64,
    },
    /// A compression type of qcow2.
    Compression(u8),
    /// Encryption: the header field crypt_method.
    Encryption(u32),
    /// To write clusters of so many bytes, which are smaller than the device's blocks, past the page cache.
    SmallClusters(u64),
    /// The format of the backing file, by the name that the image gives.
    BackingFormat(String),
    /// To check so many clusters.
    Check(u64),
    /// To shrink a QED image.
    ShrinkQed,
    /// To grow a QED image whose backing file is longer: what the guest did not see of that would show.
    GrowQed,
    /// To resize a qcow2 image of version 2 that has snapshots.
    ResizeVersion2,
    /// To resize a qcow2 image with a data file.
    ResizeDataFile,
    /// More references to a cluster than refcounts of so many bits can say.
    RefcountOverflow(u32),
    /// More snapshots than an image may have, or a longer list of them.
    TooManySnapshots,
    /// To change the disk of an image with persistent bitmaps from under them.
    SnapshotBitmaps,
    /// Snapshots of an image whose guest data lies in another file.
    SnapshotDataFile,
    /// A VM state in an image of this format, or with a data file.
    State(&'static str),
    /// A VM state in an image whose backing file reaches to where it would lie.
    StateBacking,
    /// To resize a device, of so many bytes.
    ResizeDevice(u64),
    /// Snapshots in a file of a format that has none, by its name.
    Snapshots(&'static str),
    /// To write compressed clusters to an image of a format that has none, or with a data file.
    WriteCompressed,
    /// To change a persistent bitmap so.
    Bitmap(BitmapLack),
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lack::QedFeatures(bits) => write!(f, "QED header field features: unknown bits {bits:#x}"),
            Lack::QedCompatFeatures(bits) => {
                write!(f, "QED header field compat_features: unknown bits {bits:#x}")
            }
            Lack::Version(version) => write!(f, "qcow2 version {version}"),
            Lack::Features { named, unknown } => {
                f.write_str("qcow2 feature(s): ")?;
                for (n, name) in named.iter().enumerate() {
                    write!(f, "{}{}", if n == 0 { "" } else { ", " }, name.escape_debug())?;
                }
                if *unknown != 0 {
                    let comma = if named.is_empty() { "" } else { ", " };
                    write!(f, "{comma}unknown incompatible bits {unknown:#x}")?;
                }
                Ok(())
            }
            Lack::Compression(kind) => write!(f, "qcow2 compression type {kind}"),
            Lack::Encryption(number) => {
                let method = match number {
                    1 => "AES",
                    2 => "LUKS",
                    _ => "of an unknown kind",
                };
                write!(
                    f,
                    "qcow2 header field crypt_method {number}: encryption {method}; it is not read as plain \
                     data"
                )
            }
            Lack::SmallClusters(bytes) => write!(
                f,
                "{bytes} bytes: clusters smaller than the blocks of the device can only be written through \
                 the page cache"
            ),
            Lack::BackingFormat(name) => write!(f, "the backing format {name:?}"),
            Lack::Check(clusters) => write!(f, "check of {clusters} clusters"),
            Lack::ShrinkQed => f.write_str("shrinking a QED image"),
            Lack::GrowQed => f.write_str("growing a QED image whose backing file is longer than it"),
            Lack::ResizeVersion2 => f.write_str("resizing a qcow2 image of version 2 that has snapshots"),
            Lack::ResizeDataFile => f.write_str("resizing a qcow2 image with a data file"),
            Lack::RefcountOverflow(bits) => {
                write!(f, "more references to a cluster than refcounts of {bits} bits can say")
            }
            Lack::TooManySnapshots => f.write_str("more than 65536 snapshots, or 64 MiB of a list of them"),
            Lack::SnapshotBitmaps => {
                f.write_str("applying a snapshot to an image with persistent bitmaps, which would be wrong")
            }
            Lack::SnapshotDataFile => f.write_str("snapshots of an image with a data file"),
            Lack::State(format) => write!(f, "a VM state in the format {format}, or beside a data file"),
            Lack::StateBacking => f.write_str("a VM state over a backing file that is longer than the disk"),
            Lack::Snapshots(format) => write!(f, "the format {format} has no snapshots"),
            Lack::WriteCompressed => f.write_str(
                "writing compressed clusters but to a qcow2 image that has its clusters in its own file",
            ),
            Lack::Bitmap(lack) => lack.fmt(f),
            Lack::ResizeDevice(len) => write!(f, "resizing a device: it has {len} bytes"),
        }
    }
}
