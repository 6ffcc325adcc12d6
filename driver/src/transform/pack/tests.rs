//! Encoders: what they make is read again, whole or in slices, and never longer than it may be.

use super::*;
use crate::transform::inflate::{Decoders, Progress, Stream};
use crate::transform::tests::text;

const SLICE: usize = 32 << 10;
const METHODS: [Method; 3] = [
    Method { compression: Compression::Deflate, near: false },
    Method { compression: Compression::Deflate, near: true },
    Method { compression: Compression::Zstd, near: false },
];

fn sliced(encoders: &mut Encoders, method: Method, bytes: &[u8], output: &mut [u8]) -> Option<usize> {
    let mut packing = Packing::new(method, bytes.len());
    loop {
        let (at, len) = packing.next(SLICE);
        match packing.step(encoders, &bytes[at..at + len], output) {
            Packed::More => {}
            Packed::Shorter(len) => return Some(len),
            Packed::Not => return None,
        }
    }
}

fn is_read_again(method: Method, packed: &[u8], bytes: &[u8]) {
    let mut contents = vec![0xee; bytes.len()];
    let mut stream = Stream::new(method.compression, 0, packed.len());
    let progress = stream.run(&mut Decoders::default(), packed, &mut contents);
    assert!(progress == Progress::Whole && contents == bytes, "{method:?} {}", bytes.len());
}

#[test]
fn clusters_of_all_sizes_are_read_again_whole_and_in_slices() {
    let mut encoders = Encoders::default();
    for method in METHODS {
        for bits in 10..=21 {
            let bytes = text(1 << bits);
            let mut output = vec![0; bytes.len() - 1];
            for whole in [true, false] {
                let len = match whole {
                    true => encoders.whole(method, &bytes, &mut output),
                    false => sliced(&mut encoders, method, &bytes, &mut output),
                };
                is_read_again(method, &output[..len.unwrap()], &bytes);
            }
        }
    }
}

#[test]
fn what_does_not_shrink_is_said_to_and_the_next_one_is_right() {
    let mut encoders = Encoders::default();
    let mut state = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    })
    .take(64 << 10)
    .collect();
    let zeros = vec![0; 64 << 10];
    for method in METHODS {
        let mut output = vec![0; noise.len() - 1];
        assert_eq!(encoders.whole(method, &noise, &mut output), None, "{method:?}");
        assert_eq!(sliced(&mut encoders, method, &noise, &mut output), None, "{method:?}");
        let len = encoders.whole(method, &zeros, &mut output).unwrap();
        assert!(len < 200);
        is_read_again(method, &output[..len], &zeros);
        let len = sliced(&mut encoders, method, &zeros, &mut output).unwrap();
        is_read_again(method, &output[..len], &zeros);
        // no room but for a byte less
        assert_eq!(encoders.whole(method, &zeros, &mut output[..len / 2]), None);
    }
}

#[test]
fn the_near_window_is_not_left() {
    let [far, near, _] = METHODS;
    // raw inflate with a window of 4 KiB takes what the near one makes, and not what the far one does
    let bytes: Vec<u8> = {
        let piece = text(20_000);
        piece.iter().chain(&piece).copied().collect()
    };
    let mut output = vec![0; bytes.len()];
    let far = Encoders::default().whole(far, &bytes, &mut output).unwrap();
    let nearest = Encoders::default().whole(near, &bytes, &mut output).unwrap();
    assert!(far <= nearest, "{far} {nearest}");
    let mut decoder = flate2::Decompress::new_with_window_bits(false, super::deflate::NEAR_BITS);
    let mut contents = vec![0; bytes.len()];
    let status = decoder.decompress(&output[..nearest], &mut contents, flate2::FlushDecompress::Finish);
    assert!(status.is_ok() && contents == bytes);
}
