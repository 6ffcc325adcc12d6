//! What the machine promises about qcow2 clusters that move, are shared, or come free, one test a promise.
//!
//! Checks:
//! * a count goes down only when the removal of the pointer is durable (QC4), the hole comes after that (QC6)
//!   and not while a request that found the cluster is in flight (QC5);
//! * freed space is used again, and the file does not grow;
//! * what a snapshot shares is copied before it changes, tables first (QC2, QC18);
//! * a rewritten compressed cluster is a normal one, and its old space comes free when the last of those that
//!   share it goes.

use quod_states::qcow2::CreateOptions;
use quod_states::{FillSource, Flags, Image, IoOp, Options, Request, RequestKind};
use quod_states_tests::qcow2::{
    assert_durable_before, assert_sound, check, compress, count, l1_entry, l2_entry, of_snapshot, opened,
    qcow2_file, snapshot,
};
use quod_states_tests::{Disk, Rng, Step, read_all, request};

const CLUSTER: u64 = 65536;
/// Where a fresh image of such clusters has its counts and its L1 table.
const REFCOUNTS: u64 = 2 * CLUSTER;
const L1: u64 = 3 * CLUSTER;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

fn setup(options: Options) -> (Disk, Image) {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, options.align.into());
    let image = opened(&mut disk, options).image;
    (disk, image)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    let byte = if kind == RequestKind::Write { 1 + (offset / 512 % 255) as u8 } else { 0xcc };
    disk.run(image, request(kind, offset, len, 77), vec![byte; len as usize])
}

fn flush(disk: &mut Disk, image: &mut Image) {
    run(disk, image, RequestKind::Flush, 0, 0);
}

/// The host cluster of a guest offset, as the file has it.
fn host(file: &[u8], guest: u64) -> u64 {
    l2_entry(file, guest) & OFFSET
}

fn is_table_write(step: &Step, table: u64) -> bool {
    matches!(step.op, IoOp::WriteTable { offset, .. } if offset / CLUSTER == table / CLUSTER)
}

/// A write of counts that says 0 of this host cluster.
fn counts_none(step: &Step, cluster: u64) -> bool {
    let IoOp::WriteTable { offset, .. } = step.op else { return false };
    let at = (REFCOUNTS + cluster / CLUSTER * 2).checked_sub(offset);
    is_table_write(step, REFCOUNTS)
        && at.and_then(|at| step.bytes.get(at as usize..at as usize + 2)) == Some(&[0, 0])
}

fn is_punch(op: &IoOp, cluster: u64) -> bool {
    matches!(*op, IoOp::PunchHole { host, len } if host <= cluster && cluster < host + len)
}

fn writes_to(op: &IoOp, cluster: u64) -> bool {
    matches!(*op, IoOp::WriteData { host, .. } if host / CLUSTER == cluster / CLUSTER)
}

/// Completes everything but `keep`, oldest first.
fn complete_but(disk: &mut Disk, image: &mut Image, keep: impl Fn(&IoOp) -> bool) {
    for _ in 0..10_000 {
        let Some(index) = disk.pending.iter().position(|(io, _)| !keep(&io.op)) else { return };
        disk.complete(image, index);
    }
    panic!("never comes to rest");
}

#[test]
fn a_count_goes_down_and_the_hole_comes_when_the_removal_is_durable() {
    for kind in [RequestKind::Discard, RequestKind::WriteZeroes] {
        let (mut disk, mut image) = setup(Options::default());
        run(&mut disk, &mut image, RequestKind::Write, 0, 3 * CLUSTER);
        flush(&mut disk, &mut image);
        let (old, table) = (host(&disk.file, CLUSTER), l1_entry(&disk.file, 0) & OFFSET);
        disk.log.clear();
        let flags = if kind == RequestKind::Discard { Flags::empty() } else { Flags::MAY_UNMAP };
        disk.run(&mut image, Request { kind, offset: CLUSTER, len: CLUSTER, flags, user: 1 }, vec![]);
        assert!(disk.log.is_empty(), "nothing but memory changes");
        flush(&mut disk, &mut image);
        assert_durable_before(&disk, "QC6", |s| is_table_write(s, table), |s| is_punch(&s.op, old));
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        assert_durable_before(&disk, "QC4", |s| is_table_write(s, table), |s| counts_none(s, old));
        assert_eq!(count(&disk.file, old / CLUSTER), 0);
        assert_sound(&disk.file, "quiesced");
    }
}

#[test]
fn a_cluster_is_not_punched_while_somebody_reads_or_writes_it() {
    for reader in [RequestKind::Read, RequestKind::Write] {
        let (mut disk, mut image) = setup(Options::default().grow_step(0));
        run(&mut disk, &mut image, RequestKind::Write, 0, 3 * CLUSTER);
        flush(&mut disk, &mut image);
        let old = host(&disk.file, CLUSTER);
        disk.submit(&mut image, request(reader, CLUSTER + 512, 512, 1), vec![9; 512]).unwrap();
        let late = |op: &IoOp| match *op {
            IoOp::ReadData { host, .. } | IoOp::WriteData { host, .. } => host == old + 512,
            _ => false,
        };
        assert!(late(&disk.pending[0].0.op), "it found the cluster");
        disk.submit(&mut image, request(RequestKind::Discard, CLUSTER, CLUSTER, 2), vec![]).unwrap();
        for user in [3, 4] {
            disk.submit(&mut image, request(RequestKind::Flush, 0, 0, user), vec![]).unwrap();
            complete_but(&mut disk, &mut image, late);
        }
        assert!(disk.done.iter().any(|done| done.0 == 4), "the discard is durable");
        // others get other space
        for n in 10..14 {
            disk.submit(
                &mut image,
                request(RequestKind::Write, n * CLUSTER, CLUSTER, n),
                vec![n as u8; CLUSTER as usize],
            )
            .unwrap();
        }
        complete_but(&mut disk, &mut image, late);
        let touched = disk.log.iter().filter(|step| !late(&step.op) && step.submitted > 0);
        let touched = touched
            .skip_while(|step| !matches!(step.op, IoOp::Sync))
            .filter(|step| is_punch(&step.op, old) || writes_to(&step.op, old));
        assert_eq!(touched.count(), 0, "{reader:?} in flight");
        disk.settle(&mut image, &mut Rng(1));
        let answer = disk.done.iter().find(|done| done.0 == 1).expect("answered");
        assert!(answer.1.is_ok());
        if reader == RequestKind::Read {
            assert_eq!(answer.2, vec![1; 512], "what it found there, not a hole");
        }
        assert!(disk.log.iter().any(|step| is_punch(&step.op, old)), "now there is the hole");
        // and now it is used
        run(&mut disk, &mut image, RequestKind::Write, 20 * CLUSTER, CLUSTER);
        flush(&mut disk, &mut image);
        assert_eq!(host(&disk.file, 20 * CLUSTER), old);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "closed");
    }
}

/// An image whose only cluster was discarded, durably, and where it was: all is done but the hole.
fn discarded() -> (Disk, Image, u64) {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER);
    flush(&mut disk, &mut image);
    let old = host(&disk.file, 0);
    run(&mut disk, &mut image, RequestKind::Discard, 0, CLUSTER);
    disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 1), vec![]).unwrap();
    complete_but(&mut disk, &mut image, |op| is_punch(op, old));
    (disk, image, old)
}

#[test]
fn space_is_used_again_only_when_the_hole_is_there() {
    let (mut disk, mut image, old) = discarded();
    assert_eq!(disk.pending.len(), 1, "the hole is on its way");
    run_but(&mut disk, &mut image, 5 * CLUSTER, |op| is_punch(op, old));
    disk.settle(&mut image, &mut Rng(1));
    run(&mut disk, &mut image, RequestKind::Write, 6 * CLUSTER, 512);
    flush(&mut disk, &mut image);
    assert_ne!(host(&disk.file, 5 * CLUSTER), old);
    assert_eq!(host(&disk.file, 6 * CLUSTER), old);
    let read = run(&mut disk, &mut image, RequestKind::Read, 6 * CLUSTER, CLUSTER);
    assert!(read[512..].iter().all(|byte| *byte == 0), "nothing of the cluster's old life shows");
}

fn run_but(disk: &mut Disk, image: &mut Image, offset: u64, keep: impl Fn(&IoOp) -> bool) {
    disk.submit(image, request(RequestKind::Write, offset, 512, 9), vec![9; 512]).unwrap();
    complete_but(disk, image, keep);
    assert!(disk.done.iter().any(|done| done.0 == 9));
}

#[test]
fn a_hole_that_cannot_be_punched_is_not_used_again() {
    let (mut disk, mut image, old) = discarded();
    disk.fail = Some((0, 95));
    disk.settle(&mut image, &mut Rng(1));
    assert!(image.poisoned().is_none());
    for n in 1..8 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, 512);
    }
    flush(&mut disk, &mut image);
    assert!((1..8).all(|n| host(&disk.file, n * CLUSTER) != old));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "its count is right all the same");
}

#[test]
fn a_file_whose_clusters_come_and_go_does_not_grow() {
    let (mut disk, mut image) = setup(Options::default().grow_step(0));
    for n in 0..200 {
        run(&mut disk, &mut image, RequestKind::Write, n % 7 * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Discard, (n + 4) % 7 * CLUSTER, CLUSTER);
        flush(&mut disk, &mut image);
    }
    assert!(disk.file.len() as u64 <= 20 * CLUSTER, "{} bytes", disk.file.len());
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after coming and going");
}

/// Data in guest clusters 0 to 7 and in another L2 table, and a snapshot of it.
fn shared(extended_l2: bool) -> (Disk, Vec<u8>) {
    let create = CreateOptions { size: 1 << 30, extended_l2, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 8 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, 512 << 20, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    snapshot(&mut disk.file);
    disk.log.clear();
    let before = front(&mut Disk::new(of_snapshot(&disk.file), None, 1));
    (disk, before)
}

/// The first nine clusters, read by a reader of its own.
fn front(disk: &mut Disk) -> Vec<u8> {
    let mut image = opened(disk, Options::default().read_only(true)).image;
    disk.run(&mut image, request(RequestKind::Read, 0, 9 * CLUSTER, 0), vec![0; 9 * CLUSTER as usize])
}

#[test]
fn what_a_snapshot_shares_is_copied_before_it_changes() {
    for extended_l2 in [false, true] {
        let (mut disk, before) = shared(extended_l2);
        let (table, data) = (l1_entry(&disk.file, 0), host(&disk.file, CLUSTER));
        assert_eq!(table >> 63, 0, "shared");
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, CLUSTER + 512, 512);
        let untouched = |disk: &Disk| {
            disk.log.iter().all(|step| !writes_to(&step.op, data) && !is_table_write(step, table))
        };
        assert!(untouched(&disk));
        flush(&mut disk, &mut image);
        let (new, moved) = (l1_entry(&disk.file, 0), host(&disk.file, CLUSTER));
        assert!(new >> 63 == 1 && new & OFFSET != table && moved != data);
        // the table's first write is its copy
        let copied = disk.log.iter().find(|step| is_table_write(step, new & OFFSET)).unwrap().submitted;
        assert_durable_before(&disk, "QC2", |step| step.submitted == copied, |step| is_table_write(step, L1));
        // by now it is its own
        let before_write = disk.log.len();
        run(&mut disk, &mut image, RequestKind::Write, CLUSTER + 2048, 512);
        let writes: Vec<_> = disk.log[before_write..].iter().map(|step| step.op).collect();
        assert!(matches!(writes[..], [IoOp::WriteData { head: 0, tail: 0, .. }]), "in place: {writes:?}");
        run(&mut disk, &mut image, RequestKind::Discard, 3 * CLUSTER, 2 * CLUSTER);
        run(&mut disk, &mut image, RequestKind::WriteZeroes, 5 * CLUSTER + 512, 1024);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert!(untouched(&disk));
        assert_sound(&disk.file, "beside a snapshot");
        assert_eq!(count(&disk.file, data / CLUSTER), 1, "the snapshot's alone");
        assert!(front(&mut Disk::new(of_snapshot(&disk.file), None, 1)) == before, "the snapshot");
        let mut expected = before;
        expected[CLUSTER as usize + 512..][..512].fill(130);
        expected[CLUSTER as usize + 2048..][..512].fill(133);
        expected[3 * CLUSTER as usize..5 * CLUSTER as usize].fill(0);
        expected[5 * CLUSTER as usize + 512..][..1024].fill(0);
        assert!(front(&mut disk) == expected, "the disk");
    }
}

#[test]
fn one_copy_of_a_table_serves_all_that_wait_for_it() {
    let (mut disk, _) = shared(false);
    let mut image = opened(&mut disk, Options::default()).image;
    for n in 0..8 {
        disk.submit(
            &mut image,
            request(RequestKind::Write, n * CLUSTER, CLUSTER, n),
            vec![n as u8; CLUSTER as usize],
        )
        .unwrap();
    }
    disk.settle(&mut image, &mut Rng(7));
    assert_eq!(image.counters().new_tables, 1);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "one copy");
}

#[test]
fn a_copy_that_fails_gives_its_space_back_and_changes_nothing() {
    let (mut disk, before) = shared(false);
    let entry = l1_entry(&disk.file, 0);
    let mut image = opened(&mut disk, Options::default()).image;
    disk.submit(&mut image, request(RequestKind::Write, 0, 512, 1), vec![1; 512]).unwrap();
    let copies = |op: &IoOp| matches!(*op, IoOp::WriteTable { offset, .. } if offset > L1);
    for _ in 0..100 {
        if let Some(index) = disk.pending.iter().position(|(io, _)| copies(&io.op)) {
            disk.fail = Some((0, 5));
            disk.complete(&mut image, index);
            break;
        }
        disk.complete_first(&mut image);
    }
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.pop().unwrap().1.is_err() && image.poisoned().is_none());
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_eq!(l1_entry(&disk.file, 0), entry);
    assert_sound(&disk.file, "a failed copy");
    assert!(front(&mut disk) == before);
}

#[test]
fn a_compressed_cluster_is_rewritten_as_a_normal_one() {
    let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 4 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let mut model = read_all(&mut disk, Options::default());
    compress(&mut disk.file, &[0, 1, 2], &mut model);
    let entry = l2_entry(&disk.file, 0);
    let old = (entry & ((1 << 54) - 1)) / CLUSTER;
    assert!(entry & 1 << 62 != 0 && count(&disk.file, old) == 3, "three in one host cluster");
    let mut image = opened(&mut disk, Options::default()).image;
    for n in 0..3 {
        disk.log.clear();
        let at = (n * CLUSTER + 1000) as usize;
        run(&mut disk, &mut image, RequestKind::Write, at as u64, 3000);
        model[at..at + 3000].fill(1 + (at / 512 % 255) as u8);
        let whole = disk.log.iter().any(|step| {
            let IoOp::WriteData { head, len, tail, .. } = step.op else { return false };
            (head, len, u64::from(tail)) == (1000, 3000, CLUSTER - 4000)
        });
        let sources = disk
            .log
            .iter()
            .filter(|step| matches!(step.op, IoOp::ReadFill { source: FillSource::Compressed { .. }, .. }));
        assert!(whole && sources.count() == 2, "head and tail of the old cluster, one write");
        flush(&mut disk, &mut image);
        let entry = l2_entry(&disk.file, n * CLUSTER);
        assert!(entry >> 63 == 1 && entry & 1 << 62 == 0, "normal");
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        assert_eq!(count(&disk.file, old), 2 - n);
        assert_eq!(disk.log.iter().any(|step| is_punch(&step.op, old * CLUSTER)), n == 2, "the last one's");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "rewritten");
    assert!(read_all(&mut disk, Options::default()) == model);
}

/// A discard, or zeroes, of a cluster that an allocating write holds: after it (trap T6).
#[test]
fn a_discard_waits_for_an_allocating_write_of_its_cluster() {
    for kind in [RequestKind::Discard, RequestKind::WriteZeroes] {
        let (mut disk, mut image) = setup(Options::default());
        run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, 512);
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 1), vec![1; 512]).unwrap();
        disk.submit(&mut image, request(kind, 0, CLUSTER, 2), vec![]).unwrap();
        assert!(disk.done.is_empty(), "it waits");
        disk.settle(&mut image, &mut Rng(1));
        assert!(run(&mut disk, &mut image, RequestKind::Read, 0, 512).iter().all(|byte| *byte == 0));
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "in turn");
    }
}

/// A count that says more than there are references (a leak of another program) is not handed out, and does
/// not make trouble.
#[test]
fn a_counted_cluster_is_never_handed_out() {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let end = disk.file.len() as u64 / CLUSTER;
    quod_states_tests::qcow2::set_count(&mut disk.file, end, 1);
    quod_states_tests::qcow2::set_count(&mut disk.file, end + 2, 3);
    let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
    for n in 1..4 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, 512);
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let used: Vec<u64> = (1..4).map(|n| host(&disk.file, n * CLUSTER) / CLUSTER).collect();
    assert_eq!(used, [end + 1, end + 3, end + 4]);
    let report = check(&mut disk.file, None);
    assert!(report.is_sound() && report.leaks == 2, "{report:?}");
}
