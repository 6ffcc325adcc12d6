//! What an image shall be: its format, and what only that format has.
//!
//! Knows: geometry. Must never know: bytes.

use quod_states::Format;

/// The format of an image, and what only that format has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The guest's bytes and nothing else.
    Raw,
    /// QED.
    Qed {
        /// Bytes of a cluster.
        cluster: u32,
        /// Clusters of a table.
        table: u32,
    },
    /// qcow2.
    Qcow2(Qcow2),
}

/// What an image shall be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its format.
    pub form: Form,
    /// Bytes of the guest disk.
    pub size: u64,
    /// Name of the backing file, and its format.
    pub backing: Option<(String, Format)>,
}

impl Form {
    /// Its name.
    pub const fn format(self) -> Format {
        match self {
            Form::Raw => Format::Raw,
            Form::Qed { .. } => Format::Qed,
            Form::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The guest's clusters lie in a file of their own.
    pub const fn has_data_file(self) -> bool {
        matches!(self, Form::Qcow2(Qcow2 { data: Data::File | Data::Raw, .. }))
    }

    /// Bytes of a cluster; of a raw image, a block.
    pub const fn cluster(self) -> u64 {
        match self {
            Form::Raw => 4096,
            Form::Qed { cluster, .. } => cluster as u64,
            Form::Qcow2(qcow2) => qcow2.cluster as u64,
        }
    }

    /// Guest bytes under one L2 table.
    pub const fn span(self) -> u64 {
        match self {
            Form::Raw => u64::MAX,
            Form::Qed { cluster, table } => cluster as u64 * (cluster as u64 * table as u64 / 8),
            Form::Qcow2(qcow2) => qcow2.cluster as u64 * (qcow2.cluster as u64 / qcow2.entry_bytes()),
        }
    }
}

/// What a qcow2 image has from the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Qcow2 {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u32,
    /// Bits of a refcount.
    pub refcount_bits: u32,
    /// Entries of 128 bits, for 32 subclusters.
    pub extended_l2: bool,
    /// Refcounts may be postponed while the dirty bit is set.
    pub lazy_refcounts: bool,
    /// All tables from the start.
    pub preallocated: bool,
    /// Compressed clusters are zstd's, not deflate's.
    pub zstd: bool,
    /// Where the guest's clusters lie.
    pub data: Data,
}

/// Where the guest's clusters lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Data {
    /// In the image.
    #[default]
    Inside,
    /// In a file of their own, [`DATA`].
    File,
    /// In a file of their own that shows the disk to whoever reads it alone.
    Raw,
}

/// The name of a data file.
pub const DATA: &str = "data";

impl Qcow2 {
    /// Version 3 with clusters of so many bytes, everything else by default.
    pub const fn new(cluster: u32) -> Qcow2 {
        Qcow2 {
            version: 3,
            cluster,
            refcount_bits: 16,
            extended_l2: false,
            lazy_refcounts: false,
            preallocated: false,
            zstd: false,
            data: Data::Inside,
        }
    }

    /// Bytes of an L2 entry.
    pub const fn entry_bytes(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }
}
