//! qcow2 files: where their tables are, the disk of a snapshot.
//!
//! Knows: header, tables and entries, through `quod-states`. Must never know: what the guest wrote.

use quod_backend::sim::Sim;
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2::entry::OFFSET;
use quod_states::qcow2::snapshot::{Parsed, Snapshot};
use quod_states::qcow2::{Header, Purpose};

/// Reads and validates the header, as a check does.
pub(super) fn header(sim: &Sim, path: &str) -> Checked<Header> {
    let region = Header::region(&sim.file_range(path, 0, 512));
    Header::parse(&sim.file_range(path, 0, region), Purpose::Check)
        .map_err(|error| Failure(format!("{path}: {error}")))
}

fn longs(sim: &Sim, path: &str, offset: u64, count: u64) -> Vec<u64> {
    let bytes = sim.file_range(path, offset, count as usize * 8);
    bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect()
}

/// Where the last cluster ends that a refcount block may count.
pub(super) fn counted(sim: &Sim, path: &str) -> Checked<u64> {
    let header = header(sim, path)?;
    let entries = u64::from(header.reftable_clusters) * header.cluster_size() / 8;
    let table = longs(sim, path, header.reftable_offset, entries);
    let blocks = table.iter().rposition(|entry| *entry != 0).map_or(0, |last| last as u64 + 1);
    Ok(blocks * header.refcounts().block_entries() * header.cluster_size())
}

pub(super) fn tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
    let (header, mut tables) = (header(sim, path)?, Vec::new());
    let cluster = header.cluster_size();
    let reftable = u64::from(header.reftable_clusters) * cluster;
    tables.push((header.reftable_offset, header.reftable_offset + reftable));
    for block in longs(sim, path, header.reftable_offset, reftable / 8) {
        tables.push((block & OFFSET, (block & OFFSET) + cluster));
    }
    let mut l1s = vec![(header.l1_offset, u64::from(header.l1_entries))];
    if header.snapshots > 0 {
        tables.push((header.snapshots_offset, header.snapshots_offset + cluster));
        let snapshots = snapshots(sim, path, &header)?;
        l1s.extend(snapshots.iter().map(|snapshot| (snapshot.l1_offset, u64::from(snapshot.l1_entries))));
    }
    for (offset, entries) in l1s {
        tables.push((offset, offset + entries * 8));
        for table in longs(sim, path, offset, entries) {
            tables.push((table & OFFSET, (table & OFFSET) + cluster));
        }
    }
    // an entry of 0 leads nowhere
    tables.retain(|(start, _)| *start != 0);
    tables.sort_unstable();
    tables.dedup();
    Ok(tables)
}

/// The snapshots, in the order of their table.
fn snapshots(sim: &Sim, path: &str, header: &Header) -> Checked<Vec<Snapshot>> {
    let bytes = sim.file_range(path, header.snapshots_offset, 1024 * header.snapshots as usize);
    let (mut snapshots, mut at) = (Vec::new(), 0);
    for index in 0..header.snapshots {
        match Snapshot::parse(&bytes[at..], index.into(), false) {
            Ok(Parsed::Entry(snapshot, len)) => {
                snapshots.push(snapshot);
                at += len;
            }
            other => return fail(format!("{path}: snapshot {index} cannot be read: {other:?}")),
        }
    }
    Ok(snapshots)
}

pub(super) fn snapshot_ids(sim: &Sim, path: &str) -> Checked<Vec<Vec<u8>>> {
    let snapshots = snapshots(sim, path, &header(sim, path)?)?;
    Ok(snapshots.into_iter().map(|snapshot| snapshot.id).collect())
}

/// See the parent.
pub(super) fn as_snapshot(sim: &Sim, path: &str, index: usize) -> Checked<Vec<u8>> {
    let mut header = header(sim, path)?;
    let snapshots = snapshots(sim, path, &header)?;
    let Some(snapshot) = snapshots.get(index) else {
        return fail(format!("the image has {} snapshots, none of index {index}", snapshots.len()));
    };
    header.l1_offset = snapshot.l1_offset;
    header.l1_entries = snapshot.l1_entries;
    header.size = snapshot.disk_size().unwrap_or(header.size);
    header.set_dirty(false);
    let (mut bytes, block) = (sim.file_bytes(path), header.encode());
    bytes[..block.len()].copy_from_slice(&block);
    Ok(bytes)
}
