//! New refcount blocks of a qcow2 image: where they may lie, what they count, how many go out at once.

use quod_states::qcow2::CreateOptions;
use quod_states::{IoOp, Options, RequestKind};
use quod_states_tests::narrow::{
    BLOCK, CLUSTER, long, not_free, open, run, set_word, settle, start, with_table, word, words,
};
use quod_states_tests::qcow2::{assert_sound, count, l2_entry, opened, qcow2_file, set_count};
use quod_states_tests::{Disk, write};

const COPIED: u64 = 1 << 63;

/// Behind the end of the file nothing should be in use. Where a count says so all the same, the cluster is
/// left alone, whichever block has it.
#[test]
fn space_that_is_counted_is_not_handed_out() {
    for (index, block) in [(0, 0), (1, 40 * CLUSTER)] {
        let mut disk = long((index + 1) * BLOCK - 20 * CLUSTER, false);
        if index == 1 {
            set_word(&mut disk.file, 512 + 8, block);
            set_count(&mut disk.file, block / CLUSTER, 1);
        }
        let end = disk.file.len() as u64 / CLUSTER;
        for cluster in [end, end + 1, end + 3] {
            set_count(&mut disk.file, cluster, 7);
        }
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
        run(&mut disk, &mut image, RequestKind::Write, 9216, 1024);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        let hosts = [8192, 9216, 9728].map(|guest| (l2_entry(&disk.file, guest) & !COPIED) / CLUSTER - end);
        assert_eq!(hosts, [2, 4, 5]);
        assert_eq!([0, 1, 2, 3, 4].map(|n| count(&disk.file, end + n)), [7, 7, 1, 7, 1]);
    }
}

/// Clusters of 8 KiB: a block has 1024 counts, in two slices. The file ends where the second one of a block
/// counts that is not there yet: the block comes to lie there, and counts itself.
#[test]
fn a_new_block_counts_itself_in_any_of_its_slices() {
    let create =
        CreateOptions { size: 16 << 20, cluster_size: 8192, refcount_bits: 64, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    disk.file.resize(1541 * 8192, 0);
    not_free(&mut disk.file);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 0, 8192);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let block = 1541 * 8192;
    assert_eq!(word(&disk.file, 8192 + 8), block);
    // the block, the L2 table, the data
    let mut counts = vec![0; 1024];
    counts[1541 - 1024..1541 - 1024 + 3].fill(1);
    assert!(words(&disk.file[block as usize..][..8192]) == counts);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "a block");
}

/// A new block in each of 34 sectors of the refcount table: 68 MiB that are written in one round.
#[test]
fn so_many_writes_of_the_refcount_table_are_in_flight_and_no_more() {
    let mut disk = with_table(40);
    disk.file.truncate(105 * CLUSTER as usize);
    not_free(&mut disk.file);
    let mut image = opened(&mut disk, Options::default().cache_bytes(64 << 20)).image;
    run(&mut disk, &mut image, RequestKind::Resize { size: 80 << 20 }, 0, 0);
    let rounds = image.counters().commits;
    for n in 0..68 {
        write(&mut disk, &mut image, n << 20, 1 << 20, n);
        settle(&mut disk, &mut image);
    }
    assert_eq!(image.counters().commits, rounds, "all of it is left to one round");
    disk.log.clear();
    start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
    while disk.log.last().is_none_or(|step| !matches!(step.op, IoOp::Sync)) {
        disk.complete_first(&mut image);
    }
    disk.complete_first(&mut image);
    assert_eq!(disk.pending.len(), 32);
    let table = |op: &IoOp| matches!(op, IoOp::WriteTable { len: 512, offset } if offset / CLUSTER >= 64);
    assert!(disk.pending.iter().all(|(io, _)| table(&io.op)));
    // one ends, one follows
    disk.complete_first(&mut image);
    assert_eq!(disk.pending.len(), 32);
}

/// No block counts where the file ends, and new space lies far behind it, in what another block counts: the
/// look for free clusters ends with the file all the same.
#[test]
fn free_clusters_are_looked_for_up_to_the_end_of_the_file() {
    let mut disk = long(2 * BLOCK + 10 * CLUSTER, false);
    let end = disk.file.len() as u64;
    // the L1 table lies behind the end, and is zeros
    let (l1, block) = (5 * BLOCK, 60 * CLUSTER);
    set_word(&mut disk.file, 40, l1);
    set_word(&mut disk.file, 512 + 5 * 8, block);
    set_count(&mut disk.file, block / CLUSTER, 1);
    (0..8).for_each(|n| set_count(&mut disk.file, l1 / CLUSTER + n, 1));
    let mut image = open(&mut disk);
    for n in 0..64 {
        run(&mut disk, &mut image, RequestKind::Write, n * 512, 512);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let hosts = (0..64).map(|n| l2_entry(&disk.file, n * 512) & !COPIED);
    let (before, behind): (Vec<u64>, Vec<u64>) = hosts.partition(|host| *host < end);
    assert!(!before.is_empty() && before.iter().all(|host| *host < BLOCK), "what the first block counts");
    assert!(!behind.is_empty() && behind.iter().all(|host| *host > l1), "the others lie behind all");
}
