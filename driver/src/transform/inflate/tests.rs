//! Streams: whole, in slices, short, long, broken.

use super::*;
use crate::transform::tests::{deflated, text};
use ::zstd;

const SLICE: usize = 32 << 10;

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
