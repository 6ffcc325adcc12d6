//! How far one step of a discard, of zeroes or of a smaller disk reaches, and where it has nothing to do.
//!
//! Checks: no table is made for nothing; long ranges are changed in turns; QED, raw images and data files,
//! which have rules of their own; a table that may be shared is copied before what it maps changes.

use quod_states::qcow2::CreateOptions;
use quod_states::{Flags, Image, Machine, Options, Outcome, Request, RequestKind};
use quod_states_tests::ops::{asked, listed, mapped, words, writes};
use quod_states_tests::qcow2::{assert_sound, l1_entry, opened, qcow2_file, set_l1_entry};
use quod_states_tests::{Disk, qed_file, read_all, request};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;
const NONE: Flags = Flags::empty();

/// Where nothing shows through and there is no table, a discard has nothing to write down.
#[test]
fn a_discard_makes_a_table_only_to_hide_the_backing_layer() {
    const SPAN: u64 = 32 << 10;
    // the tables that are made, and what the second one says of its first three clusters
    for (backing, start, end, tables, map) in [
        (None, SPAN, 2 * SPAN, 0, "- - -"),
        (None, 0, 8 * SPAN, 0, "- - -"),
        (Some(SPAN), SPAN, 2 * SPAN, 0, "- - -"),
        (Some(SPAN), 512, 2 * SPAN, 1, "- - -"),
        (Some(SPAN + 1024), SPAN, 2 * SPAN, 1, "z z -"),
        (Some(SPAN + 512), SPAN + 512, 2 * SPAN, 0, "- - -"),
        (Some(SPAN + 513), SPAN + 512, 2 * SPAN, 1, "- z -"),
    ] {
        let name = backing.map(|_| b"base".as_slice());
        let create = CreateOptions {
            size: 8 * SPAN,
            cluster_size: 512,
            backing: name,
            backing_format: name.map(|_| &b"raw"[..]),
            ..CreateOptions::default()
        };
        let mut disk = Disk::new(qcow2_file(&create), backing.map(|len| vec![7; len as usize]), 1);
        let mut image = opened(&mut disk, Options::default()).image;
        let ops = asked(&mut disk, &mut image, request(RequestKind::Discard, start, end - start, 1));
        assert!(ops.is_empty(), "{ops:?}");
        assert_eq!(image.counters().new_tables, tables, "{backing:?} {start:#x}..{end:#x}");
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        let made = (0..8).filter(|index| l1_entry(&disk.file, *index) != 0).count() as u64;
        assert_eq!(
            (made, mapped(&disk.file, 64..67)),
            (tables, map.into()),
            "{backing:?} {start:#x}..{end:#x}"
        );
    }
}

#[test]
fn a_smaller_disk_needs_no_tables_for_what_was_never_there() {
    let create = CreateOptions { size: 256 << 10, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    writes(&mut disk, &mut image, 0, 96 << 10);
    assert_eq!(image.counters().new_tables, 3);
    disk.run(&mut image, request(RequestKind::Resize { size: 512 }, 0, 0, 1), vec![]);
    assert_eq!((image.counters().new_tables, image.virtual_size()), (3, 512));
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    assert_sound(&disk.file, "closed");
    assert_eq!(mapped(&disk.file, 1..192), ["-"; 191].join(" "));
}

/// After 256 entries the embedder has its thread back, if there is more to do.
#[test]
fn a_long_range_is_changed_in_turns() {
    // a slice of 4 KiB maps 512 clusters
    for (start, end, expected) in [
        (256, 512, &[][..]),
        (256, 513, &["yield"]),
        (257, 513, &[]),
        (0, 1536, &["yield", "yield"]),
        (0, 1537, &["yield", "yield", "yield"]),
    ] {
        let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        let zeroes = request(RequestKind::WriteZeroes, start * CLUSTER, (end - start) * CLUSTER, 1);
        assert_eq!(asked(&mut disk, &mut image, zeroes), expected, "{start}..{end}");
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_eq!(mapped(&disk.file, start..end), vec!["z"; (end - start) as usize].join(" "));
    }
}

/// QED keeps what it has, and its unallocated clusters hide the backing layer where they are whole.
#[test]
fn zeroes_of_qed_copy_parts_and_mark_whole_clusters() {
    for (start, end, expected, entries) in [
        (
            0x8000,
            0x38000,
            &[
                "head 0+32768 of 32768 from backing 0x0",
                "tail 0+32768 of 32768 from backing 0x38000",
                "zeros 0x30000 = 32768+32768+0",
                "zeros 0x40000 = 0+32768+32768",
            ][..],
            [0x30000, 1, 1, 0x40000, 0],
        ),
        (0x10000, 0x50000, &[], [0, 1, 1, 1, 1]),
    ] {
        let file = qed_file(16 * CLUSTER, 65536, 1, Some(b"base"));
        let mut disk = Disk::new(file, Some(vec![7; 16 * CLUSTER as usize]), 1);
        let mut image = disk.open(Options::default()).unwrap().image;
        let ops = asked(&mut disk, &mut image, request(RequestKind::WriteZeroes, start, end - start, 1));
        assert_eq!(ops, expected);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        let word = |at: u64| u64::from_le_bytes(disk.file[at as usize..][..8].try_into().unwrap());
        let table = word(word(40));
        assert_eq!([0, 1, 2, 3, 4].map(|index| word(table + index * 8)), entries);
        let read = read_all(&mut disk, Options::default());
        let own = start as usize..end as usize;
        assert!(read.iter().enumerate().all(|(at, byte)| (*byte == 0) == own.contains(&at)));
    }
}

#[test]
fn a_raw_discard_begins_with_the_first_whole_sector() {
    for (start, end, expected) in [(1, 8192, "unmap 0x200 7680"), (511, 1024, "unmap 0x200 512")] {
        let mut image = Image::raw(1 << 20, &Options::default());
        image.submit(request(RequestKind::Discard, start, end - start, 1)).unwrap();
        let io = image.poll_io().unwrap();
        assert_eq!(words(&io.op), Some(expected.into()));
        image.handle_completion(io.id, Outcome::Done);
        assert_eq!(image.poll_io(), None);
    }
}

/// Data of another file: what has its place there is zeroed there, and all of it if the file alone must say
/// what the disk holds.
#[test]
fn zeroes_of_a_data_file_are_bytes_where_it_has_the_cluster() {
    for (raw, expected, map) in [
        (false, &["zero 0x18000 32768", "zero 0x20000 65536"][..], "d1 d2 z z -"),
        (
            true,
            &["zero 0x18000 32768", "zero 0x20000 65536", "zero 0x30000 65536", "zero 0x40000 65536"],
            "d1 d2 d3 d4 d5",
        ),
    ] {
        for flags in [NONE, Flags::MAY_UNMAP] {
            let create = CreateOptions {
                size: 16 * CLUSTER,
                data_file: Some(b"data"),
                data_file_raw: raw,
                ..CreateOptions::default()
            };
            let mut disk = Disk::new(qcow2_file(&create), None, 1);
            let mut image = opened(&mut disk, Options::default()).image;
            let mut run = |kind, offset, len| {
                disk.log.clear();
                let wanted = Request { kind, offset, len, flags, user: 1 };
                disk.submit(&mut image, wanted, vec![1; len as usize]).unwrap();
                complete_without_data(&mut disk, &mut image);
                assert_eq!(disk.done.pop().unwrap().1, Ok(()));
                (listed(&disk), mapped(&disk.file, 1..6))
            };
            run(RequestKind::Write, CLUSTER, 2 * CLUSTER);
            assert_eq!(run(RequestKind::WriteZeroes, 0x18000, 0x38000).0, expected);
            assert_eq!(run(RequestKind::Flush, 0, 0).1, map);
        }
    }
}

/// Completes everything, oldest first; the file with the data is not this disk.
fn complete_without_data(disk: &mut Disk, image: &mut Image) {
    while let Some(op) = disk.pending.first().map(|(io, _)| io.op) {
        if words(&op).is_none() {
            disk.complete_first(image);
            continue;
        }
        let (io, _) = disk.pending.remove(0);
        image.handle_completion(io.id, Outcome::Done);
        disk.drain(image);
    }
}

/// The flag in the L1 table tells whether a table is its own.
#[test]
fn a_table_that_may_be_shared_is_copied_before_its_data_changes() {
    for kind in [RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Discard] {
        let create = CreateOptions { size: 16 * CLUSTER, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        writes(&mut disk, &mut image, 0, 4 * CLUSTER);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        let old = l1_entry(&disk.file, 0);
        set_l1_entry(&mut disk.file, 0, old & !COPIED);
        let mut image = opened(&mut disk, Options::default()).image;
        asked(&mut disk, &mut image, request(kind, CLUSTER, CLUSTER, 1));
        assert_eq!(image.counters().new_tables, 1, "{kind:?}");
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        let new = l1_entry(&disk.file, 0);
        assert!(new & COPIED != 0 && new != old, "{kind:?}");
        assert_sound(&disk.file, "closed");
    }
}
