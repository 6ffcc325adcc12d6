//! Compressed clusters through a whole driver: the cache of clusters, and both kinds of buffers that want
//! them.

use crate::engine::translate::translate;
use crate::layer::RequestSlot;
use crate::layer::clusters::{Clusters, Stage};
use crate::layer::disk::Phase;
use crate::layer::flight::Place;
use crate::memory::buffers;
use crate::memory::fill::side;
use crate::transform::tests::{deflated, text};
use crate::{Buffers, Config, Driver, Error, ErrorKind, Format, OpenOptions};
use quod_backend::Buffer;
use quod_backend::sim::{FileOptions, OpKind, Seeded, Sim};
use quod_states::{AcbId, Fault, FillSource, Info, Io, IoId, IoOp, Part, RequestId};

const SIZE: usize = 64 << 10;
const HOST: u64 = 700;
const PLACE: Place = Place { disk: 0, layer: 0 };

/// A driver with one open disk whose file holds a compressed cluster at `HOST`; its machine is a raw one that
/// never names it. The number of compressed bytes.
fn driver(contents: &[u8]) -> (Driver<Sim>, u32) {
    let mut sim = Sim::new();
    let packed = deflated(contents);
    let mut file = vec![0x77; HOST as usize];
    file.extend(&packed);
    file.resize(1 << 20, 0x77);
    sim.insert_file("disk", &file, FileOptions::default());
    let mut driver = Driver::with_backend(sim, Config::default()).unwrap();
    driver.open("disk", OpenOptions::new().format(Some(Format::Raw))).unwrap();
    run_dry(&mut driver);
    assert!(matches!(driver.engine.disks[0].phase, Phase::Open));
    let info = Info {
        cluster_size: SIZE as u32,
        ..driver.engine.disks[0].info.as_ref().unwrap().layers()[0].info.clone()
    };
    driver.engine.disks[0].layers[0].clusters = Clusters::new(&info);
    (driver, packed.len() as u32)
}

fn run_dry(driver: &mut Driver<Sim>) {
    let mut order = Seeded::new(1);
    loop {
        driver.turn().unwrap();
        if !driver.backend_mut().step(&mut order)
            && driver.engine.transform.is_idle()
            && !driver.engine.port.unsent()
        {
            return;
        }
    }
}

fn ask(driver: &mut Driver<Sim>, op: IoOp) {
    let (mut out, layer, transform) = driver.engine.at(PLACE).unwrap();
    translate(&mut out, layer, &Io { id: IoId { index: u32::MAX, generation: 1 }, op });
    transform.serve(&mut out, layer);
    driver.engine.settle(PLACE);
}

/// A fill of control block `index` with `len` bytes from `within` on, 100 bytes into a fill of `len` + 200.
fn fill(index: u32, bytes: u32, within: u32, len: u32) -> IoOp {
    let source = FillSource::Compressed { host: HOST, bytes, within };
    let acb = AcbId { index, generation: 3 };
    IoOp::ReadFill { acb, part: Part::Tail, part_len: len + 200, at: 100, len, source }
}

fn filled(driver: &Driver<Sim>, index: usize, len: usize) -> Vec<u8> {
    let fill = &driver.engine.disks[0].layers[0].fills[index][side(Part::Tail)];
    let mut bytes = vec![0xee; len + 200];
    buffers::gather(&[fill.part(&driver.engine.port.arena, 3, 0, len as u64 + 200).unwrap()], &mut bytes);
    assert!(bytes[..100].iter().chain(&bytes[len + 100..]).all(|&byte| byte == 0), "around it are zeros");
    bytes[100..len + 100].to_vec()
}

/// The machine, which knows nothing of these, counts the answers.
fn answers(driver: &Driver<Sim>) -> u64 {
    driver.engine.disks[0].layers[0].image.counters().stale_completions
}

fn reads(driver: &Driver<Sim>) -> u64 {
    driver.backend().counters().completed(OpKind::Read)
}

#[test]
fn fills_and_requests_share_a_decompression() {
    let bytes = text(SIZE);
    let (mut driver, packed) = driver(&bytes);
    let mut buffer = Buffers::from(Buffer::zeroed(1000));
    let layer = &mut driver.engine.disks[0].layers[0];
    layer.slots[5] = RequestSlot { segments: buffer.scatter_list(), ..RequestSlot::default() };
    let request = RequestId { index: 5, generation: 0 };
    let (host, within) = (HOST, 60_000);
    ask(&mut driver, fill(2, packed, 1000, 5000));
    ask(
        &mut driver,
        IoOp::ReadCompressed { request, buffer_offset: 10, len: 900, host, bytes: packed, within },
    );
    ask(&mut driver, fill(3, packed, 0, SIZE as u32));
    assert_eq!(driver.engine.disks[0].layers[0].slots[5].busy, 1);
    assert_eq!(answers(&driver), 0);
    run_dry(&mut driver);
    assert_eq!((answers(&driver), reads(&driver)), (3, 1));
    // there already: at once
    ask(&mut driver, fill(4, packed, 7, 70));
    assert_eq!((answers(&driver), reads(&driver)), (4, 1));
    assert!(filled(&driver, 2, 5000) == bytes[1000..6000]);
    assert!(filled(&driver, 3, SIZE) == bytes);
    assert!(filled(&driver, 4, 70) == bytes[7..77]);
    assert_eq!(driver.engine.disks[0].layers[0].slots[5].busy, 0);
    let Buffers::Owned(buffer) = buffer else { unreachable!() };
    assert!(buffer.as_slice()[10..910] == bytes[60_000..60_900]);
}

#[test]
fn a_fill_that_cannot_be_had_says_so() {
    let (mut driver, packed) = driver(&text(SIZE));
    ask(&mut driver, fill(2, packed / 2, 0, 10));
    run_dry(&mut driver);
    assert_eq!(answers(&driver), 1);
    let cause = driver.engine.disks[0].layers[0].fill_cause.take().unwrap();
    assert!(
        matches!(&*cause, Error::File { kind: ErrorKind::Corrupt(Fault::Compressed { host: HOST, .. }), .. })
            && cause.errno() == libc::EIO,
        "{cause:?}"
    );
    // and it is not kept
    ask(&mut driver, fill(3, packed / 2, 0, 10));
    run_dry(&mut driver);
    assert_eq!((answers(&driver), reads(&driver)), (2, 2));
}

#[test]
fn what_may_be_overwritten_is_forgotten() {
    let (mut driver, packed) = driver(&text(SIZE));
    let end = HOST + u64::from(packed);
    let want = |driver: &mut Driver<Sim>| {
        ask(driver, fill(2, packed, 0, 10));
        run_dry(driver);
        reads(driver)
    };
    assert_eq!((want(&mut driver), want(&mut driver)), (1, 1));
    for (host, len) in [(0, HOST), (end, 5000), (HOST, 0)] {
        ask(&mut driver, IoOp::ForgetCompressed { host, len });
        assert_eq!(want(&mut driver), 1, "{host} {len}: beside it");
    }
    for (n, (host, len)) in
        [(0, HOST + 1), (end - 1, 1), (0, u64::MAX), (HOST + 9, 9)].into_iter().enumerate()
    {
        ask(&mut driver, IoOp::ForgetCompressed { host, len });
        assert_eq!(want(&mut driver), n as u64 + 2, "{host} {len}");
    }
    assert_eq!(answers(&driver), 9, "forgetting gets no answer");
}

#[test]
fn what_is_in_progress_is_forgotten_afterwards() {
    let bytes = text(SIZE);
    let (mut driver, packed) = driver(&bytes);
    ask(&mut driver, fill(2, packed, 0, 10));
    ask(&mut driver, IoOp::ForgetCompressed { host: HOST, len: 1 });
    ask(&mut driver, fill(3, packed, 5, 10));
    run_dry(&mut driver);
    assert_eq!((answers(&driver), reads(&driver)), (2, 2), "a later want reads anew");
    assert!(filled(&driver, 2, 10) == bytes[..10] && filled(&driver, 3, 10) == bytes[5..15]);
    ask(&mut driver, fill(4, packed, 0, 10));
    run_dry(&mut driver);
    assert_eq!((answers(&driver), reads(&driver)), (3, 2), "the later one is kept");
    assert_eq!(driver.engine.disks[0].layers[0].clusters.stages(), [Stage::Empty, Stage::Ready]);
}
