//! How a write is cut into pieces, and what exactly each of them reads and writes.
//!
//! Checks: extents in place end with a block at 8 MiB; new clusters are written with one write as far as they
//! are alike; copies are at most 1 MiB at once and leave out what is zeros already; what is shared with a
//! snapshot moves, and what is stale is overwritten; blocks that are partly somebody else's are read first,
//! and by one writer at a time.

use quod_states::qcow2::CreateOptions;
use quod_states::{Image, Machine, Options, Outcome, RequestKind};
use quod_states_tests::ops::{asked, complete_all, listed, mapped, words, writes};
use quod_states_tests::qcow2::{assert_sound, created, of_snapshot, opened, snapshot};
use quod_states_tests::{Disk, qed_file, read_all, request};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CLUSTER: u64 = 65536;

/// What requests on a raw image with blocks of 4 KiB ask for, all completed at once.
fn raw(kind: RequestKind, offset: u64, len: u64) -> Vec<String> {
    let mut image = Image::raw(64 * MIB, &Options::default().align(4096));
    image.submit(request(kind, offset, len, 0)).unwrap();
    let mut all = Vec::new();
    while let Some(io) = image.poll_io() {
        all.extend(words(&io.op));
        image.handle_completion(io.id, Outcome::Done);
    }
    all
}

#[test]
fn a_write_in_place_is_cut_at_8_mib_and_at_the_end_of_a_block() {
    let head = "head 0+512 of 512 from host 0x0";
    assert_eq!(
        raw(RequestKind::Write, 0, 20 * MIB),
        ["write 0x0 = 0+8388608+0", "write 0x800000 = 0+8388608+0", "write 0x1000000 = 0+4194304+0"]
    );
    // 8 MiB are not too many, wherever they begin
    assert_eq!(
        raw(RequestKind::Write, 512, 8 * MIB),
        [head, "tail 0+3584 of 3584 from host 0x800200", "write 0x0 = 512+8388608+3584"]
    );
    assert_eq!(
        raw(RequestKind::Write, 512, 9 * MIB),
        [
            head,
            "tail 0+3584 of 3584 from host 0x900200",
            "write 0x0 = 512+8388096+0",
            "write 0x800000 = 0+1049088+3584"
        ]
    );
}

#[test]
fn new_clusters_that_are_alike_are_written_at_once() {
    for extended_l2 in [false, true] {
        let create = CreateOptions { size: 1 << 30, extended_l2, ..CreateOptions::default() };
        let (mut disk, mut image) = created(create, None, Options::default());
        assert_eq!(
            writes(&mut disk, &mut image, 2 * KIB, 4 * CLUSTER),
            ["write 0x50800 = 0+262144+0"],
            "new space has its zeros"
        );
        assert_eq!(writes(&mut disk, &mut image, 8 * CLUSTER, 9 * MIB).len(), 2);
        // an extent that is cut short ends with a cluster
        assert_eq!(
            writes(&mut disk, &mut image, 300 * CLUSTER + 512, 9 * MIB),
            ["write 0x9a0200 = 0+8453632+0", "write 0x11b0000 = 0+983552+0"]
        );
    }
}

/// Space that is kept holds what was there before: zeros are written around the guest's bytes.
#[test]
fn around_the_bytes_in_space_that_was_kept_zeros_are_written() {
    let one = |extended_l2| {
        let create = CreateOptions { size: 8 * CLUSTER, extended_l2, ..CreateOptions::default() };
        let (mut disk, mut image) = created(create, None, Options::default());
        writes(&mut disk, &mut image, 0, 4 * CLUSTER);
        asked(&mut disk, &mut image, request(RequestKind::WriteZeroes, 0, 4 * CLUSTER, 1));
        let ops = writes(&mut disk, &mut image, 2560, 4 * CLUSTER - 5120);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_sound(&disk.file, "closed");
        let read = read_all(&mut disk, Options::default());
        let own = 2560..4 * CLUSTER as usize - 2560;
        assert!((0..5 * CLUSTER as usize).all(|at| (read[at] != 0) == own.contains(&at)));
        (ops, mapped(&disk.file, 0..5))
    };
    let (ops, map) = one(false);
    assert_eq!((ops, &*map), (vec!["write 0x50000 = 2560+257024+2560".into()], "d5 d6 d7 d8 -"));
    // of subclusters only those that the bytes touch, cluster by cluster
    let (ops, map) = one(true);
    let expected = [
        "write 0x50800 = 512+62976+0",
        "write 0x60000 = 0+65536+0",
        "write 0x70000 = 0+65536+0",
        "write 0x80000 = 0+62976+512",
    ];
    assert_eq!(ops, expected);
    assert_eq!(map, "5:fffffffe/1 6:ffffffff/0 7:ffffffff/0 8:7fffffff/80000000 :0/0");
}

/// Takes a snapshot of the closed image, runs one write, and checks that the snapshot has what it had.
fn beside_a_snapshot(mut disk: Disk, offset: u64, len: u64, clusters: u64) -> (Vec<String>, String) {
    snapshot(&mut disk.file);
    let options = Options::default().read_only(true);
    let before = read_all(&mut Disk::new(of_snapshot(&disk.file), None, 1), options);
    let mut expected = before.clone();
    let mut image = opened(&mut disk, Options::default()).image;
    let ops = writes(&mut disk, &mut image, offset, len);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    assert_sound(&disk.file, "closed");
    assert!(read_all(&mut Disk::new(of_snapshot(&disk.file), None, 1), options) == before, "the snapshot");
    for at in 0..len {
        expected[(offset + at) as usize] = (at / 512 % 251 + 1) as u8;
    }
    assert!(read_all(&mut disk, options) == expected, "the disk");
    (ops, mapped(&disk.file, 0..clusters))
}

/// Four clusters of data, of which these ranges were zeroed and kept.
fn with_zeros(extended_l2: bool, ranges: &[(u64, u64)]) -> Disk {
    let create = CreateOptions { size: 8 * CLUSTER, extended_l2, ..CreateOptions::default() };
    let (mut disk, mut image) = created(create, None, Options::default());
    writes(&mut disk, &mut image, 0, 4 * CLUSTER);
    for (offset, len) in ranges {
        asked(&mut disk, &mut image, request(RequestKind::WriteZeroes, *offset, *len, 1));
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    disk
}

#[test]
fn zeros_that_share_their_space_get_space_of_their_own() {
    let disk = with_zeros(false, &[(CLUSTER, 3 * CLUSTER)]);
    let (ops, map) = beside_a_snapshot(disk, CLUSTER + 1024, 2 * CLUSTER, 5);
    assert_eq!(ops, ["write 0xe0400 = 0+131072+0"], "nothing of the old space");
    assert_eq!(map, "d5! d14 d15 d16 -");
}

/// A cluster of subclusters moves as it is, one at a time; then its bytes are written in place.
#[test]
fn shared_clusters_of_subclusters_move_as_they_are() {
    let (ops, map) = beside_a_snapshot(with_zeros(true, &[]), 61440, CLUSTER, 5);
    let expected = [
        "head 0+61440 of 61440 from host 0x50000",
        "tail 0+4096 of 4096 from host 0x5f000",
        "write 0xe0000 = 61440+0+4096",
        "write 0xef000 = 0+4096+0",
        "tail 0+65536 of 65536 from host 0x60000",
        "write 0xf0000 = 0+0+65536",
        "write 0xf0000 = 0+61440+0",
    ];
    assert_eq!(ops, expected);
    assert_eq!(map, "14:ffffffff/0 15:ffffffff/0 7!:ffffffff/0 8!:ffffffff/0 :0/0");
    // data, zeros that keep their space, and subclusters that have space and nothing else
    let create = CreateOptions { size: 8 * CLUSTER, extended_l2: true, ..CreateOptions::default() };
    for (offset, head, tail, written, map) in [
        (8 * KIB + 512, 8704, 56832, "write 0xb2000 = 512+512+1024", "11:1f/20"),
        (40 * KIB, 40960, 24576, "write 0xba000 = 0+512+1536", "11:10000f/30"),
    ] {
        let (mut disk, mut image) = created(create, None, Options::default());
        writes(&mut disk, &mut image, 0, 12 * KIB);
        asked(&mut disk, &mut image, request(RequestKind::WriteZeroes, 8 * KIB, 4 * KIB, 1));
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        let (ops, mapped) = beside_a_snapshot(disk, offset, 512, 1);
        let moved = [
            format!("head 0+{head} of {head} from host 0x50000"),
            format!("tail 0+{tail} of {tail} from host {:#x}", 0x50000 + head),
            format!("write 0xb0000 = {head}+0+{tail}"),
        ];
        assert_eq!((&ops[..3], &*ops[3]), (&moved[..], written));
        assert_eq!(mapped, map);
    }
}

#[test]
fn behind_the_backing_layer_there_is_nothing_to_copy() {
    for (len, expected) in [
        (2 * CLUSTER, vec!["write 0x50200 = 0+512+0"]),
        (2 * CLUSTER + 512, vec!["head 0+512 of 512 from backing 0x20000", "write 0x50000 = 512+512+0"]),
    ] {
        let create = CreateOptions { size: 8 * CLUSTER, ..CreateOptions::default() };
        let backing = Some(vec![7; len as usize]);
        let (mut disk, mut image) = created(create, backing, Options::default());
        assert_eq!(writes(&mut disk, &mut image, 2 * CLUSTER + 512, 512), expected, "{len}");
    }
}

/// Clusters of 4 MiB of QED.
#[test]
fn large_clusters_are_copied_a_mib_at_a_time() {
    let one = |backing: usize, offset: u64| {
        let file = qed_file(16 * MIB, 4 << 20, 1, Some(b"base"));
        let mut disk = Disk::new(file, Some(vec![7; backing]), 512);
        let mut image = disk.open(Options::default().align(512)).unwrap().image;
        writes(&mut disk, &mut image, offset, 4096)
    };
    // what is zeros already is left out
    assert_eq!(
        one(512, 7 * MIB / 2),
        [
            "head 0+512 of 1048576 from backing 0x0",
            "write 0xc00000 = 1048576+0+0",
            "write 0xf00000 = 524288+4096+0"
        ]
    );
    assert_eq!(
        one(16 << 20, MIB),
        [
            "head 0+1048576 of 1048576 from backing 0x0",
            "tail 0+1048576 of 1048576 from backing 0x101000",
            "write 0xc00000 = 1048576+4096+1048576",
            "tail 0+1048576 of 1048576 from backing 0x201000",
            "write 0xe01000 = 0+0+1048576",
            "tail 0+1044480 of 1044480 from backing 0x301000",
            "write 0xf01000 = 0+0+1044480"
        ]
    );
    // a byte more in front of the bytes is a piece more
    let ops = one(16 << 20, MIB + 512);
    assert_eq!(ops[..2], ["head 0+1048576 of 1048576 from backing 0x0", "write 0xc00000 = 1048576+0+0"]);
    assert_eq!(ops[2], "head 0+512 of 512 from backing 0x100000");
}

/// Subclusters of 1 KiB in blocks of 4 KiB; guest clusters 0 to 2 have space, of which the first and the
/// seventeenth subcluster are used.
fn small_subclusters(backing: bool) -> (Disk, Image) {
    let create =
        CreateOptions { size: 8 << 15, cluster_size: 1 << 15, extended_l2: true, ..CreateOptions::default() };
    let options = Options::default().align(4096);
    let (mut disk, mut image) = created(create, backing.then(|| vec![7; 8 << 15]), options);
    for cluster in 0..3 {
        for offset in [0, 16 * KIB] {
            writes(&mut disk, &mut image, (cluster << 15) + offset, KIB);
        }
    }
    (disk, image)
}

#[test]
fn neighbours_in_a_block_are_read_only_where_there_are_some() {
    let (mut disk, mut image) = small_subclusters(true);
    let (new, backing) = ("write 0x41000 = 2560+512+1024", "head 2048+512 of 2560 from backing 0x19800");
    let cases: [(u64, u64, &[&str]); 8] = [
        // new space has none
        ((3 << 15) + 6656, 512, &[backing, new]),
        ((4 << 15) + 6 * KIB, KIB, &["write 0x49000 = 2048+1024+1024"]),
        // space that is there: at its end, at its beginning, nowhere
        (8 * KIB, KIB, &["tail 0+3072 of 3072 from host 0x2a400", "write 0x2a000 = 0+1024+3072"]),
        (13 * KIB, 3 * KIB, &["head 0+1024 of 1024 from host 0x2b000", "write 0x2b000 = 1024+3072+0"]),
        (20 * KIB, 4 * KIB, &["write 0x2d000 = 0+4096+0"]),
        // on both sides, and what shows through besides
        (
            2560,
            3584,
            &[
                "head 0+2048 of 2560 from host 0x28000",
                "tail 0+2048 of 2048 from host 0x29800",
                "head 2048+512 of 2560 from backing 0x800",
                "write 0x28000 = 2560+3584+2048",
            ],
        ),
        // in place
        (0, 512, &["tail 0+3584 of 3584 from host 0x28200", "write 0x28000 = 0+512+3584"]),
        (3584, 512, &["head 0+3584 of 3584 from host 0x28000", "write 0x28000 = 3584+512+0"]),
    ];
    for (offset, len, expected) in cases {
        assert_eq!(writes(&mut disk, &mut image, offset, len), expected, "{offset:#x}");
    }
}

/// A writer of a part of a block waits for one that is at work in the same block, and for no other.
#[test]
fn a_block_has_one_writer_at_a_time() {
    for (in_flight, new, waits) in [
        (0, KIB, true),
        (0, 3 * KIB, true),
        (0, 4 * KIB, false),
        (16 * KIB, 17 * KIB, true),
        (16 * KIB, 19 * KIB, true),
        (16 * KIB, 20 * KIB, false),
        (16 * KIB, 15 * KIB, false),
        (16 * KIB, 8 * KIB, false),
    ] {
        let (mut disk, mut image) = small_subclusters(false);
        let base = 1 << 15;
        disk.submit(&mut image, request(RequestKind::Write, base + in_flight, 512, 1), vec![1; 512]).unwrap();
        assert_eq!(disk.pending.len(), 1);
        disk.submit(&mut image, request(RequestKind::Write, base + new, KIB, 2), vec![3; KIB as usize])
            .unwrap();
        assert_eq!(disk.pending.len() == 1, waits, "{in_flight} {new}: {:?}", listed(&disk));
        complete_all(&mut disk, &mut image);
        assert_eq!(disk.done.len(), 2);
        let read = disk.run(&mut image, request(RequestKind::Read, base, 1 << 15, 1), vec![0; 1 << 15]);
        assert_eq!((read[in_flight as usize], read[new as usize]), (1, 3));
    }
}

#[test]
fn zeros_do_not_wait_for_a_writer_behind_them() {
    let mut image = Image::raw(64 * MIB, &Options::default().align(4096));
    image.submit(request(RequestKind::Write, MIB + 512, 512, 1)).unwrap();
    let reads = [image.poll_io(), image.poll_io()].map(|io| words(&io.unwrap().op).unwrap());
    assert_eq!(reads, ["head 0+512 of 512 from host 0x100000", "tail 0+3072 of 3072 from host 0x100400"]);
    image.submit(request(RequestKind::WriteZeroes, 4096, 4096, 2)).unwrap();
    assert_eq!(image.poll_io().and_then(|io| words(&io.op)), Some("zero 0x1000 4096".into()));
    image.submit(request(RequestKind::WriteZeroes, MIB - 4096, 8192, 3)).unwrap();
    assert_eq!(image.poll_io(), None, "but for one in the same block");
}
