//! Streams, the cache of clusters, and both kinds of buffers that want them.

use super::*;
use crate::engine::translate::translate;
use crate::layer::disk::{Phase, Slot};
use crate::{Buffers, Config, Format, OpenOptions};
use flate2::{Compress, FlushCompress};
use quod_backend::Buffer;
use quod_backend::sim::{FileOptions, Kind, Seeded, Sim};
use quod_states::{AcbId, FillSource, Io, IoOp, Part, RequestId};

fn text(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|at| if at % 7 < 4 { at.wrapping_mul(2_654_435_761).to_be_bytes()[0] } else { 3 })
        .collect()
}

fn deflated(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 1000);
    let mut encoder = Compress::new(flate2::Compression::default(), false);
    encoder.compress_vec(bytes, &mut out, FlushCompress::Finish).unwrap();
    out
}

/// What comes out of a stream, and in how many steps; and that it comes out in one step as well.
fn run(
    all: &mut Decoders,
    compression: Compression,
    input: &[u8],
    size: usize,
) -> (Progress, Vec<u8>, usize) {
    let (mut contents, mut whole) = (vec![0xee; size], vec![0xee; size]);
    let mut stream = Stream::new(compression, 0, input.len());
    for step in 1..10_000 {
        let progress = stream.step(all, input, &mut contents, SLICE);
        if progress != Progress::More {
            let once = Stream::new(compression, 0, input.len()).run(all, input, &mut whole);
            assert!(once == progress && (progress == Progress::Broken || whole == contents));
            return (progress, contents, step);
        }
    }
    panic!("no end");
}

#[test]
fn streams_of_all_sizes_come_in_slices() {
    let mut all = Decoders::default();
    for bits in 9..=21 {
        let bytes = text(1 << bits);
        let most = 2 * bytes.len().div_ceil(SLICE) + 2;
        let mut padded = deflated(&bytes);
        padded.extend([0x5a; 300]);
        let (progress, out, steps) = run(&mut all, Compression::Deflate, &padded, bytes.len());
        assert!(progress == Progress::Whole && out == bytes && steps <= most, "{bits} {steps}");
        for level in [1, 19] {
            let mut packed = zstd::encode_all(&bytes[..], level).unwrap();
            packed.extend([0; 300]);
            let (progress, out, steps) = run(&mut all, Compression::Zstd, &packed, bytes.len());
            assert!(progress == Progress::Whole && out == bytes && steps <= most, "{bits} {steps}");
        }
    }
}

#[test]
fn frames_follow_each_other() {
    let mut all = Decoders::default();
    let bytes = text(256 << 10);
    let packed: Vec<u8> = bytes.chunks(100_000).flat_map(|part| zstd::encode_all(part, 3).unwrap()).collect();
    let (progress, out, _) = run(&mut all, Compression::Zstd, &packed, bytes.len());
    assert!(progress == Progress::Whole && out == bytes);
}

#[test]
fn short_long_and_broken_streams_end() {
    let mut all = Decoders::default();
    let bytes = text(64 << 10);
    let streams = [
        (Compression::Deflate, deflated(&bytes)),
        (Compression::Zstd, zstd::encode_all(&bytes[..], 3).unwrap()),
    ];
    for (compression, packed) in streams {
        let mut broken = |input: &[u8], size| run(&mut all, compression, input, size).0 == Progress::Broken;
        assert!(broken(&[], 65536) && broken(&packed, 65537) && broken(&packed[..packed.len() / 2], 65536));
        assert!(broken(&[0xff; 5000], 65536));
        let empty = if compression == Compression::Deflate {
            vec![0, 0, 0, 0xff, 0xff]
        } else {
            zstd::encode_all(&[][..], 3).unwrap()
        };
        assert!(broken(&empty.repeat(20_000), 65536), "nothing, many times");
        // any one byte wrong: an end, whichever
        for at in (0..packed.len()).step_by(997) {
            let mut bad = packed.clone();
            bad[at] ^= 0x41;
            run(&mut all, compression, &bad, bytes.len());
        }
        assert!(run(&mut all, compression, &packed, bytes.len()).1 == bytes, "and the next one is whole");
    }
    // what goes on behind the cluster: as QEMU has it
    let (progress, out, _) = run(&mut all, Compression::Deflate, &deflated(&bytes), 60_000);
    assert!(progress == Progress::Whole && out == bytes[..60_000]);
    assert_eq!(
        run(&mut all, Compression::Zstd, &zstd::encode_all(&bytes[..], 3).unwrap(), 60_000).0,
        Progress::Broken
    );
}

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
    let mut driver = Driver::with_backend(sim, Config::default());
    driver.open("disk", OpenOptions::new().format(Some(Format::Raw))).unwrap();
    run_dry(&mut driver);
    assert!(matches!(driver.disks[0].phase, Phase::Open));
    let info =
        Info { cluster_size: SIZE as u32, ..driver.disks[0].info.as_ref().unwrap().layers[0].info.clone() };
    driver.disks[0].layers[0].compressed = Clusters::new(&info);
    (driver, packed.len() as u32)
}

fn run_dry(driver: &mut Driver<Sim>) {
    let mut order = Seeded::new(1);
    loop {
        driver.turn().unwrap();
        if !driver.backend_mut().step(&mut order) && driver.decompressor.is_idle() && !driver.port.unsent() {
            return;
        }
    }
}

fn ask(driver: &mut Driver<Sim>, op: IoOp) {
    let (mut out, layer) = driver.at(PLACE).unwrap();
    translate(&mut out, layer, Io { id: IoId { index: u32::MAX, generation: 1 }, op });
    driver.settle(PLACE);
}

/// A fill of control block `index` with `len` bytes from `within` on, 100 bytes into a fill of `len` + 200.
fn fill(index: u32, bytes: u32, within: u32, len: u32) -> IoOp {
    let source = FillSource::Compressed { host: HOST, bytes, within };
    let acb = AcbId { index, generation: 3 };
    IoOp::ReadFill { acb, part: Part::Tail, part_len: len + 200, at: 100, len, source }
}

fn filled(driver: &Driver<Sim>, index: usize, len: usize) -> Vec<u8> {
    let fill = &driver.disks[0].layers[0].fills[index][side(Part::Tail)];
    let mut bytes = vec![0xee; len + 200];
    buffers::gather(&[fill.part(&driver.port.arena, 3, 0, len as u64 + 200).unwrap()], &mut bytes);
    assert!(bytes[..100].iter().chain(&bytes[len + 100..]).all(|&byte| byte == 0), "around it are zeros");
    bytes[100..len + 100].to_vec()
}

/// The machine, which knows nothing of these, counts the answers.
fn answers(driver: &Driver<Sim>) -> u64 {
    driver.disks[0].layers[0].image.counters().stale_completions
}

fn reads(driver: &Driver<Sim>) -> u64 {
    driver.backend().counters().completed(Kind::Read)
}

#[test]
fn fills_and_requests_share_a_decompression() {
    let bytes = text(SIZE);
    let (mut driver, packed) = driver(&bytes);
    let mut buffer = Buffers::from(Buffer::zeroed(1000));
    let layer = &mut driver.disks[0].layers[0];
    layer.slots[5] = Slot { segments: buffer.scatter_list(), ..Slot::default() };
    let request = RequestId { index: 5, generation: 0 };
    let (host, within) = (HOST, 60_000);
    ask(&mut driver, fill(2, packed, 1000, 5000));
    ask(
        &mut driver,
        IoOp::ReadCompressed { request, buffer_offset: 10, len: 900, host, bytes: packed, within },
    );
    ask(&mut driver, fill(3, packed, 0, SIZE as u32));
    assert_eq!(driver.disks[0].layers[0].slots[5].busy, 1);
    assert_eq!(answers(&driver), 0);
    run_dry(&mut driver);
    assert_eq!((answers(&driver), reads(&driver)), (3, 1));
    // there already: at once
    ask(&mut driver, fill(4, packed, 7, 70));
    assert_eq!((answers(&driver), reads(&driver)), (4, 1));
    assert!(filled(&driver, 2, 5000) == bytes[1000..6000]);
    assert!(filled(&driver, 3, SIZE) == bytes);
    assert!(filled(&driver, 4, 70) == bytes[7..77]);
    assert_eq!(driver.disks[0].layers[0].slots[5].busy, 0);
    let Buffers::Owned(buffer) = buffer else { unreachable!() };
    assert!(buffer.as_slice()[10..910] == bytes[60_000..60_900]);
}

#[test]
fn a_fill_that_cannot_be_had_says_so() {
    let (mut driver, packed) = driver(&text(SIZE));
    ask(&mut driver, fill(2, packed / 2, 0, 10));
    run_dry(&mut driver);
    assert_eq!(answers(&driver), 1);
    let cause = driver.disks[0].layers[0].fill_cause.take().unwrap();
    assert!(matches!(&*cause, Error::Corrupt { value: HOST, .. }) && cause.errno() == libc::EIO, "{cause:?}");
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
    let kept = &driver.disks[0].layers[0].compressed.clusters;
    assert_eq!(kept.iter().map(|one| one.stage).collect::<Vec<_>>(), [Stage::Empty, Stage::Ready]);
}

#[test]
fn workers_finish_what_they_were_sent_and_say_so() {
    let backend = quod_backend::Threads::new(1).unwrap();
    let mut arena = Arena::new();
    let bytes = text(SIZE);
    let packed = deflated(&bytes);
    let mut send = |pool: &mut Pool<(usize, Loan)>, number: usize| {
        let end = if number.is_multiple_of(3) { packed.len() / 2 } else { packed.len() };
        let loan = arena.take(end);
        arena.bytes_mut(&loan, end).copy_from_slice(&packed[..end]);
        pool.send(PoolTask {
            stream: Stream::new(Compression::Deflate, 0, end),
            input: arena.segment(&loan, 0, end),
            contents: Vec::new(),
            size: SIZE,
            progress: Progress::More,
            tag: (number, loan),
        });
    };
    let mut pool = Pool::new(quod_backend::Backend::notify_fd(&backend).unwrap(), 4).unwrap();
    for round in 0..20 {
        (0..round).for_each(|number| send(&mut pool, number));
        let mut seen = vec![false; round];
        while pool.is_busy() {
            pool.reinforce();
            while let Some(task) = pool.next() {
                let number = task.tag.0;
                assert!(!std::mem::replace(&mut seen[number], true));
                let whole = if number.is_multiple_of(3) { Progress::Broken } else { Progress::Whole };
                assert!(task.progress == whole && (number.is_multiple_of(3) || task.contents == bytes));
            }
            if pool.is_busy() {
                pool.sleep(Some(Duration::from_secs(60))).unwrap();
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }
    // those that run are waited for, before the arena goes
    (0..50).for_each(|number| send(&mut pool, number));
    drop(pool);
}
