//! Tables that are longer than what is cached, read or written at once.
//!
//! Checks: counts in every slice of a refcount block, and in more blocks than one; free space is found again
//! in all of them; a shared L2 table is copied in chunks; a refcount table grows by half of what it has.

use quod_states::qcow2::CreateOptions;
use quod_states::{Image, IoOp, Options, RequestKind};
use quod_states_tests::qcow2::{
    assert_sound, check, count, header, l2_entry, qcow2_file, set_count, snapshot,
};
use quod_states_tests::{Disk, read_all, request};

const MIB: u64 = 1 << 20;

fn setup(create: &CreateOptions<'_>, options: Options) -> (Disk, Image) {
    let mut disk = Disk::new(qcow2_file(create), None, 1);
    let image = disk.open(options).unwrap().image;
    (disk, image)
}

fn write(disk: &mut Disk, image: &mut Image, model: &mut [u8], offset: u64, len: u64, byte: u8) {
    disk.run(image, request(RequestKind::Write, offset, len, 0), vec![byte; len as usize]);
    model[offset as usize..(offset + len) as usize].fill(byte);
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) {
    disk.run(image, request(kind, offset, len, 0), vec![]);
}

/// Blocks of four slices; a slice counts 8 MiB of the file, a block 32 MiB.
#[test]
fn counts_are_kept_in_every_slice_of_every_block() {
    let size = 44 * MIB;
    let create = CreateOptions { size, cluster_size: 16384, refcount_bits: 64, ..CreateOptions::default() };
    let options = Options::default().grow_step(0);
    let (mut disk, mut image) = setup(&create, options);
    let mut model = vec![0; size as usize];
    for n in 0..20 {
        write(&mut disk, &mut image, &mut model, n * 2 * MIB, 2 * MIB, n as u8 + 1);
    }
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let full = disk.file.len();
    // some of each slice goes, and all that was written stays counted
    let gone: Vec<u64> = (0..40).map(|n| n * MIB + 3 * 16384).collect();
    for offset in &gone {
        run(&mut disk, &mut image, RequestKind::Discard, *offset, 2 * 16384);
        model[*offset as usize..*offset as usize + 2 * 16384].fill(0);
    }
    run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
    assert_sound(&disk.file, "after the discards");
    for offset in (0..40 * MIB).step_by(16384) {
        let host = l2_entry(&disk.file, offset) & !(1 << 63 | 1);
        let expected = u64::from(!gone.iter().any(|gone| (*gone..gone + 2 * 16384).contains(&offset)));
        assert_eq!((host != 0, count(&disk.file, host / 16384)), (expected == 1, 1), "{offset:#x}");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    // another life finds the holes, in every slice
    let mut image = disk.open(options).unwrap().image;
    write(&mut disk, &mut image, &mut model, 40 * MIB, 16384, 0x77);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    for n in 1..70 {
        write(&mut disk, &mut image, &mut model, 40 * MIB + n * 16384, 16384, 0x77);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after the second life");
    assert!(disk.file.len() <= full + 4 * 16384, "{} bytes, {full} before", disk.file.len());
    assert!(read_all(&mut disk, Options::default()) == model);
}

/// Tables of 256 KiB: four chunks.
#[test]
fn a_shared_table_is_copied_in_chunks() {
    const CLUSTER: u64 = 256 << 10;
    let create = CreateOptions { size: 8 << 30, cluster_size: CLUSTER as u32, ..CreateOptions::default() };
    let (mut disk, mut image) = setup(&create, Options::default().grow_step(0));
    let places = [0, 8191, 8192, 20000, 32767];
    for (n, cluster) in places.iter().enumerate() {
        let bytes = vec![n as u8 + 1; 512];
        disk.run(&mut image, request(RequestKind::Write, cluster * CLUSTER, 512, 0), bytes);
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    snapshot(&mut disk.file);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    run(&mut disk, &mut image, RequestKind::Map, 0, 1);
    let before = image.counters();
    disk.run(&mut image, request(RequestKind::Write, 8192 * CLUSTER, 512, 0), vec![9; 512]);
    let copied: Vec<u32> = disk
        .log
        .iter()
        .filter_map(|step| match step.op {
            IoOp::WriteTable { len, .. } => Some(len),
            _ => None,
        })
        .filter(|len| *len == 65536)
        .collect();
    assert_eq!(copied.len(), 4, "chunks of 64 KiB");
    let after = image.counters();
    // besides: slices of the new table and of refcounts
    assert!((4..8).contains(&(after.table_reads - before.table_reads)), "{before:?} {after:?}");
    assert_eq!(after.table_writes - before.table_writes, 4);
    assert_eq!(after.table_bytes_written - before.table_bytes_written, CLUSTER);
    for (n, cluster) in places.iter().enumerate() {
        let read = disk.run(&mut image, request(RequestKind::Read, cluster * CLUSTER, 512, 0), vec![0; 512]);
        assert_eq!(read[0], if *cluster == 8192 { 9 } else { n as u8 + 1 }, "cluster {cluster}");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
    let mut of_snapshot = Disk::new(quod_states_tests::qcow2::of_snapshot(&disk.file), None, 1);
    let mut image = of_snapshot.open(Options::default().read_only(true)).unwrap().image;
    let read = of_snapshot.run(&mut image, request(RequestKind::Read, 8192 * CLUSTER, 512, 0), vec![0; 512]);
    assert_eq!(read[0], 3, "the snapshot has what it had");
}

#[test]
fn a_refcount_table_grows_by_half_of_what_it_has() {
    // a cluster of the table has 64 entries, each for 64 clusters of 512 bytes
    let create =
        CreateOptions { size: 12 * MIB, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let (mut disk, mut image) = setup(&create, Options::default().grow_step(0));
    let mut sizes = vec![header(&disk.file).reftable_clusters];
    for n in 0..144 {
        let bytes = vec![1; 65536];
        disk.run(&mut image, request(RequestKind::Write, n << 16, 65536, 0), bytes);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        sizes.push(header(&disk.file).reftable_clusters);
    }
    sizes.dedup();
    assert_eq!(sizes, [1, 2, 3, 5]);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let report = check(&mut disk.file.clone(), None);
    assert!(report.is_sound() && report.leaks == 0, "{report:?}");
}

/// A refcount table of 64 KiB, in a file that ends where it ends: the next one has 96 KiB, two chunks.
#[test]
fn a_large_refcount_table_moves_whole() {
    const ENTRIES: u64 = 8192;
    let create =
        CreateOptions { size: MIB, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let mut file = qcow2_file(&create);
    let table = file.len().next_multiple_of(512);
    file.resize(table + 65536 + 1024, 0);
    file.copy_within(512..1024, table);
    file[48..56].copy_from_slice(&(table as u64).to_be_bytes());
    file[56..60].copy_from_slice(&128u32.to_be_bytes());
    // two more blocks count it, and themselves
    for n in 1..3 {
        let block = (table + 65536 + (n - 1) * 512) as u64;
        file[table + n * 8..table + n * 8 + 8].copy_from_slice(&block.to_be_bytes());
    }
    (table / 512..file.len() / 512).for_each(|cluster| set_count(&mut file, cluster as u64, 1));
    set_count(&mut file, 1, 0);
    assert_sound(&file, "the table is larger");
    // a block in the second chunk of the next table, too: the last entry counts the end of the file
    let end = ENTRIES * 64 * 512;
    file.resize(end as usize, 0);
    let block = end - 512;
    file[table + 65528..table + 65536].copy_from_slice(&block.to_be_bytes());
    file[end as usize - 8..].copy_from_slice(&1u64.to_be_bytes());
    let mut disk = Disk::new(file, None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    for n in 0..20 {
        disk.run(&mut image, request(RequestKind::Write, n * 512, 512, 0), vec![1; 512]);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    }
    let new = header(&disk.file);
    assert_eq!(new.reftable_clusters, 192);
    let entry = |index: u64| {
        let at = (new.reftable_offset + index * 8) as usize;
        u64::from_be_bytes(disk.file[at..at + 8].try_into().unwrap())
    };
    assert_eq!(entry(ENTRIES - 1), block);
    assert!(entry(0) != 0 && entry(ENTRIES) >= end);
    assert!((ENTRIES + 8..ENTRIES * 3 / 2).all(|index| entry(index) == 0));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}
