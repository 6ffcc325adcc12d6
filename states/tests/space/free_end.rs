//! What the file has behind its last cluster in use, and what is free inside it: a program that was killed
//! leaves space.
//!
//! Checks:
//! * the free end of a qcow2 file is used before the file grows, cleared first, durably before a pointer to
//!   it, after a sync; kills in a row do not pile up;
//! * a free end that an entry leads into, or in which metadata lies, is left alone;
//! * where the file cannot grow, every free cluster is used before anybody is told "no space";
//! * a QED file that says it is clean has no space ahead of its data, whenever its writer is killed.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Fault, Image, IoOp, Options, Repair, RequestKind, Timer, qed};
use quod_states_tests::qcow2::{
    assert_durable_before, assert_sound, check, count, l1_entry, l2_entry, opened, qcow2_file, set_count,
    set_l1_entry, set_l2_entry,
};
use quod_states_tests::{Disk, Rng, Step, qed_disk, request};

const CLUSTER: u64 = 65536;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COPIED: u64 = 1 << 63;
/// What lies where nothing should be shown.
const STALE: u8 = 0xdb;

fn run(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Vec<u8> {
    let byte = 1 + (offset / CLUSTER % 200) as u8;
    disk.run(image, request(kind, offset, len, 7), vec![byte; len as usize])
}

fn outcome(
    disk: &mut Disk,
    image: &mut Image,
    kind: RequestKind,
    offset: u64,
    len: u64,
) -> Result<(), Error> {
    disk.submit(image, request(kind, offset, len, 7), vec![0x55; len as usize]).unwrap();
    disk.settle(image, &mut Rng(1));
    disk.done.pop().unwrap().1
}

/// The host cluster of a guest cluster, as the file has it.
fn host(disk: &Disk, cluster: u64) -> u64 {
    l2_entry(&disk.file, cluster * CLUSTER) & OFFSET
}

/// An image with so many clusters of data, closed.
fn filled(clusters: u64) -> Disk {
    let mut disk =
        Disk::new(qcow2_file(&CreateOptions { size: 1 << 30, ..CreateOptions::default() }), None, 1);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 0, clusters * CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    disk.log.clear();
    disk
}

/// The same, in a file that is so many bytes longer.
fn longer(bytes: u64) -> (Disk, u64) {
    let mut disk = filled(3);
    let end = disk.file.len();
    disk.file.resize(end + bytes as usize, STALE);
    (disk, end as u64)
}

fn open(disk: &mut Disk) -> Image {
    let image = opened(disk, Options::default()).image;
    disk.log.clear();
    image
}

fn clears(step: &Step) -> bool {
    matches!(step.op, IoOp::Clear { .. })
}

#[test]
fn the_free_end_is_cleared_before_it_is_used() {
    let (mut disk, end) = longer(200 * CLUSTER);
    let len = disk.file.len();
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 100 * CLUSTER + 512, 512);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    assert_eq!((host(&disk, 100), disk.file.len()), (end, len), "inside the file");
    let read = run(&mut disk, &mut image, RequestKind::Read, 100 * CLUSTER, CLUSTER);
    assert!(read[..512].iter().chain(&read[1024..]).all(|byte| *byte == 0), "nothing old shows");
    let first: Vec<&IoOp> = disk.log.iter().map(|step| &step.op).filter(|op| !is_read(op)).collect();
    assert!(matches!(first[..3], [IoOp::Sync, IoOp::Clear { .. }, IoOp::WriteData { .. }]), "{first:?}");
    let table = l1_entry(&disk.file, 0) & OFFSET;
    let is_table = |offset: u64| offset / CLUSTER == table / CLUSTER;
    let points = |step: &Step| matches!(step.op, IoOp::WriteTable { offset, .. } if is_table(offset));
    assert_durable_before(&disk, "QC6", clears, points);
    assert!(disk.file[len - 1] == STALE, "no more is cleared than is about to be wanted");
    // all of it is used, in order, and then the file grows
    for n in 101..310 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, CLUSTER);
        // (ahead of the data: half of eight MiB are left)
        assert!(n >= 236 || !disk.log.iter().any(|step| matches!(step.op, IoOp::Grow { .. })), "{n}");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert!((100..310).all(|n| host(&disk, n) == end + (n - 100) * CLUSTER));
    assert_eq!(disk.file.len() as u64, end + 210 * CLUSTER);
    assert_sound(&disk.file, "used up");
}

fn is_read(op: &IoOp) -> bool {
    matches!(op, IoOp::ReadTable { .. } | IoOp::ReadData { .. })
}

/// A cluster that the file cuts off is not used, here as elsewhere.
#[test]
fn a_partial_cluster_behind_the_free_end_is_skipped() {
    let (mut disk, end) = longer(2 * CLUSTER + 700);
    let mut image = open(&mut disk);
    for n in 10..13 {
        run(&mut disk, &mut image, RequestKind::Write, n * CLUSTER, 512);
    }
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    assert_eq!([10, 11, 12].map(|n| host(&disk, n) - end), [0, CLUSTER, 3 * CLUSTER]);
    for n in 10..13 {
        let read = run(&mut disk, &mut image, RequestKind::Read, n * CLUSTER + 512, CLUSTER - 512);
        assert!(read.iter().all(|byte| *byte == 0), "{n}");
    }
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_sound(&disk.file, "closed");
}

#[test]
fn kills_in_a_row_do_not_pile_up() {
    let mut disk = filled(3);
    let mut len = 0;
    for kill in 0..4 {
        let mut image = open(&mut disk);
        for n in 0..100 {
            run(&mut disk, &mut image, RequestKind::Write, (100 + n) * CLUSTER, CLUSTER);
        }
        // nothing of it was committed
        match kill {
            0 => len = disk.file.len(),
            _ => assert_eq!(disk.file.len(), len, "kill {kill}"),
        }
    }
    assert!(len as u64 > 110 * CLUSTER);
    let report = check(&mut disk.file, Some(Repair::Leaks));
    assert!(report.is_sound() && (report.leaks, report.leaks_fixed) == (0, 0), "{report:?}");
    assert_eq!(disk.file.len(), filled(3).file.len(), "a repair cuts the free end");
}

/// Counts that lie: what an entry leads to is not free, whatever they say.
#[test]
fn a_free_end_that_an_entry_leads_into_is_left_alone() {
    let (mut disk, end) = longer(100 * CLUSTER);
    let len = disk.file.len() as u64;
    set_l2_entry(&mut disk.file, 5 * CLUSTER, (end + 50 * CLUSTER) | COPIED);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    assert_eq!(host(&disk, 9), len, "behind the file");
    let read = run(&mut disk, &mut image, RequestKind::Read, 5 * CLUSTER, CLUSTER);
    assert!(read.iter().all(|byte| *byte == STALE));
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert!(!disk.log.iter().any(clears));
    let report = check(&mut disk.file, Some(Repair::All));
    assert!(report.is_sound(), "{report:?}");
    assert!(disk.file[(end + 50 * CLUSTER) as usize..][..CLUSTER as usize].iter().all(|byte| *byte == STALE));
}

/// The entry is met when its space is somebody else's: it is never followed (QE7).
#[test]
fn an_entry_into_space_that_was_taken_stays_dead() {
    let (mut disk, end) = longer(100 * CLUSTER);
    // in a slice of its own
    set_l2_entry(&mut disk.file, 600 * CLUSTER, end | COPIED);
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Flush, 0, 0);
    assert_eq!(host(&disk, 9), end);
    let refused = outcome(&mut disk, &mut image, RequestKind::Read, 600 * CLUSTER, 512);
    assert!(matches!(refused, Err(Error::Corrupt(Fault::Dangling { .. }))), "{refused:?}");
}

/// A process that ended without a flush left a table that nobody counted.
#[test]
fn metadata_that_nobody_counts_is_not_a_free_end() {
    let (mut disk, end) = longer(100 * CLUSTER);
    let (len, table) = (disk.file.len() as u64, end + 70 * CLUSTER);
    disk.file[table as usize..][..CLUSTER as usize].fill(0);
    set_l1_entry(&mut disk.file, 1, table | COPIED);
    let before = disk.file[end as usize..].to_vec();
    let mut image = open(&mut disk);
    run(&mut disk, &mut image, RequestKind::Write, 9 * CLUSTER, CLUSTER);
    run(&mut disk, &mut image, RequestKind::Close, 0, 0);
    assert_eq!(host(&disk, 9), len);
    assert!(disk.file[end as usize..len as usize] == before);
}

/// Every third cluster of the file is free, in one piece none; the file cannot grow, and nothing was ever
/// synced. `holes`: they can be punched.
fn full(holes: bool) -> (Disk, Image) {
    let mut disk = filled(60);
    for n in (1..60).step_by(3) {
        let at = host(&disk, n);
        set_l2_entry(&mut disk.file, n * CLUSTER, 0);
        set_count(&mut disk.file, at / CLUSTER, 0);
        disk.file[at as usize..][..CLUSTER as usize].fill(STALE);
    }
    (disk.room, disk.holes) = (disk.file.len() as u64, holes);
    let image = open(&mut disk);
    (disk, image)
}

#[test]
fn every_free_cluster_is_used_before_there_is_no_space() {
    for holes in [true, false] {
        let (mut disk, mut image) = full(holes);
        let len = disk.file.len();
        // 8 at once, then 11 one by one, each with bytes of its own alone; the last is for later
        assert_eq!(outcome(&mut disk, &mut image, RequestKind::Write, 100 * CLUSTER, 8 * CLUSTER), Ok(()));
        for n in 200..212 {
            assert_eq!(
                outcome(&mut disk, &mut image, RequestKind::Write, n * CLUSTER + 512, 512),
                Ok(()),
                "{n}"
            );
        }
        assert_eq!(
            outcome(&mut disk, &mut image, RequestKind::Write, 300 * CLUSTER, 512),
            Err(Error::NoSpace)
        );
        assert_eq!(
            outcome(&mut disk, &mut image, RequestKind::Write, 300 * CLUSTER, 512),
            Err(Error::NoSpace)
        );
        assert!(image.poisoned().is_none());
        let read = run(&mut disk, &mut image, RequestKind::Read, 211 * CLUSTER, CLUSTER);
        assert!(read[..512].iter().chain(&read[1024..]).all(|byte| *byte == 0), "{holes}");
        // what is given up is there for the next one, though its removal is not durable yet
        assert_eq!(outcome(&mut disk, &mut image, RequestKind::Discard, 211 * CLUSTER, CLUSTER), Ok(()));
        assert_eq!(outcome(&mut disk, &mut image, RequestKind::Write, 300 * CLUSTER, 512), Ok(()), "{holes}");
        run(&mut disk, &mut image, RequestKind::Close, 0, 0);
        assert_eq!(disk.file.len(), len);
        assert_sound(&disk.file, "full");
        assert!((100..108).chain(200..211).all(|n| count(&disk.file, host(&disk, n) / CLUSTER) == 1));
    }
}

/// An acb that waits for space is answered when the image is poisoned.
#[test]
fn nobody_waits_for_space_in_a_poisoned_image() {
    for at in 0..12 {
        let (mut disk, mut image) = full(true);
        disk.submit(&mut image, request(RequestKind::Write, 100 * CLUSTER, 8 * CLUSTER, 1), vec![1; 8 << 16])
            .unwrap();
        disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 2), vec![]).unwrap();
        for _ in 0..at {
            if !disk.pending.is_empty() {
                disk.complete_first(&mut image);
            }
        }
        while let Some((io, _)) = disk.pending.first() {
            disk.fail = matches!(io.op, IoOp::Sync | IoOp::WriteTable { .. }).then_some((0, 5));
            disk.complete_first(&mut image);
        }
        assert_eq!((image.open_requests(), disk.done.len()), (0, 2), "{at}");
    }
}

/// Space that nobody refers to, as a check of what is in the file now finds it.
fn qed_leaks(file: &[u8]) -> u64 {
    let header = qed::Header::parse(&file[..512], file.len() as u64).unwrap();
    let mut check = qed::Check::new(header, file.len() as u64, None);
    loop {
        use quod_states::{Machine, Outcome};
        if let Some(report) = check.poll_result() {
            return report.unwrap().leaks;
        }
        let io = check.poll_io().unwrap();
        let IoOp::ReadTable { offset, len } = io.op else { panic!("{io:?}") };
        check.handle_completion(io.id, Outcome::Table(&file[offset as usize..][..len as usize]));
    }
}

#[test]
fn who_is_killed_leaves_a_bit_or_no_space() {
    let (mut disk, mut image) = qed_disk(1 << 30, 1, None, Options::default());
    let mut marked = 0;
    let mut settle = |disk: &mut Disk, image: &mut Image| {
        let alone = image.open_requests() < 2;
        while !disk.pending.is_empty() {
            disk.complete_first(image);
            let says_clean = disk.file[16] & 2 == 0;
            marked += u32::from(!says_clean);
            // where a quiesce clears the bit beside a writer, it is set again a sync later
            if alone || disk.pending.is_empty() {
                let last = disk.log.last().map(|step| step.op);
                assert!(!says_clean || qed_leaks(&disk.file) == 0, "{last:?}");
            }
        }
    };
    for n in 0..3 {
        // a dirty period that the timer ends, one that a quiesce ends while somebody writes
        disk.submit(&mut image, request(RequestKind::Write, 3 * n * CLUSTER, 512, 1), vec![1; 512]).unwrap();
        settle(&mut disk, &mut image);
        assert_eq!(disk.file[16] & 2, 2, "before anything is committed");
        for timer in [Timer::Commit, Timer::NeedCheck] {
            image.handle_timeout(timer);
            disk.drain(&mut image);
            settle(&mut disk, &mut image);
        }
        assert_eq!(disk.file[16] & 2, 0);
        disk.submit(&mut image, request(RequestKind::Write, (3 * n + 1) * CLUSTER, 512, 1), vec![1; 512])
            .unwrap();
        settle(&mut disk, &mut image);
        disk.submit(&mut image, request(RequestKind::Quiesce, 0, 0, 2), vec![]).unwrap();
        disk.submit(&mut image, request(RequestKind::Write, (3 * n + 2) * CLUSTER, 512, 3), vec![1; 512])
            .unwrap();
        settle(&mut disk, &mut image);
    }
    disk.submit(&mut image, request(RequestKind::Close, 0, 0, 4), vec![]).unwrap();
    settle(&mut disk, &mut image);
    assert!(disk.done.iter().all(|done| done.1.is_ok()) && image.open_requests() == 0);
    assert!(disk.file[16] & 2 == 0 && qed_leaks(&disk.file) == 0 && marked > 20);
}
