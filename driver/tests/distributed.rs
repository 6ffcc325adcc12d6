//! File systems that are not known, over the simulated disk: what they answer is tried before it is believed,
//! and one that goes away ends the writing of its images.
//!
//! Checks: where fallocate answers 0 and does nothing, guests still read zeros, in all formats; without the
//! proof they do not (the test can fail); the proof is made once, and never for an image that is only read;
//! what failed to be tried is not believed; each error that says "gone" poisons, whatever has got it,
//! and nothing is written afterwards; a disk's own bad places do not; a reopening goes on.

#[allow(dead_code, reason = "shared with other tests")]
mod simulated;

use quod::{Buffer, Error, ErrorKind, Format, OpenOptions, Request};
use quod_backend::Store;
use quod_backend::sim::{Fault, FileOptions, OpKind, Sim, When};
use simulated::{World, image, writable};

const SIZE: u64 = 2 << 20;
const FORMATS: [Format; 3] = [Format::Raw, Format::Qed, Format::Qcow2];

/// A new image on such a file system.
fn device(format: Format, options: FileOptions) -> Sim {
    let mut create = quod_tools::CreateOptions::new(format, SIZE);
    create.cluster_size = (format != Format::Raw).then_some(16 << 10);
    let mut sim = Sim::new();
    sim.insert_file("disk", &image(&create), options);
    sim
}

fn on(store: Store) -> FileOptions {
    FileOptions { store, ..FileOptions::default() }
}

fn options(format: Format, direct: bool) -> OpenOptions {
    writable().format(Some(format)).direct(direct)
}

/// Writes, zeros and discards against plain bytes; the first read that differs.
fn lies_are_believed(format: Format, store: Store, direct: bool, seed: u64) -> Option<u64> {
    let sim = device(format, FileOptions { lies: true, ..on(store) });
    let mut world = World::open(sim, options(format, direct), seed);
    let mut model = vec![0; SIZE as usize];
    let mut random = seed;
    let mut below = |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    for round in 0..120_u64 {
        let (offset, len) = (below(SIZE / 512 - 256) * 512, (1 + below(255)) * 512);
        let range = offset as usize..(offset + len) as usize;
        match below(4) {
            0 | 1 => {
                model[range.clone()].fill(round as u8 | 1);
                world.write(offset, &model[range]);
            }
            2 => {
                let request = Request::write_zeroes(offset, len, 0);
                world.one(if below(2) == 0 { request.may_unmap() } else { request });
                model[range].fill(0);
            }
            _ => {
                world.one(Request::discard(offset, len, 0));
                // what was discarded may be anything: it is made zeros
                world.one(Request::write_zeroes(offset, len, 0));
                model[range].fill(0);
                world.one(Request::flush(0));
            }
        }
        let read = world.read(0, SIZE as usize);
        if let Some(at) = (0..model.len()).find(|at| read[*at] != model[*at]) {
            return Some(at as u64);
        }
    }
    None
}

#[test]
fn zeros_are_zeros_where_fallocate_lies() {
    for format in FORMATS {
        for store in [Store::Fuse, Store::Unknown] {
            for (direct, seed) in [(false, 1), (true, 2), (false, 3)] {
                let wrong = lies_are_believed(format, store, direct, seed);
                assert_eq!(wrong, None, "{format:?} on {store:?}, direct {direct}");
            }
        }
    }
}

/// The same lies from a file system that is believed without a proof.
#[test]
fn without_the_proof_the_old_data_come_back() {
    for format in FORMATS {
        assert!(lies_are_believed(format, Store::Known, false, 1).is_some(), "{format:?}: nobody noticed");
    }
}

fn proofs(world: &World) -> u64 {
    world.driver.backend().counters().completed(OpKind::Prove)
}

#[test]
fn a_proof_is_made_only_where_something_could_be_lost() {
    let read_only = |format| OpenOptions::new().format(Some(format));
    for format in FORMATS {
        let made = |store, options: OpenOptions| {
            let world = World::open(device(format, on(store)), options, 1);
            proofs(&world)
        };
        assert_eq!(made(Store::Known, options(format, false)), 0);
        assert_eq!(made(Store::Fuse, options(format, false)), 1);
        assert_eq!(made(Store::Unknown, options(format, true)), 1);
        assert_eq!(made(Store::Fuse, read_only(format)), 0, "an image that is only read");
        assert_eq!(made(Store::Fuse, options(format, false).lock(false)), 1, "without locks too");
    }
}

#[test]
fn what_cannot_be_tried_is_not_believed() {
    let mut sim = device(Format::Raw, FileOptions { lies: true, ..on(Store::Fuse) });
    sim.set_faults(Fault::new(&[OpKind::Prove], When::From(0), libc::EACCES).into());
    let mut world = World::open(sim, options(Format::Raw, false), 1);
    world.write(0, &[7; 4096]);
    world.one(Request::write_zeroes(0, 4096, 0));
    assert_eq!(world.read(0, 4096), [0; 4096]);
    assert_eq!(world.driver.backend().counters().failed(OpKind::Prove), 1);
}

fn is_poisoned(error: &Error) -> bool {
    matches!(error.kind(), Some(ErrorKind::Poisoned))
}

/// One operation of this kind answers so; true: from then on the image only reads.
fn ends_writing(format: Format, store: Store, kind: OpKind, errno: i32) -> bool {
    let mut world = World::open(device(format, on(store)), options(format, false), 1);
    world.write(0, &[1; 64 << 10]);
    world.one(Request::flush(0));
    world.driver.backend_mut().set_faults(Fault::new(&[kind], When::Nth(0), errno).into());
    let request = match kind {
        OpKind::Read => Request::read(0, Buffer::zeroed(512), 0),
        OpKind::ZeroRange => Request::write_zeroes(512, 512, 0),
        _ => Request::write(512, Buffer::from(&[2; 512][..]), 0),
    };
    assert!(world.try_one(request).is_err(), "{format:?} {kind:?}");
    world.driver.backend_mut().record_log(true);
    let written = world.try_one(Request::write(1024, Buffer::from(&[3; 512][..]), 0));
    let poisoned = world.driver.poisoned(world.disk);
    let Some(reason) = poisoned else {
        assert_eq!(written.map(drop), Ok(()));
        return false;
    };
    assert_eq!(reason.kind(), Some(&ErrorKind::Gone { errno }));
    assert!(written.is_err_and(|error| is_poisoned(&error)));
    // the store is there again, and says that all is well
    assert!(world.try_one(Request::flush(0)).is_err_and(|error| is_poisoned(&error)));
    let changes = [OpKind::Sync, OpKind::Write, OpKind::ZeroRange, OpKind::PunchHole, OpKind::Grow];
    let late = world.driver.backend().log().iter().find(|done| changes.contains(&done.op.kind));
    assert!(late.is_none(), "{format:?}: {late:?}");
    assert_eq!(world.read(2048, 512), [1; 512], "reads go on");
    let closed = world.try_one(Request::close(0));
    assert!(closed.is_err_and(|error| is_poisoned(&error)));
    world.disk = world.driver.open("disk", options(format, false)).unwrap();
    assert_eq!(world.next().result, Ok(()), "it can be opened again");
    world.write(1024, &[4; 512]);
    world.one(Request::flush(0));
    true
}

#[test]
fn a_store_that_goes_away_ends_the_writing_of_its_images() {
    for format in FORMATS {
        for kind in [OpKind::Read, OpKind::Write] {
            for errno in [libc::ENOTCONN, libc::ESTALE, libc::ESHUTDOWN] {
                for store in [Store::Known, Store::Fuse, Store::Unknown] {
                    assert!(ends_writing(format, store, kind, errno), "{format:?} {kind:?} {errno}");
                }
            }
            for errno in [libc::EIO, libc::ETIMEDOUT, libc::ECONNABORTED, libc::EHOSTUNREACH] {
                assert!(ends_writing(format, Store::Fuse, kind, errno), "{format:?} {kind:?} {errno}");
                assert!(ends_writing(format, Store::Unknown, kind, errno), "{format:?} {kind:?} {errno}");
            }
        }
    }
    assert!(ends_writing(Format::Raw, Store::Fuse, OpKind::ZeroRange, libc::EIO));
}

#[test]
fn a_bad_place_of_a_disk_is_the_request_s_alone() {
    for format in FORMATS {
        for kind in [OpKind::Read, OpKind::Write] {
            assert!(!ends_writing(format, Store::Known, kind, libc::EIO), "{format:?} {kind:?}");
        }
        assert!(!ends_writing(format, Store::Fuse, OpKind::Write, libc::ENOSPC), "full is not gone");
    }
}
