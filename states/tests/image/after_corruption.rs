//! A request has met an entry that contradicts the format, in an image that others write to.
//!
//! Checks: what was answered before it reaches the file, by flush, quiesce, close and timer alike, and those
//! succeed; nothing begins any more that would change the image, and what was under way fails without
//! harm; nothing is freed, punched or cut off that was there; reads go on. And QED, where the request alone
//! fails.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, Policy, Repair, RequestKind, Timer};
use quod_states_tests::qcow2::{check, header, l2_entry, opened, qcow2_file, set_l2_entry, snapshot};
use quod_states_tests::{Disk, Rng, qed_file, read_all, request, write};

const CLUSTER: u64 = 65536;
const SIZE: u64 = 4 << 20;
/// The guest cluster whose entry is bad.
const BAD: u64 = 9;

/// Data in guest clusters 0 to 3, closed.
fn filled(version: u32, lazy_refcounts: bool) -> Vec<u8> {
    let create = CreateOptions { size: SIZE, version, lazy_refcounts, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    disk.run(&mut image, request(RequestKind::Write, 0, 4 * CLUSTER, 0), vec![1; 4 * CLUSTER as usize]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    std::mem::take(&mut disk.file)
}

fn bad_entries(version: u32) -> Vec<u64> {
    // a zero flag is what version 2 does not have
    let mut entries = vec![1 << 63 | 1 << 40, 5 * CLUSTER + 512];
    entries.extend((version == 2).then_some(1));
    entries
}

fn start(file: &[u8], entry: u64, options: Options) -> (Disk, Image) {
    let mut disk = Disk::new(file.to_vec(), None, 1);
    set_l2_entry(&mut disk.file, BAD * CLUSTER, entry);
    let image = opened(&mut disk, options.grow_step(0)).image;
    (disk, image)
}

/// A request and how it ends.
fn ends(disk: &mut Disk, image: &mut Image, kind: RequestKind, offset: u64, len: u64) -> Result<(), Error> {
    disk.submit(image, request(kind, offset, len, 77), vec![5; len as usize]).unwrap();
    disk.settle(image, &mut Rng(offset ^ len));
    let at = disk.done.iter().position(|done| done.0 == 77).expect("an answer");
    disk.done.remove(at).1
}

fn meet(disk: &mut Disk, image: &mut Image, kind: RequestKind) {
    let (offset, len) =
        if kind == RequestKind::Discard { (BAD * CLUSTER, CLUSTER) } else { (BAD * CLUSTER, 512) };
    let result = ends(disk, image, kind, offset, len);
    assert!(matches!(result, Err(Error::Corrupt(_))), "{kind:?}: {result:?}");
    assert_eq!(image.poisoned(), result.as_ref().err());
}

/// Without the bad entry a check finds leaks at most, unless the image says that its counts may be wrong.
fn assert_no_harm(file: &[u8], story: &str) {
    let mut file = file.to_vec();
    set_l2_entry(&mut file, BAD * CLUSTER, 0);
    let dirty = header(&file).is_dirty();
    let report = check(&mut file, dirty.then_some(Repair::All));
    assert!(report.is_sound(), "{story}: {report:?}");
}

#[test]
fn what_was_answered_before_it_reaches_the_file() {
    let finders = [RequestKind::Read, RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Discard];
    let enders = [RequestKind::Flush, RequestKind::Quiesce, RequestKind::Close];
    for (version, lazy) in [(2, false), (3, false), (3, true)] {
        let file = filled(version, lazy);
        for (n, entry) in bad_entries(version).into_iter().enumerate() {
            for (finder, ender) in finders.into_iter().flat_map(|f| enders.map(|e| (f, e))) {
                let story = format!("version {version}, lazy {lazy}, {entry:#x}, {finder:?}, {ender:?}");
                let policy = [Policy::Writeback, Policy::Writethrough][n % 2];
                let (mut disk, mut image) = start(&file, entry, Options::default().policy(policy));
                // in place, in new space, given up
                for (kind, cluster) in
                    [(RequestKind::Write, 0), (RequestKind::Write, 20), (RequestKind::Discard, 2)]
                {
                    let offset = cluster * CLUSTER;
                    assert_eq!(ends(&mut disk, &mut image, kind, offset, CLUSTER), Ok(()), "{story}");
                }
                meet(&mut disk, &mut image, finder);
                for (kind, offset) in
                    [(RequestKind::Write, 0), (RequestKind::WriteZeroes, 0), (RequestKind::Discard, 0)]
                {
                    let refused = ends(&mut disk, &mut image, kind, offset, CLUSTER);
                    assert_eq!(refused, Err(Error::Poisoned), "{story}");
                }
                let refused = ends(&mut disk, &mut image, RequestKind::Resize { size: 2 * SIZE }, 0, 0);
                assert_eq!(refused, Err(Error::Poisoned), "{story}");
                assert_eq!(ends(&mut disk, &mut image, RequestKind::Read, CLUSTER, 512), Ok(()), "{story}");
                assert_eq!(ends(&mut disk, &mut image, ender, 0, 0), Ok(()), "{story}");
                drop(image);
                assert!(!disk.log.iter().any(|step| matches!(step.op, IoOp::PunchHole { .. })), "{story}");
                assert!(disk.file.len() >= file.len(), "{story}");
                assert_eq!(header(&disk.file).is_corrupt(), version == 3, "{story}");
                assert_no_harm(&disk.file, &story);
                set_l2_entry(&mut disk.file, BAD * CLUSTER, 0);
                let read = read_all(&mut disk, Options::default());
                let bytes = [0, 1, 2, 3, 20].map(|cluster| read[(cluster * CLUSTER) as usize]);
                assert_eq!(bytes, [5, 1, 0, 1, 5], "{story}");
            }
        }
    }
}

#[test]
fn a_timer_commits_it_too() {
    let (mut disk, mut image) = start(&filled(2, false), 1, Options::default());
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Write, 20 * CLUSTER, CLUSTER), Ok(()));
    meet(&mut disk, &mut image, RequestKind::Read);
    assert_eq!(l2_entry(&disk.file, 20 * CLUSTER), 0);
    image.handle_timeout(Timer::Commit);
    disk.drain(&mut image);
    disk.settle(&mut image, &mut Rng(1));
    assert_ne!(l2_entry(&disk.file, 20 * CLUSTER), 0);
}

/// Completes I/O until one is pending that `wanted` picks, and says where.
fn complete_to(disk: &mut Disk, image: &mut Image, wanted: impl Fn(&IoOp) -> bool) -> usize {
    for _ in 0..1000 {
        match disk.pending.iter().position(|(io, _)| wanted(&io.op)) {
            Some(index) => return index,
            None => disk.complete_first(image),
        }
    }
    panic!("it is never asked for");
}

/// Meets the bad entry while the I/O that `wanted` picks stays in flight; then everything ends.
fn meet_beside(disk: &mut Disk, image: &mut Image, wanted: impl Fn(&IoOp) -> bool) {
    complete_to(disk, image, &wanted);
    disk.submit(image, request(RequestKind::Read, BAD * CLUSTER, 512, 9), vec![0; 512]).unwrap();
    while !disk.done.iter().any(|done| done.0 == 9) {
        let other = disk.pending.iter().position(|(io, _)| !wanted(&io.op));
        disk.complete(image, other.expect("the lookup goes on"));
    }
    assert!(image.poisoned().is_some());
    disk.settle(image, &mut Rng(3));
}

#[test]
fn a_new_cluster_that_is_being_written_is_not_linked() {
    let (mut disk, mut image) = start(&filled(3, false), 1 << 40, Options::default());
    write(&mut disk, &mut image, 20 * CLUSTER, 512, 1);
    write(&mut disk, &mut image, 0, 512, 2);
    meet_beside(&mut disk, &mut image, |op| matches!(op, IoOp::WriteData { .. }));
    let result = |user| &disk.done.iter().find(|done| done.0 == user).unwrap().1;
    assert_eq!((result(1), result(2)), (&Err(Error::Poisoned), &Ok(())), "in place nothing is in doubt");
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
    assert_eq!(l2_entry(&disk.file, 20 * CLUSTER), 0);
    assert_no_harm(&disk.file, "a new cluster");
}

#[test]
fn a_copy_of_a_shared_table_is_given_up() {
    let mut file = filled(3, false);
    snapshot(&mut file);
    for chunk in [false, true] {
        let (mut disk, mut image) = start(&file, 1 << 40, Options::default());
        write(&mut disk, &mut image, 20 * CLUSTER, 512, 1);
        // the read of the old table, or the write of the new one
        meet_beside(&mut disk, &mut image, |op| match op {
            IoOp::ReadTable { len, .. } => !chunk && *len == CLUSTER as u32,
            IoOp::WriteTable { len, .. } => chunk && *len == CLUSTER as u32,
            _ => false,
        });
        assert!(disk.done.iter().any(|done| done.0 == 1 && done.1 == Err(Error::Poisoned)));
        assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
        assert_no_harm(&disk.file, "a table");
    }
}

#[test]
fn a_disk_that_was_to_grow_keeps_its_size() {
    // the L1 table has to move: at each of its steps
    for step in 0..40 {
        let (mut disk, mut image) = start(&filled(3, false), 1 << 40, Options::default());
        disk.submit(&mut image, request(RequestKind::Read, BAD * CLUSTER, 512, 9), vec![0; 512]).unwrap();
        let size = 1 << 44;
        disk.submit(&mut image, request(RequestKind::Resize { size }, 0, 0, 1), vec![]).unwrap();
        let mut rng = Rng(step);
        disk.settle(&mut image, &mut rng);
        assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
        let done = disk.done.iter().find(|done| done.0 == 1).unwrap();
        let expected = if done.1.is_ok() { size } else { SIZE };
        assert_eq!(header(&disk.file).size, expected, "{:?}", done.1);
        assert_no_harm(&disk.file, "a size");
    }
}

/// A header that is being written when the bits that nobody knows go with the corrupt bit.
#[test]
fn unknown_bits_go_with_it_and_bitmaps_stay() {
    let mut file = filled(3, false);
    file[88] |= 0x40;
    let (mut disk, mut image) = start(&file, 1 << 40, Options::default());
    meet(&mut disk, &mut image, RequestKind::Read);
    let found = header(&disk.file);
    assert_eq!((found.autoclear, found.is_corrupt()), (0, true));
    drop(image);
    // found by a write that waits for the bits
    let (mut disk, mut image) = start(&file, 1 << 40, Options::default());
    meet(&mut disk, &mut image, RequestKind::Write);
    assert!(header(&disk.file).is_corrupt() && header(&disk.file).autoclear == 0);
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Write, 0, 512), Err(Error::Poisoned));
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
}

#[test]
fn of_qed_the_request_alone_fails() {
    let mut disk = Disk::new(qed_file(SIZE, CLUSTER as u32, 1, None), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Write, 0, CLUSTER), Ok(()));
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
    let table = u64::from_le_bytes(disk.file[CLUSTER as usize..][..8].try_into().unwrap()) as usize;
    disk.file[table + 8 * BAD as usize..][..8].copy_from_slice(&u64::to_le_bytes(12345));
    let mut image = disk.open(Options::default()).unwrap().image;
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Write, 20 * CLUSTER, CLUSTER), Ok(()));
    for kind in [RequestKind::Read, RequestKind::Write] {
        let result = ends(&mut disk, &mut image, kind, BAD * CLUSTER, 512);
        assert!(matches!(result, Err(Error::Corrupt(_))), "{result:?}");
    }
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Write, 21 * CLUSTER, CLUSTER), Ok(()));
    assert_eq!(ends(&mut disk, &mut image, RequestKind::Close, 0, 0), Ok(()));
    disk.file[table + 8 * BAD as usize..][..8].fill(0);
    let read = read_all(&mut disk, Options::default());
    assert_eq!([20, 21, 22].map(|cluster| read[(cluster * CLUSTER) as usize]), [5, 5, 0]);
}
