//! Findings of a check in the words of `qemu-img check`.
//!
//! Knows: texts. Must never know: what an entry's bits mean.

use quod_tools::Finding;

/// One line.
pub fn line(finding: &Finding) -> String {
    let verb = |repaired| if repaired { "Repairing" } else { "ERROR" };
    match *finding {
        Finding::Entry { place, index, value, what } => entry(place, index, value, what),
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

fn entry(place: &str, index: u64, value: u64, what: &str) -> String {
    match (place, what) {
        ("L1 table", "reserved bits are set") => {
            format!("ERROR found L1 entry with reserved bits set: {value:x}")
        }
        ("L1 table", "the L2 table does not begin at a cluster") => {
            format!("ERROR l2_offset={value:x}: Table is not cluster aligned; L1 entry corrupted")
        }
        ("L2 table", "reserved bits are set") => {
            format!("ERROR found l2 entry with reserved bits set: {value:x}")
        }
        ("L2 table", "the copied flag of compressed data is set") => {
            format!("ERROR: coffset=0x{value:x}: copied flag must never be set for compressed clusters")
        }
        ("L2 table", "compressed data in an image with a data file") => {
            format!("ERROR compressed cluster {index} with data file, entry=0x{value:x}")
        }
        ("L2 table", "compressed data with subclusters") => format!(
            "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{value:x}"
        ),
        ("L2 table", "a subcluster is both allocated and zero") => {
            format!("ERROR offset={value:x}: Allocated cluster has corrupted subcluster allocation bitmap")
        }
        ("L2 table", "subclusters are allocated, the cluster is not") => {
            "ERROR: Unallocated cluster has non-zero subcluster allocation map".into()
        }
        ("refcount table", "reserved bits are set") => {
            format!("ERROR refcount table entry {index} has reserved bits set")
        }
        ("refcount table", "the block does not begin at a cluster") => {
            format!("ERROR refcount block {index} is not cluster aligned; refcount table entry corrupted")
        }
        ("cluster of the file", _) => format!("ERROR cluster {index} {what} refcount={value}"),
        // QEMU's words name the snapshot or the bitmap
        _ => format!("ERROR {place}, entry {index}, {value:#x}: {what}"),
    }
}
