//! Which of an image's two files an operation goes to.

use super::*;
use crate::layer::RequestSlot;
use crate::layer::flight::Place;
use crate::{Buffers, Config, Driver, Format, OpenOptions};
use quod_backend::sim::{Fault, FaultPlan, FileOptions, OpKind, Seeded, Sim, When};
use quod_backend::{Buffer, FileId};

const PLACE: Place = Place { disk: 0, layer: 0 };
const ACB: AcbId = AcbId { index: 1, generation: 1 };
const REQUEST: RequestId = RequestId { index: 2, generation: 0 };

/// A layer whose guest data has a file of its own: "disk" holds ones, "data" holds twos. Its machine is a raw
/// one, which names none of what the tests name, and counts the answers.
fn two_files() -> (Driver<Sim>, Buffers, FileId, FileId) {
    let mut sim = Sim::new();
    sim.insert_file("disk", &[1; 65536], FileOptions::default());
    sim.insert_file("data", &[2; 65536], FileOptions::default());
    let mut driver = Driver::with_backend(sim, Config::default()).unwrap();
    for path in ["disk", "data"] {
        driver.open(path, OpenOptions::new().format(Some(Format::Raw)).write(true)).unwrap();
        run_dry(&mut driver, 0);
    }
    let (disk, data) =
        (driver.engine.disks[0].layers[0].file.id, driver.engine.disks[1].layers[0].file.clone());
    let layer = &mut driver.engine.disks[0].layers[0];
    let mut buffer = Buffers::from(Buffer::from(&[7; 4096][..]));
    layer.slots[REQUEST.index as usize] =
        RequestSlot { segments: buffer.scatter_list(), ..RequestSlot::default() };
    let id = data.id;
    layer.data = Some(data);
    (driver, buffer, disk, id)
}

fn run_dry(driver: &mut Driver<Sim>, seed: u64) {
    let mut order = Seeded::new(seed);
    loop {
        driver.turn().unwrap();
        if !driver.backend_mut().step(&mut order) && !driver.engine.port.unsent() {
            return;
        }
    }
}

/// Names an operation; what the backend is asked for.
fn ask(driver: &mut Driver<Sim>, op: IoOp) -> Vec<(OpKind, FileId, u64)> {
    let (mut out, layer, transform) = driver.engine.at(PLACE).unwrap();
    translate(&mut out, layer, &Io { id: IoId { index: u32::MAX, generation: 1 }, op });
    transform.serve(&mut out, layer);
    out.port.push_pending();
    let pending = driver.backend().pending();
    pending.map(|op| (op.kind, op.file.unwrap(), op.offset)).collect()
}

fn answers(driver: &Driver<Sim>) -> u64 {
    driver.engine.disks[0].layers[0].image.counters().stale_completions
}

#[test]
fn guest_data_goes_to_its_own_file_and_the_rest_does_not() {
    let (request, acb) = (REQUEST, ACB);
    let fill = |source| IoOp::ReadFill { acb, part: Part::Head, part_len: 512, at: 0, len: 512, source };
    let (buffer_offset, len, host, bytes, within) = (0, 512, 4096, 512, 0);
    let cases = [
        (IoOp::ReadData { request, buffer_offset, len, host }, OpKind::Read, true),
        (fill(FillSource::Host(host)), OpKind::Read, true),
        (
            IoOp::WriteData { acb, request, buffer_offset, len, host, head: 0, tail: 0, zero: false },
            OpKind::Write,
            true,
        ),
        (IoOp::ZeroRange { host, len, unmap: true }, OpKind::ZeroRange, true),
        (IoOp::ReadTable { offset: host, len: 512 }, OpKind::Read, false),
        (IoOp::ReadCompressed { request, buffer_offset, len, host, bytes, within }, OpKind::Read, false),
        (fill(FillSource::Compressed { host, bytes, within }), OpKind::Read, false),
        (IoOp::PunchHole { host, len }, OpKind::PunchHole, false),
        (IoOp::Discard { host, len }, OpKind::PunchHole, false),
        (IoOp::Grow { from: host, to: 1 << 20 }, OpKind::Grow, false),
        (IoOp::SetLen { len: 1 << 20 }, OpKind::SetLen, false),
    ];
    for (op, kind, guest) in cases {
        let (mut driver, _buffer, disk, data) = two_files();
        let asked = ask(&mut driver, op);
        assert_eq!(asked.len(), 1, "{op:?}");
        assert_eq!((asked[0].0, asked[0].1), (kind, if guest { data } else { disk }), "{op:?}");
        assert!(asked[0].2 == host || kind == OpKind::SetLen, "{op:?}");
        run_dry(&mut driver, 0);
        assert_eq!(answers(&driver), 1, "{op:?}");
    }
}

#[test]
fn bytes_come_from_and_go_to_the_data_file() {
    let (mut driver, buffer, ..) = two_files();
    let (request, acb) = (REQUEST, ACB);
    let source = FillSource::Host(4096);
    ask(&mut driver, IoOp::ReadFill { acb, part: Part::Head, part_len: 512, at: 0, len: 512, source });
    run_dry(&mut driver, 0);
    let (buffer_offset, len, host) = (1024, 1024, 4096 + 512);
    ask(
        &mut driver,
        IoOp::WriteData { acb, request, buffer_offset, len, host, head: 512, tail: 512, zero: false },
    );
    ask(&mut driver, IoOp::ZeroRange { host: 0, len: 512, unmap: false });
    ask(&mut driver, IoOp::ReadData { request, buffer_offset: 0, len: 512, host: 8192 });
    run_dry(&mut driver, 0);
    let data = driver.backend().file_bytes("data");
    assert!(data[..512] == [0; 512] && data[512..4608].iter().all(|&byte| byte == 2));
    assert!(data[4608..5632] == [7; 1024] && data[5632..6144] == [0; 512] && data[6144] == 2);
    assert!(driver.backend().file_bytes("disk") == [1; 65536]);
    let Buffers::Owned(buffer) = buffer else { unreachable!() };
    assert!(buffer.as_slice()[..512] == [2; 512] && buffer.as_slice()[512..] == [7; 3584]);
}

#[test]
fn a_sync_is_both_files_and_one_answer() {
    for seed in 0..8 {
        let (mut driver, _buffer, disk, data) = two_files();
        let asked = ask(&mut driver, IoOp::Sync);
        assert_eq!(asked, [(OpKind::Sync, data, 0), (OpKind::Sync, disk, 0)]);
        let mut order = Seeded::new(seed);
        driver.turn().unwrap();
        assert!(driver.backend_mut().step(&mut order));
        driver.turn().unwrap();
        assert_eq!(answers(&driver), 0, "one of them is not enough");
        run_dry(&mut driver, seed);
        assert_eq!(answers(&driver), 1);
        assert!(driver.engine.disks[0].layers[0].half_syncs.is_empty());
    }
}

#[test]
fn a_sync_fails_if_either_file_fails() {
    let failed = |which: usize, seed| {
        let (mut driver, _buffer, disk, data) = two_files();
        let fault = Fault::new(&[OpKind::Sync], When::From(0), libc::EIO).on([disk, data][which]);
        driver.backend_mut().set_faults(FaultPlan::none().and(fault));
        // the first half alone says nothing
        let layer = &mut driver.engine.disks[0].layers[0];
        let io = IoId { index: 5, generation: 5 };
        assert_eq!(layer.half_synced(io, Ok(())), None);
        assert_eq!(layer.half_synced(io, Err(Errno(7))), Some(Err(Errno(7))));
        assert_eq!(layer.half_synced(io, Err(Errno(8))), None);
        assert_eq!(layer.half_synced(IoId { generation: 6, ..io }, Ok(())), None, "another sync");
        assert_eq!(layer.half_synced(io, Ok(())), Some(Err(Errno(8))));
        assert_eq!(layer.half_syncs.len(), 1);
        layer.half_syncs.clear();
        // and through the machine: the raw one names a sync for a flush
        let id = driver.engine.disks[0].id(0);
        driver.submit(id, crate::Request::flush(1)).map_err(|rejected| rejected.reason).unwrap();
        run_dry(&mut driver, seed);
        let done = std::iter::from_fn(|| driver.next_completion()).last().unwrap();
        assert!(matches!(done.kind, crate::CompletionKind::Flush));
        done.result.unwrap_err().errno()
    };
    for seed in 0..4 {
        assert_eq!((failed(0, seed), failed(1, seed)), (libc::EIO, libc::EIO));
    }
}
