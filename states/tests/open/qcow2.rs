//! What is read and written before a qcow2 image is ready.
//!
//! Checks: which tables are read, in which pieces; every entry of the snapshot table is read, and nothing
//! written to what it names; unknown autoclear bits go, durably, before a repair; a dirty image is repaired,
//! or refused; what is told of the image, its bitmaps included; failures. And, of QED, a backing name of no
//! bytes.

use quod_states::qcow2::CreateOptions;
use quod_states::{
    Backing, Bitmaps, Error, Format, IoOp, Lack, Machine, Op, Opening, Options, Outcome, RequestKind,
    SnapshotSelector,
};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{count, header, qcow2_file, snapshot};
use quod_states_tests::{Disk, qed_file, request};

const CLUSTER: u64 = 65536;
const AUTOCLEAR: usize = 88;
const INCOMPATIBLE: usize = 72;

fn bytes(file: &[u8], offset: u64, len: u32) -> Vec<u8> {
    (offset..offset + u64::from(len)).map(|at| file.get(at as usize).copied().unwrap_or(0)).collect()
}

/// What an opening asks for, as text; a step that `fails` picks fails.
fn steps(file: &[u8], options: Options, fails: &str) -> (Vec<String>, Result<(), Error>) {
    let mut opening = Opening::new(None, file.len() as u64, options);
    let mut steps = Vec::new();
    loop {
        if let Some(result) = opening.poll_result() {
            return (steps, result.map(|_| ()));
        }
        let io = opening.poll_io().expect("it wants something");
        let (step, read) = match io.op {
            IoOp::ReadTable { offset, len } => (format!("read {offset:#x} {len}"), bytes(file, offset, len)),
            IoOp::WriteTable { offset, len } => {
                let mut block = vec![0xee; len as usize];
                opening.encode(io.id, &mut block);
                assert!(!block.contains(&0xee), "all of it is encoded");
                (format!("write {offset:#x} {len}"), vec![])
            }
            IoOp::Sync => ("sync".into(), vec![]),
            other => panic!("{other:?}"),
        };
        let outcome = match () {
            () if step == fails => Outcome::Failed(5),
            () if step.starts_with("read") => Outcome::Table(&read),
            () => Outcome::Done,
        };
        opening.handle_completion(io.id, outcome);
        steps.push(step);
    }
}

fn created(size: u64) -> Vec<u8> {
    qcow2_file(&CreateOptions { size, ..CreateOptions::default() })
}

/// A file whose tables lie elsewhere, and are longer: an L1 table of 10000 entries, a refcount table of three
/// clusters.
fn with_large_tables() -> Vec<u8> {
    let mut file = created(1 << 30);
    let (l1, reftable) = (16 * CLUSTER, 20 * CLUSTER);
    file.resize(24 * CLUSTER as usize, 0);
    file.copy_within(3 * CLUSTER as usize..4 * CLUSTER as usize, l1 as usize);
    file.copy_within(CLUSTER as usize..2 * CLUSTER as usize, reftable as usize);
    file[36..40].copy_from_slice(&10000u32.to_be_bytes());
    file[40..48].copy_from_slice(&l1.to_be_bytes());
    file[48..56].copy_from_slice(&reftable.to_be_bytes());
    file[56..60].copy_from_slice(&3u32.to_be_bytes());
    file
}

#[test]
fn tables_are_read_in_chunks() {
    let (small, ended) = steps(&created(1 << 30), Options::default(), "");
    assert_eq!(ended, Ok(()));
    let tail = "read 0x20000 65536";
    assert_eq!(small, ["read 0x0 512", "read 0x0 65536", "read 0x10000 65536", "read 0x30000 512", tail]);
    let file = with_large_tables();
    let (large, ended) = steps(&file, Options::default(), "");
    assert_eq!(ended, Ok(()));
    let tables = ["read 0x140000 65536", "read 0x150000 65536", "read 0x160000 65536"];
    let l1 = ["read 0x100000 65536", "read 0x110000 14848"];
    assert_eq!(large[2..], [&tables[..], &l1[..], &[tail]].concat());
    let aligned = steps(&file, Options::default().align(4096), "").0;
    assert_eq!(aligned[..2], ["read 0x0 4096", "read 0x0 65536"]);
    assert_eq!(aligned[6], "read 0x110000 16384");
    let reading = Options::default().read_only(true);
    assert_eq!(
        steps(&file, reading, "").0,
        ["read 0x0 512", "read 0x0 65536"],
        "who only reads needs neither"
    );
    // counts that cannot be read are told when they are needed
    assert_eq!(steps(&file, Options::default(), tail).1, Ok(()));
    for step in large.iter().filter(|step| *step != tail) {
        let device = Err(Error::Device { op: Op::Open, offset: 0, errno: 5 });
        assert_eq!(steps(&file, Options::default(), step).1, device, "{step}");
    }
}

#[test]
fn an_l1_table_too_large_to_be_kept_in_mind_is_not_read() {
    for (entries, read) in [(128 << 10, true), ((128 << 10) + 1, false)] {
        let mut file = created(1 << 30);
        file[36..40].copy_from_slice(&u32::to_be_bytes(entries));
        let (steps, ended) = steps(&file, Options::default(), "");
        assert_eq!((ended, steps.len()), (Ok(()), if read { 4 + 16 } else { 4 }));
    }
}

#[test]
fn every_snapshot_of_the_table_is_read() {
    let mut file = created(1 << 30);
    snapshot(&mut file);
    let table = header(&file).snapshots_offset;
    // a second entry behind the first, whose name does not fit what is read first
    let first = bytes(&file, table, 64);
    let mut second = first;
    second[14..16].copy_from_slice(&300u16.to_be_bytes());
    second.resize(40 + 16 + 1 + 300, b'x');
    file[table as usize + 64..][..second.len()].copy_from_slice(&second);
    file[60..64].copy_from_slice(&2u32.to_be_bytes());
    let (steps, ended) = steps(&file, Options::default(), "");
    assert_eq!(ended, Ok(()));
    let reads = [(0, 40), (0, 58), (64, 40), (64, 357)];
    let expected: Vec<String> =
        reads.iter().map(|(at, len)| format!("read {:#x} {len}", table + at)).collect();
    assert_eq!(steps[2..6], expected);
}

#[test]
fn nothing_is_written_to_any_part_of_a_snapshots_table() {
    let mut disk = Disk::new(created(1 << 30), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    let table = header(&disk.file).snapshots_offset as usize;
    let l1 = disk.file.len() as u64;
    disk.file.resize((l1 + 3 * CLUSTER) as usize, 0);
    disk.file[table..table + 8].copy_from_slice(&l1.to_be_bytes());
    disk.file[table + 8..table + 12].copy_from_slice(&10000u32.to_be_bytes());
    // an entry of the disk leads to each of three clusters, of which the table takes two
    for (n, refused) in [(0, true), (1, true), (2, false)] {
        let mut disk = Disk::new(disk.file.clone(), None, 1);
        let l1_entry = quod_states_tests::qcow2::l1_entry(&disk.file, 0);
        quod_states_tests::qcow2::set_l1_entry(&mut disk.file, 0, l1_entry | 1 << 63);
        quod_states_tests::qcow2::set_l2_entry(&mut disk.file, 0, (l1 + n * CLUSTER) | 1 << 63);
        let mut image = disk.open(Options::default()).unwrap().image;
        disk.submit(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]).unwrap();
        disk.settle(&mut image, &mut quod_states_tests::Rng(1));
        let result = disk.done.pop().unwrap().1;
        assert_eq!(matches!(result, Err(Error::Corrupt(_))), refused, "cluster {n}: {result:?}");
    }
}

#[test]
fn unknown_autoclear_bits_go_durably_before_a_repair() {
    let mut file = created(1 << 30);
    let clean = steps(&file, Options::default(), "").0;
    file[AUTOCLEAR] = 0x40;
    assert_eq!(steps(&file, Options::default(), "").0, clean, "there is nothing to repair");
    file[INCOMPATIBLE + 7] = 1;
    let (order, ended) = steps(&file, Options::default(), "");
    assert_eq!(ended, Ok(()));
    assert_eq!(order[2..4], ["write 0x0 4096", "sync"]);
    let reading = Options::default().read_only(true);
    assert_eq!(steps(&file, reading, "").0.len(), 2);
    let mut disk = Disk::new(file.clone(), None, 1);
    disk.open(Options::default()).unwrap();
    (file[AUTOCLEAR], file[INCOMPATIBLE + 7]) = (0, 0);
    assert!(disk.file == file, "the bits are gone, the rest is as it was");
}

/// The names are read when the image may be written; whatever stands there, it opens.
#[test]
fn bitmaps_are_named_and_left_alone() {
    let mut file = created(1 << 30);
    // the features' names end at 504
    file[504..508].copy_from_slice(&0x2385_2875u32.to_be_bytes());
    file[508..512].copy_from_slice(&24u32.to_be_bytes());
    file[512..516].copy_from_slice(&2u32.to_be_bytes());
    file[520..528].copy_from_slice(&64u64.to_be_bytes());
    file[528..536].copy_from_slice(&(4 * CLUSTER).to_be_bytes());
    file[AUTOCLEAR + 7] = 1;
    let directory = 4 * CLUSTER as usize;
    file.resize(directory + 64, 0);
    for (at, name, flags) in [(0, b"one", 2), (32, b"two", 1)] {
        let entry = &mut file[directory + at..][..32];
        (entry[11], entry[15], entry[16], entry[17], entry[19]) = (1, flags, 1, 16, 3);
        entry[24..27].copy_from_slice(name);
    }
    let told = |file: &[u8], options| {
        let mut disk = Disk::new(file.to_vec(), None, 1);
        let opened = disk.open(options).unwrap();
        let told = |told: Bitmaps| (told.names, told.valid, told.dropped);
        (opened.info.bitmaps.map(told), opened.image.keeps_bitmaps(), std::mem::take(&mut disk.file))
    };
    let expected = |names: &[&str], valid, dropped| {
        let names = names.iter().map(|name| name.as_bytes().to_vec()).collect();
        Some((names, valid, dropped))
    };
    assert_eq!(told(&file, Options::default()), (expected(&["one"], 1, false), true, file.clone()));
    let reading = Options::default().read_only(true);
    assert_eq!(told(&file, reading).0, None);
    let order = steps(&file, Options::default(), "read 0x40000 64");
    assert_eq!(order.1, Ok(()), "a directory that cannot be read");
    assert_eq!(order.0[2], "read 0x40000 64");
    let mut dirty = file.clone();
    dirty[INCOMPATIBLE + 7] = 1;
    let (bitmaps, kept, repaired) = told(&dirty, Options::default());
    assert_eq!((bitmaps, kept, repaired[AUTOCLEAR + 7]), (expected(&["one"], 1, true), false, 0));
    let mut torn = file.clone();
    torn.truncate(directory);
    assert_eq!(told(&torn, Options::default()).0, expected(&[], 2, false), "nothing is there");
    file[directory + 15] = 1;
    assert_eq!(told(&file, Options::default()).0, None, "none of them was valid");
}

#[test]
fn a_dirty_image_is_repaired_or_refused() {
    let create = CreateOptions { size: 1 << 30, lazy_refcounts: true, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
    disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    let data = quod_states_tests::qcow2::l2_entry(&disk.file, 0) & !(1 << 63);
    let mut dirty = Disk::new(disk.file.clone(), None, 1);
    assert_eq!((header(&dirty.file).is_dirty(), count(&dirty.file, data / CLUSTER)), (true, 0));
    let opened = dirty.open(Options::default()).unwrap();
    let report = opened.report.expect("of the check");
    assert_eq!((report.corruptions, report.corruptions_fixed), (0, 2));
    assert!(opened.info.dirty, "it was");
    assert_eq!((header(&dirty.file).is_dirty(), count(&dirty.file, data / CLUSTER)), (false, 1));
    // an entry with reserved bits is no work for a repair
    let at = quod_states_tests::qcow2::l2_at(&disk.file, 0).unwrap() as usize;
    disk.file[at] |= 0x20;
    let reading = disk.open(Options::default().read_only(true)).unwrap();
    assert!(reading.report.is_none() && reading.info.dirty);
    let refused = disk.open(Options::default()).map(|_| ()).unwrap_err();
    let what = "the image is dirty and could not be repaired: check it";
    let place = "qcow2 header field incompatible_features";
    assert_eq!(refused, corrupt(place, 0, 1, what));
    assert_eq!(disk.file[INCOMPATIBLE + 7], 1, "and stays so");
}

#[test]
fn what_is_told_of_an_image() {
    for (name, format) in [
        (&b"raw"[..], Some(Format::Raw)),
        (b"file", Some(Format::Raw)),
        (b"host_device", Some(Format::Raw)),
        (b"qed", Some(Format::Qed)),
        (b"qcow2", Some(Format::Qcow2)),
    ] {
        let create = CreateOptions {
            size: 3 << 20,
            cluster_size: 4096,
            backing: Some(b"base"),
            backing_format: Some(name),
            ..CreateOptions::default()
        };
        let info = Disk::new(qcow2_file(&create), None, 1).open(Options::default()).unwrap().info;
        assert_eq!((info.format, info.virtual_size, info.cluster_size), (Format::Qcow2, 3 << 20, 4096));
        assert_eq!(
            info.backing,
            Some(Backing { name: b"base".to_vec(), format, format_name: Some(name.to_vec()) })
        );
        assert!(!info.dirty && info.bitmaps.is_none() && info.data_file.is_none());
    }
    let file = created(1 << 20);
    for align in [4096, 65536] {
        assert_eq!(steps(&file, Options::default().align(align), "").1, Ok(()));
    }
    let refused = steps(&file, Options::default().align(1 << 17), "").1;
    assert!(matches!(refused, Err(Error::Unsupported(Lack::SmallClusters(65536)))));
}

#[test]
fn a_snapshot_whose_table_is_too_small_for_its_disk_is_not_shown() {
    let mut file = created(1 << 20);
    snapshot(&mut file);
    let entry = header(&file).snapshots_offset as usize;
    let read_only = Options::default().read_only(true);
    let open = |file: &[u8]| {
        let which = SnapshotSelector::Name(b"s".to_vec());
        let mut opening = Opening::of_snapshot(None, file.len() as u64, read_only, which);
        Disk::new(file.to_vec(), None, 1).finish(&mut opening).map(|opened| opened.image.virtual_size())
    };
    assert_eq!(open(&file), Ok(1 << 20));
    // one entry is for 512 MiB; the disk of the snapshot has a byte more than that
    file[entry + 48..entry + 56].copy_from_slice(&((512u64 << 20) + 512).to_be_bytes());
    let what = "the L1 table does not map the snapshot's disk";
    assert_eq!(open(&file), Err(corrupt("snapshot table", 0, 1, what)));
    // the disk that it is now can be used
    assert!(Disk::new(file, None, 1).open(read_only).is_ok());
}

#[test]
fn a_qed_backing_name_of_no_bytes_is_none() {
    let mut file = qed_file(1 << 20, 65536, 1, Some(b"base"));
    let told = |file: &[u8]| Disk::new(file.to_vec(), None, 1).open(Options::default()).unwrap().info.backing;
    let (format, format_name) = (Some(Format::Raw), Some(b"raw".to_vec()));
    assert_eq!(told(&file), Some(Backing { name: b"base".to_vec(), format, format_name }));
    file[60..64].fill(0);
    assert_eq!(told(&file), None);
    assert_eq!(steps(&file, Options::default(), "").0, ["read 0x0 512"], "nothing of it is read");
}
