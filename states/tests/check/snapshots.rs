//! A check of qcow2's snapshot table, I/O by I/O and word by word, on images that are put together by hand.
//!
//! Checks: how far entries and tables are read, and how long they may be; what is told of entries that say
//! too little; where a snapshot's L1 table may lie, and how large it may be.

use quod_states::qcow2::Finding;
use quod_states::{IoOp, Repair, Report};
use quod_states_tests::sparse::*;

const TABLE: u64 = 8 * K;
const PLACE: &str = "snapshot table";
const MIB: u64 = 1 << 20;
const MOST: u64 = 64 * MIB;

/// [`sound`] with a snapshot table behind it.
fn with_snapshots(version: u32, snapshots: &[Vec<u8>]) -> File {
    let bytes = snapshots.concat();
    let clusters = (bytes.len() as u64).div_ceil(K);
    let table = (TABLE, snapshots.len() as u32);
    let mut file = filled(Plan { version, snapshots: table, len: TABLE + clusters * K, ..PLAN });
    file.put(BLOCK + 8 * 8, &vec![1; clusters as usize]);
    file.write(TABLE, &bytes);
    file
}

/// A snapshot that has an L1 table like this, complete.
fn of(l1: (u64, u32)) -> Vec<u8> {
    snapshot(l1, &complete(), b"1", b"one")
}

/// Names of 64 KiB: the entries are read as far as they reach, and not twice.
#[test]
fn a_table_of_long_entries_is_read_in_pieces() {
    let (id, name) = ([b'1'; 65535], [b'n'; 65535]);
    let entry = snapshot((0, 0), &complete(), &id, &name);
    // 131126 bytes and padding: both are 257 clusters, up to 264
    let len = 131_128u64;
    assert_eq!(entry.len() as u64, len);
    let mut file = filled(Plan { order: 4, snapshots: (TABLE, 2), len: 265 * K, ..PLAN });
    file.put(BLOCK, &[0x0001_0001_0001_0001; 66]);
    file.put(BLOCK + 66 * 8, &[1 << 48]);
    file.write(TABLE, &[&entry[..], &entry].concat());
    let ran = run(&mut file, None);
    assert_eq!((&ran.report, &ran.findings[..]), (&Ok(sound_report()), &[][..]));
    let pieces = |at| [(at, 4096), (at + 4096, 65536), (at + 4096 + 65536, 131_126 - 4096 - 65536)];
    assert_eq!(ran.reads()[..6], [pieces(TABLE), pieces(TABLE + len)].concat());
}

/// Clusters of 2 MiB; the table begins at the eighth, and has `len` bytes: its first entry has as much extra
/// data as that needs, its second one, at the end, says `extra`.
fn with_long_table(len: u64, extra: &[u8]) -> File {
    const C: u64 = 2 * MIB;
    let plan = Plan { cluster_bits: 21, l1: (3 * C, 1), reftable: (C, 1), snapshots: (8 * C, 2), ..PLAN };
    let mut file = Plan { len: 40 * C, ..plan }.file();
    file.put(C, &[2 * C]);
    file.put(2 * C, &[1, 1, 1, 1, 0, 0, 0, 0]);
    file.put(2 * C + 64, &[1; 32]);
    let last = snapshot((0, 0), extra, b"", b"");
    file.put(8 * C + 32, &[len - 40 - last.len() as u64]);
    file.write(8 * C + len - last.len() as u64, &last);
    file
}

const CUT: &str = "too much extra data";
const SHORT: &str = "has less extra data than version 3 asks for";

#[test]
fn a_table_has_64_mib_at_most() {
    let mut file = with_long_table(MOST, &[]);
    let before = file.clone();
    let ran = run(&mut file, Some(Repair::All));
    assert_eq!(ran.report, Ok(Report { total_clusters: 1, corruptions_fixed: 2, ..Report::default() }));
    let story = |index, extra, repaired| Finding::Snapshot { index, extra, repaired };
    assert_eq!(ran.findings, [story(0, MOST as u32 - 80, true), story(1, 0, true)]);
    let (c, table) = (2 * MIB, 8 * MIB);
    let mut expected = before;
    expected.put(64, &[table]);
    expected.put(2 * c + 32, &[1]);
    expected.put(2 * c + 64, &[0; 32]);
    // 1024 bytes are kept, and 16 come to be
    expected.put(table + 32, &[1024]);
    expected.put(table + 40 + 1024 + 32, &[16, 0, PLAN.size]);
    assert_eq!(file.changes(&expected), []);
    let report = run(&mut with_long_table(MOST, &[]), None).report;
    assert_eq!(report, Err(corrupt(PLACE, 0, MOST - 80, CUT)));
    // 8 bytes more are too many, whether the last entry is read with the one before or not
    for extra in [vec![], complete(), vec![0; 1000]] {
        let report = run(&mut with_long_table(MOST + 8, &extra), Some(Repair::All)).report;
        assert_eq!(report, Err(corrupt(PLACE, 1, MOST + 8, "the table is longer than 64 MiB")));
    }
}

/// Each entry that says too little is told, and is a problem until it is repaired.
#[test]
fn entries_that_say_too_little_are_told() {
    let entries = [&[][..], &complete(), &[0; 15]].map(|extra| snapshot((0, 0), extra, b"1", b"one"));
    let file = with_snapshots(3, &entries);
    let all = |repaired| {
        [(0, 0), (2, 15)].map(|(index, extra)| Finding::Snapshot { index, extra, repaired }).to_vec()
    };
    let problems = vec![corrupt(PLACE, 0, 0, SHORT), corrupt(PLACE, 2, 15, SHORT)];
    for repair in [None, Some(Repair::Leaks)] {
        let ran = run(&mut file.clone(), repair);
        assert_eq!((ran.changing(), ran.findings), (vec![], all(false)), "{repair:?}");
        let report = Report { corruptions: 2, problems: problems.clone(), ..sound_report() };
        assert_eq!(ran.report, Ok(report), "{repair:?}");
    }
    let ran = run(&mut file.clone(), Some(Repair::All));
    assert_eq!(ran.findings, all(true));
    assert_eq!(ran.report, Ok(Report { corruptions_fixed: 2, ..sound_report() }));
}

#[test]
fn a_data_file_has_no_snapshots() {
    for tables in [0, 1] {
        let mut file = with_snapshots(3, &[of((0, 0)), of((L1, tables)), of((0, 0))]);
        file.put(72, &[4]);
        file.put(L2, &[0, 0, 0]);
        // the snapshot's table is that of the disk
        let twice = 1 + u64::from(tables);
        file.put(BLOCK + 3 * 8, &[twice, twice, 0, 0, 0]);
        if tables == 1 {
            file.put(L1, &[L2]);
        }
        let what = "snapshots in an image with a data file";
        let ran = run(&mut file, None);
        assert_eq!(ran.findings, [entry(PLACE, 0, 3, what)]);
        let problems = vec![corrupt(PLACE, 0, 3, what)];
        let report = Report { corruptions: 1, problems, total_clusters: 128, ..Report::default() };
        assert_eq!(ran.report, Ok(report));
    }
}

/// Place and entries of an L1 table, what is found.
type Place = ((u64, u32), Finding, u64, &'static str);

#[test]
fn an_l1_table_has_its_place_and_its_length() {
    let (start, large) = ("the L1 table does not begin at a cluster", "the L1 table is too large");
    let most = 4 << 20;
    let entry_of = |value, what| (entry(PLACE, 1, value, what), value, what);
    let beyond =
        |offset: u64, len| (Finding::Beyond { offset, len }, offset, "goes beyond the end of the file");
    let far = (1 << 63) - 32 * MIB - K;
    let cases: [Place; 7] = [
        ((3 * K + 512, 1), entry_of(3 * K + 512, start)),
        ((3 * K + 512, 0), entry_of(3 * K + 512, start)),
        ((1 << 40, most + 1), entry_of(u64::from(most) + 1, large)),
        ((1 << 63, most + 1), entry_of(u64::from(most) + 1, large)),
        ((1 << 40, most), beyond(1 << 40, 32 * MIB)),
        ((1 << 40, 1), beyond(1 << 40, 8)),
        ((far, 3), beyond(far, 24)),
    ]
    .map(|(l1, (finding, value, what))| (l1, finding, value, what));
    for (l1, finding, value, what) in cases {
        // around it are such that have none
        let ran = run(&mut with_snapshots(3, &[of((1 << 63, 0)), of(l1), of((0, 0))]), None);
        assert_eq!(ran.findings, [finding], "{l1:x?}");
        let is_read = matches!(finding, Finding::Beyond { .. });
        let problem = if is_read {
            corrupt("reference", value / K, value, what)
        } else {
            corrupt(PLACE, 1, value, what)
        };
        let report = Report { corruptions: 1, problems: vec![problem], ..sound_report() };
        assert_eq!(ran.report, Ok(report), "{l1:x?}");
        // it is read whole where it may be
        let reads = ran.reads();
        let bytes: u64 = reads.iter().filter(|(at, _)| *at >= l1.0).map(|(_, len)| u64::from(*len)).sum();
        assert!(!is_read || bytes == u64::from(l1.1) * 8, "{l1:x?}: {bytes}");
    }
    // where offsets are no longer numbers of bytes, nothing is read
    for offset in [(1 << 63) - 32 * MIB, (1 << 63) - 16 * MIB, 1 << 63, u64::MAX - 1023] {
        let ran = run(&mut with_snapshots(3, &[of((1 << 63, 0)), of((offset, 1))]), None);
        assert_eq!(ran.report, Err(corrupt(PLACE, 1, offset, "the L1 table lies beyond 2^63")));
        assert!(ran.io.iter().all(|op| matches!(op, IoOp::ReadTable { offset, .. } if *offset < 16 * K)));
    }
}

/// As many as there may be, without tables of their own.
#[test]
fn any_number_of_snapshots_is_gone_through() {
    const C: u64 = 64 * K;
    let plan = Plan { cluster_bits: 16, l1: (3 * C, 1), reftable: (C, 1), snapshots: (8 * C, 65536), ..PLAN };
    let mut file = Plan { len: 72 * C, ..plan }.file();
    file.put(C, &[2 * C]);
    file.put(2 * C, &[1, 1, 1, 1]);
    // 65536 entries of 64 bytes
    file.put(2 * C + 64, &[1; 64]);
    file.write(8 * C, &of((0, 0)).repeat(65536));
    let ran = run(&mut file, None);
    assert_eq!(ran.report, Ok(Report { total_clusters: 2, ..Report::default() }));
    assert_eq!(ran.end, 72 * C);
}
