//! qcow2 images as bytes: new ones, such with compressed clusters and snapshots, and what a check says of
//! them.
//!
//! The disk of these tests has a compression of its own: eight bytes are a cluster (see `packed.rs`).

use crate::packed::decompress;
use crate::{Disk, Step};
use quod_memory::run;
use quod_states::qcow2::{Check, CreateOptions, Header, Purpose, create};
use quod_states::{Error, Image, IoOp, Opened, Options, Repair, Report};
use std::convert::Infallible;

/// The bytes of a fresh image.
pub fn qcow2_file(options: &CreateOptions<'_>) -> Vec<u8> {
    let image = create(options).unwrap();
    let mut file = vec![0; image.len() as usize];
    for (offset, bytes) in image.pieces() {
        file[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    file
}

/// Its header, which is sound.
pub fn header(file: &[u8]) -> Header {
    try_header(file).unwrap()
}

/// The same, if a check can begin with it.
pub fn try_header(file: &[u8]) -> Option<Header> {
    let mut region = file[..file.len().min(Header::region(file))].to_vec();
    region.resize(Header::region(file), 0);
    Header::parse(&region, Purpose::Check).ok()
}

fn be(file: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(file[at as usize..][..8].try_into().unwrap())
}

fn set_be(file: &mut [u8], at: u64, value: u64) {
    file[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Where the L2 entry of this guest offset stands, if it has an L2 table.
pub fn l2_at(file: &[u8], guest: u64) -> Option<u64> {
    let header = header(file);
    let shape = header.shape();
    let cluster = guest >> header.cluster_bits;
    let (l1, l2) = (cluster / shape.l2_entries(), cluster % shape.l2_entries());
    let table = be(file, header.l1_offset + l1 * 8) & OFFSET;
    (table != 0).then_some(table + l2 * shape.l2_entry_bytes())
}

/// The entry itself.
pub fn l2_entry(file: &[u8], guest: u64) -> u64 {
    l2_at(file, guest).map_or(0, |at| be(file, at))
}

/// Changes the entry; the table must be there.
pub fn set_l2_entry(file: &mut [u8], guest: u64, entry: u64) {
    let at = l2_at(file, guest).expect("an L2 table");
    set_be(file, at, entry);
}

/// The L1 entry.
pub fn l1_entry(file: &[u8], index: u64) -> u64 {
    be(file, header(file).l1_offset + index * 8)
}

/// Changes the entry of this index.
pub fn set_l1_entry(file: &mut [u8], index: u64, entry: u64) {
    let at = header(file).l1_offset + index * 8;
    set_be(file, at, entry);
}

/// The count of a host cluster.
pub fn count(file: &[u8], cluster: u64) -> u64 {
    let header = header(file);
    let counts = header.refcounts();
    let block = be(file, header.reftable_offset + counts.table_index(cluster) * 8) & OFFSET;
    match block {
        0 => 0,
        _ => counts.get(&file[block as usize..], counts.block_index(cluster)),
    }
}

/// Sets a count that has its block.
pub fn set_count(file: &mut [u8], cluster: u64, count: u64) {
    let header = header(file);
    let counts = header.refcounts();
    let block = be(file, header.reftable_offset + counts.table_index(cluster) * 8) & OFFSET;
    counts.set(&mut file[block as usize..], counts.block_index(cluster), count);
}

/// Runs a check on the bytes; with a repair it changes them.
pub fn check(file: &mut Vec<u8>, repair: Option<Repair>) -> Report {
    try_check(file, repair).unwrap()
}

/// The same of an image of which it may be impossible.
pub fn try_check(file: &mut Vec<u8>, repair: Option<Repair>) -> Result<Report, Error> {
    let mut check = Check::new(header(file), file.len() as u64, repair);
    let Ok(result) = run(&mut check, file, Check::poll_result, |_| Ok::<(), Infallible>(()));
    result
}

/// A check finds nothing.
pub fn assert_sound(file: &[u8], story: &str) {
    let report = check(&mut file.to_vec(), None);
    assert!(report.is_sound() && report.leaks == 0, "{story}: {report:?}");
}

fn append_cluster(file: &mut Vec<u8>) -> u64 {
    let cluster = header(file).cluster_size() as usize;
    let at = file.len().next_multiple_of(cluster);
    file.resize(at + cluster, 0);
    at as u64
}

/// Makes these guest clusters compressed ones, several to a host cluster; the counts come right by a repair.
/// What the guest sees at each is told to `model`.
pub fn compress(file: &mut Vec<u8>, clusters: &[u64], model: &mut [u8]) {
    let (shape, size) = (header(file).shape(), header(file).cluster_size());
    // a snapshot may come, and counts twice
    let most = header(file).refcounts().max() / 2;
    let (mut at, mut end, mut here) = (0, 0, 0);
    for (n, &cluster) in clusters.iter().enumerate() {
        let guest = cluster * size;
        let Some(entry) = l2_at(file, guest) else { continue };
        here += 1;
        if at + 8 > end || here > most {
            at = append_cluster(file);
            (end, here) = (at + size, 1);
            // not at the cluster's first byte
            at += 11 % (size - 200);
        }
        let seed = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(cluster + 1) ^ n as u64;
        file[at as usize..][..8].copy_from_slice(&seed.to_le_bytes());
        set_be(file, entry, shape.encode_compressed(at, 8).unwrap());
        if shape.extended {
            set_be(file, entry + 8, 0);
        }
        let bytes = decompress(&seed.to_le_bytes(), 0, size);
        let len = (size as usize).min(model.len().saturating_sub(guest as usize));
        model[guest as usize..][..len].copy_from_slice(&bytes[..len]);
        at += 150;
    }
    repair(file);
}

/// Takes an internal snapshot of all there is.
pub fn snapshot(file: &mut Vec<u8>) {
    let old = header(file);
    assert_eq!(old.snapshots, 0, "one is enough");
    let bytes = old.l1_entries as usize * 8;
    let l1 = append_cluster(file);
    file.resize((l1 as usize + bytes).next_multiple_of(old.cluster_size() as usize), 0);
    file.copy_within(old.l1_offset as usize..old.l1_offset as usize + bytes, l1 as usize);
    let table = append_cluster(file);
    let mut entry = Vec::new();
    entry.extend(l1.to_be_bytes());
    entry.extend(old.l1_entries.to_be_bytes());
    entry.extend(1u16.to_be_bytes());
    entry.extend(1u16.to_be_bytes());
    entry.extend([0; 20]);
    entry.extend(16u32.to_be_bytes());
    entry.extend(0u64.to_be_bytes());
    entry.extend(old.guest_size().to_be_bytes());
    entry.extend(b"1s");
    file[table as usize..][..entry.len()].copy_from_slice(&entry);
    file[60..64].copy_from_slice(&1u32.to_be_bytes());
    set_be(file, 64, table);
    repair(file);
}

/// The snapshot's disk as a file of its own, to be read only.
pub fn of_snapshot(file: &[u8]) -> Vec<u8> {
    let mut copy = file.to_vec();
    let table = header(file).snapshots_offset;
    let (l1, size) = (be(file, table), be(file, table + 48));
    set_be(&mut copy, 40, l1);
    set_be(&mut copy, 24, size);
    copy
}

fn repair(file: &mut Vec<u8>) {
    check(file, Some(Repair::All));
    assert_sound(file, "after the repair");
}

/// A new image, open, over a raw backing layer if there is one.
pub fn created(create: CreateOptions<'_>, backing: Option<Vec<u8>>, options: Options) -> (Disk, Image) {
    let name = backing.as_ref().map(|_| b"base".as_slice());
    let file =
        qcow2_file(&CreateOptions { backing: name, backing_format: name.map(|_| &b"raw"[..]), ..create });
    let mut disk = Disk::new(file, backing, options.align.into());
    let image = opened(&mut disk, options).image;
    (disk, image)
}

/// Opens an image that is expected to open.
pub fn opened(disk: &mut Disk, options: Options) -> Opened {
    disk.open(options).unwrap()
}

/// Panics unless each step that `first` names, of those that were completed when a step that `then` names
/// was submitted, was durable by then. At least one such pair must be there.
pub fn assert_durable_before(
    disk: &Disk,
    what: &str,
    first: impl Fn(&Step) -> bool,
    then: impl Fn(&Step) -> bool,
) {
    let mut pairs = 0;
    for (late, then) in disk.log.iter().filter(|step| then(step)).enumerate() {
        for early in disk.log.iter().filter(|step| first(step) && step.submitted < then.submitted) {
            pairs += 1;
            let durable = disk.log.iter().any(|sync| {
                matches!(sync.op, IoOp::Sync)
                    && !sync.failed
                    && early.completed < sync.submitted
                    && sync.completed < then.submitted
            });
            assert!(durable, "{what}: {:?} before {:?} (number {late})", early.op, then.op);
        }
    }
    assert!(pairs > 0, "{what}: nothing to compare");
}
