//! What the machine promises about the order of a qcow2 image's I/O, its number, and its failures, one test a
//! promise; `qcow2_space.rs` has those about clusters that move, are shared, or come free.
//!
//! Checks:
//! * counts and data are durable before pointers (QC1, QC3), a refcount block before its entry and that
//!   before what it counts (QC9), a new refcount table before the header, which goes before the old one's
//!   clusters are free (QC10);
//! * a flush costs two syncs, also where discards and allocations take turns;
//! * lazy refcounts: the dirty bit goes first, counts wait for quiesce or close (QC12, QC13);
//! * a failed write gives its clusters back, failed metadata poisons, bad pointers and overlaps make the
//!   image corrupt and nothing else is written;
//! * a new size is durable after what it brings or takes (QC17);
//! * slices are loaded once, copy-on-write reads what it needs and writes once.

use quod_states::qcow2::CreateOptions;
use quod_states::{
    Error, FillSource, Flags, Image, IoOp, Op, Options, Part, Policy, Refused, Request, RequestKind, State,
};
use quod_states_tests::qcow2::{
    assert_durable_before, assert_sound, count, created, l1_entry, l2_entry, opened, set_l1_entry,
    set_l2_entry,
};
use quod_states_tests::{Disk, Rng, Step, read_all, request, write};

const CLUSTER: u64 = 65536;
/// Where a fresh image of such clusters has its tables, in clusters.
const REFTABLE: u64 = 1;
const REFCOUNTS: u64 = 2;
const L1: u64 = 3;
const COPIED: u64 = 1 << 63;

fn setup(options: Options) -> (Disk, Image) {
    created(CreateOptions { size: 1 << 30, ..CreateOptions::default() }, None, options)
}

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    let byte = if kind == RequestKind::Write { 1 + (offset / 512 % 255) as u8 } else { 0xcc };
    disk.run(image, request(kind, offset, len, 77), vec![byte; len as usize])
}

fn flush(disk: &mut Disk, image: &mut Image) {
    run(disk, image, RequestKind::Flush, 0, 0);
}

/// What a step is, in a fresh image with clusters of 64 KiB.
fn name(op: &IoOp) -> &'static str {
    match op {
        IoOp::WriteTable { offset, .. } => match offset / CLUSTER {
            0 => "header",
            REFTABLE => "refcount table",
            REFCOUNTS => "refcounts",
            L1 => "L1",
            _ => "L2",
        },
        IoOp::ReadTable { .. } => "read table",
        IoOp::WriteData { .. } => "data",
        IoOp::ReadData { .. } => "read",
        IoOp::ReadFill { .. } => "fill",
        IoOp::Sync => "sync",
        IoOp::Grow { .. } => "grow",
        IoOp::PunchHole { .. } => "punch",
        IoOp::ZeroRange { .. } => "zero",
        IoOp::SetLen { .. } => "set length",
        _ => "other",
    }
}

fn is(wanted: &'static str) -> impl Fn(&Step) -> bool {
    move |step| name(&step.op) == wanted
}

fn is_pointer(step: &Step) -> bool {
    matches!(name(&step.op), "L1" | "L2")
}

/// The names of all steps, in the order of their submission.
fn steps(disk: &Disk) -> Vec<&'static str> {
    disk.log.iter().map(|step| name(&step.op)).collect()
}

/// Completes what is pending, oldest first, until nothing but `keep` is.
fn complete_until(disk: &mut Disk, image: &mut Image, keep: &str) {
    for _ in 0..10_000 {
        let Some(index) = disk.pending.iter().position(|(io, _)| name(&io.op) != keep) else { return };
        disk.complete(image, index);
    }
    panic!("never comes to rest");
}

/// Fails the first pending step of this name and completes the rest.
fn fail_at(disk: &mut Disk, image: &mut Image, wanted: &str) {
    for _ in 0..1000 {
        if let Some(index) = disk.pending.iter().position(|(io, _)| name(&io.op) == wanted) {
            disk.fail = Some((0, 5));
            disk.complete(image, index);
            return disk.settle(image, &mut Rng(1));
        }
        disk.complete_first(image);
    }
    panic!("{wanted} is never asked for");
}

#[test]
fn counts_and_data_are_durable_before_pointers() {
    for seed in 0..20 {
        let (mut disk, mut image) = setup(Options::default());
        for n in 0..12 {
            write(&mut disk, &mut image, n * CLUSTER, 4096, n);
            if n % 5 == 4 {
                disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 100 + n), vec![]).unwrap();
            }
            for _ in 0..4 {
                let pending = disk.pending.len() as u64;
                if pending > 0 {
                    disk.complete(&mut image, Rng(seed + n).below(pending) as usize);
                }
            }
        }
        disk.settle(&mut image, &mut Rng(seed));
        flush(&mut disk, &mut image);
        // each pointer that was written leads to what was counted and written durably before
        let pointers: Vec<(u64, u64)> = disk
            .log
            .iter()
            .filter(|step| name(&step.op) == "L2")
            .flat_map(|step| words(&step.bytes).map(|word| (step.submitted, word & !COPIED)))
            .filter(|(_, host)| *host != 0)
            .collect();
        assert!(pointers.len() >= 12);
        for (at, host) in pointers {
            let durable = |found: &dyn Fn(&Step) -> bool| {
                disk.log.iter().filter(|step| found(step)).any(|step| {
                    disk.log.iter().any(|sync| {
                        name(&sync.op) == "sync" && step.completed < sync.submitted && sync.completed < at
                    })
                })
            };
            assert!(durable(&|step| matches!(step.op, IoOp::WriteData { host: data, .. } if data == host)));
            let counter = (host / CLUSTER * 2) as usize;
            assert!(durable(&|step| match step.op {
                IoOp::WriteTable { offset, .. } if name(&step.op) == "refcounts" => {
                    let at = counter - (offset - REFCOUNTS * CLUSTER) as usize;
                    step.bytes.get(at..at + 2) == Some(&[0, 1])
                }
                _ => false,
            }));
        }
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes.as_chunks::<8>().0.iter().map(|bytes| u64::from_be_bytes(*bytes))
}

#[test]
fn a_flush_writes_counts_syncs_writes_pointers_and_syncs() {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    disk.log.clear();
    flush(&mut disk, &mut image);
    let order: Vec<_> = steps(&disk).into_iter().map(|name| if name == "L1" { "L2" } else { name }).collect();
    assert_eq!(order, ["refcounts", "sync", "L2", "L2", "sync"], "a new L2 table costs no sync of its own");
    assert_durable_before(&disk, "QC1", is("refcounts"), is_pointer);
}

#[test]
fn a_lone_flush_costs_two_syncs_and_an_idle_one_none() {
    let (mut disk, mut image) = setup(Options::default());
    flush(&mut disk, &mut image);
    for n in 0..32 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    disk.settle(&mut image, &mut Rng(1));
    let before = image.counters().syncs;
    flush(&mut disk, &mut image);
    assert_eq!(image.counters().syncs - before, 2, "new L2 table included");
    flush(&mut disk, &mut image);
    assert_eq!(image.counters().syncs - before, 2, "nothing was written since");
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    flush(&mut disk, &mut image);
    assert_eq!(image.counters().syncs - before, 3, "a write in place needs one");
}

#[test]
fn allocations_and_discards_in_turns_cost_two_syncs_a_flush() {
    let (mut disk, mut image) = setup(Options::default().grow_step(0));
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER);
    flush(&mut disk, &mut image);
    for n in 1..60 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Discard, (n - 1) * CLUSTER, CLUSTER);
        let before = image.counters().syncs;
        flush(&mut disk, &mut image);
        let syncs = image.counters().syncs - before;
        assert!(syncs <= 2, "flush {n}: {syncs} syncs");
    }
    assert!(disk.file.len() as u64 <= 16 * CLUSTER, "one cluster lives: {} bytes", disk.file.len());
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after the turns");
}

/// A fresh image whose blocks count little: 512-byte clusters.
fn narrow(refcount_bits: u32) -> (Disk, Image) {
    let create =
        CreateOptions { size: 16 << 20, cluster_size: 512, refcount_bits, ..CreateOptions::default() };
    created(create, None, Options::default().grow_step(0))
}

/// The table entries of the file at the end: refcount blocks and L2 tables.
fn tables(file: &[u8]) -> (Vec<u64>, Vec<u64>) {
    let header = quod_states_tests::qcow2::header(file);
    let len = (u64::from(header.reftable_clusters) << header.cluster_bits) as usize;
    let blocks = words(&file[header.reftable_offset as usize..][..len]).filter(|block| *block != 0).collect();
    let l1 = words(&file[header.l1_offset as usize..][..header.l1_entries as usize * 8]);
    (blocks, l1.map(|entry| entry & !COPIED).filter(|table| *table != 0).collect())
}

fn writes_within(step: &Step, start: u64, len: u64) -> bool {
    matches!(step.op, IoOp::WriteTable { offset, .. } if offset >= start && offset < start + len)
}

#[test]
fn a_refcount_block_goes_before_its_entry_and_that_before_what_it_counts() {
    let (mut disk, mut image) = narrow(16);
    for n in 0..40 {
        run(&mut disk, &mut image, RequestKind::Write, n * 8192, 8192);
        if n % 7 == 6 {
            flush(&mut disk, &mut image);
        }
    }
    flush(&mut disk, &mut image);
    let reftable = quod_states_tests::qcow2::header(&disk.file).reftable_offset;
    let (blocks, l2) = tables(&disk.file);
    assert!(blocks.len() >= 3, "{blocks:?}");
    for (index, &block) in blocks.iter().enumerate().skip(1) {
        let enters = |step: &Step| {
            writes_within(step, reftable, 512) && words(&step.bytes).any(|entry| entry == block)
        };
        // the block's first write; it is written again later
        let first =
            disk.log.iter().find(|step| writes_within(step, block, 512)).expect("the block is written");
        let first = first.submitted;
        assert_durable_before(&disk, "QC9", |step| step.submitted == first, enters);
        let counted = index as u64 * 131_072..(index as u64 + 1) * 131_072;
        let entered = disk.log.iter().find(|step| enters(step)).map(|step| step.submitted);
        assert_durable_before(
            &disk,
            "QC9: the entry, then pointers",
            |step| Some(step.submitted) == entered,
            |step| {
                l2.iter().any(|table| writes_within(step, *table, 512))
                    && words(&step.bytes).any(|entry| counted.contains(&(entry & !COPIED)))
            },
        );
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after new blocks");
}

#[test]
fn a_new_refcount_table_goes_before_the_header_and_that_before_the_old_one_is_free() {
    // a table of 64 entries, each counting 64 clusters: 2 MiB of file
    let (mut disk, mut image) = narrow(64);
    let old = quod_states_tests::qcow2::header(&disk.file).reftable_offset;
    for n in 0..48 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, CLUSTER);
        flush(&mut disk, &mut image);
    }
    let header = quod_states_tests::qcow2::header(&disk.file);
    let (new, len) = (header.reftable_offset, u64::from(header.reftable_clusters) * 512);
    assert_ne!(new, old, "the table has moved");
    let switches = |step: &Step| writes_within(step, 0, 512) && step.bytes[48..56] == new.to_be_bytes();
    let switch = disk.log.iter().find(|step| switches(step)).expect("the header leads to it");
    let (switched, at) = (switch.completed, switch.submitted);
    assert_durable_before(
        &disk,
        "QC10",
        |step| writes_within(step, new, len) && step.submitted < at,
        |step| step.submitted == at,
    );
    let synced = disk.log.iter().find(|step| name(&step.op) == "sync" && step.submitted > switched).unwrap();
    let punched =
        |step: &&Step| matches!(step.op, IoOp::PunchHole { host, len } if host <= old && old < host + len);
    let punch = disk.log.iter().find(punched).expect("the old table's space comes free");
    assert!(synced.completed < punch.submitted, "QC10: not before the header is durable");
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after the table's growth");
}

#[test]
fn lazy_refcounts_set_the_dirty_bit_first_and_count_at_the_end() {
    for last in [RequestKind::Quiesce, RequestKind::Close] {
        let create = CreateOptions { size: 1 << 30, lazy_refcounts: true, ..CreateOptions::default() };
        let (mut disk, mut image) = created(create, None, Options::default());
        for n in 0..8 {
            run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, 4096);
            flush(&mut disk, &mut image);
        }
        assert!(quod_states_tests::qcow2::header(&disk.file).is_dirty());
        assert_durable_before(&disk, "QC12", is("header"), is_pointer);
        assert!(!steps(&disk).contains(&"refcounts"), "counts wait");
        let (before, began) = (image.counters().header_writes, disk.log.len());
        assert_eq!(before, 1, "the bit is set once");
        run(&mut disk, &mut image, last, 0, 0);
        let header = quod_states_tests::qcow2::header(&disk.file);
        assert!(!header.is_dirty() && header.lazy_refcounts());
        disk.log.drain(..began);
        assert_durable_before(&disk, "QC13", is("refcounts"), is("header"));
        assert!(disk.log.iter().rev().any(|step| name(&step.op) == "sync"));
        if last == RequestKind::Close {
            assert_sound(&disk.file, "lazy, closed");
        } else {
            run(&mut disk, &mut image, RequestKind::Write, 20 * CLUSTER, 4096);
            flush(&mut disk, &mut image);
            assert!(quod_states_tests::qcow2::header(&disk.file).is_dirty(), "a new period");
        }
    }
}

#[test]
fn a_failed_allocating_write_gives_its_clusters_back() {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    write(&mut disk, &mut image, CLUSTER, 2 * CLUSTER, 1);
    let failed = disk.log.iter().rfind(|step| name(&step.op) == "data").map(|step| step.op);
    fail_at(&mut disk, &mut image, "data");
    let (_, result, ..) = disk.done.pop().unwrap();
    assert!(matches!(result, Err(Error::Device { op: Op::WriteData, errno: 5, .. })), "{result:?}");
    assert!(image.poisoned().is_none());
    assert!(
        run(&mut disk, &mut image, RequestKind::Read, CLUSTER, 4096).iter().all(|byte| *byte == 0),
        "not linked"
    );
    write(&mut disk, &mut image, 9 * CLUSTER, 2 * CLUSTER, 2);
    let again = disk.log.iter().rfind(|step| name(&step.op) == "data").map(|step| step.op);
    let host = |op: Option<IoOp>| match op {
        Some(IoOp::WriteData { host, .. }) => host,
        other => panic!("{other:?}"),
    };
    assert_eq!(host(failed), host(again), "the same space, a hole now");
    disk.settle(&mut image, &mut Rng(1));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "after a failed write");
}

#[test]
fn failed_metadata_poisons_and_reads_go_on() {
    for wanted in ["refcounts", "sync", "L1", "L2"] {
        let (mut disk, mut image) = setup(Options::default());
        run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
        disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 7), vec![]).unwrap();
        fail_at(&mut disk, &mut image, wanted);
        let (user, result, ..) = disk.done.pop().unwrap();
        assert!(user == 7 && result.is_err() && image.poisoned().is_some(), "{wanted}: {result:?}");
        let began = disk.log.len();
        assert_eq!(run(&mut disk, &mut image, RequestKind::Read, 0, 4096), vec![1; 4096]);
        for kind in [
            RequestKind::Write,
            RequestKind::WriteZeroes,
            RequestKind::Discard,
            RequestKind::Flush,
            RequestKind::Quiesce,
            RequestKind::Close,
        ] {
            disk.submit(&mut image, request(kind, CLUSTER, CLUSTER, 2), vec![0; CLUSTER as usize]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            assert_eq!(disk.done.pop().unwrap().1, Err(Error::Poisoned), "{wanted}, {kind:?}");
        }
        assert!(disk.log[began..].iter().all(|step| matches!(name(&step.op), "read" | "read table")));
    }
}

/// An image with data in guest clusters 0 to 3, and in another L2 table's first, closed.
fn filled() -> Disk {
    let create = CreateOptions { size: 2 << 30, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 4 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, 512 << 20, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "filled");
    disk
}

/// The request fails, the file gets the corrupt bit and nothing else, and the rest can be read.
fn assert_corrupt(mut disk: Disk, kind: RequestKind, offset: u64, story: &str) {
    let mut image = opened(&mut disk, Options::default()).image;
    let before = disk.file.clone();
    disk.submit(&mut image, request(kind, offset, 512, 5), vec![9; 512]).unwrap();
    disk.settle(&mut image, &mut Rng(1));
    let (_, result, ..) = disk.done.pop().unwrap();
    assert!(matches!(result, Err(Error::Corrupt(_))), "{story}: {result:?}");
    let mut expected = before;
    expected[79] |= 2;
    expected.resize(disk.file.len(), 0);
    assert!(disk.file == expected, "{story}: the bit, and nothing else");
    assert!(image.poisoned().is_some(), "{story}");
    disk.submit(&mut image, request(RequestKind::Write, 3 * CLUSTER, 512, 6), vec![9; 512]).unwrap();
    disk.settle(&mut image, &mut Rng(1));
    assert_eq!(disk.done.pop().unwrap().1, Err(Error::Poisoned), "{story}");
    let read = run(&mut disk, &mut image, RequestKind::Read, 3 * CLUSTER, 512);
    assert_eq!(read, vec![1; 512], "{story}");
    drop(image);
    let error = disk.open(Options::default()).map(|_| ()).expect_err("not for writing any more");
    assert!(error.to_string().contains("corrupt"), "{story}: {error}");
    assert!(disk.open(Options::default().read_only(true)).is_ok(), "{story}");
}

#[test]
fn bad_pointers_mark_the_image_corrupt() {
    let far: u64 = 1 << 40;
    for kind in [RequestKind::Read, RequestKind::Write, RequestKind::WriteZeroes] {
        for (entry, what) in [
            (COPIED | far, "past the end"),
            (COPIED | (5 * CLUSTER + 512), "not at a cluster"),
            (COPIED | (5 * CLUSTER) | 4, "reserved bit"),
            (1 << 62 | far, "compressed, past the end"),
        ] {
            let mut disk = filled();
            set_l2_entry(&mut disk.file, CLUSTER, entry);
            assert_corrupt(disk, kind, CLUSTER, &format!("{kind:?}: L2 {what}"));
        }
        for (entry, what) in
            [(COPIED | far, "past the end"), (COPIED | 512, "not at a cluster"), (1, "reserved")]
        {
            let mut disk = filled();
            set_l1_entry(&mut disk.file, 1, entry);
            assert_corrupt(disk, kind, 512 << 20, &format!("{kind:?}: L1 {what}"));
        }
    }
    // a refcount block past the end is met when space is wanted
    let mut disk = filled();
    disk.file[(REFTABLE * CLUSTER) as usize..][..8].copy_from_slice(&far.to_be_bytes());
    assert_corrupt(disk, RequestKind::Write, 100 * CLUSTER, "refcount block past the end");
}

#[test]
fn data_and_tables_on_other_metadata_are_refused() {
    let second = l1_entry(&filled().file, 1) & !COPIED;
    for (host, what) in
        [(0, "header"), (REFTABLE, "refcount table"), (REFCOUNTS, "refcount block"), (L1, "L1 table")]
    {
        if host > 0 {
            let mut disk = filled();
            set_l2_entry(&mut disk.file, CLUSTER, COPIED | (host * CLUSTER));
            assert_corrupt(disk, RequestKind::Write, CLUSTER, &format!("data on the {what}"));
            let mut disk = filled();
            set_l1_entry(&mut disk.file, 1, COPIED | (host * CLUSTER));
            assert_corrupt(disk, RequestKind::Write, 512 << 20, &format!("L2 table on the {what}"));
        }
    }
    // an L2 table that was met: data on it, or another L1 entry that leads to it
    let mut disk = filled();
    let own = l1_entry(&disk.file, 0) & !COPIED;
    set_l2_entry(&mut disk.file, CLUSTER, COPIED | own);
    assert_corrupt(disk, RequestKind::Write, CLUSTER, "data on its own L2 table");
    let mut disk = filled();
    set_l1_entry(&mut disk.file, 0, COPIED | second);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Read, 0, 512);
    disk.submit(&mut image, request(RequestKind::Write, 512 << 20, 512, 5), vec![9; 512]).unwrap();
    disk.settle(&mut image, &mut Rng(1));
    assert!(matches!(disk.done.pop().unwrap().1, Err(Error::Corrupt(_))), "two L1 entries, one table");
}

#[test]
fn a_larger_disk_is_zero_durably_before_the_header_says_so() {
    for align in [1, 4096] {
        grow(Options::default().align(align));
    }
}

fn grow(options: Options) {
    let create = CreateOptions { size: CLUSTER + 512, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, Some(vec![7; 4 * CLUSTER as usize]), options);
    run(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER + 512);
    flush(&mut disk, &mut image);
    disk.log.clear();
    run(&mut disk, &mut image, RequestKind::Resize { size: 6 * CLUSTER }, 0, 0);
    assert_eq!(image.virtual_size(), 6 * CLUSTER);
    assert_durable_before(
        &disk,
        "QC17",
        |step| is_pointer(step) || matches!(name(&step.op), "zero" | "data"),
        is("header"),
    );
    assert_eq!(steps(&disk).last(), Some(&"sync"));
    let read = run(&mut disk, &mut image, RequestKind::Read, CLUSTER + 512, 5 * CLUSTER - 512);
    assert!(read.iter().all(|byte| *byte == 0), "neither old bytes nor the backing layer come to light");
    let refused = image.submit(request(RequestKind::Resize { size: 1 << 53 }, 0, 0, 0));
    assert!(matches!(refused, Err(Refused::Invalid(Error::Misuse(_)))), "{refused:?}");
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "grown");
}

/// All table changes that the round finds are younger than it: the resize, which waits for its zeros only,
/// has what it wants, and waits anew for the header.
#[test]
fn a_resize_goes_on_from_a_round_without_old_pointers() {
    let create = CreateOptions { size: CLUSTER + 512, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, None, Options::default());
    run(&mut disk, &mut image, RequestKind::Write, CLUSTER, 512);
    flush(&mut disk, &mut image);
    disk.submit(&mut image, request(RequestKind::Resize { size: 2 * CLUSTER }, 0, 0, 1), vec![]).unwrap();
    complete_until(&mut disk, &mut image, "sync");
    write(&mut disk, &mut image, 0, 512, 2);
    complete_until(&mut disk, &mut image, "sync");
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.drain(..).all(|(_, result, ..)| result.is_ok()));
    assert_eq!(image.edge_counts().get(State::UpdateL2, State::SyncData), 1);
    assert_eq!(image.virtual_size(), 2 * CLUSTER);
}

#[test]
fn what_a_smaller_disk_loses_is_unmapped_durably_before_the_header_says_so() {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 8 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, 600 << 20, CLUSTER);
    flush(&mut disk, &mut image);
    disk.log.clear();
    let size = 2 * CLUSTER + 512;
    // a write in flight behind the new end is waited for
    write(&mut disk, &mut image, 9 * CLUSTER, 512, 3);
    disk.submit(&mut image, request(RequestKind::Resize { size }, 0, 0, 4), vec![]).unwrap();
    assert_eq!(
        image.submit(request(RequestKind::Read, 0, 512, 0)),
        Err(Refused::Busy),
        "nothing is accepted meanwhile"
    );
    disk.settle(&mut image, &mut Rng(3));
    assert!(disk.done.drain(..).all(|(_, result, ..)| result.is_ok()));
    assert_eq!(image.virtual_size(), size);
    assert_durable_before(&disk, "QC17", is_pointer, |step| {
        name(&step.op) == "header" && step.bytes[24..32] == size.to_be_bytes()
    });
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "shrunk");
    assert_eq!(read_all(&mut disk, Options::default()).len() as u64, size);
    assert_eq!(l2_entry(&disk.file, 3 * CLUSTER), 0);
}

#[test]
fn concurrent_misses_of_a_refcount_slice_share_one_load() {
    let (mut disk, mut image) = setup(Options::default());
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Read, 0, 4096);
    disk.log.clear();
    for n in 1..=16 {
        write(&mut disk, &mut image, n * CLUSTER, 4096, n);
    }
    complete_until(&mut disk, &mut image, "data");
    let loads = disk
        .log
        .iter()
        .filter(|step| matches!(step.op, IoOp::ReadTable { offset, .. } if offset / CLUSTER == REFCOUNTS));
    assert_eq!(loads.count(), 1);
    assert_eq!(disk.pending.len(), 16, "then all write at once");
    disk.settle(&mut image, &mut Rng(2));
}

fn fills(disk: &Disk) -> Vec<(Part, u64, u64)> {
    disk.log
        .iter()
        .filter_map(|step| match step.op {
            IoOp::ReadFill { part, len, source: FillSource::Backing(guest), .. } => {
                Some((part, guest, guest + u64::from(len)))
            }
            _ => None,
        })
        .collect()
}

/// The data writes: host offset of the guest's bytes within the cluster, head, guest's bytes, tail.
fn data_writes(disk: &Disk) -> Vec<(u64, u32, u64, u32)> {
    disk.log
        .iter()
        .filter_map(|step| match step.op {
            IoOp::WriteData { host, head, len, tail, .. } => Some((host % CLUSTER, head, len, tail)),
            _ => None,
        })
        .collect()
}

#[test]
fn copy_on_write_reads_what_it_needs_and_writes_once() {
    let backing = vec![7; 3 * CLUSTER as usize - 1024];
    let create = CreateOptions { size: 8 * CLUSTER, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, Some(backing), Options::default());
    let mut one = |offset: u64, len: u64| {
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Write, offset, len);
        (fills(&disk), data_writes(&disk))
    };
    let (read, written) = one(4096, 512);
    assert_eq!(read, [(Part::Head, 0, 4096), (Part::Tail, 4608, CLUSTER)]);
    assert_eq!(written, [(4096, 4096, 512, (CLUSTER - 4608) as u32)]);
    let (read, written) = one(CLUSTER, CLUSTER);
    assert_eq!((read, written), (vec![], vec![(0, 0, CLUSTER, 0)]), "nothing shows through");
    // the backing layer ends in this cluster: what lies behind is zeros, new space has them
    let (read, written) = one(2 * CLUSTER + 512, 512);
    assert_eq!(
        read,
        [(Part::Head, 2 * CLUSTER, 2 * CLUSTER + 512), (Part::Tail, 2 * CLUSTER + 1024, 3 * CLUSTER - 1024)]
    );
    assert_eq!(written, [(512, 512, 512, (CLUSTER - 2048) as u32)]);
    let (read, written) = one(4 * CLUSTER + 512, 512);
    assert_eq!((read, written), (vec![], vec![(512, 0, 512, 0)]), "behind the backing layer");
    let (read, written) = one(5000, 512);
    assert_eq!((read, written), (vec![], vec![(5000, 0, 512, 0)]), "the cluster is its own by now");
}

#[test]
fn whole_subclusters_need_no_copy() {
    let sub = CLUSTER / 32;
    let create = CreateOptions { size: 8 * CLUSTER, extended_l2: true, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, Some(vec![7; 8 * CLUSTER as usize]), Options::default());
    let mut one = |offset: u64, len: u64| {
        disk.log.clear();
        run(&mut disk, &mut image, RequestKind::Write, offset, len);
        (fills(&disk), data_writes(&disk))
    };
    let (read, written) = one(2 * sub, 3 * sub);
    assert_eq!((read, written), (vec![], vec![(2 * sub, 0, 3 * sub, 0)]));
    // a part of another subcluster of the same cluster
    let (read, written) = one(10 * sub + 512, 512);
    assert_eq!(read, [(Part::Head, 10 * sub, 10 * sub + 512), (Part::Tail, 10 * sub + 1024, 11 * sub)]);
    assert_eq!(written, [(10 * sub + 512, 512, 512, (sub - 1024) as u32)]);
    assert_eq!(image.counters().allocations, 1, "one cluster for both");
    let read = run(&mut disk, &mut image, RequestKind::Read, 0, CLUSTER);
    let own = |at: u64| (2 * sub..5 * sub).contains(&at) || (10 * sub + 512..10 * sub + 1024).contains(&at);
    assert!((0..CLUSTER).all(|at| (read[at as usize] == 7) != own(at)));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "subclusters");
    assert_eq!(count(&disk.file, (l2_entry(&disk.file, 0) & !COPIED) / CLUSTER), 1);
}

/// Blocks of the device that are larger than a subcluster: head and tail fill the block, and what else the
/// block holds is read first, and not written by others before it is written back.
#[test]
fn subclusters_smaller_than_a_block_keep_their_neighbours() {
    // subclusters of 1 KiB, blocks of 4 KiB
    let create =
        CreateOptions { size: 8 << 15, cluster_size: 1 << 15, extended_l2: true, ..CreateOptions::default() };
    let options = Options::default().align(4096);
    let (mut disk, mut image) = created(create, Some(vec![7; 8 << 15]), options);
    // a new cluster: the write begins in front of the subcluster's first byte
    run(&mut disk, &mut image, RequestKind::Write, 6144 + 512, 512);
    // the first three subclusters and a half of another: needs its neighbours, and the backing layer
    write(&mut disk, &mut image, 2560, 6144 - 2560, 20);
    let neighbours = |disk: &Disk| {
        disk.pending
            .iter()
            .position(|(io, _)| matches!(io.op, IoOp::ReadFill { source: FillSource::Host(_), .. }))
    };
    while let Some(index) = neighbours(&disk) {
        disk.complete(&mut image, index);
    }
    assert!(disk.pending.iter().all(|(io, _)| name(&io.op) == "fill"), "now the backing layer");
    assert!(!disk.pending.is_empty());
    write(&mut disk, &mut image, 6144, 512, 30);
    assert!(disk.pending.iter().all(|(io, _)| name(&io.op) == "fill"), "the neighbour's writer waits");
    disk.settle(&mut image, &mut Rng(1));
    let read = run(&mut disk, &mut image, RequestKind::Read, 0, 8192);
    let expected = [(2560, 7), (6144 - 2560, 21), (512, 31), (512, 14), (1024, 7)];
    let expected: Vec<u8> = expected.into_iter().flat_map(|(len, byte)| vec![byte; len]).collect();
    assert!(read == expected);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "small subclusters");
}

#[test]
fn writethrough_and_fua_wait_for_pointers() {
    let (mut disk, mut image) = setup(Options::default().policy(Policy::Writethrough));
    run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
    assert_ne!(l2_entry(&disk.file, 0), 0, "written before the answer");
    let (mut disk, mut image) = setup(Options::default());
    let fua = Request { kind: RequestKind::Write, offset: 0, len: 512, flags: Flags::FUA, user: 1 };
    let before = image.counters().syncs;
    disk.run(&mut image, fua, vec![2; 512]);
    assert_ne!(l2_entry(&disk.file, 0), 0);
    assert_eq!(image.counters().syncs - before, 2);
    disk.run(&mut image, fua, vec![3; 512]);
    assert_eq!(image.counters().syncs - before, 3);
}
