//! How the refcounts of a qcow2 image grow: new blocks, new tables, and which round writes what of them.
//!
//! Checks: the exact I/O of rounds with a new refcount block, or a new refcount table, that came in time, too
//! late, or found no space (QC9, QC10); the bytes of the table; that a quiesce leaves none of it behind; that
//! lazy counts leave the table alone until it moves.

use quod_states::{Error, Image, IoOp, Op, RequestKind};
use quod_states_tests::narrow::{
    BLOCK, CLUSTER, FULL, complete_but, complete_to, long, name, open, run, settle, start, steps, with_table,
    words,
};
use quod_states_tests::qcow2::{assert_sound, header};
use quod_states_tests::{Disk, write};

/// The refcount table grows by half, to whole clusters. Its clusters come behind the three or four blocks
/// that the space at the end of the file needs; the header leads to it when it is durable.
#[test]
fn a_new_refcount_table_is_written_whole_in_chunks() {
    let (end, larger) = (85 * FULL, 128 * FULL);
    let one = [
        "0xaa00000+0x200",
        "0xaa00200+0x200",
        "0xaa00400+0x200",
        "sync",
        "0xaa00600+0x10000",
        "sync",
        "header",
        "sync",
        "0x1600+0x200",
    ];
    let two = [
        "0x10000000+0x200",
        "0x10000200+0x200",
        "0x10000400+0x200",
        "0x10000600+0x200",
        "sync",
        "0x10000800+0x10000",
        "0x10010800+0x8000",
        "sync",
        "header",
        "sync",
        "0x1600+0x200",
    ];
    for (clusters, new_clusters, blocks, first, expected) in
        [(85, 128, 3, end, one.as_slice()), (128, 192, 4, larger, &two)]
    {
        let mut disk = with_table(clusters);
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
        steps(&mut disk);
        start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
        settle(&mut disk, &mut image);
        let steps = steps(&mut disk);
        assert_eq!(steps[..expected.len()], *expected);
        let at = first + blocks * CLUSTER;
        let found = header(&disk.file);
        assert_eq!((found.reftable_offset, found.reftable_clusters), (at, new_clusters));
        let mut table = vec![0; new_clusters as usize * 64];
        table[..3].copy_from_slice(&[0x400, 0x7800, 0x7a00]);
        for n in 0..blocks {
            table[(clusters * 64 + n) as usize] = first + n * CLUSTER;
        }
        assert!(words(&disk.file[at as usize..][..table.len() * 8]) == table);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "a new table");
    }
}

#[test]
fn a_refcount_table_that_cannot_be_written_is_named_with_its_place() {
    let mut disk = with_table(128);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
    start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
    let chunk = complete_to(&mut disk, &mut image, "0x10010800+0x8000");
    disk.fail = Some((0, 5));
    disk.complete(&mut image, chunk);
    let error = Error::Device { op: Op::WriteReftable, offset: 0x1001_0800, errno: 5 };
    assert_eq!(image.poisoned(), Some(&error));
    settle(&mut disk, &mut image);
    assert_eq!(header(&disk.file).reftable_offset, 64 * CLUSTER);
}

/// A block that came while the sync was in flight is not durable when the table is written: its entry is left
/// out, and those of the others are there.
#[test]
fn an_entry_of_a_young_block_is_left_out_and_no_other() {
    let mut disk = long(BLOCK - CLUSTER, false);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 8192, 1024);
    start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
    complete_to(&mut disk, &mut image, "sync");
    write(&mut disk, &mut image, 16384, 8192, 2);
    write(&mut disk, &mut image, 1 << 15, 1 << 15, 3);
    complete_but(&mut disk, &mut image, "sync");
    assert_eq!(disk.done.len(), 2, "the writes are done, the flush is not");
    steps(&mut disk);
    let sync = complete_to(&mut disk, &mut image, "sync");
    disk.complete(&mut image, sync);
    assert_eq!(disk.log.len(), 1);
    let table = words(&disk.log[0].bytes);
    assert_eq!((table[0], table[1..].to_vec()), (0x400, [vec![BLOCK - CLUSTER], vec![0; 62]].concat()));
    settle(&mut disk, &mut image);
    let expected = [
        "0x200+0x200",
        "sync",
        "0x1600+0x200",
        "0x7e00+0x200",
        "0xa600+0x200",
        "sync",
        "0x200+0x200",
        "sync",
    ];
    assert_eq!(steps(&mut disk), expected);
    let table = words(&disk.file[512..1024]);
    assert_eq!(table, [vec![0x400, 0x7e00, 0xa600], vec![0; 61]].concat(), "the next round has it");
}

/// A table that got its space while the sync was in flight waits for the next round; the entries that the old
/// one has room for do not.
#[test]
fn a_young_refcount_table_waits_for_the_next_round() {
    let mut disk = long(FULL - 40 * CLUSTER, false);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
    start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
    complete_to(&mut disk, &mut image, "sync");
    write(&mut disk, &mut image, 1 << 15, 1 << 15, 3);
    complete_but(&mut disk, &mut image, "sync");
    assert_eq!(disk.done.len(), 1, "the write is done, the flush is not");
    steps(&mut disk);
    settle(&mut disk, &mut image);
    let first = ["0x200+0x200", "sync", "0x1600+0x200"];
    let next = ["0x1fb000+0x200", "0x1fba00+0x200", "sync", "0x1fb600+0x400", "sync", "header", "sync"];
    assert_eq!(steps(&mut disk), [first.as_slice(), &next].concat());
    let table = words(&disk.file[0x1f_b600..0x1f_ba00]);
    let expected = [vec![0x400], vec![0; 62], vec![0x1f_b000, 0x1f_ba00], vec![0; 63]].concat();
    assert_eq!(table, expected);
}

/// The first growth of the file has room for the block, the next one would have it for the table.
fn without_space_for_a_table(len: u64) -> (Disk, Image) {
    let mut disk = long(len, false);
    let mut image = open(&mut disk);
    write(&mut disk, &mut image, 8192, 512, 1);
    let mut grows = 0;
    while let Some((io, _)) = disk.pending.first() {
        if matches!(io.op, IoOp::Grow { .. }) {
            grows += 1;
            if grows == 2 {
                disk.fail = Some((0, 28));
            }
        }
        // what is free in front is not to be had either
        if matches!(io.op, IoOp::Clear { .. } | IoOp::PunchHole { .. }) {
            disk.fail = Some((0, 28));
        }
        disk.complete_first(&mut image);
    }
    assert_eq!(disk.fail, None, "less was tried, and failed as well");
    assert_eq!(disk.done.pop().unwrap().1, Err(Error::NoSpace));
    assert!(image.poisoned().is_none());
    (disk, image)
}

/// A block that counts space behind the end of the old table is not missed while there is no new one: nothing
/// is counted there, and a quiesce does not wait for it.
#[test]
fn a_refcount_table_without_space_is_not_written() {
    for (index, block, data, table) in [
        (64, "0x200c00+0x200", "data 0x201200", "0x200e00+0x400"),
        (65, "0x208c00+0x200", "data 0x209200", "0x208e00+0x400"),
    ] {
        let (mut disk, mut image) = without_space_for_a_table(index * BLOCK + 6 * CLUSTER);
        start(&mut disk, &mut image, RequestKind::Flush, 0, 2);
        settle(&mut disk, &mut image);
        write(&mut disk, &mut image, 0, 512, 3);
        settle(&mut disk, &mut image);
        run(&mut disk, &mut image, RequestKind::Quiesce, 0, 0);
        // the block went out with the first round, while space was looked for
        let done = steps(&mut disk);
        let wrote = |name: &str| done.iter().filter(|step| *step == name).count();
        assert_eq!([block, table, "header"].map(wrote), [1, 0, 0], "{done:?}");
        assert_eq!(disk.done.iter().map(|done| done.0).collect::<Vec<_>>(), [2, 3]);
        // now there is space
        run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
        start(&mut disk, &mut image, RequestKind::Flush, 0, 4);
        settle(&mut disk, &mut image);
        let expected = [data, block, "sync", table, "sync", "header", "sync", "0x1600+0x200"];
        assert_eq!(steps(&mut disk)[..8], expected);
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "a new table");
    }
}

/// All that a quiesce in this round covers is done, but refcounts came while its header was being written.
#[test]
fn a_quiesce_leaves_nothing_of_the_refcounts_behind() {
    let moves = [
        "0x200000+0x200",
        "sync",
        "0x200200+0x400",
        "sync",
        "header",
        "sync",
        // the old table is not counted any more
        "0x400+0x200",
        "sync",
    ];
    for (len, expected) in
        [(BLOCK, ["0x8000+0x200", "sync", "0x200+0x200", "sync"].as_slice()), (FULL, &moves)]
    {
        let mut disk = long(len, false);
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Write, 0, 512);
        start(&mut disk, &mut image, RequestKind::Flush, 0, 1);
        assert_eq!(disk.pending.len(), 1);
        // its header, and nothing else, is what the next round writes
        start(&mut disk, &mut image, RequestKind::Resize { size: 16 << 20 }, 0, 2);
        start(&mut disk, &mut image, RequestKind::Quiesce, 0, 3);
        disk.complete_first(&mut image);
        complete_to(&mut disk, &mut image, "header");
        write(&mut disk, &mut image, 8192, 512, 4);
        while let Some(index) = disk.pending.iter().position(|(io, _)| name(&io.op).is_none()) {
            disk.complete(&mut image, index);
        }
        steps(&mut disk);
        while !disk.done.iter().any(|done| done.0 == 3) {
            let data = |op: &IoOp| matches!(op, IoOp::WriteData { .. });
            let index = disk.pending.iter().position(|(io, _)| !data(&io.op)).unwrap();
            disk.complete(&mut image, index);
        }
        assert_eq!(steps(&mut disk), *expected);
    }
}

/// Lazy counts wait, and so do entries of the refcount table; not so a table that has to move: there is room
/// for one move at a time.
#[test]
fn lazy_counts_leave_the_refcount_table_alone_until_it_moves() {
    let moves =
        ["header", "sync", "0x200200+0x400", "sync", "header", "sync", "0x1600+0x200", "sync"].as_slice();
    for (len, flushed, quiesced) in [
        (
            BLOCK,
            ["header", "sync", "0x1600+0x200", "sync"].as_slice(),
            ["0x8000+0x200", "sync", "0x200+0x200", "sync", "header", "sync"].as_slice(),
        ),
        (FULL, moves, &["0x200000+0x200", "0x400+0x200", "sync", "header", "sync"]),
    ] {
        let mut disk = long(len, true);
        let mut image = open(&mut disk);
        run(&mut disk, &mut image, RequestKind::Write, 8192, 512);
        steps(&mut disk);
        for (kind, expected) in [(RequestKind::Flush, flushed), (RequestKind::Quiesce, quiesced)] {
            start(&mut disk, &mut image, kind, 0, 1);
            settle(&mut disk, &mut image);
            assert_eq!(steps(&mut disk), *expected);
        }
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_sound(&disk.file, "lazy");
    }
}
