//! The VM state, which lies behind the disk.
//!
//! Checks:
//! * what is written is read again, now, after another opening, and by who only reads; what was not written
//!   reads as zeros, however far behind all tables;
//! * the disk stays as it is, in its bytes and its size; the check finds nothing;
//! * the L1 table gets the room that was asked for, once, and durably before its answer;
//! * what cannot be is refused, and changes nothing;
//! * a disk that grows to where a state lies reads as zeros there, durably before it has the size, and the
//!   state is gone.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Flags, Image, Options, Refused, Request, RequestKind};
use quod_states_tests::qcow2::{assert_sound, created, header, opened};
use quod_states_tests::{Disk, Rng, qed_disk, read_all, request};

/// What one L1 entry maps in an image with clusters of 512 bytes.
const SPAN: u64 = 32 << 10;
const SIZE: u64 = SPAN + 4096;

fn of_state(kind: RequestKind, offset: u64, len: u64) -> Request {
    Request { flags: Flags::STATE, ..request(kind, offset, len, 1) }
}

fn image(backing: Option<Vec<u8>>) -> (Disk, Image) {
    let create = CreateOptions {
        size: SIZE,
        cluster_size: 512,
        backing: backing.as_ref().map(|_| &b"base"[..]),
        backing_format: backing.as_ref().map(|_| &b"raw"[..]),
        ..CreateOptions::default()
    };
    created(create, backing, Options::default())
}

fn grow(disk: &mut Disk, image: &mut Image, len: u64) {
    disk.run(image, of_state(RequestKind::Resize { size: len }, 0, 0), vec![]);
}

fn read(disk: &mut Disk, image: &mut Image, offset: u64, len: usize) -> Vec<u8> {
    disk.run(image, of_state(RequestKind::Read, offset, len as u64), vec![0xee; len])
}

#[test]
fn the_state_is_read_as_it_was_written_and_the_disk_stays_as_it_is() {
    for backing in [None, Some(vec![9; SIZE as usize])] {
        for seed in 0..20 {
            let mut rng = Rng(seed);
            let (mut disk, mut image) = image(backing.clone());
            let mut guest = backing.clone().unwrap_or_else(|| vec![0; SIZE as usize]);
            let mut state = vec![0; 3 * SPAN as usize];
            grow(&mut disk, &mut image, state.len() as u64);
            for step in 1..30 {
                let (of_disk, byte) = (rng.below(2) == 0, step as u8);
                let all = if of_disk { &mut guest } else { &mut state };
                let at = rng.below(all.len() as u64);
                let len = (1 + rng.below(3000)).min(all.len() as u64 - at);
                let asked = match of_disk {
                    true => request(RequestKind::Write, at, len, 1),
                    false => of_state(RequestKind::Write, at, len),
                };
                disk.run(&mut image, asked, vec![byte; len as usize]);
                all[at as usize..(at + len) as usize].fill(byte);
            }
            assert!(read(&mut disk, &mut image, 0, state.len()) == state, "seed {seed}");
            assert_eq!(image.virtual_size(), SIZE);
            disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
            assert_sound(&disk.file, "closed");
            assert_eq!(header(&disk.file).size, SIZE);
            assert!(read_all(&mut disk, Options::default()) == guest, "seed {seed}");
            for read_only in [true, false] {
                let mut image = opened(&mut disk, Options::default().read_only(read_only)).image;
                let found = read(&mut disk, &mut image, 0, state.len() + 5000);
                assert!(found[..state.len()] == state && found[state.len()..].iter().all(|byte| *byte == 0));
                disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
            }
        }
    }
}

#[test]
fn what_no_table_maps_reads_as_zeros() {
    let (mut disk, mut image) = image(None);
    for offset in [0, 1, SPAN - 1, 10 * SPAN, 1 << 50] {
        assert_eq!(read(&mut disk, &mut image, offset, 700), vec![0; 700], "{offset}");
    }
    grow(&mut disk, &mut image, 100);
    disk.run(&mut image, of_state(RequestKind::Write, 10, 90), vec![5; 90]);
    let room = u64::from(header(&disk.file).l1_entries) * SPAN - 2 * SPAN;
    let want = [vec![5; 90], vec![0; 600]].concat();
    assert_eq!(read(&mut disk, &mut image, 10, 690), want);
    assert_eq!(read(&mut disk, &mut image, room - 300, 700), vec![0; 700], "half of it is mapped");
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    assert_sound(&disk.file, "closed");
}

#[test]
fn the_table_gets_its_room_once_and_durably() {
    let (mut disk, mut image) = image(None);
    assert_eq!(header(&disk.file).l1_entries, 2);
    // a cluster has 64 entries: two are the disk's
    grow(&mut disk, &mut image, 5 * SPAN);
    let grown = header(&disk.file);
    assert_eq!((grown.l1_entries, grown.size), (64, SIZE));
    let moved = grown.l1_offset;
    for len in [0, 1, 62 * SPAN] {
        grow(&mut disk, &mut image, len);
        assert_eq!(header(&disk.file).l1_offset, moved, "there was room");
    }
    grow(&mut disk, &mut image, 62 * SPAN + 1);
    assert_eq!(header(&disk.file).l1_entries, 128);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
    assert_sound(&disk.file, "closed");
}

fn refused(image: &mut Image, asked: Request) -> Error {
    match image.submit(asked) {
        Err(Refused::Invalid(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut disk, mut one) = image(None);
    for (kind, offset, len) in [
        (RequestKind::Write, 0, 1),
        (RequestKind::Write, u64::MAX, 1),
        (RequestKind::Read, u64::MAX - 100, 200),
        (RequestKind::Resize { size: u64::MAX }, 0, 0),
        (RequestKind::Resize { size: 1 << 40 }, 0, 0),
        (RequestKind::Discard, 0, 512),
        (RequestKind::WriteZeroes, 0, 512),
        (RequestKind::Flush, 0, 0),
    ] {
        let error = refused(&mut one, of_state(kind, offset, len));
        assert!(matches!(error, Error::Misuse(_)), "{kind:?}: {error}");
    }
    disk.run(&mut one, request(RequestKind::Close, 0, 0, 1), vec![]);
    let mut reader = opened(&mut disk, Options::default().read_only(true)).image;
    let error = refused(&mut reader, of_state(RequestKind::Resize { size: 1 }, 0, 0));
    assert!(matches!(error, Error::Misuse(_)), "{error}");
    // of a longer backing layer the state would show what is none of it
    let (_, mut over) = image(Some(vec![7; 3 * SPAN as usize]));
    let (_, mut qed) = qed_disk(1 << 20, 1, None, Options::default());
    for image in [&mut over, &mut qed, &mut Image::raw(4096, &Options::default())] {
        let error = refused(image, of_state(RequestKind::Read, 0, 1));
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
}

#[test]
fn a_disk_that_grows_over_the_state_reads_as_zeros() {
    for (state, new) in
        [(SPAN, 3 * SPAN), (4 * SPAN, 3 * SPAN), (4 * SPAN, 200 * SPAN), (100, 2 * SPAN + 512)]
    {
        let (mut disk, mut image) = image(None);
        grow(&mut disk, &mut image, 4 * SPAN);
        disk.run(&mut image, of_state(RequestKind::Write, 0, state), vec![7; state as usize]);
        disk.run(&mut image, request(RequestKind::Write, 0, 512, 1), vec![3; 512]);
        disk.run(&mut image, request(RequestKind::Resize { size: new }, 0, 0, 1), vec![]);
        let mut want = vec![0; new as usize];
        want[..512].fill(3);
        let found = disk.run(&mut image, request(RequestKind::Read, 0, new, 1), vec![0xee; new as usize]);
        assert!(found == want, "{state} {new}");
        // what is behind the new end is the rest of what there was
        let kept = (2 * SPAN + state).saturating_sub(new.next_multiple_of(SPAN)).min(state);
        let found = read(&mut disk, &mut image, 0, kept as usize + 700);
        assert!(found[..kept as usize].iter().all(|byte| *byte == 7));
        assert!(found[kept as usize..].iter().all(|byte| *byte == 0));
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_sound(&disk.file, "closed");
        assert!(read_all(&mut disk, Options::default()) == want, "{state} {new}, opened again");
    }
}
