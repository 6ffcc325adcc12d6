//! What the fuzz targets have found.
//!
//! Checks: one finding a test.

use quod::{Format, OpenOptions};
use quod_backend::sim::{Fault, Fifo, FileOptions, OpKind, Sim, When};
use quod_fuzz::image::{self, Form, Part, Qcow2, Shape};
use quod_fuzz::world::{Ask, Session, Subject, TOP, World};

#[test]
fn a_disk_that_fails_for_ever_is_not_read_for_ever() {
    // free clusters were looked for again whenever the last look had ended, well or not
    for from in 0..30 {
        let shape = Shape { form: Form::Qcow2(Qcow2::new(16384)), size: 114_176, backing: None };
        let parts = [Part::Snapshot, Part::Data { first: 0, count: 1 }];
        let start = image::start(&shape, &parts, &[], 7).unwrap();
        let mut sim = Sim::new();
        sim.insert_file(TOP, &start.bytes, FileOptions::default());
        let session = Session { options: OpenOptions::new().cache_bytes(8 << 10), requests: 4, trace: false };
        let subject = Subject { snapshots: start.snapshots, ..Subject::new(shape.form) };
        let mut world = World::new(sim, start.content, session.clone(), subject);
        world.open(&mut Fifo).unwrap();
        let kinds =
            [OpKind::Read, OpKind::Write, OpKind::Sync, OpKind::ZeroRange, OpKind::Grow, OpKind::SetLen];
        world.arm(Some(Fault::new(&kinds, When::From(from), libc::ENOSPC)));
        for ask in [Ask::Flush, Ask::Write { offset: 65_024, len: 512, fua: false }] {
            world.ask(ask).unwrap();
            world.drain(&mut Fifo).unwrap();
        }
        world.close().unwrap();
        world.reopen(session).unwrap();
    }
}

#[test]
fn a_repair_leaves_the_header_alone() {
    // an L1 table that claims to be where the header is: its flags were corrected in the header's fields
    let mut bytes = vec![0; 657];
    for (at, value) in [(0, b"QFI\xfb".as_slice()), (7, &[3]), (23, &[10]), (37, &[0x10]), (103, &[0x70])] {
        bytes[at..at + value.len()].copy_from_slice(value);
    }
    let mut sim = Sim::new();
    sim.insert_file(TOP, &bytes, FileOptions::default());
    assert!(image::check(&sim, TOP).unwrap().corruptions > 0);
    let (repaired, _) = image::repaired(&sim, TOP).unwrap();
    sim.insert_file(TOP, &repaired, FileOptions::default());
    image::check(&sim, TOP).unwrap();
    assert_eq!(image::probe(&sim, TOP), Format::Qcow2);
}
