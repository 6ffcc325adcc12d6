//! What the machine knows of where metadata lies in an image that may be written, and what it does when
//! something else lies there.
//!
//! Checks:
//! * L2 tables are known from the opening on, without being met; those of a table of more than 128 Ki entries
//!   when they are met;
//! * data on metadata is neither written, nor zeroed, nor given up: no hole is punched in a table;
//! * metadata that the counts call free is never handed out, nor punched: space comes from behind the end of
//!   the file then, and a repair of the counts loses nothing;
//! * metadata that lies on metadata stops whatever changes counts or tables;
//! * a table that was a snapshot's alone, and came free, may hold data afterwards.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Flags, Image, IoOp, Options, Repair, Request, RequestKind};
use quod_states_tests::qcow2::{
    assert_sound, check, header, l1_entry, l2_entry, opened, qcow2_file, set_count, set_l1_entry,
    set_l2_entry, snapshot,
};
use quod_states_tests::{Disk, Rng, request};

const CLUSTER: u64 = 65536;
/// Where a fresh image of such clusters has its refcount table, its counts and its L1 table.
const PLACES: [(u64, &str); 3] = [(1, "refcount table"), (2, "refcount block"), (3, "L1 table")];
const COPIED: u64 = 1 << 63;
/// A guest offset of another L2 table.
const FAR: u64 = 512 << 20;

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    disk.run(image, request(kind, offset, len, 77), vec![1 + (offset / 512 % 255) as u8; len as usize])
}

/// An image with data in guest clusters 0 to 3 and at [`FAR`], closed.
fn filled() -> Disk {
    let create = CreateOptions { size: 2 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, Options::default().align.into());
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, 0, 4 * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Write, FAR, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "filled");
    disk
}

/// The request fails, and the file gets the corrupt bit and nothing else.
fn assert_refused(mut disk: Disk, request: Request, story: &str) {
    let mut image = opened(&mut disk, Options::default()).image;
    let mut expected = disk.file.clone();
    let bytes = vec![9; if request.kind == RequestKind::Write { request.len as usize } else { 0 }];
    disk.submit(&mut image, request, bytes).unwrap();
    disk.settle(&mut image, &mut Rng(1));
    let result = disk.done.pop().unwrap().1;
    assert!(matches!(result, Err(Error::Corrupt(_))), "{story}: {result:?}");
    expected[79] |= 2;
    expected.resize(disk.file.len(), 0);
    assert!(disk.file == expected, "{story}: the bit, and nothing else");
}

fn requests(offset: u64) -> [Request; 5] {
    let whole = |kind, flags| Request { kind, offset, len: CLUSTER, flags, user: 5 };
    [
        request(RequestKind::Write, offset + 512, 512, 5),
        whole(RequestKind::Write, Flags::empty()),
        request(RequestKind::WriteZeroes, offset + 512, 512, 5),
        whole(RequestKind::WriteZeroes, Flags::MAY_UNMAP),
        whole(RequestKind::Discard, Flags::empty()),
    ]
}

#[test]
fn tables_are_known_though_nobody_met_them() {
    let table = l1_entry(&filled().file, 1) & !COPIED;
    for flag in [COPIED, 0] {
        for request in requests(CLUSTER) {
            let mut disk = filled();
            set_l2_entry(&mut disk.file, CLUSTER, flag | table);
            assert_refused(disk, request, &format!("{request:?} of data on a table, flag {flag:#x}"));
        }
    }
    // the first owner wins, whichever of them is met first
    let mut disk = filled();
    let first = l1_entry(&disk.file, 0);
    set_l1_entry(&mut disk.file, 1, first);
    assert_refused(disk, request(RequestKind::Write, FAR, 512, 5), "the second entry of two");
}

#[test]
fn data_on_metadata_is_not_given_up_either() {
    for (place, what) in PLACES {
        for request in requests(CLUSTER) {
            for flags in [COPIED, 0, COPIED | 1, 1] {
                // zeros over what reads as zeros: nothing to do
                let nothing = request.kind == RequestKind::WriteZeroes && flags & 1 != 0;
                if nothing {
                    continue;
                }
                let mut disk = filled();
                set_l2_entry(&mut disk.file, CLUSTER, flags | (place * CLUSTER));
                assert_refused(disk, request, &format!("{request:?} of data on the {what}, {flags:#x}"));
            }
        }
    }
}

/// Sets a count to 0 and asks for space until the counts were looked at; nothing of the metadata may change.
#[test]
fn metadata_that_is_not_counted_is_never_handed_out() {
    let table = l1_entry(&filled().file, 1) & !COPIED;
    let places = [(0, "header"), (table / CLUSTER, "L2 table")];
    for (place, what) in PLACES.into_iter().chain(places) {
        let mut disk = filled();
        set_count(&mut disk.file, place, 0);
        let before = disk.file.clone();
        let mut image = opened(&mut disk, Options::default()).image;
        let mut answers = Vec::new();
        for n in 10..20 {
            for (kind, len) in [(RequestKind::Write, CLUSTER), (RequestKind::Flush, 0)] {
                let offset = if kind == RequestKind::Flush { 0 } else { n * CLUSTER };
                disk.submit(&mut image, request(kind, offset, len, n), vec![9; len as usize]).unwrap();
                disk.settle(&mut image, &mut Rng(n));
                answers.push(disk.done.pop().unwrap().1);
            }
        }
        assert!(answers.iter().all(Result::is_ok), "{what}: {answers:?}");
        let host = place * CLUSTER;
        let hole = |op: &IoOp| matches!(*op, IoOp::PunchHole { host: h, len } if h <= host && host < h + len);
        assert!(!disk.log.iter().any(|step| hole(&step.op)), "{what}");
        if what == "L2 table" {
            let range = host as usize..(host + CLUSTER) as usize;
            assert!(disk.file[range.clone()] == before[range], "{what}");
        }
        // a table that nobody counts is used all the same
        run(&mut disk, &mut image, RequestKind::Write, FAR + 3 * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Discard, 3 * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Write, 30 * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert!(!header(&disk.file).is_corrupt() && check(&mut disk.file, None).corruptions > 0, "{what}");
        check(&mut disk.file, Some(Repair::All));
        assert_sound(&disk.file, what);
        let mut image = opened(&mut disk, Options::default().read_only(true)).image;
        let mut byte =
            |offset| disk.run(&mut image, request(RequestKind::Read, offset, 512, 1), vec![0xcc; 512])[0];
        let written = |offset: u64| 1 + (offset / 512 % 255) as u8;
        assert!((0..3).all(|n| byte(n * CLUSTER) == 1) && byte(3 * CLUSTER) == 0, "{what}");
        assert!((10..20).all(|n| byte(n * CLUSTER) == 9), "{what}");
        let all = [FAR, FAR + 3 * CLUSTER, 30 * CLUSTER];
        assert!(all.into_iter().all(|offset| byte(offset) == written(offset)), "{what}");
    }
    // a block that is missing, though it has to count the header
    let mut disk = filled();
    disk.file[CLUSTER as usize..][..8].fill(0);
    assert_refused(disk, request(RequestKind::Write, 100 * CLUSTER, 512, 5), "no refcount block");
}

/// A table that is marked as shared, but is counted once: its copy takes its place, and its cluster is like
/// any other.
#[test]
fn a_table_that_came_free_may_hold_data() {
    let mut disk = filled();
    let old = l1_entry(&disk.file, 0) & !COPIED;
    set_l1_entry(&mut disk.file, 0, old);
    let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
    for n in 0..20 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, CLUSTER);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    }
    let reused = (0..20).find(|n| l2_entry(&disk.file, n * CLUSTER) & !COPIED == old);
    let reused = reused.expect("the old table's cluster is used again");
    run(&mut disk, &mut image, RequestKind::Write, reused * CLUSTER, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

/// A snapshot's tables are shared, not foreign.
#[test]
fn a_snapshot_is_no_overlap() {
    let mut disk = filled();
    snapshot(&mut disk.file);
    let mut image = opened(&mut disk, Options::default()).image;
    for offset in [0, CLUSTER, FAR, FAR + CLUSTER] {
        run(&mut disk, &mut image, RequestKind::Write, offset, 512);
        run(&mut disk, &mut image, RequestKind::Discard, offset + 4 * CLUSTER, CLUSTER);
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

/// More than the opening reads: whoever is met first is the owner.
#[test]
fn a_large_l1_table_is_left_alone() {
    for (size, lazy) in [(256u64 << 30, false), (257 << 30, true)] {
        let create = CreateOptions { size, cluster_size: 4096, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, Options::default().align.into());
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, 0, 4096);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "closed");
        let (first, second) = (l1_entry(&disk.file, 0), 255u64 << 30);
        set_l1_entry(&mut disk.file, second >> 21, first);
        let mut image = opened(&mut disk, Options::default()).image;
        disk.submit(&mut image, request(RequestKind::Write, second, 512, 1), vec![9; 512]).unwrap();
        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(disk.done.pop().unwrap().1.is_ok(), lazy);
    }
}

/// A copied flag without an offset leads nowhere: a table is made.
#[test]
fn an_l1_entry_that_is_only_a_flag_gets_a_table() {
    let create = CreateOptions { size: 2 << 30, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, Options::default().align.into());
    set_l1_entry(&mut disk.file, 1, COPIED);
    let mut image = opened(&mut disk, Options::default()).image;
    run(&mut disk, &mut image, RequestKind::Write, FAR, 512);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

/// Metadata on metadata: nothing that needs counts or tables is done, what is in place is.
#[test]
fn tables_that_overlap_each_other_are_seen_at_the_opening() {
    let refblock = 2 * CLUSTER;
    type Spoil = (&'static str, fn(&mut Vec<u8>));
    let spoils: [Spoil; 3] = [
        ("the refcount table reaches over its block", |file| file[59] = 2),
        ("one block twice", |file| {
            file[CLUSTER as usize + 8..][..8].copy_from_slice(&(2 * CLUSTER).to_be_bytes())
        }),
        ("an L2 table on the block", |file| set_l1_entry(file, 2, COPIED | (2 * CLUSTER))),
    ];
    for (what, spoil) in spoils {
        let mut disk = filled();
        spoil(&mut disk.file);
        let mut image = opened(&mut disk, Options::default()).image;
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        drop(image);
        let counts = disk.file[refblock as usize..][..64].to_vec();
        for request in
            [request(RequestKind::Write, 100 * CLUSTER, 512, 5), request(RequestKind::Discard, 0, CLUSTER, 5)]
        {
            let disk = Disk::new(disk.file.clone(), None, Options::default().align.into());
            assert_refused(disk, request, &format!("{request:?}: {what}"));
        }
        assert!(disk.file[refblock as usize..][..64] == counts, "{what}");
    }
}

/// Counts of two and four bits in other places than the format says, as qcow2-rs 0.1.6 puts them: most of
/// what is in use has a count of 0. None of it is handed out, and a repair loses nothing.
#[test]
fn counts_in_wrong_places_lose_nothing() {
    for refcount_bits in [2, 4] {
        let create =
            CreateOptions { size: 2 << 20, cluster_size: 4096, refcount_bits, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
        for n in 0..40 {
            disk.run(&mut image, request(RequestKind::Write, n * 4096, 4096, n), vec![n as u8 + 1; 4096]);
        }
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        disk.file[2 * 4096..][..4096].fill(0);
        disk.file[2 * 4096..][..2].copy_from_slice(&[3, 3]);
        let mut image = opened(&mut disk, Options::default()).image;
        for n in 20..80 {
            disk.run(&mut image, request(RequestKind::Write, n * 4096, 4096, n), vec![n as u8 + 1; 4096]);
            run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
        }
        run(&mut disk, &mut image, RequestKind::Discard, 0, 4096);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert!(check(&mut disk.file, None).corruptions > 0);
        check(&mut disk.file, Some(Repair::All));
        assert_sound(&disk.file, "repaired");
        let mut image = opened(&mut disk, Options::default().read_only(true)).image;
        for n in 0..80 {
            let read = disk.run(&mut image, request(RequestKind::Read, n * 4096, 4096, n), vec![0xcc; 4096]);
            assert_eq!(
                read,
                [if n == 0 { 0 } else { n as u8 + 1 }; 4096],
                "{refcount_bits} bits, cluster {n}"
            );
        }
    }
}
