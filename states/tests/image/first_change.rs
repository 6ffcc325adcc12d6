//! The first change of an image whose header has autoclear bits that quod does not keep up.
//!
//! Checks: whoever only reads leaves every byte as it is, flushes and closes included; before the first
//! write, write-zeroes, discard or change of size the header is written with the bits cleared, and durable,
//! once; what waits for it ends as any request does, cancelled or failed; a close cannot overtake it.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Flags, Image, IoOp, Options, Refused, Request, RequestKind};
use quod_states_tests::qcow2::{header, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_file, request, write};

const CLUSTER: u64 = 65536;
const SIZE: u64 = 1 << 30;
/// Where an unknown bit stands: QED, qcow2.
const UNKNOWN: [(usize, u8); 2] = [(32, 4), (88, 0x40)];

/// Images with data in guest cluster 0, of both formats.
fn images() -> [Vec<u8>; 2] {
    let create = CreateOptions { size: SIZE, ..CreateOptions::default() };
    [qed_file(SIZE, CLUSTER as u32, 1, None), qcow2_file(&create)].map(|file| {
        let mut disk = Disk::new(file, None, 1);
        let mut image = disk.open(Options::default()).unwrap().image;
        disk.run(&mut image, request(RequestKind::Write, 0, CLUSTER, 0), vec![1; CLUSTER as usize]);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        std::mem::take(&mut disk.file)
    })
}

/// The same with an unknown bit; and where that stands.
fn stale() -> impl Iterator<Item = (Vec<u8>, usize)> {
    images().into_iter().zip(UNKNOWN).map(|(mut file, (at, bit))| {
        file[at] |= bit;
        (file, at)
    })
}

fn opened(file: &[u8]) -> (Disk, Image) {
    let mut disk = Disk::new(file.to_vec(), None, 1);
    let image = disk.open(Options::default().grow_step(0)).unwrap().image;
    disk.log.clear();
    (disk, image)
}

/// Requests that change something, one of each kind: in place and in new space.
fn changes() -> Vec<Request> {
    vec![
        request(RequestKind::Write, 0, 512, 1),
        request(RequestKind::Write, CLUSTER, 512, 1),
        request(RequestKind::WriteZeroes, 0, 512, 1),
        request(RequestKind::WriteZeroes, 0, CLUSTER, 1),
        request(RequestKind::Discard, 0, CLUSTER, 1),
        request(RequestKind::Resize { size: 2 * SIZE }, 0, 0, 1),
    ]
}

fn word(op: &IoOp) -> &'static str {
    match op {
        IoOp::ReadTable { .. } | IoOp::ReadData { .. } => "read",
        IoOp::WriteTable { offset: 0, .. } => "header",
        IoOp::Sync => "sync",
        _ => "change",
    }
}

#[test]
fn who_only_reads_leaves_every_byte_as_it_is() {
    for file in images().into_iter().chain(stale().map(|(file, _)| file)) {
        let (mut disk, mut image) = opened(&file);
        disk.run(&mut image, request(RequestKind::Read, 0, 4 * CLUSTER, 0), vec![0; 4 * CLUSTER as usize]);
        for kind in [RequestKind::Flush, RequestKind::Quiesce, RequestKind::Close] {
            disk.run(&mut image, request(kind, 0, 0, 0), vec![]);
        }
        assert!(disk.log.iter().all(|step| ["read", "sync"].contains(&word(&step.op))));
        assert!(disk.file == file);
    }
}

#[test]
fn before_the_first_change_the_bits_are_clear_durably() {
    for (file, at) in stale() {
        for change in changes() {
            let (mut disk, mut image) = opened(&file);
            disk.run(&mut image, change, vec![2; change.len as usize]);
            let steps: Vec<&str> = disk.log.iter().map(|step| word(&step.op)).collect();
            let mut steps = steps.iter().skip_while(|step| **step == "read");
            let story = format!("{change:?}: {steps:?}");
            assert_eq!((steps.next(), steps.next()), (Some(&"header"), Some(&"sync")), "{story}");
            let changes: Vec<_> = disk.log.iter().filter(|step| word(&step.op) != "read").collect();
            assert_eq!(changes[0].bytes[at], 0, "{story}");
            assert!(changes[0].completed < changes[1].submitted, "{story}");
            // what needs its table first waits for that later
            assert!(disk.log.iter().all(|step| {
                ["read", "header", "sync"].contains(&word(&step.op)) || changes[1].completed < step.submitted
            }));
            assert_eq!(disk.file[at], 0);
        }
    }
}

#[test]
fn once_they_are_clear_nothing_is_dearer() {
    for (fresh, (file, at)) in images().into_iter().zip(stale()) {
        let (mut plain, mut image) = opened(&fresh);
        let (mut disk, mut other) = opened(&file);
        disk.run(&mut other, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
        disk.run(&mut other, request(RequestKind::Flush, 0, 0, 0), vec![]);
        plain.run(&mut image, request(RequestKind::Write, 0, 512, 0), vec![1; 512]);
        plain.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
        disk.log.clear();
        plain.log.clear();
        for change in changes() {
            let bytes = vec![2; change.len as usize];
            disk.run(&mut other, change, bytes.clone());
            plain.run(&mut image, change, bytes);
        }
        let words = |disk: &Disk| disk.log.iter().map(|step| step.op).collect::<Vec<_>>();
        assert_eq!(words(&disk), words(&plain));
        assert_eq!(disk.file[at], 0);
    }
}

#[test]
fn all_that_come_meanwhile_wait_and_the_header_is_written_once() {
    for (file, at) in stale() {
        let (mut disk, mut image) = opened(&file);
        (1..5).for_each(|user| write(&mut disk, &mut image, user * CLUSTER, 512, user));
        disk.submit(&mut image, request(RequestKind::Read, 0, 512, 5), vec![0; 512]).unwrap();
        disk.submit(&mut image, request(RequestKind::Flush, 0, 0, 6), vec![]).unwrap();
        let header = |disk: &Disk| disk.pending.iter().position(|(io, _)| word(&io.op) == "header");
        disk.complete(&mut image, header(&disk).expect("asked for at once"));
        write(&mut disk, &mut image, 7 * CLUSTER, 512, 7);
        let words: Vec<&str> = disk.pending.iter().map(|(io, _)| word(&io.op)).collect();
        assert!(words.contains(&"sync") && !words.contains(&"change"), "{words:?}");
        disk.settle(&mut image, &mut Rng(3));
        assert!(disk.done.iter().all(|done| done.1 == Ok(())) && disk.done.len() == 7);
        let headers = disk.log.iter().filter(|step| word(&step.op) == "header" && step.bytes[at] == 0);
        // QED marks itself, too, for the flush or not at all
        assert!(headers.count() <= 2);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    }
}

#[test]
fn when_the_header_cannot_be_written_nothing_is() {
    for (file, _) in stale() {
        for (n, change) in (0..2).flat_map(|n| changes().into_iter().map(move |change| (n, change))) {
            let (mut disk, mut image) = opened(&file);
            disk.submit(&mut image, change, vec![2; change.len as usize]).unwrap();
            let wanted = ["header", "sync"][n];
            let index = loop {
                match disk.pending.iter().position(|(io, _)| word(&io.op) == wanted) {
                    Some(index) => break index,
                    None => disk.complete_first(&mut image),
                }
            };
            disk.fail = Some((0, 5));
            disk.complete(&mut image, index);
            let (.., result, _, _) = disk.done.pop().unwrap();
            assert!(matches!(result, Err(Error::Device { errno: 5, .. })), "{result:?}");
            disk.submit(&mut image, request(RequestKind::Write, 0, 512, 2), vec![3; 512]).unwrap();
            disk.settle(&mut image, &mut Rng(1));
            assert_eq!(disk.done.pop().unwrap().1, Err(Error::Poisoned));
            let read = disk.run(&mut image, request(RequestKind::Read, 0, 512, 3), vec![0; 512]);
            assert_eq!(read, [1; 512], "reads go on");
            assert!(disk.log.iter().all(|step| word(&step.op) != "change"), "{change:?}");
            assert!(disk.file[512..] == file[512..]);
        }
    }
}

#[test]
fn a_request_that_waits_for_it_can_be_cancelled() {
    for (file, _) in stale() {
        let (mut disk, mut image) = opened(&file);
        let fua = Request { flags: Flags::FUA, ..request(RequestKind::Write, 0, 512, 1) };
        disk.submit(&mut image, fua, vec![2; 512]).unwrap();
        assert_eq!(image.cancel(1), 1);
        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(disk.done.pop().unwrap().1, Err(Error::Cancelled));
        assert!(disk.log.iter().all(|step| word(&step.op) != "change"));
    }
}

/// A smaller disk is alone from the moment it is asked for.
#[test]
fn a_change_of_size_that_waits_for_it_is_alone() {
    let Some((file, _)) = stale().nth(1) else { return };
    for size in [SIZE / 2, 1 << 40] {
        let (mut disk, mut image) = opened(&file);
        disk.submit(&mut image, request(RequestKind::Resize { size }, 0, 0, 1), vec![]).unwrap();
        for (kind, len) in
            [(RequestKind::Close, 0), (RequestKind::Resize { size: 512 }, 0), (RequestKind::Write, 512)]
        {
            assert_eq!(image.submit(request(kind, len, len, 2)), Err(Refused::Busy));
        }
        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(disk.done.pop().unwrap().1, Ok(()));
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let header = header(&disk.file);
        assert_eq!((header.size, header.autoclear), (size, 0));
    }
}

/// Guest data in a file of its own is the image's, too; the bit that this file is raw stays.
#[test]
fn data_in_another_file_changes_the_image_too() {
    let create = CreateOptions {
        size: 4 * CLUSTER,
        data_file: Some(b"data"),
        data_file_raw: true,
        ..CreateOptions::default()
    };
    let mut file = qcow2_file(&create);
    file[88] |= 0x40;
    let (mut disk, mut image) = opened(&file);
    write(&mut disk, &mut image, 0, 512, 1);
    while !disk.pending.iter().any(|(io, _)| word(&io.op) == "header") {
        disk.complete_first(&mut image);
    }
    assert!(disk.log.iter().all(|step| word(&step.op) != "change"));
    let header = disk.log.iter().find(|step| word(&step.op) == "header").unwrap();
    assert_eq!(header.bytes[88..96], [0, 0, 0, 0, 0, 0, 0, 2]);
}
