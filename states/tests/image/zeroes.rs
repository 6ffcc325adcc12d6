//! Write-zeroes and discard over clusters of mixed kinds: what the entries say afterwards, and what is read
//! and written for the parts of clusters (formats.md 4.7).
//!
//! Checks: versions 2 and 3, and subclusters; with and without a backing layer, also one that ends where a
//! cluster begins; parts of data, of zeros, of nothing, of compressed clusters.

use quod_states::qcow2::CreateOptions;
use quod_states::{Flags, Options, Request, RequestKind};
use quod_states_tests::ops::{asked, mapped, writes};
use quod_states_tests::qcow2::{assert_sound, compress, header, l2_at, opened, qcow2_file, set_l2_entry};
use quod_states_tests::{Disk, read_all, request};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;
const NONE: Flags = Flags::empty();

/// A closed image of sixteen clusters: data, zeros without and (version 3) with space, nothing, compressed,
/// data, and nothing.
fn mixed(version: u32, backing: Option<u64>) -> Disk {
    let name = backing.map(|_| b"base".as_slice());
    let create = CreateOptions {
        size: 16 * CLUSTER,
        version,
        backing: name,
        backing_format: name.map(|_| &b"raw"[..]),
        ..CreateOptions::default()
    };
    let mut disk = Disk::new(qcow2_file(&create), backing.map(|len| vec![7; len as usize]), 1);
    let mut image = opened(&mut disk, Options::default()).image;
    writes(&mut disk, &mut image, 0, 8 * CLUSTER);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    if version >= 3 {
        set_l2_entry(&mut disk.file, 2 * CLUSTER, 1);
        set_l2_entry(&mut disk.file, 3 * CLUSTER, (8 * CLUSTER) | COPIED | 1);
    }
    set_l2_entry(&mut disk.file, 4 * CLUSTER, 0);
    compress(&mut disk.file, &[5], &mut vec![0; 16 * CLUSTER as usize]);
    disk
}

/// What one request on the image asks for, and what is left; with the bytes checked.
fn after(mut disk: Disk, kind: RequestKind, flags: Flags, start: u64, end: u64) -> (Vec<String>, String) {
    let mut model = read_all(&mut disk, Options::default());
    let mut image = opened(&mut disk, Options::default()).image;
    let len = end - start;
    let ops = asked(&mut disk, &mut image, Request { kind, offset: start, len, flags, user: 1 });
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    assert_sound(&disk.file, "closed");
    let keeps = kind == RequestKind::Discard && header(&disk.file).version < 3 && disk.backing.is_some();
    let cluster = header(&disk.file).cluster_size();
    let range = match kind {
        RequestKind::Discard if keeps => 0..0,
        RequestKind::Discard => start.next_multiple_of(cluster)..end - end % cluster,
        _ => start..end,
    };
    model[range.start as usize..range.end as usize].fill(0);
    assert!(read_all(&mut disk, Options::default()) == model, "{kind:?} {start:#x}..{end:#x}");
    (ops, mapped(&disk.file, 0..10))
}

/// One request: backing layer, kind, flags, range, what is asked for, what is left.
type Case<'a> = (Option<u64>, RequestKind, Flags, u64, u64, &'a [&'a str], &'a str);

fn assert_cases(version: u32, cases: &[Case<'_>]) {
    for (backing, kind, flags, start, end, ops, map) in cases {
        let disk = mixed(version, *backing);
        let (asked, left) = after(disk, *kind, *flags, *start, *end);
        let story = format!("{backing:?} {kind:?} {flags:?} {start:#x}..{end:#x}");
        assert_eq!(left, *map, "{story} {asked:#?}");
        assert_eq!(asked, *ops, "{story}");
    }
}

#[test]
fn discards_of_mixed_clusters() {
    assert_eq!(mapped(&mixed(3, None).file, 0..10), "d5 d6 z z8 - c d11 d12 - -");
    assert_eq!(mapped(&mixed(2, None).file, 0..10), "d5 d6 d7 d8 - c d11 d12 - -");
    let most = "d5 z z z - z d11 d12 - -";
    assert_cases(
        3,
        &[
            (None, RequestKind::Discard, NONE, 0x8000, 0x68000, &[], most),
            (None, RequestKind::Discard, NONE, 1, 0x6ffff, &[], most),
            (None, RequestKind::Discard, NONE, 0x10001, 0x3ffff, &[], "d5 d6 z z8 - c d11 d12 - -"),
            // what a backing layer would show is hidden, and nothing else becomes zeros
            (Some(4 * CLUSTER), RequestKind::Discard, NONE, 0x8000, 0x68000, &[], most),
            (
                Some(4 * CLUSTER + 512),
                RequestKind::Discard,
                NONE,
                0x8000,
                0x68000,
                &[],
                "d5 z z z z z d11 d12 - -",
            ),
            (Some(9 * CLUSTER), RequestKind::Discard, NONE, 0x60000, 0xa0000, &[], "d5 d6 z z8 - c z z z -"),
        ],
    );
    assert_cases(
        2,
        &[
            (None, RequestKind::Discard, NONE, 0x8000, 0x68000, &[], "d5 - - - - - d11 d12 - -"),
            (Some(512), RequestKind::Discard, NONE, 0x8000, 0x68000, &[], "d5 d6 d7 d8 - c d11 d12 - -"),
        ],
    );
}

#[test]
fn zeroes_of_mixed_clusters() {
    let ends = ["zero 0x58000 32768", "zero 0xb0000 32768"];
    let (zero, unmap) = (RequestKind::WriteZeroes, Flags::MAY_UNMAP);
    let shown = [
        "head 0+512 of 512 from backing 0x40000",
        "tail 0+64512 of 64512 from backing 0x40400",
        "zeros 0xe0000 = 512+512+64512",
    ];
    let compressed = [
        "head 0+512 of 512 from compressed 0x0",
        "tail 0+64512 of 64512 from compressed 0x400",
        "zeros 0xe0000 = 512+512+64512",
    ];
    let first = ["head 0+32768 of 32768 from backing 0x80000", "zeros 0xe0000 = 32768+32768+0"];
    let last =
        ["zero 0xc8000 32768", "tail 0+32768 of 32768 from backing 0x98000", "zeros 0xe0000 = 0+32768+32768"];
    assert_cases(
        3,
        &[
            (None, zero, NONE, 0x8000, 0x68000, &ends, "d5 z6 z z8 z z d11 d12 - -"),
            (None, zero, unmap, 0x8000, 0x68000, &ends, "d5 z z z z z d11 d12 - -"),
            // in parts of zeros there is nothing to do
            (None, zero, NONE, 0x28000, 0x38000, &[], "d5 d6 z z8 - c d11 d12 - -"),
            // nor where nothing shows through: but next time it is known
            (None, zero, NONE, 0x40200, 0x40400, &[], "d5 d6 z z8 z c d11 d12 - -"),
            (Some(4 * CLUSTER), zero, NONE, 0x4fe00, 0x50000, &[], "d5 d6 z z8 z c d11 d12 - -"),
            (Some(4 * CLUSTER), zero, NONE, 0x88000, 0x98000, &[], "d5 d6 z z8 - c d11 d12 z z"),
            // else the part that shows is copied
            (Some(5 * CLUSTER), zero, NONE, 0x40200, 0x40400, &shown, "d5 d6 z z8 d14 c d11 d12 - -"),
            (Some(16 * CLUSTER), zero, NONE, 0x78000, 0x98000, &last, "d5 d6 z z8 - c d11 d12 z d14"),
            (Some(16 * CLUSTER), zero, NONE, 0x88000, 0xa0000, &first, "d5 d6 z z8 - c d11 d12 d14 z"),
            // and so is that of a compressed cluster
            (None, zero, NONE, 0x50200, 0x50400, &compressed, "d5 d6 z z8 - d14 d11 d12 - -"),
        ],
    );
    let in_place = [
        ends[0],
        "zero 0x60000 65536",
        "zero 0x70000 65536",
        "zero 0x80000 65536",
        "zeros 0xe0000 = 0+65536+0",
        ends[1],
    ];
    assert_cases(
        2,
        &[
            (None, zero, NONE, 0x8000, 0x68000, &ends, "d5 - - - - - d11 d12 - -"),
            (None, zero, unmap, 0x40200, 0x60000, &[], "d5 d6 d7 d8 - - d11 d12 - -"),
            // there is no entry that hides a backing layer
            (Some(512), zero, NONE, 0x8000, 0x68000, &in_place, "d5 d6 d7 d8 - d14 d11 d12 - -"),
        ],
    );
}

/// A closed image of sixteen clusters of subclusters: data; data, zeros with space and nothing else; zeros
/// without space; nothing; compressed; data twice.
fn mixed_subclusters(backing: Option<u64>) -> Disk {
    let name = backing.map(|_| b"base".as_slice());
    let create = CreateOptions {
        size: 16 * CLUSTER,
        extended_l2: true,
        backing: name,
        backing_format: name.map(|_| &b"raw"[..]),
        ..CreateOptions::default()
    };
    let mut disk = Disk::new(qcow2_file(&create), backing.map(|len| vec![7; len as usize]), 1);
    let mut image = opened(&mut disk, Options::default()).image;
    writes(&mut disk, &mut image, 0, 7 * CLUSTER);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    for (cluster, host, bitmap) in
        [(1, (6 * CLUSTER) | COPIED, (0xff << 48) | 0xffff_u64), (2, 0, 0xff << 32), (3, 0, 0)]
    {
        let at = l2_at(&disk.file, cluster * CLUSTER).unwrap() as usize + 8;
        disk.file[at..at + 8].copy_from_slice(&bitmap.to_be_bytes());
        set_l2_entry(&mut disk.file, cluster * CLUSTER, host);
    }
    compress(&mut disk.file, &[4], &mut vec![0; 16 * CLUSTER as usize]);
    disk
}

#[test]
fn zeroes_and_discards_of_subclusters() {
    let before = "5:ffffffff/0 6:ffff/ff0000 :0/ff :0/0 c 10:ffffffff/0 11:ffffffff/0";
    assert_eq!(mapped(&mixed_subclusters(None).file, 0..7), before);
    let (zero, discard, unmap) = (RequestKind::WriteZeroes, RequestKind::Discard, Flags::MAY_UNMAP);
    let moved = ["tail 0+63488 of 63488 from compressed 0x800", "zeros 0xd0000 = 0+2048+63488"];
    let shown = [
        "head 0+512 of 512 from backing 0x1c000",
        "tail 0+1024 of 1024 from backing 0x1c400",
        "zeros 0x6c000 = 512+512+1024",
    ];
    let all = ":0/ffffffff";
    let cases: [Case<'_>; 12] = [
        // to within the compressed cluster, which becomes data first
        (None, zero, NONE, 0x1000, 0x4e800, &moved, "5:3/fffffffc 6:0/ffffffff * * 13:e0000001/1ffffffe"),
        // the space of whole clusters is given up, if it may
        (None, zero, NONE, 0x1000, 0x40000, &[], "5:3/fffffffc 6:0/ffffffff * * c"),
        (None, zero, unmap, 0x1000, 0x40000, &[], "5:3/fffffffc * * * c"),
        (None, zero, NONE, 0, 0x50000, &[], "5:0/ffffffff 6:0/ffffffff * * *"),
        (None, zero, unmap, 0, 0x50000, &[], "* * * * *"),
        // in parts of subclusters: of data, of one that has space alone, of zeros, of nothing
        (None, zero, NONE, 0x1200, 0x1400, &["zero 0x51200 512"], "5:ffffffff/0 6:ffff/ff0000 :0/ff :0/0 c"),
        (None, zero, NONE, 0x1c200, 0x1c400, &[], "5:ffffffff/0 6:ffff/1ff0000 :0/ff :0/0 c"),
        (None, zero, NONE, 0x18200, 0x18400, &[], "5:ffffffff/0 6:ffff/ff0000 :0/ff :0/0 c"),
        (None, zero, NONE, 0x30a00, 0x30c00, &[], "5:ffffffff/0 6:ffff/ff0000 :0/ff :0/2 c"),
        (Some(1 << 20), zero, NONE, 0x1c200, 0x1c400, &shown, "5:ffffffff/0 6:100ffff/ff0000 :0/ff :0/0 c"),
        (None, discard, NONE, 0x8000, 0x58000, &[], "5:ffffffff/0 * * :0/0 *"),
        (Some(1 << 20), discard, NONE, 0x8000, 0x58000, &[], "5:ffffffff/0 * * * *"),
    ];
    for (backing, kind, flags, start, end, ops, map) in cases {
        let (asked, left) = after(mixed_subclusters(backing), kind, flags, start, end);
        let map = format!("{} 10:ffffffff/0 11:ffffffff/0 :0/0 :0/0 :0/0", map.replace('*', all));
        let story = format!("{backing:?} {kind:?} {flags:?} {start:#x}..{end:#x}");
        assert_eq!((asked, left), (ops.iter().map(|op| op.to_string()).collect(), map), "{story}");
    }
}
