//! Findings of a check in the words of `qemu-img check`.
//!
//! Knows: texts. Must never know: what an entry's bits mean.

use quod::Fault;
use quod::fault::{L1Fault, ReftableFault, WalkFault};
use quod_tools::Finding;

/// One line.
pub fn line(finding: &Finding) -> String {
    let verb = |repaired| if repaired { "Repairing" } else { "ERROR" };
    match *finding {
        Finding::Fault(fault) => entry(&fault),
        Finding::Beyond { offset, len } => format!(
            "ERROR: counting reference for region exceeding the end of the file by one cluster or more: \
             offset {offset:#x} size {len:#x}"
        ),
        Finding::Dropped { entries } => {
            format!("Repairing: {entries} references to regions exceeding the end of the file are dropped")
        }
        Finding::Overflow { offset } => format!("ERROR: overflow cluster offset={offset:#x}"),
        Finding::Refcount { cluster, stored, computed, repaired } => {
            let verb = if !repaired && stored > computed { "Leaked" } else { verb(repaired) };
            format!("{verb} cluster {cluster} refcount={stored} reference={computed}")
        }
        Finding::Copied { l1_index, entry, refcount, repaired } => {
            let whose = match l1_index {
                Some(index) => format!("L2 cluster: l1_index={index} l1_entry"),
                None => "data cluster: l2_entry".to_string(),
            };
            format!("{} OFLAG_COPIED {whose}={entry:x} refcount={refcount}", verb(repaired))
        }
        Finding::Unaligned { offset, data: true, .. } => {
            format!("ERROR offset={offset:x}: Data cluster is not properly aligned; L2 entry corrupted.")
        }
        Finding::Unaligned { offset, repaired, .. } => {
            let verb = verb(repaired);
            format!(
                "{verb} offset={offset:x}: Preallocated cluster is not properly aligned; L2 entry corrupted."
            )
        }
        Finding::BlockBeyond { index, repaired } => {
            format!("{} refcount block {index} is outside image", verb(repaired))
        }
        Finding::BlockShared { index, references } => {
            format!("ERROR refcount block {index} refcount={references}")
        }
        Finding::Snapshot { index, extra: extra @ 1025.., .. } => {
            format!("Discarding too much extra metadata in snapshot table entry {index} ({extra} > 1024)")
        }
        Finding::Snapshot { index, repaired, .. } => {
            format!("{} snapshot table entry {index} is incomplete", verb(repaired))
        }
        Finding::Rebuild { repaired: true } => "Rebuilding refcount structure".into(),
        Finding::Rebuild { .. } => "ERROR need to rebuild refcount structures".into(),
        Finding::More(count) => format!("{count} more findings are not shown"),
    }
}

fn entry(fault: &Fault) -> String {
    match *fault {
        Fault::L1Entry { entry, why: L1Fault::Reserved, .. } => {
            format!("ERROR found L1 entry with reserved bits set: {entry:x}")
        }
        Fault::L1Entry { entry, why: L1Fault::Unaligned, .. } => {
            format!("ERROR l2_offset={entry:x}: Table is not cluster aligned; L1 entry corrupted")
        }
        Fault::L2Walk { index, entry, why } => l2_entry(index, entry, why).unwrap_or_else(|| plain(fault)),
        Fault::Reftable { index, why: ReftableFault::Reserved, .. } => {
            format!("ERROR refcount table entry {index} has reserved bits set")
        }
        Fault::Reftable { index, why: ReftableFault::Unaligned, .. } => {
            format!("ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted")
        }
        Fault::Cluster { index, value, why } => {
            format!("ERROR cluster {index} {} refcount={value}", why.prose().1)
        }
        // of snapshots and bitmaps QEMU's words tell the name; the rest no check meets on its walk, or it has
        // a form of its own
        Fault::Snapshot { .. }
        | Fault::Bitmap { .. }
        | Fault::BitmapTable { .. }
        | Fault::L1Entry { .. }
        | Fault::Reftable { .. }
        | Fault::QedHeader { .. }
        | Fault::Header { .. }
        | Fault::Extension { .. }
        | Fault::New { .. }
        | Fault::L2Entry { .. }
        | Fault::Pointer { .. }
        | Fault::Refcount { .. }
        | Fault::Reference { .. }
        | Fault::Overlap { .. }
        | Fault::TooManyDangling { .. }
        | Fault::Dangling { .. }
        | Fault::Compressed { .. }
        | Fault::Luks { .. } => plain(fault),
    }
}

fn plain(fault: &Fault) -> String {
    let ((place, what), (index, value)) = (fault.prose(), fault.numbers());
    format!("ERROR {place}, entry {index}, {value:#x}: {what}")
}

/// None: qemu-img does not look for it.
fn l2_entry(index: u64, entry: u64, why: WalkFault) -> Option<String> {
    Some(match why {
        WalkFault::Reserved => format!("ERROR found l2 entry with reserved bits set: {entry:x}"),
        WalkFault::CompressedCopied => {
            format!("ERROR: coffset=0x{entry:x}: copied flag must never be set for compressed clusters")
        }
        WalkFault::CompressedInDataFile => {
            format!("ERROR compressed cluster {index} with data file, entry=0x{entry:x}")
        }
        WalkFault::CompressedSubclusters => format!(
            "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{entry:x}"
        ),
        WalkFault::BothKinds => {
            format!("ERROR offset={entry:x}: Allocated cluster has corrupted subcluster allocation bitmap")
        }
        WalkFault::NoCluster => "ERROR: Unallocated cluster has non-zero subcluster allocation map".into(),
        WalkFault::ZeroInVersion2
        | WalkFault::ZeroInExtended
        | WalkFault::CompressedBeyond
        | WalkFault::NotTheGuests => return None,
        // told as findings of their own kind
        WalkFault::Unaligned | WalkFault::Copied => return None,
    })
}
