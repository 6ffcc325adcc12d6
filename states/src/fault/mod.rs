//! What goes wrong, as types: how an image contradicts its format, what quod does not do, what a device
//! failed at.
//!
//! Knows: the places of an image and what may be wrong with each. Must never know: how it was found, what
//! anybody says of it: prose is in `why` and `prose`, and in the command line for people that expect QEMU's.
//! Invariant: nothing decides by a text, and no text is parsed: whoever tells faults apart matches these.

mod foreign;
mod lack;
mod op;
mod prose;
mod why;

pub use foreign::Foreign;
pub use lack::{BitmapLack, Lack};
pub use op::Op;
pub use why::{
    BitmapFault, BitsFault, ClusterFault, DanglingFault, ExtensionFault, HeaderFault, L1Fault, L2Fault,
    NewFault, PointerFault, QedFault, ReferenceFault, ReftableFault, SnapshotFault, WalkFault,
};

/// How an image contradicts its format: where, with which value, and why that is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fault {
    /// A field of a QED header.
    QedHeader {
        /// The field's value.
        value: u64,
        /// Which field, and why.
        why: QedFault,
    },
    /// A field of a qcow2 header.
    Header {
        /// The field's value.
        value: u64,
        /// Which field, and why.
        why: HeaderFault,
    },
    /// An extension of a qcow2 header.
    Extension {
        /// The value found.
        value: u64,
        /// Which extension, and why.
        why: ExtensionFault,
    },
    /// A new image, or a new name in a header, cannot be what was asked for.
    New {
        /// The value asked for.
        value: u64,
        /// What it is of, and why.
        why: NewFault,
    },
    /// An entry of the L1 table.
    L1Entry {
        /// Which.
        index: u64,
        /// Itself, or where it leads to.
        entry: u64,
        /// Why.
        why: L1Fault,
    },
    /// An entry of an L2 table that a request needs.
    L2Entry {
        /// The guest offset of its cluster.
        guest: u64,
        /// Itself, or the bitmap of its subclusters.
        entry: u64,
        /// Why.
        why: L2Fault,
    },
    /// Where such an entry leads to.
    Pointer {
        /// The guest's cluster.
        cluster: u64,
        /// The host offset.
        host: u64,
        /// Why.
        why: PointerFault,
    },
    /// An entry that a check meets on its walk through an L2 table.
    L2Walk {
        /// Which of the table.
        index: u64,
        /// Itself, its bitmap, or where it leads to.
        entry: u64,
        /// Why.
        why: WalkFault,
    },
    /// An entry of the refcount table.
    Reftable {
        /// Which.
        index: u64,
        /// Itself.
        entry: u64,
        /// Why.
        why: ReftableFault,
    },
    /// A refcount is lower than the number of references.
    Refcount {
        /// Of this cluster of the file.
        cluster: u64,
        /// The refcount.
        stored: u64,
    },
    /// An entry of the snapshot table.
    Snapshot {
        /// Which.
        index: u64,
        /// The value found.
        value: u64,
        /// Why.
        why: SnapshotFault,
    },
    /// An entry of the bitmap directory.
    Bitmap {
        /// Which.
        index: u64,
        /// The value found.
        value: u64,
        /// Why.
        why: BitmapFault,
    },
    /// An entry of a bitmap's table.
    BitmapTable {
        /// Which.
        index: u64,
        /// Itself.
        entry: u64,
        /// Why.
        why: BitsFault,
    },
    /// A cluster of the file.
    Cluster {
        /// Which.
        index: u64,
        /// The value found.
        value: u64,
        /// Why.
        why: ClusterFault,
    },
    /// Something refers to what is not there.
    Reference {
        /// The cluster that it refers to.
        cluster: u64,
        /// Its first byte.
        offset: u64,
        /// Why.
        why: ReferenceFault,
    },
    /// Something lies where metadata is: to write it, or give it up, would destroy that.
    Overlap {
        /// What lies there.
        by: By,
        /// Which of them.
        index: u64,
        /// Where it lies.
        at: u64,
        /// What was there.
        with: Metadata,
    },
    /// Too many entries pointed beyond the end of the file when the image was opened.
    TooManyDangling {
        /// The slice that has the one too many.
        slice: u64,
        /// The end of the file.
        end: u64,
    },
    /// An entry pointed beyond the end when the image was opened: what is there now is not its own.
    Dangling {
        /// Which of its slice.
        index: u64,
        /// Itself.
        entry: u64,
        /// Beyond which end.
        why: DanglingFault,
    },
    /// Compressed data does not decompress to one cluster.
    Compressed {
        /// Its bytes at most.
        bytes: u64,
        /// Where they begin.
        host: u64,
    },
    /// There is no LUKS header where one should be.
    Luks {
        /// The host offset.
        offset: u64,
    },
}

/// What may lie where metadata is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum By {
    /// Metadata, when the image is opened.
    Metadata(Metadata),
    /// The L2 table that an L1 entry leads to.
    L2Table,
    /// Data of a guest's cluster.
    Data,
    /// A cluster that is not counted: it would be handed out.
    Free,
    /// The table, or the bits, of a persistent bitmap.
    Bitmap,
}

/// A kind of metadata. The order is that of their names.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Metadata {
    /// The active L1 table.
    L1Table,
    /// An L2 table.
    L2Table,
    /// The header.
    Header,
    /// A refcount block.
    RefcountBlock,
    /// The refcount table.
    RefcountTable,
    /// The snapshot table, or a snapshot's L1 table.
    Snapshot,
    /// The header, the active L1 table, or one of a snapshot's: what has its place for as long as the image
    /// is open.
    Fixed,
}
