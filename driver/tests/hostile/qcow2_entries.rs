//! qcow2 images with bad tables: L1 and L2 entries, compressed clusters, refcounts, snapshots.

use crate::qcow2_sample::{
    Base, COPIED, DATA, END, Image, KEPT, L1, L2A, L2B, PACKED, REFBLOCK, REFTABLE, SMALL, SNAPSHOT_L1,
    SNAPSHOTS, Sample, ZERO_KEPT, add, compressed,
};

const K4: u64 = 4096;
/// Where clusters of the sound image lie: what lies there, and which.
const PLACES: [(&str, usize); 8] = [
    ("the header", 0),
    ("the refcount table", REFTABLE),
    ("the refcount block", REFBLOCK),
    ("the L1 table", L1),
    ("its own L2 table", L2A),
    ("another L2 table", L2B),
    ("data", DATA + 3),
    ("compressed data", PACKED),
];
/// Entries that lead nowhere.
const NOWHERE: [(&str, u64); 8] = [
    ("not at a cluster", COPIED | (DATA as u64 * K4 + 512)),
    ("reserved bit 1", COPIED | (DATA as u64 * K4) | 2),
    ("reserved bit 56", COPIED | (DATA as u64 * K4) | 1 << 56),
    ("at the end of the file", COPIED | (END as u64 * K4)),
    ("beyond the file", COPIED | 1 << 40),
    ("at the numeric edge", COPIED | 0x00ff_ffff_ffff_f000),
    ("all ones", u64::MAX),
    ("only the copied flag", COPIED),
];

pub fn add_all(list: &mut Vec<Image>) {
    l1(list);
    l2(list);
    flags(list);
    small(list);
    extended(list);
    counts(list);
    blocks(list);
    snapshots(list);
}

fn l1(list: &mut Vec<Image>) {
    for (what, value) in NOWHERE {
        add(list, Base::Plain, &format!("L1 entry {what}"), "of the second L2 table", move |s| {
            s.long(s.l1(1), value);
            s.unknown.extend(s.per()..2 * s.per());
        });
    }
    for (what, cluster) in PLACES.into_iter().filter(|(_, cluster)| *cluster != L2B) {
        for (flag, copied) in [("", 0), (", copied", COPIED)] {
            let name = format!("L1 entry to {what}{flag}");
            add(list, Base::Plain, &name, "that is read as an L2 table", move |s| {
                s.long(s.l1(1), copied | s.at(cluster)).crossed = true;
                s.unknown.extend(s.per()..2 * s.per());
                // as data of the first table it may be changed through the second
                s.unknown.push(511);
            });
        }
    }
}

fn l2(list: &mut Vec<Image>) {
    for (what, value) in NOWHERE {
        for base in [Base::Plain, Base::Version2] {
            let name = format!("L2 entry {what}, {base:?}");
            add(list, base, &name, "of guest cluster 1", move |s| {
                s.entry(1, value, 0).unknown.push(1);
            });
        }
    }
    for (what, cluster) in PLACES {
        for (flag, flags) in [("", 0), (", copied", COPIED), (", zero", COPIED | 1)] {
            let name = format!("L2 entry to {what}{flag}");
            add(list, Base::Plain, &name, "of guest cluster 1, as if it were data", move |s| {
                s.entry(1, flags | s.at(cluster), 0).unknown.push(1);
                s.crossed = true;
                // two guest clusters share it: a change of one is one of the other
                match cluster {
                    PACKED => s.unknown.extend(SMALL),
                    _ if cluster >= DATA => s.unknown.push(511),
                    _ => {}
                }
            });
        }
    }
    add(list, Base::Plain, "L2 entry one cluster for all", "1024 guest clusters share one", |s| {
        for guest in 0..1024 {
            s.entry(guest, s.at(DATA), 0).unknown.push(guest);
            s.crossed = true;
        }
    });
    add(list, Base::Plain, "L2 entries into the L2 table, all", "1024 guest clusters are their table", |s| {
        for guest in 0..1024 {
            s.entry(guest, COPIED | s.at(L2A + guest / 512), 0).unknown.push(guest);
            s.crossed = true;
        }
    });
}

fn flags(list: &mut Vec<Image>) {
    add(list, Base::Version2, "zero flag in version 2", "which has none", |s| {
        s.entry(1, COPIED | s.at(DATA + 1) | 1, 0).unknown.push(1);
    });
    add(list, Base::Version2, "zero flag without space in version 2", "which has none", |s| {
        s.entry(1, 1, 0).unknown.push(1);
    });
    add(list, Base::Plain, "copied, count 0", "the count forgets guest cluster 1", |s| {
        s.count(DATA + 1, 0).unknown.push(1);
    });
    add(list, Base::Plain, "copied, count 2", "a leak, and the flag is wrong", |s| {
        s.count(DATA + 1, 2);
    });
    add(list, Base::Plain, "not copied, count 1", "the flag is missing", |s| {
        s.entry(1, s.at(DATA + 1), 0);
    });
    add(list, Base::Plain, "not copied, count 0", "and nobody counts it", |s| {
        s.entry(1, s.at(DATA + 1), 0).count(DATA + 1, 0).unknown.push(1);
    });
    add(list, Base::Plain, "table not copied, count 1", "the flag of an L1 entry is missing", |s| {
        s.long(s.l1(0), s.at(L2A));
    });
    add(list, Base::Plain, "table copied, count 2", "the flag of an L1 entry is wrong", |s| {
        s.count(L2A, 2);
    });
    add(list, Base::Plain, "table not copied, count 0", "and nobody counts it", |s| {
        s.long(s.l1(0), s.at(L2A)).count(L2A, 0);
    });
}

/// Compressed clusters: nowhere, on metadata, garbage, and such that expand without end.
fn small(list: &mut Vec<Image>) {
    for (what, at) in [
        ("beyond the file", 1 << 40),
        ("at the end of the file", END as u64 * K4),
        ("at the numeric edge", (1 << 55) - 1),
        ("in the last byte", END as u64 * K4 - 1),
        ("the header", 0),
        ("the refcount block", REFBLOCK as u64 * K4 + 77),
        ("its own L2 table", L2A as u64 * K4 + 512),
        ("the L1 table", L1 as u64 * K4),
        ("data", (DATA + 3) as u64 * K4 + 5),
    ] {
        add(list, Base::Plain, &format!("compressed data {what}"), "of guest cluster 8", move |s| {
            s.entry(8, 1 << 62 | at, 0).unknown.extend([8, 9]);
            s.unknown.push(511);
            s.crossed = true;
        });
    }
    add(list, Base::Plain, "compressed and copied", "the flag is forbidden", |s| {
        let at = s.l2(8);
        s.bytes[at] |= 0x80;
        s.unknown.push(8);
    });
    add(list, Base::Plain, "compressed, all sectors", "the entry reaches into what lies behind", |s| {
        s.entry(8, s.small(s.at(PACKED), 8192 - 512), 0).crossed = true;
    });
    for base in [Base::Plain, Base::Zstd] {
        let zstd = base == Base::Zstd;
        let kind = if zstd { "zstd" } else { "deflate" };
        let mut data = |what: &str, about: &str, bytes: Vec<u8>| {
            add(list, base, &format!("{kind}: {what}"), about, move |s| {
                let at = s.at(PACKED) as usize;
                s.bytes[at..at + 4096].fill(0);
                let len = bytes.len().min(4096);
                s.put(at, &bytes[..len]);
                s.entry(8, s.small(at as u64, len), 0).unknown.extend([8, 9]);
            });
        };
        data("ones", "no stream at all", vec![0xff; 4096]);
        data("zeros", "no stream at all", vec![0; 4096]);
        data("cut off", "the stream ends early", compressed(&noise(4096), zstd)[..2000].to_vec());
        data("too little", "the stream gives 100 bytes", compressed(&[7; 100], zstd));
        data("nothing", "the stream gives 0 bytes", compressed(&[], zstd));
        data("one byte too many", "the stream gives 4097 bytes", compressed(&[7; 4097], zstd));
        data("a bomb", "the stream gives 3 MiB", compressed(&vec![7; 3 << 20], zstd));
        let large = compressed(&vec![0; if zstd { 1 << 30 } else { 64 << 20 }], zstd);
        data("a large bomb", "the stream gives up to 1 GiB", large);
    }
    add(list, Base::Zstd, "zstd: a window of 2 GiB", "the frame asks for much memory", |s| {
        // no single segment, no checksum, the largest window descriptor; one raw block follows
        let at = s.at(PACKED) as usize;
        s.put(at, &[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8, 0x01, 0x80, 0x00]).unknown.extend(SMALL);
    });
    add(list, Base::Zstd, "zstd: a size of 2^63", "the frame says so of its contents", |s| {
        let at = s.at(PACKED) as usize;
        s.put(at, &[0x28, 0xb5, 0x2f, 0xfd, 0xe0, 0, 0, 0, 0, 0, 0, 0, 0x80, 0x01]).unknown.extend(SMALL);
    });
    add(list, Base::Zstd, "zstd: a frame to skip", "of 4 GiB", |s| {
        let at = s.at(PACKED) as usize;
        s.put(at, &[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]).unknown.extend(SMALL);
    });
}

/// Bytes that do not compress.
fn noise(len: usize) -> Vec<u8> {
    crate::random::Random(9).bytes(len)
}

fn extended(list: &mut Vec<Image>) {
    let mut entry = |name: &str, about: &str, spoil: fn(&mut Sample)| {
        add(list, Base::Extended, &format!("subclusters: {name}"), about, move |s| {
            s.unknown.push(1);
            spoil(s);
        });
    };
    entry("allocated and zero", "both bits of a subcluster", |s| {
        s.entry(1, COPIED | s.at(DATA + 1), u64::MAX);
    });
    entry("one of them both", "both bits of the last subcluster", |s| {
        s.entry(1, COPIED | s.at(DATA + 1), 0x8000_0000_ffff_ffff);
    });
    entry("allocated without space", "the entry has no cluster", |s| {
        s.entry(1, 0, 1);
    });
    entry("zero flag", "which extended entries do not have", |s| {
        s.entry(1, COPIED | s.at(DATA + 1) | 1, 0xffff_ffff);
    });
    entry("compressed", "with a bitmap", |s| {
        s.entry(1, s.small(s.at(PACKED), 100), 1);
        s.unknown.extend(SMALL);
    });
    entry("on an L2 table", "as if it were data", |s| {
        s.entry(1, COPIED | s.at(L2B), 0xffff_ffff).crossed = true;
    });
    entry("space without bits", "all of it shows what is below", |s| {
        s.entry(1, COPIED | s.at(DATA + 1), 0);
    });
    entry("space on the header, without bits", "a write would go there", |s| {
        s.entry(1, COPIED, 0);
    });
    entry("space on an L2 table, without bits", "a write would go there", |s| {
        s.entry(1, COPIED | s.at(L2B), 0).crossed = true;
    });
    entry("beyond the file", "at 2^40", |s| {
        s.entry(1, COPIED | 1 << 40, 0xffff_ffff);
    });
}

/// Counts that lie.
fn counts(list: &mut Vec<Image>) {
    let places = [
        ("the header", 0),
        ("the refcount table", REFTABLE),
        ("the refcount block", REFBLOCK),
        ("the L1 table", L1),
        ("an L2 table", L2B),
    ];
    for (what, cluster) in places {
        add(list, Base::Plain, &format!("count 0 of {what}"), "as if it were free", move |s| {
            s.count(cluster, 0);
        });
        add(list, Base::Plain, &format!("count 7 of {what}"), "too high", move |s| {
            s.count(cluster, 7);
        });
    }
    add(list, Base::Plain, "count 0 of all", "as if all were free", |s| {
        for n in 0..END {
            s.count(n, 0);
        }
        s.uncounted = true;
    });
    add(list, Base::Plain, "count 0 of all data", "as if it were free", |s| {
        for n in DATA..END {
            s.count(n, 0);
        }
        s.uncounted = true;
    });
    add(list, Base::Plain, "count 65535 of all", "the highest", |s| {
        for n in 0..END {
            s.count(n, u16::MAX);
        }
    });
    add(list, Base::Plain, "count 1 of what two share", "a compressed cluster", |s| {
        s.count(PACKED, 1).unknown.extend(SMALL);
    });
    add(list, Base::Plain, "counts behind the end", "of clusters that the file does not have", |s| {
        for n in END..2048 {
            s.count(n, 1);
        }
    });
    add(list, Base::Plain, "count 0 of kept space", "of a cluster that reads as zeros", |s| {
        s.count(KEPT, 0).unknown.push(ZERO_KEPT);
    });
}

/// The refcount table.
fn blocks(list: &mut Vec<Image>) {
    for (what, value) in [
        ("missing", 0),
        ("not at a cluster", REFBLOCK as u64 * K4 + 512),
        ("reserved bit", REFBLOCK as u64 * K4 + 1),
        ("beyond the file", 1 << 40),
        ("at the end of the file", END as u64 * K4),
        ("at the numeric edge", u64::MAX - 4095),
        ("all ones", u64::MAX),
        ("on the header", 0x1_0000_0000_0000),
        ("on the refcount table", REFTABLE as u64 * K4),
        ("on the L1 table", L1 as u64 * K4),
        ("on an L2 table", L2A as u64 * K4),
        ("on data", DATA as u64 * K4),
    ] {
        add(list, Base::Plain, &format!("refcount block {what}"), "the first entry", move |s| {
            s.long(REFTABLE * 4096, value).uncounted = true;
        });
    }
    add(list, Base::Plain, "refcount block twice", "two entries lead to one block", |s| {
        s.long(REFTABLE * 4096 + 8, REFBLOCK as u64 * K4);
    });
    add(list, Base::Plain, "refcount block for all", "all entries lead to one block", |s| {
        for n in 1..512 {
            s.long(REFTABLE * 4096 + n * 8, REFBLOCK as u64 * K4);
        }
    });
    add(list, Base::Plain, "second refcount block on an L2 table", "one cluster for both", |s| {
        s.long(REFTABLE * 4096 + 8, L2A as u64 * K4);
    });
    add(list, Base::Plain, "second refcount block beyond the file", "at 2^40", |s| {
        s.long(REFTABLE * 4096 + 8, 1 << 40);
    });
    add(list, Base::Plain, "second refcount block reserved bit", "bit 0", |s| {
        s.long(REFTABLE * 4096 + 8, REFBLOCK as u64 * K4 + 1);
    });
}

fn snapshots(list: &mut Vec<Image>) {
    let mut entry = |name: &str, about: &str, spoil: fn(&mut Sample, usize)| {
        add(list, Base::Snapshot, &format!("snapshot: {name}"), about, move |s| {
            let at = s.at(SNAPSHOTS) as usize;
            spoil(s, at);
            s.crossed = true;
        });
    };
    entry("table beyond the file", "at 2^40", |s, _| {
        s.long(64, 1 << 40);
    });
    entry("table at the end", "of the file", |s, _| {
        s.long(64, s.at(END + 2));
    });
    entry("table on the header", "one cluster for both", |s, _| {
        s.long(64, 0);
    });
    entry("table on the L1 table", "one cluster for both", |s, _| {
        s.long(64, s.at(L1));
    });
    entry("two of them", "the second is all zeros", |s, _| {
        s.word(60, 2);
    });
    entry("65536 of them", "far more than the table has", |s, _| {
        s.word(60, 65536);
    });
    entry("name of 65535 bytes", "beyond the file", |s, at| {
        s.put(at + 14, &[0xff; 2]);
    });
    entry("identifier of 65535 bytes", "beyond the file", |s, at| {
        s.put(at + 12, &[0xff; 2]);
    });
    entry("extra data of 1025 bytes", "one too many", |s, at| {
        s.word(at + 36, 1025);
    });
    entry("extra data of 4 GiB", "all ones", |s, at| {
        s.word(at + 36, u32::MAX);
    });
    entry("no extra data", "which version 3 asks for", |s, at| {
        s.word(at + 36, 0);
    });
    entry("L1 table beyond the file", "at 2^40", |s, at| {
        s.long(at, 1 << 40);
    });
    entry("L1 table not at a cluster", "at an odd place", |s, at| {
        s.long(at, s.at(SNAPSHOT_L1) + 8);
    });
    entry("L1 table at the numeric edge", "below 2^64", |s, at| {
        s.long(at, u64::MAX - 4095);
    });
    entry("L1 table of 2^32 - 1 entries", "32 GiB", |s, at| {
        s.word(at + 8, u32::MAX);
    });
    entry("L1 table of no entries", "for a disk of 4 MiB", |s, at| {
        s.word(at + 8, 0);
    });
    entry("L1 table is the active one", "one for both", |s, at| {
        s.long(at, s.at(L1));
    });
    entry("L1 table on the header", "one cluster for both", |s, at| {
        s.long(at, 0);
    });
    entry("L1 table on an L2 table", "one cluster for both", |s, at| {
        s.long(at, s.at(L2B));
    });
    entry("L1 entry beyond the file", "at 2^40", |s, _| {
        s.long(SNAPSHOT_L1 * 4096, 1 << 40);
    });
    entry("L1 entry to the active L1 table", "read as an L2 table", |s, _| {
        s.long(SNAPSHOT_L1 * 4096, s.at(L1));
    });
    entry("disk of 2^63 bytes", "the size when it was taken", |s, at| {
        s.long(at + 48, 1 << 63);
    });
    entry("VM state of 2^64 bytes", "all ones", |s, at| {
        s.long(at + 40, u64::MAX);
    });
    entry("counts without it", "as if there were no snapshot", |s, _| {
        for n in L2A..END {
            s.count(n, 1);
        }
        s.unknown.extend(SMALL);
    });
    entry("active flags are copied", "though all is shared", |s, _| {
        for index in 0..2 {
            let at = s.l1(index);
            s.bytes[at] |= 0x80;
        }
    });
}
