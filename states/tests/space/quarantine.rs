//! Clusters on their way back to the allocator: which requests hold them up, which do not, and what must be
//! durable before they have a new owner.
//!
//! Checks:
//! * a hole waits for requests that use its cluster, whether they read it or copy from it, and for no others
//!   (QC5);
//! * a hole, and a new length of the file, are durable before a pointer to what they made (QE4, QC6);
//! * what lies on metadata is neither given up nor punched; counts that cannot be read hold nobody up;
//! * free clusters that are on their way already are not found again.

use quod_states::qcow2::CreateOptions;
use quod_states::{FillSource, Image, IoOp, Options, RequestKind};
use quod_states_tests::qcow2::{compress, count, l2_entry, opened, qcow2_file, set_l2_entry};
use quod_states_tests::{Disk, Rng, qed_disk, request, write};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;

/// An image with data in guest clusters 0 to 15, which lie one after the other, closed.
fn filled(lazy_refcounts: bool) -> Disk {
    let create = CreateOptions { size: 2 << 30, lazy_refcounts, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 0, 16 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    disk.log.clear();
    disk
}

fn open(disk: &mut Disk) -> Image {
    let image = opened(disk, Options::default().grow_step(0)).image;
    disk.log.clear();
    image
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    let byte = 1 + (offset / 512 % 255) as u8;
    disk.run(image, request(kind, offset, len, 0), vec![byte; len as usize])
}

/// The host offset of a guest cluster.
fn host(disk: &Disk, cluster: u64) -> u64 {
    l2_entry(&disk.file, cluster * CLUSTER) & !COPIED
}

/// Two flushes, but what `keep` names stays in flight.
fn flush_beside(disk: &mut Disk, image: &mut Image, keep: impl Fn(&IoOp) -> bool) {
    for user in [98, 99] {
        disk.submit(image, request(RequestKind::Flush, 0, 0, user), vec![]).unwrap();
        while let Some(index) = disk.pending.iter().position(|(io, _)| !keep(&io.op)) {
            disk.complete(image, index);
        }
    }
    assert!(disk.done.iter().any(|done| done.0 == 99));
}

fn discard(disk: &mut Disk, image: &mut Image, cluster: u64, clusters: u64) {
    let discard = request(RequestKind::Discard, cluster * CLUSTER, clusters * CLUSTER, 97);
    disk.submit(image, discard, vec![]).unwrap();
}

/// Where holes were punched: first byte and length.
fn holes(disk: &Disk) -> Vec<(u64, u64)> {
    let hole = |op| match op {
        IoOp::PunchHole { host, len } => Some((host, len)),
        _ => None,
    };
    disk.log.iter().filter_map(|step| hole(step.op)).collect()
}

/// A request is in flight that uses the clusters below those that come free, or in their midst.
#[test]
fn a_hole_waits_for_who_reads_its_cluster_and_for_no_other() {
    for (read, waits) in [((1, 3), false), ((1, 4), true), ((5, 6), true), ((7, 9), true), ((8, 9), false)] {
        let mut disk = filled(false);
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Read, 0, 512);
        let (first, end) = read;
        let len = (end - first) * CLUSTER;
        disk.submit(&mut image, request(RequestKind::Read, first * CLUSTER, len, 1), vec![0; len as usize])
            .unwrap();
        let range = |op: &IoOp| matches!(op, IoOp::ReadData { len, .. } if *len == (end - first) * CLUSTER);
        assert!(range(&disk.pending[0].0.op));
        let free = (host(&disk, 3), 5 * CLUSTER);
        discard(&mut disk, &mut image, 3, 5);
        flush_beside(&mut disk, &mut image, range);
        assert_eq!(holes(&disk), if waits { vec![] } else { vec![free] }, "{read:?}");
        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(holes(&disk), [free], "{read:?}");
    }
}

/// Guest clusters 1 and 2 are those that others share, by their flags: whoever writes there copies.
#[test]
fn a_hole_waits_for_who_copies_from_its_cluster_and_for_no_other() {
    for (freed, waits) in [(1, true), (2, true), (3, false), (4, false), (9, false)] {
        let mut disk = filled(false);
        let old: Vec<u64> = (0..16).map(|n| host(&disk, n)).collect();
        for cluster in [1, 2] {
            set_l2_entry(&mut disk.file, cluster * CLUSTER, old[cluster as usize]);
        }
        // what comes free is pointed to from elsewhere, too, though its count says otherwise
        set_l2_entry(&mut disk.file, 15 * CLUSTER, old[freed] | COPIED);
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Read, 0, 512);
        let middle = request(RequestKind::Write, CLUSTER + 512, 2 * CLUSTER - 1024, 1);
        disk.submit(&mut image, middle, vec![9; 2 * CLUSTER as usize - 1024]).unwrap();
        let fills = |op: &IoOp| matches!(op, IoOp::ReadFill { source: FillSource::Host(_), .. });
        while !disk.pending.iter().all(|(io, _)| fills(&io.op)) {
            disk.complete_first(&mut image);
        }
        assert_eq!(disk.pending.len(), 2, "what is in front of the guest's bytes, and behind them");
        discard(&mut disk, &mut image, 15, 1);
        flush_beside(&mut disk, &mut image, fills);
        let hole = (old[freed], CLUSTER);
        assert_eq!(holes(&disk), if waits { vec![] } else { vec![hole] }, "{freed}");
        disk.settle(&mut image, &mut Rng(1));
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        assert!(holes(&disk).contains(&hole), "{freed}");
        let read = run(&mut disk, &mut image, RequestKind::Read, CLUSTER, 2 * CLUSTER);
        let expected = [vec![1; 512], vec![9; 2 * CLUSTER as usize - 1024], vec![1; 512]].concat();
        assert!(read == expected, "what it copied was there, {freed}");
    }
}

/// Eight bytes are a compressed cluster here: three guest clusters have theirs in one host cluster.
#[test]
fn a_hole_waits_for_who_reads_a_compressed_cluster_there() {
    for (rewritten, waits) in [([0, 1, 2], true), ([4, 5, 6], false)] {
        let mut disk = filled(false);
        let mut model = vec![1; 16 << 16];
        compress(&mut disk.file, &[0, 1, 2], &mut model);
        compress(&mut disk.file, &[4, 5, 6], &mut model);
        let place = |disk: &Disk, cluster: u64| {
            (l2_entry(&disk.file, cluster * CLUSTER) & ((1 << 54) - 1)) / CLUSTER * CLUSTER
        };
        let (old, hole) = (place(&disk, 0), place(&disk, rewritten[0]));
        assert!(old > CLUSTER && place(&disk, 4) > old);
        let mut image = open(&mut disk);
        disk.submit(&mut image, request(RequestKind::Read, 512, 512, 1), vec![0; 512]).unwrap();
        let compressed = |op: &IoOp| matches!(op, IoOp::ReadCompressed { .. });
        while !compressed(&disk.pending[0].0.op) {
            disk.complete_first(&mut image);
        }
        discard(&mut disk, &mut image, rewritten[0], 3);
        flush_beside(&mut disk, &mut image, compressed);
        assert_eq!(holes(&disk), if waits { vec![] } else { vec![(hole, CLUSTER)] });
        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(holes(&disk), [(hole, CLUSTER)]);
        let read = disk.done.iter().find(|done| done.0 == 1).unwrap();
        assert!(read.2 == model[512..1024], "what was there when it was submitted");
    }
}

/// L1 tables of more than 128 Ki entries are not read when the image is opened: an entry may lead to an L2
/// table that nobody has met. Whoever meets it before the count goes down saves it.
#[test]
fn what_turns_out_to_be_a_table_stays_counted_and_whole() {
    let create = CreateOptions { size: 131_100 << 15, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let far = 131_099 << 15;
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Write, far, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let table = quod_states_tests::qcow2::l1_entry(&disk.file, 131_099) & !COPIED;
    set_l2_entry(&mut disk.file, 512, table | COPIED);
    let mut image = open(&mut disk);
    disk.run(&mut image, request(RequestKind::Discard, 512, 512, 0), vec![]);
    let expected = run(&mut disk, &mut image, RequestKind::Read, far, 512);
    flush_beside(&mut disk, &mut image, |_| false);
    assert_eq!((holes(&disk), count(&disk.file, table / 512)), (vec![], 1));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let mut image = open(&mut disk);
    assert!(run(&mut disk, &mut image, RequestKind::Read, far, 512) == expected);
}

/// Counts that cannot be read: their clusters are a leak, and nothing waits for them.
#[test]
fn counts_that_cannot_be_read_hold_nobody_up() {
    let mut disk = filled(false);
    let mut image = open(&mut disk);
    let old = host(&disk, 3) / CLUSTER;
    disk.run(&mut image, request(RequestKind::Discard, 3 * CLUSTER, CLUSTER, 0), vec![]);
    disk.submit(&mut image, request(RequestKind::Quiesce, 0, 0, 1), vec![]).unwrap();
    let counts = |op: &IoOp| matches!(op, IoOp::ReadTable { offset, .. } if offset / CLUSTER == 2);
    let (mut steps, mut failed) = (0, 0);
    while let Some((io, _)) = disk.pending.first() {
        disk.fail = counts(&io.op).then_some((0, 5));
        failed += u32::from(disk.fail.is_some());
        disk.complete_first(&mut image);
        steps += 1;
        assert!(steps < 100, "it goes on for ever");
    }
    assert_eq!(failed, 1);
    assert!(disk.done.iter().any(|done| done.0 == 1 && done.1.is_ok()));
    assert_eq!((holes(&disk), count(&disk.file, old)), (vec![], 1));
}

/// The names of what makes an order, with the place of what is a table.
fn order(disk: &mut Disk) -> Vec<String> {
    let name = |op: IoOp| match op {
        IoOp::WriteTable { offset, .. } => Some(format!("table {}", offset / CLUSTER)),
        IoOp::Sync => Some("sync".into()),
        _ => None,
    };
    disk.log.drain(..).filter_map(|step| name(step.op)).collect()
}

/// A new L2 table is nothing but a hole, or what the file has grown by: nothing of it is written. The write
/// that needed it fails, so that no data asks for the sync before the L1 entry either.
#[test]
fn space_for_a_table_is_durable_before_the_entry_that_leads_to_it() {
    // its counts are lazy, and the dirty bit is set: neither is written
    let mut disk = filled(true);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 20 * CLUSTER, CLUSTER);
    let old = host(&disk, 3);
    discard(&mut disk, &mut image, 3, 1);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    let last = disk.log.last().unwrap();
    assert_eq!(last.op, IoOp::PunchHole { host: old, len: CLUSTER }, "durable with the next sync");
    disk.log.clear();
    // before it fails, free clusters are looked for, and what is dirty is written
    fail_new_table(&mut disk, &mut image, |op| matches!(op, IoOp::Grow { .. }));
    flush_beside(&mut disk, &mut image, |_| false);
    assert_eq!(order(&mut disk)[..2], ["sync", "table 3"]);
    assert_eq!(quod_states_tests::qcow2::l1_entry(&disk.file, 1), old | COPIED);

    let (mut disk, mut image) = qed_disk(8 << 30, 1, None, Options::default().grow_step(0));
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    fail_new_table(&mut disk, &mut image, |op| matches!(op, IoOp::WriteData { .. }));
    disk.log.clear();
    flush_beside(&mut disk, &mut image, |_| false);
    assert_eq!(order(&mut disk), ["sync", "table 1", "sync"]);
}

/// A write for which there is no L2 table yet; its table gets space, and then this I/O fails.
fn fail_new_table(disk: &mut Disk, image: &mut Image, fails: impl Fn(&IoOp) -> bool) {
    let before = image.counters().new_tables;
    write(disk, image, 513 << 20, 4 * CLUSTER, 50);
    while let Some((io, _)) = disk.pending.first() {
        if fails(&io.op) && image.counters().new_tables > before {
            disk.fail = Some((0, 28));
        }
        disk.complete_first(image);
    }
    disk.fail = None;
    let answer = disk.done.iter().find(|done| done.0 == 50).unwrap();
    assert!(answer.1.is_err() && image.counters().new_tables == before + 1);
}

/// Space for new data is looked for among the clusters that were free when the image was opened. One that
/// came free since then has its hole already, and perhaps a new owner.
#[test]
fn a_cluster_comes_free_once() {
    let mut disk = filled(false);
    let mut image = open(&mut disk);
    let old = host(&disk, 3);
    discard(&mut disk, &mut image, 3, 1);
    flush_beside(&mut disk, &mut image, |_| false);
    for cluster in 20..30 {
        run(&mut disk, &mut image, RequestKind::Write, cluster * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    }
    assert_eq!(holes(&disk), [(old, CLUSTER)]);
    assert_eq!(host(&disk, 20), old);
    for cluster in 20..30 {
        let byte = 1 + (cluster * 128 % 255) as u8;
        let read =
            disk.run(&mut image, request(RequestKind::Read, cluster * CLUSTER, CLUSTER, 0), vec![0; 1 << 16]);
        assert!(read == vec![byte; 1 << 16], "{cluster}");
    }
}
