//! Images whose refcount table is soon full, and the I/O of their rounds in words.
//!
//! Clusters have 512 bytes, counts 64 bits: a block counts 64 clusters, and a cluster of the table leads to
//! 64 blocks, so it is full at 2 MiB. Files are as long as the test wants: what was not written reads as
//! zeros.

use crate::qcow2::{header, opened, qcow2_file, set_count};
use crate::{Disk, request};
use quod_states::qcow2::CreateOptions;
use quod_states::{Image, IoOp, Options, RequestKind};

/// Bytes of a cluster.
pub const CLUSTER: u64 = 512;
/// Bytes of the file that a block counts.
pub const BLOCK: u64 = 64 * CLUSTER;
/// Bytes of the file that a cluster of the table counts through its blocks.
pub const FULL: u64 = 64 * BLOCK;

/// An image with data in guest cluster 0, closed.
pub fn small(lazy_refcounts: bool) -> Disk {
    let create = CreateOptions {
        size: (16 << 20) - 512,
        cluster_size: 512,
        refcount_bits: 64,
        lazy_refcounts,
        ..CreateOptions::default()
    };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    disk
}

/// The same in a file of `len` bytes, so that new clusters come behind that.
pub fn long(len: u64, lazy_refcounts: bool) -> Disk {
    let mut disk = small(lazy_refcounts);
    // not a copy: memory that was not touched is not there
    let mut file = vec![0; len as usize];
    file[..disk.file.len()].copy_from_slice(&disk.file);
    disk.file = file;
    not_free(&mut disk.file);
    disk
}

/// A snapshot table without an entry lies behind the end of the file, it is said: so that nobody takes the
/// end of the file for free, though nothing there is counted.
pub fn not_free(file: &mut [u8]) {
    let end = file.len() as u64;
    set_word(file, 64, end);
}

/// A file like that whose refcount table has so many clusters, from cluster 64 on, and is full.
pub fn with_table(clusters: u64) -> Disk {
    let mut disk = long(clusters * FULL, false);
    let old = header(&disk.file).reftable_offset;
    let first = word(&disk.file, old);
    set_word(&mut disk.file, 64 * CLUSTER, first);
    // blocks that count the table itself, at the end of what the first block counts
    for n in 0..clusters.div_ceil(64) {
        let block = (60 + n) * CLUSTER;
        set_word(&mut disk.file, 64 * CLUSTER + (1 + n) * 8, block);
        (n * 64..clusters.min(n * 64 + 64)).for_each(|m| set_word(&mut disk.file, block + m % 64 * 8, 1));
    }
    set_word(&mut disk.file, 48, 64 * CLUSTER);
    disk.file[56..60].copy_from_slice(&(clusters as u32).to_be_bytes());
    for n in 0..clusters.div_ceil(64) {
        set_count(&mut disk.file, 60 + n, 1);
    }
    set_count(&mut disk.file, old / CLUSTER, 0);
    disk
}

/// The big-endian word there.
pub fn word(file: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(file[at as usize..][..8].try_into().unwrap())
}

/// Puts a word there.
pub fn set_word(file: &mut [u8], at: u64, value: u64) {
    file[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
}

/// Bytes as big-endian words.
pub fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes)).collect()
}

/// Opens the image, which takes no space ahead; the log begins anew.
pub fn open(disk: &mut Disk) -> Image {
    let image = opened(disk, Options::default().grow_step(0)).image;
    disk.log.clear();
    image
}

/// A request alone, from start to end.
pub fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 0), vec![1; len as usize]);
}

/// Submits a request without bytes.
pub fn start(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, user: u64) {
    disk.submit(image, request(kind, offset, 0, user), vec![]).unwrap();
}

/// What an I/O is; writes of tables with their offset and length. Others have no place in the order.
pub fn name(op: &IoOp) -> Option<String> {
    Some(match *op {
        IoOp::WriteTable { offset: 0, .. } => "header".into(),
        IoOp::WriteTable { offset, len } => format!("{offset:#x}+{len:#x}"),
        IoOp::WriteData { host, .. } => format!("data {host:#x}"),
        IoOp::Sync => "sync".into(),
        _ => return None,
    })
}

/// What was asked for since the last call.
pub fn steps(disk: &mut Disk) -> Vec<String> {
    disk.log.drain(..).filter_map(|step| name(&step.op)).collect()
}

/// Completes all that is pending but what has this name.
pub fn complete_but(disk: &mut Disk, image: &mut Image, keep: &str) {
    let other = |disk: &Disk| disk.pending.iter().position(|(io, _)| name(&io.op).as_deref() != Some(keep));
    while let Some(index) = other(disk) {
        disk.complete(image, index);
    }
}

/// Completes everything, oldest first.
pub fn settle(disk: &mut Disk, image: &mut Image) {
    while !disk.pending.is_empty() {
        disk.complete_first(image);
    }
}

/// Completes the oldest I/O until one of this name is pending, and says where.
pub fn complete_to(disk: &mut Disk, image: &mut Image, wanted: &str) -> usize {
    for _ in 0..1000 {
        let found = disk.pending.iter().position(|(io, _)| name(&io.op).as_deref() == Some(wanted));
        if let Some(index) = found {
            return index;
        }
        disk.complete_first(image);
    }
    panic!("{wanted} is never asked for: {:?}", steps(disk));
}
