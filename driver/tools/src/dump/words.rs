//! Faults in the words that stand behind what they are about.
//!
//! Knows: which field a fault of a header is about. Must never know: what is told.

use quod::fault::{HeaderFault, QedFault};
use quod_states::{Error, Fault};

/// What is wrong, in a few words.
pub(super) fn of(error: &Error) -> &'static str {
    match error {
        Error::Corrupt(fault) => of_fault(fault),
        _ => "makes no sense",
    }
}

/// The same of a fault.
pub(super) fn of_fault(fault: &Fault) -> &'static str {
    fault.prose().1
}

/// The field of a header that a fault is about, as the formats' specifications call it.
pub(super) fn field(fault: &Fault) -> Option<&'static str> {
    match *fault {
        Fault::Header { why, .. } => Some(of_qcow2(why)),
        Fault::QedHeader { why, .. } => Some(of_qed(why)),
        _ => None,
    }
}

fn of_qcow2(why: HeaderFault) -> &'static str {
    match why {
        HeaderFault::Magic => "magic",
        HeaderFault::ClusterBits | HeaderFault::Subclusters => "cluster_bits",
        HeaderFault::TooShort | HeaderFault::TooLong => "header_length",
        HeaderFault::BackingOutside => "backing_file_offset",
        HeaderFault::BackingTooLong => "backing_file_size",
        HeaderFault::Compression => "compression_type",
        HeaderFault::MarkedCorrupt | HeaderFault::NotRepaired => "incompatible_features",
        HeaderFault::RefcountOrder => "refcount_order",
        HeaderFault::NoReftable => "refcount_table_clusters",
        HeaderFault::ReftableTooLarge | HeaderFault::ReftableUnaligned | HeaderFault::ReftableBeyond => {
            "refcount_table_offset"
        }
        HeaderFault::SnapshotsTooLarge => "nb_snapshots",
        HeaderFault::SnapshotsUnaligned => "snapshots_offset",
        HeaderFault::L1TooLarge | HeaderFault::L1TooSmall => "l1_size",
        HeaderFault::L1Unaligned | HeaderFault::L1Beyond => "l1_table_offset",
        HeaderFault::SizeTooLarge => "size",
        HeaderFault::RawDataFile => "autoclear_features",
    }
}

fn of_qed(why: QedFault) -> &'static str {
    match why {
        QedFault::Magic => "magic",
        QedFault::ClusterSize => "cluster_size",
        QedFault::TableSize => "table_size",
        QedFault::SizeUnaligned | QedFault::SizeTooLarge => "image_size",
        QedFault::NoHeader | QedFault::HeaderTooLarge => "header_size",
        QedFault::L1Unaligned | QedFault::L1InHeader | QedFault::L1Beyond => "l1_table_offset",
        QedFault::BackingTooLong => "backing_filename_size",
        QedFault::BackingOutside => "backing_filename_offset",
    }
}
