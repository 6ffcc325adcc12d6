//! Changes of a disk's size.
//!
//! Checks: which sizes are refused, and why; an L1 table that has to move takes every entry with it, in
//! chunks, and leaves no leak, also when any one I/O fails; what comes to light reads as zeros, what goes is
//! given back.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, Refused, RequestKind};
use quod_states_tests::qcow2::{assert_sound, check, header, qcow2_file, snapshot};
use quod_states_tests::{Disk, Rng, qed_file, read_all, request};

fn opened(file: Vec<u8>, backing: Option<Vec<u8>>) -> (Disk, Image) {
    let mut disk = Disk::new(file, backing, 1);
    let image = disk.open(Options::default().grow_step(0)).unwrap().image;
    (disk, image)
}

/// Why a size is refused; None: it is not.
fn refused(image: &Image, size: u64) -> Option<String> {
    match image.clone().submit(request(RequestKind::Resize { size }, 0, 0, 0)) {
        Ok(_) => None,
        Err(Refused::Invalid(Error::Misuse(what))) => Some(what.into()),
        Err(Refused::Invalid(Error::Unsupported(lack))) => Some(lack.to_string()),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn sizes_are_refused_for_a_reason() {
    let says = |what: &str| Some(what.to_string());
    let raw = Image::raw(1 << 20, &Options::default());
    assert_eq!((refused(&raw, 0), refused(&raw, 1 << 62)), (None, None));
    assert_eq!(refused(&raw, (1 << 62) + 1), says("the size is beyond what a file can hold"));
    // QED: tables of one cluster of 4096 bytes, 512 * 512 clusters
    let (_, qed) = opened(qed_file(1 << 20, 4096, 1, None), None);
    let multiple = says("the size of an image with tables is a multiple of 512");
    assert_eq!((refused(&qed, 1 << 20), refused(&qed, 1 << 30)), (None, None));
    assert_eq!(
        (refused(&qed, (1 << 20) + 1), refused(&qed, (1 << 20) + 256)),
        (multiple.clone(), multiple.clone())
    );
    assert_eq!(refused(&qed, (1 << 30) + 512), says("the size is beyond what tables of this geometry map"));
    assert_eq!(refused(&qed, (1 << 20) - 512), says("shrinking a QED image"));
    let longer = "growing a QED image whose backing file is longer than it";
    for (backing, what) in [(1 << 20, None), ((1 << 20) + 1, says(longer)), (5, None)] {
        let file = qed_file(1 << 20, 4096, 1, Some(b"base"));
        let (_, image) = opened(file, Some(vec![1; backing]));
        assert_eq!((refused(&image, 1 << 21), refused(&image, 1 << 20)), (what, None), "{backing}");
    }
    // qcow2: 4 Mi L1 entries of 512 * 64 bytes
    let create = CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() };
    let (_, qcow2) = opened(qcow2_file(&create), None);
    assert_eq!((refused(&qcow2, 0), refused(&qcow2, 1 << 37), refused(&qcow2, 1 << 20)), (None, None, None));
    assert_eq!(refused(&qcow2, (1 << 37) + 512), says("the size is beyond what an L1 table of 32 MiB maps"));
    assert_eq!(refused(&qcow2, 100), multiple);
    for (version, what) in [(2, says("resizing a qcow2 image of version 2 that has snapshots")), (3, None)] {
        let mut file = qcow2_file(&CreateOptions { version, ..create });
        snapshot(&mut file);
        let (_, image) = opened(file, None);
        assert_eq!((refused(&image, 1 << 21), refused(&image, 1 << 20)), (what, None), "version {version}");
    }
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let image = disk.open(Options::default().read_only(true)).unwrap().image;
    assert_eq!(refused(&image, 1 << 20), says("the image is open for reading only"));
}

/// An image of 512-byte clusters whose L1 table takes `clusters`, with data here and there.
fn small(clusters: u64) -> (Disk, Image, Vec<u8>) {
    let size = clusters * 64 * 64 * 512;
    let create = CreateOptions { size, cluster_size: 512, ..CreateOptions::default() };
    let (mut disk, mut image) = opened(qcow2_file(&create), None);
    let mut model = vec![0; size as usize];
    for n in 0..40 {
        let at = (n * 7919 * 512) % size;
        disk.run(&mut image, request(RequestKind::Write, at, 512, n), vec![n as u8 + 1; 512]);
        model[at as usize..at as usize + 512].fill(n as u8 + 1);
    }
    (disk, image, model)
}

fn close(disk: &mut Disk, image: &mut Image) {
    disk.run(image, request(RequestKind::Close, 0, 0, 0), vec![]);
}

#[test]
fn an_l1_table_that_moves_takes_all_entries_with_it() {
    for (before, after) in [(1, 2), (1, 9), (140, 141)] {
        let (mut disk, mut image, mut model) = small(before);
        let old = header(&disk.file).l1_offset;
        let size = after * 64 * 64 * 512;
        disk.log.clear();
        disk.run(&mut image, request(RequestKind::Resize { size }, 0, 0, 0), vec![]);
        assert_eq!(image.virtual_size(), size);
        model.resize(size as usize, 0);
        let new = header(&disk.file);
        assert_ne!(new.l1_offset, old);
        assert_eq!((u64::from(new.l1_entries), new.guest_size()), (after * 64, size));
        // 64 KiB at once
        let moved: Vec<u64> = disk
            .log
            .iter()
            .filter_map(|step| match step.op {
                IoOp::WriteTable { offset, len } if offset >= new.l1_offset && len > 512 => Some(len.into()),
                _ => None,
            })
            .collect();
        assert!(moved.iter().all(|len| *len <= 65536) && (before < 100 || moved.len() == 2), "{moved:?}");
        for n in 0..10 {
            let at = size - 512 * (n * 31 + 1);
            disk.run(&mut image, request(RequestKind::Write, at, 512, 0), vec![9; 512]);
            model[at as usize..at as usize + 512].fill(9);
        }
        close(&mut disk, &mut image);
        assert_sound(&disk.file, "moved and closed");
        assert!(read_all(&mut disk, Options::default()) == model, "{before} to {after}");
    }
}

#[test]
fn a_move_that_fails_loses_nothing() {
    let mut failed = 0;
    for fail in 0..60 {
        let (mut disk, mut image, model) = small(1);
        disk.fail = Some((fail, 5));
        disk.submit(&mut image, request(RequestKind::Resize { size: 3 * 64 * 64 * 512 }, 0, 0, 1), vec![])
            .unwrap();
        disk.settle(&mut image, &mut Rng(fail));
        disk.fail = None;
        let resized = disk.done.pop().unwrap().1;
        failed += u32::from(resized.is_err());
        let size = image.virtual_size() as usize;
        assert_eq!(size != model.len(), resized.is_ok(), "{fail}");
        disk.submit(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]).unwrap();
        disk.settle(&mut image, &mut Rng(1));
        let report = check(&mut disk.file.clone(), None);
        assert!(report.is_sound(), "{fail}: {report:?}");
        assert!(image.poisoned().is_some() || report.leaks == 0, "{fail}: {report:?}");
        if image.poisoned().is_none() {
            let read = read_all(&mut disk, Options::default());
            assert!(read[..model.len()] == model && read[model.len()..].iter().all(|byte| *byte == 0));
        }
    }
    assert!((5..50).contains(&failed), "{failed}");
}

#[test]
fn a_smaller_disk_gives_its_clusters_back_and_a_larger_one_reads_zeros() {
    let (mut disk, mut image, mut model) = small(2);
    let clusters = |image: &Image| image.counters().allocations;
    let before = clusters(&image);
    let size = 777 * 512;
    disk.run(&mut image, request(RequestKind::Resize { size }, 0, 0, 0), vec![]);
    assert_eq!(refused(&image, size), None);
    disk.run(&mut image, request(RequestKind::Resize { size: 2 * 64 * 64 * 512 }, 0, 0, 0), vec![]);
    model[size as usize..].fill(0);
    let read =
        disk.run(&mut image, request(RequestKind::Read, 0, model.len() as u64, 0), vec![7; model.len()]);
    assert!(read == model, "nothing of what went comes back");
    assert_eq!(clusters(&image), before, "zeros take no space");
    close(&mut disk, &mut image);
    assert_sound(&disk.file, "smaller, larger, closed");
    assert!(read_all(&mut disk, Options::default()) == model);
}

#[test]
fn a_second_change_of_size_is_not_accepted_meanwhile() {
    let (mut disk, mut image, _) = small(1);
    disk.submit(&mut image, request(RequestKind::Resize { size: 64 * 64 * 512 * 2 }, 0, 0, 1), vec![])
        .unwrap();
    // the L1 table moves: nothing else is accepted until it has
    assert_eq!(image.submit(request(RequestKind::Read, 0, 512, 2)), Err(Refused::Busy));
    disk.settle(&mut image, &mut Rng(1));
    // no table moves here: requests go on
    disk.submit(&mut image, request(RequestKind::Resize { size: 64 * 64 * 512 * 2 - 512 }, 0, 0, 3), vec![])
        .unwrap();
    disk.settle(&mut image, &mut Rng(1));
    disk.submit(&mut image, request(RequestKind::Resize { size: 64 * 64 * 512 * 2 }, 0, 0, 4), vec![])
        .unwrap();
    disk.submit(&mut image, request(RequestKind::Read, 0, 512, 5), vec![0; 512]).unwrap();
    assert_eq!(
        image.submit(request(RequestKind::Resize { size: 64 * 64 * 512 }, 0, 0, 6)),
        Err(Refused::Busy)
    );
    disk.settle(&mut image, &mut Rng(1));
    assert!(disk.done.iter().all(|done| done.1 == Ok(())));
    close(&mut disk, &mut image);
    assert_eq!(
        quod_states_tests::qcow2::header(&disk.file).size,
        64 * 64 * 512 * 2,
        "what was answered is in the file"
    );
}
