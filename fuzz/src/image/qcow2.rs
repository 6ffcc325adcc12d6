//! qcow2 files: making them, where their tables are, the disk of a snapshot.
//!
//! Knows: header, tables and entries, through `quod-states`. Must never know: what the guest wrote.

use super::Shape;
use quod_backend::sim::Sim;
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2::entry::OFFSET;
use quod_states::qcow2::header::Compression;
use quod_states::qcow2::snapshot::{Parsed, Snapshot};
use quod_states::qcow2::{self, CreateOptions, Header, Preallocation, Purpose};

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

pub(super) fn create(shape: &Shape, options: &Qcow2) -> Checked<Vec<u8>> {
    let created = qcow2::create(&CreateOptions {
        size: shape.size,
        version: options.version,
        cluster_size: options.cluster,
        refcount_bits: options.refcount_bits,
        lazy_refcounts: options.lazy_refcounts,
        extended_l2: options.extended_l2,
        backing: shape.backing.as_ref().map(|(name, _)| name.as_bytes()),
        backing_format: shape.backing.as_ref().map(|(_, format)| format.name().as_bytes()),
        preallocation: if options.preallocated { Preallocation::Metadata } else { Preallocation::Off },
        compression: if options.zstd { Compression::Zstd } else { Compression::Deflate },
        data_file: (options.data != Data::Inside).then_some(DATA.as_bytes()),
        data_file_raw: options.data == Data::Raw,
    });
    let created = created.map_err(|error| Failure(format!("{shape:?}: {error}")))?;
    let mut bytes = vec![0; created.len() as usize];
    for (offset, piece) in created.pieces() {
        bytes[offset as usize..offset as usize + piece.len()].copy_from_slice(&piece);
    }
    Ok(bytes)
}

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
