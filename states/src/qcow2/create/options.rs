//! What a new image shall be, and which wishes exclude each other.
//!
//! Knows: qemu-img's options and rules. Must never know: the layout.

use super::super::header::Compression;
use crate::error::Error;

/// What a new image has from the start.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Preallocation {
    /// Nothing.
    #[default]
    Off,
    /// All tables; the data is a hole.
    Metadata,
    /// The data's space is reserved too.
    Falloc,
    /// The data's space is written with zeros.
    Full,
}

/// What a new image shall be. The default is qemu-img's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CreateOptions<'a> {
    /// Bytes of the guest disk, rounded up to 512.
    pub size: u64,
    /// 2 (compat=0.10) or 3 (compat=1.1).
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster_size: u32,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// Refcounts may be postponed while the dirty bit is set.
    pub lazy_refcounts: bool,
    /// L2 entries of 128 bits.
    pub extended_l2: bool,
    /// For compressed clusters.
    pub compression: Compression,
    /// Name of the backing file.
    pub backing: Option<&'a [u8]>,
    /// Its format.
    pub backing_format: Option<&'a [u8]>,
    /// Name of the data file.
    pub data_file: Option<&'a [u8]>,
    /// It alone shall be a valid raw image.
    pub data_file_raw: bool,
    /// See [`Preallocation`].
    pub preallocation: Preallocation,
}

impl Default for CreateOptions<'_> {
    fn default() -> Self {
        CreateOptions {
            size: 0,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: Compression::Deflate,
            backing: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
        }
    }
}

/// Conflicts of options, in qemu-img's order.
pub(super) fn check_options(options: &CreateOptions<'_>) -> Result<(), Error> {
    let old = options.version < 3;
    let size = options.cluster_size;
    let prealloc = options.preallocation != Preallocation::Off;
    let bits = options.refcount_bits;
    let rules = [
        (!(2..=3).contains(&options.version), "compat must be 0.10 or 1.1"),
        (options.extended_l2 && old, "extended_l2 needs compat=1.1"),
        (
            !size.is_power_of_two() || !(512..=2 << 20).contains(&size),
            "cluster_size must be a power of two between 512 and 2M",
        ),
        (options.extended_l2 && size < 16384, "extended_l2 needs a cluster_size of at least 16k"),
        (
            options.backing.is_some() && prealloc && !options.extended_l2,
            "backing_file and preallocation exclude each other unless extended_l2 is on",
        ),
        (options.backing_format.is_some() && options.backing.is_none(), "backing_fmt needs backing_file"),
        (options.lazy_refcounts && old, "lazy_refcounts needs compat=1.1"),
        (!bits.is_power_of_two() || bits > 64, "refcount_bits must be a power of two, at most 64"),
        (bits != 16 && old, "refcount_bits other than 16 needs compat=1.1"),
        (options.data_file_raw && options.data_file.is_none(), "data_file_raw needs data_file"),
        (
            options.data_file_raw && options.backing.is_some(),
            "backing_file and data_file_raw exclude each other",
        ),
        (options.data_file.is_some() && old, "data_file needs compat=1.1"),
        (
            options.compression != Compression::Deflate && old,
            "compression_type other than zlib needs compat=1.1",
        ),
    ];
    rules.iter().find(|(broken, _)| *broken).map_or(Ok(()), |(_, what)| Err(Error::Misuse(what)))
}
