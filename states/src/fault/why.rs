//! What may be wrong with each place of an image, and its prose: a row each.
//!
//! Knows: the places and their rules. Must never know: which value was found, by whom.
//! Invariant: the row is all that there is to say of a fault but its numbers.

/// Faults of one kind, with the place and what is wrong there.
macro_rules! faults {
    ($($(#[$about:meta])* $name:ident { $($variant:ident = $place:literal: $what:literal,)+ })+) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum $name {
            $(#[doc = concat!($place, ": ", $what, ".")] $variant,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant,)+];

            /// Where, and what is wrong there.
            pub const fn prose(self) -> (&'static str, &'static str) {
                match self {
                    $($name::$variant => ($place, $what),)+
                }
            }
        }
    )+};
}

faults! {
    /// What is wrong with a field of a QED header.
    QedFault {
        Magic = "QED header field magic": "the image is not in QED format",
        ClusterSize = "QED header field cluster_size": "must be a power of two between 4096 and 67108864",
        TableSize = "QED header field table_size": "must be a power of two between 1 and 16",
        SizeUnaligned = "QED header field image_size": "must be a multiple of 512",
        SizeTooLarge = "QED header field image_size": "is more than the tables can map",
        NoHeader = "QED header field header_size": "must be at least one cluster",
        HeaderTooLarge = "QED header field header_size": "is more than 4 GiB of clusters",
        L1Unaligned = "QED header field l1_table_offset": "must be a multiple of the cluster size",
        L1InHeader = "QED header field l1_table_offset": "points into the header",
        L1Beyond = "QED header field l1_table_offset": "the L1 table lies beyond the end of the file",
        BackingTooLong = "QED header field backing_filename_size": "is more than 4095 bytes",
        BackingOutside = "QED header field backing_filename_offset": "the name lies outside the header",
    }

    /// What is wrong with a field of a qcow2 header.
    HeaderFault {
        Magic = "qcow2 header field magic": "the image is not in qcow2 format",
        ClusterBits = "qcow2 header field cluster_bits": "must be 9 to 21",
        Subclusters = "qcow2 header field cluster_bits": "is too small for 32 subclusters of 512 bytes",
        TooShort = "qcow2 header field header_length": "must be at least 104",
        TooLong = "qcow2 header field header_length": "is more than a cluster",
        BackingOutside = "qcow2 header field backing_file_offset": "the name lies outside the first cluster",
        BackingTooLong = "qcow2 header field backing_file_size":
            "the name is longer than 1023 bytes or leaves the first cluster",
        Compression = "qcow2 header field compression_type": "contradicts incompatible feature bit 3",
        MarkedCorrupt = "qcow2 header field incompatible_features":
            "the image is marked corrupt: it may be read or repaired, not written",
        NotRepaired = "qcow2 header field incompatible_features":
            "the image is dirty and could not be repaired: check it",
        RefcountOrder = "qcow2 header field refcount_order": "refcounts have at most 64 bits",
        NoReftable = "qcow2 header field refcount_table_clusters": "there is no refcount table",
        ReftableTooLarge = "qcow2 header field refcount_table_offset": "the table is too large",
        ReftableUnaligned = "qcow2 header field refcount_table_offset":
            "must be a multiple of the cluster size and below 2^63",
        ReftableBeyond = "qcow2 header field refcount_table_offset":
            "the refcount table lies beyond the end of the file",
        SnapshotsTooLarge = "qcow2 header field snapshots_offset": "the table is too large",
        SnapshotsUnaligned = "qcow2 header field snapshots_offset":
            "must be a multiple of the cluster size and below 2^63",
        L1TooLarge = "qcow2 header field l1_table_offset": "the table is too large",
        L1Unaligned = "qcow2 header field l1_table_offset":
            "must be a multiple of the cluster size and below 2^63",
        L1Beyond = "qcow2 header field l1_table_offset":
            "the L1 table lies far beyond the end of the file: check the image",
        L1TooSmall = "qcow2 header field l1_size": "the L1 table is too small for the disk",
        SizeTooLarge = "qcow2 header field size": "is more than an L1 table can map",
        RawDataFile = "qcow2 header field autoclear_features": "a raw data file without a data file",
    }

    /// What is wrong with an extension of a qcow2 header.
    ExtensionFault {
        TooLong = "qcow2 header extension": "goes beyond the space for extensions",
        BackingFormat = "backing format header extension": "the name is too long",
        NotLuks = "encryption header extension": "the image is not encrypted with LUKS",
        Luks = "encryption header extension": "must have 16 bytes, and begin at a cluster",
        BitmapsLength = "bitmaps header extension": "must have 24 bytes",
        BitmapsReserved = "bitmaps header extension": "the reserved field is not zero",
        BitmapsCount = "bitmaps header extension": "must name 1 to 65535 bitmaps",
        BitmapsUnaligned = "bitmaps header extension": "the directory does not begin at a cluster",
        BitmapsTooLong = "bitmaps header extension": "the directory is too long",
    }

    /// Why a new image, or a new name in a header, cannot be.
    NewFault {
        QedSize = "size": "is more than tables of this geometry can map",
        Size = "size": "is more than an L1 table of 32 MiB can map",
        Reftable = "refcount table of the new image": "would have more than 8 MiB",
        QedBackingTooLong = "backing file name": "is longer than 4095 bytes",
        QedBackingOutside = "backing file name": "does not fit into the header's cluster",
        BackingTooLong = "backing file name": "is longer than 1023 bytes",
        BackingFormat = "backing file format": "is longer than 15 bytes",
    }

    /// What is wrong with an entry of the L1 table.
    L1Fault {
        Reserved = "L1 table": "reserved bits are set",
        Unaligned = "L1 table": "the L2 table does not begin at a cluster",
        QedUnaligned = "L1 table": "L2 table offset is not aligned to a cluster",
        InHeader = "L1 table": "L2 table offset points into the header",
        Beyond = "L1 table": "L2 table lies beyond the end of the file",
        Shared = "L1 table": "two L1 entries lead to this L2 table",
        Copied = "L1 table": "the copied flag contradicts the refcount",
    }

    /// What is wrong with an entry of an L2 table that a request needs.
    L2Fault {
        Reserved = "L2 entry of the guest offset": "reserved bits are set",
        ZeroInVersion2 = "L2 entry of the guest offset":
            "the zero flag is set in an image of version 2",
        ZeroInExtended = "L2 entry of the guest offset": "the zero flag is set in an extended entry",
        Unaligned = "L2 entry of the guest offset": "the data does not begin at a cluster",
        CompressedCopied = "compressed L2 entry of the guest offset": "the copied flag is set",
        CompressedInDataFile = "compressed L2 entry of the guest offset":
            "compressed data in an image with a data file",
        CompressedSubclusters = "compressed L2 entry of the guest offset":
            "compressed data with subclusters",
        CompressedReserved = "compressed L2 entry of the guest offset": "reserved bits are set",
        BothKinds = "subcluster bitmap of the guest offset": "a subcluster is both allocated and zero",
        NoCluster = "subcluster bitmap of the guest offset":
            "subclusters are allocated, the cluster is not",
    }

    /// What is wrong with where an entry of an L2 table leads to.
    PointerFault {
        Unaligned = "L2 table, guest cluster": "data offset is not aligned to a cluster",
        InHeader = "L2 table, guest cluster": "data offset points into the header",
        Beyond = "L2 table, guest cluster": "data cluster lies beyond the end of the file",
        CompressedBeyond = "L2 table, guest cluster": "compressed data lies beyond the end of the file",
        NotTheGuests = "L2 table, guest cluster": "the offset in the data file is not the guest's",
    }

    /// What is wrong with an entry that a check meets on its walk through an L2 table.
    WalkFault {
        Reserved = "L2 table": "reserved bits are set",
        ZeroInVersion2 = "L2 table": "the zero flag is set in an image of version 2",
        ZeroInExtended = "L2 table": "the zero flag is set in an extended entry",
        Unaligned = "L2 table": "the data does not begin at a cluster",
        Copied = "L2 table": "the copied flag contradicts the refcount",
        CompressedCopied = "L2 table": "the copied flag of compressed data is set",
        CompressedInDataFile = "L2 table": "compressed data in an image with a data file",
        CompressedSubclusters = "L2 table": "compressed data with subclusters",
        CompressedBeyond = "L2 table": "compressed data lies beyond the end of the file",
        BothKinds = "L2 table": "a subcluster is both allocated and zero",
        NoCluster = "L2 table": "subclusters are allocated, the cluster is not",
        NotTheGuests = "L2 table": "the offset in the data file is not the guest's",
    }

    /// What is wrong with an entry of the refcount table.
    ReftableFault {
        Reserved = "refcount table": "reserved bits are set",
        Unaligned = "refcount table": "the block does not begin at a cluster",
        Beyond = "refcount table": "the refcount block lies beyond the end of the file",
        WalkBeyond = "refcount table": "the block lies beyond the end of the file",
        Shared = "refcount table": "the block is referred to more than once",
        TooLarge = "refcount table": "would have more than 8 MiB when it is rebuilt",
    }

    /// What is wrong with an entry of the snapshot table.
    SnapshotFault {
        ExtraTooLong = "snapshot table": "too much extra data",
        ExtraTooShort = "snapshot table": "has less extra data than version 3 asks for",
        TooLong = "snapshot table": "the table is longer than 64 MiB",
        DataFile = "snapshot table": "snapshots in an image with a data file",
        L1Unaligned = "snapshot table": "the L1 table does not begin at a cluster",
        L1TooLarge = "snapshot table": "the L1 table is too large",
        L1Beyond = "snapshot table": "the L1 table lies beyond 2^63",
        L1TooSmall = "snapshot table": "the L1 table does not map the snapshot's disk",
    }

    /// What is wrong with an entry of the bitmap directory.
    BitmapFault {
        Missing = "bitmap directory": "does not exist",
        MoreEntries = "bitmap directory": "has more entries than the header says",
        FewerEntries = "bitmap directory": "has fewer entries than the header says",
        CutOff = "bitmap directory": "the entry goes beyond the directory",
        ExtraData = "bitmap directory": "extra data is not supported",
        TableSize = "bitmap directory": "the table's size is out of bounds",
        TableUnaligned = "bitmap directory": "the table does not begin at a cluster",
        TableBeyond = "bitmap directory": "the table lies beyond 2^63",
        Granularity = "bitmap directory": "granularity must be 2^9 to 2^31",
        Flags = "bitmap directory": "unknown flags",
        Name = "bitmap directory": "the name must have 1 to 1023 bytes",
        Kind = "bitmap directory": "unknown type of bitmap",
        TooLarge = "bitmap directory": "the bitmap is too large",
        TooSmall = "bitmap directory": "the bitmap does not cover the disk",
    }

    /// What is wrong with an entry of a bitmap's table.
    BitsFault {
        Reserved = "bitmap table": "reserved bits are set",
        Unaligned = "bitmap table": "the bits do not begin at a cluster",
    }

    /// What is wrong with a cluster of the file.
    ClusterFault {
        Shared = "cluster of the file": "is referred to more than once",
        Overflow = "cluster of the file": "has more references than a refcount can say",
        Metadata = "cluster of the file": "holds metadata, and something else",
        CutOff = "cluster of the file":
            "the file is cut off within it, and entries lead beyond its end: check the image",
    }

    /// What is wrong with a reference.
    ReferenceFault {
        Beyond = "reference": "goes beyond the end of the file",
        TooManyBeyond = "reference":
            "too many go beyond the end of the file: there is no safe place for new refcounts",
    }

    /// Beyond which end an entry pointed when the image was opened.
    DanglingFault {
        File = "table entry": "pointed beyond the end of the file when the image was opened",
        Used = "table entry": "pointed beyond what was in use of the file when the image was opened",
    }
}
