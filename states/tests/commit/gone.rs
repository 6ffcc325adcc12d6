//! The embedder says that what holds the file is gone, at each step of a mixed load: nothing more is
//! written, every request ends, reads go on, and the image that is left can be opened and used.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, RequestKind, Timer};
use quod_states_tests::qcow2::{check, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_file, request, write};

const CLUSTER: u64 = 65536;

fn writes(op: &IoOp) -> bool {
    !matches!(
        op,
        IoOp::ReadTable { .. } | IoOp::ReadData { .. } | IoOp::ReadBacking { .. } | IoOp::ReadFill { .. }
    ) && !matches!(op, IoOp::Yield | IoOp::ReadCompressed { .. })
}

fn gone() -> Error {
    Error::Gone(107) // ENOTCONN
}

fn options() -> Options {
    Options::default().grow_step(4 * CLUSTER).acbs(16).cache_bytes(4096)
}

/// Requests of all kinds that change something, with a round between them.
fn load(disk: &mut Disk, image: &mut Image) {
    for user in 1..6 {
        write(disk, image, (user * 5 % 7) * CLUSTER + 512, 4096, user);
    }
    disk.submit(image, request(RequestKind::WriteZeroes, 0, CLUSTER + 512, 10), vec![]).unwrap();
    disk.submit(image, request(RequestKind::Flush, 0, 0, 11), vec![]).unwrap();
    image.handle_timeout(Timer::Commit);
    disk.drain(image);
    disk.submit(image, request(RequestKind::Discard, 3 * CLUSTER, 2 * CLUSTER, 12), vec![]).unwrap();
    write(disk, image, 40 * CLUSTER, 2 * CLUSTER, 13);
    disk.submit(image, request(RequestKind::Quiesce, 0, 0, 14), vec![]).unwrap();
}

/// The image is poisoned after so many answers. False: there were no more.
fn poisoned_after(steps: u64, order: u64, file: Vec<u8>) -> bool {
    let mut disk = Disk::new(file, None, 1);
    let mut image = disk.open(options()).unwrap().image;
    load(&mut disk, &mut image);
    let mut rng = Rng(order);
    for _ in 0..steps {
        if disk.pending.is_empty() {
            return false;
        }
        let index = rng.below(disk.pending.len() as u64) as usize;
        disk.complete(&mut image, index);
    }
    disk.log.clear();
    image.poison(gone());
    disk.drain(&mut image);
    assert_eq!(image.poisoned(), Some(&gone()));
    image.poison(Error::NoSpace);
    assert_eq!(image.poisoned(), Some(&gone()), "the first reason stays");
    disk.settle(&mut image, &mut rng);
    image.handle_timeout(Timer::Commit);
    disk.settle(&mut image, &mut rng);
    let late = disk.log.iter().find(|step| writes(&step.op));
    assert!(late.is_none(), "after {steps} answers: {:?}", late.map(|step| step.op));
    for kind in [RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Flush] {
        let error = disk.try_run(&mut image, request(kind, 0, 512, 20), vec![1; 512]);
        assert_eq!(error, Err(Error::Poisoned), "{kind:?}");
    }
    disk.run(&mut image, request(RequestKind::Read, 0, 64 * CLUSTER, 21), vec![0; 64 << 16]);
    let mut image = disk.open(options()).unwrap().image;
    disk.run(&mut image, request(RequestKind::Write, 7 * CLUSTER, 512, 22), vec![9; 512]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 23), vec![]);
    true
}

fn at_each_step(file: &[u8]) {
    for order in 0..20 {
        let steps = (0..).take_while(|&steps| poisoned_after(steps, order, file.to_vec())).count();
        assert!(steps > 10, "{steps} steps");
    }
}

#[test]
fn a_store_that_goes_away_ends_the_writing_of_a_qed_image_at_any_step() {
    at_each_step(&qed_file(64 * CLUSTER, 65536, 1, None));
}

#[test]
fn a_store_that_goes_away_ends_the_writing_of_a_qcow2_image_at_any_step() {
    let create = CreateOptions { size: 64 * CLUSTER, ..CreateOptions::default() };
    let file = qcow2_file(&create);
    assert!(check(&mut file.clone(), None).is_sound());
    at_each_step(&file);
}

#[test]
fn an_image_that_is_only_read_is_not_poisoned() {
    let mut disk = Disk::new(qed_file(64 * CLUSTER, 65536, 1, None), None, 1);
    let mut image = disk.open(options().read_only(true)).unwrap().image;
    image.poison(gone());
    assert_eq!(image.poisoned(), None);
}
