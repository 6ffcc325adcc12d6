//! Opening qcow2 images whose header, tables or answers are at the edge of what is allowed.
//!
//! Checks: the header may fill its cluster; all that belongs to it is written back, a name and extensions
//! behind its first block too; the last piece of a refcount table is no longer than the table; an answer too
//! short to hold an entry ends the opening; nothing is written to the snapshot table; each step of a repair
//! is durable before the next.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, IoOp, Machine, Opening, Options, Outcome, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{
    assert_sound, header, l1_entry, qcow2_file, set_l1_entry, set_l2_entry, snapshot,
};
use quod_states_tests::{Disk, Rng, request};

const COPIED: u64 = 1 << 63;
const AUTOCLEAR: usize = 88;
/// The last byte of the incompatible features.
const DIRTY: usize = 79;

fn created(size: u64, cluster_size: u32) -> Vec<u8> {
    qcow2_file(&CreateOptions { size, cluster_size, ..CreateOptions::default() })
}

fn set(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What an opening does to the file: each I/O as offset and length, writes marked. The answer to the read
/// that `short` names is cut to so many bytes.
fn steps(file: &mut [u8], short: Option<(&str, usize)>) -> (Vec<String>, Result<(), Error>) {
    let mut opening = Opening::new(None, file.len() as u64, Options::default());
    let mut steps = Vec::new();
    loop {
        if let Some(result) = opening.poll_result() {
            return (steps, result.map(|_| ()));
        }
        assert!(steps.len() < 60, "it asks for ever: {steps:?}");
        let io = opening.poll_io().expect("it wants something");
        match io.op {
            IoOp::ReadTable { offset, len } => {
                let step = format!("read {offset} {len}");
                let mut bytes: Vec<u8> = (offset as usize..(offset + u64::from(len)) as usize)
                    .map(|at| file.get(at).copied().unwrap_or(0))
                    .collect();
                if let Some((_, len)) = short.filter(|(short, _)| *short == step) {
                    bytes.truncate(len);
                }
                steps.push(step);
                opening.handle_completion(io.id, Outcome::Table(&bytes));
            }
            IoOp::WriteTable { offset, len } => {
                let mut bytes = vec![0xee; len as usize];
                opening.encode(io.id, &mut bytes);
                set(file, offset as usize, &bytes);
                steps.push(format!("write {offset} {len}"));
                opening.handle_completion(io.id, Outcome::Done);
            }
            IoOp::Sync => {
                steps.push("sync".into());
                opening.handle_completion(io.id, Outcome::Done);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// QEMU refuses a header that is longer than a cluster; one that fills it has no room for extensions.
#[test]
fn a_header_may_fill_its_cluster() {
    for (length, opens) in [(504, true), (512, true), (520, false)] {
        let mut file = created(1 << 20, 512);
        file[112..512].fill(0);
        set(&mut file, 100, &u32::to_be_bytes(length));
        let ended = steps(&mut file, None).1;
        let expected =
            Err(corrupt("qcow2 header field header_length", 0, length.into(), "is more than a cluster"));
        assert_eq!(ended, if opens { Ok(()) } else { expected }, "{length} bytes");
    }
}

/// An unknown autoclear bit of a dirty image goes: the header is written back as it was, all of it. (Where
/// there is a name, as much was read as the longest name needs.)
#[test]
fn what_belongs_to_the_header_is_written_back_with_it() {
    type Change = (&'static str, fn(&mut [u8]), &'static str);
    fn named(file: &mut [u8], at: u64, len: u32) {
        set(file, 8, &at.to_be_bytes());
        set(file, 16, &len.to_be_bytes());
        file[at as usize..(at + u64::from(len)) as usize].fill(b'n');
    }
    /// The features' names end at 504.
    fn extended(file: &mut [u8], len: u32) {
        set(file, 504, &0x1234_5678u32.to_be_bytes());
        set(file, 508, &len.to_be_bytes());
        file[512..512 + len as usize].fill(b'x');
    }
    let changes: [Change; 6] = [
        ("nothing else", |_| (), "write 0 4096"),
        ("a name that ends with the first block", |file| named(file, 4000, 96), "write 0 4096"),
        ("a name that reaches into the second", |file| named(file, 4000, 97), "write 0 5120"),
        ("a name in the second", |file| named(file, 4096, 1), "write 0 5120"),
        ("an extension whose end is in the first", |file| extended(file, 3576), "write 0 4096"),
        ("an extension that reaches into the third", |file| extended(file, 8000), "write 0 12288"),
    ];
    for (what, change, write) in changes {
        let mut file = created(1 << 30, 65536);
        change(&mut file);
        let before = file.clone();
        (file[AUTOCLEAR], file[DIRTY]) = (0x40, 1);
        let (steps, ended) = steps(&mut file, None);
        assert_eq!((&steps[2..4], ended), (&[write.into(), "sync".into()][..], Ok(())), "{what}");
        assert!(file == before, "{what}: the bits are gone, and nothing else");
    }
}

/// A file with clusters of 4096 bytes whose refcount table has so many of them, at 64 KiB.
fn with_reftable(clusters: u32) -> Vec<u8> {
    let mut file = created(1 << 30, 4096);
    file.resize((64 << 10) + clusters as usize * 4096, 0);
    file.copy_within(4096..8192, 64 << 10);
    set(&mut file, 48, &(64u64 << 10).to_be_bytes());
    set(&mut file, 56, &clusters.to_be_bytes());
    file
}

#[test]
fn a_refcount_table_is_read_to_its_end_and_no_further() {
    // the L1 table of 512 entries lies behind header, refcount table and block
    let (head, l1) = (["read 0 512", "read 0 4096"], ["read 12288 4096", "read 8192 4096"]);
    for (clusters, reads) in [
        (1, &["read 65536 4096"][..]),
        (16, &["read 65536 65536"]),
        (17, &["read 65536 65536", "read 131072 4096"]),
        (35, &["read 65536 65536", "read 131072 65536", "read 196608 12288"]),
    ] {
        let (steps, ended) = steps(&mut with_reftable(clusters), None);
        assert_eq!(
            (steps, ended),
            ([&head, reads, &l1].concat().iter().map(|s| s.to_string()).collect(), Ok(()))
        );
    }
}

#[test]
fn an_answer_without_an_entry_ends_the_opening() {
    for (read, len) in
        [("read 65536 65536", 0), ("read 131072 4096", 0), ("read 12288 4096", 0), ("read 12288 4096", 7)]
    {
        let ended = steps(&mut with_reftable(17), Some((read, len))).1;
        assert_eq!(ended, Err(Error::Misuse("a completion that was not asked for")), "{read}: {len}");
    }
}

/// An entry of the disk leads to each cluster of a snapshot table of two clusters, and to the one behind.
#[test]
fn nothing_is_written_to_the_table_of_snapshots() {
    const CLUSTER: u64 = 512;
    let mut disk = Disk::new(created(1 << 20, 512), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    let old = header(&disk.file).snapshots_offset as usize;
    // its entry of 58 bytes gets a long name, elsewhere
    let mut entry = disk.file[old..old + 58].to_vec();
    set(&mut entry, 14, &700u16.to_be_bytes());
    entry.resize(57 + 700, b'x');
    let table = disk.file.len().next_multiple_of(512) as u64;
    disk.file.resize(table as usize + 3 * 512, 0);
    set(&mut disk.file, table as usize, &entry);
    set(&mut disk.file, 64, &table.to_be_bytes());
    for (n, refused) in [(0, true), (1, true), (2, false)] {
        let mut disk = Disk::new(disk.file.clone(), None, 1);
        let entry = l1_entry(&disk.file, 0);
        set_l1_entry(&mut disk.file, 0, entry | COPIED);
        let host = table + n * CLUSTER;
        set_l2_entry(&mut disk.file, 0, host | COPIED);
        let before = disk.file.clone();
        let mut image = disk.open(Options::default()).unwrap().image;
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]).unwrap();
        disk.settle(&mut image, &mut Rng(1));
        let result = disk.done.pop().unwrap().1;
        let what = "overlaps the header, the L1 table or a snapshot's";
        let error = corrupt("L2 table, guest cluster", 0, host, what);
        assert_eq!(result, if refused { Err(error) } else { Ok(()) }, "cluster {n}");
        let place = table as usize..table as usize + 1024;
        assert!(!refused || disk.file[place.clone()] == before[place], "cluster {n}");
    }
}

/// Counts and the cleared bit: all that the repair writes is durable before the image is ready.
#[test]
fn a_repair_is_made_durable_step_by_step() {
    let create =
        CreateOptions { size: 1 << 20, cluster_size: 512, lazy_refcounts: true, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default().grow_step(0)).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    assert!(header(&disk.file).is_dirty());
    let (steps, ended) = steps(&mut disk.file, None);
    let written: Vec<&str> = steps.iter().map(String::as_str).filter(|s| !s.starts_with("read")).collect();
    // new counts, a table that leads to them, the header that leads to it; then the old ones are not counted
    // any more; then the bit
    let places = ["write 3072 512", "write 3584 512", "write 0 512", "write 3072 512", "write 0 512"];
    let expected: Vec<&str> = places.into_iter().flat_map(|place| [place, "sync"]).collect();
    assert_eq!((written, ended), (expected, Ok(())));
    assert!(!header(&disk.file).is_dirty());
    assert_sound(&disk.file, "repaired");
}
