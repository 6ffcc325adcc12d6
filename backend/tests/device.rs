//! Block devices, on loop devices full of old bytes: length, ends, zeros, claims. Needs root.

mod common;

use common::device::{LoopDevice, OLD};
use common::*;
use quod_backend::*;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const LEN: u64 = 4 << 20;

fn each(sector: u32, test: impl Fn(&mut dyn Backend, &LoopDevice)) {
    for mut backend in backends(16) {
        test(&mut *backend, &LoopDevice::new(LEN, sector));
    }
}

#[test]
fn a_device_is_as_long_as_it_is_and_tells_its_sectors() {
    for sector in [512, 4096] {
        each(sector, |backend, device| {
            let file = open(backend, device.path(), true, true);
            let before = stat(backend, file);
            assert!(before.block_device);
            assert_eq!((before.len, before.offset_align), (LEN, sector));
            for (to, expected) in [(LEN, Ok(Output::Done)), (LEN + 1, Err(Errno(libc::ENOSPC)))] {
                for allocate in [false, true] {
                    assert_eq!(run(backend, Op::Grow { file, from: 0, to, allocate }), expected);
                }
                assert_eq!(run(backend, Op::SetLen { file, len: to }), expected);
            }
            assert_eq!(run(backend, Op::SetLen { file, len: 0 }), Ok(Output::Done));
            assert_eq!(stat(backend, file), before, "nothing was cut");
            device.grow(2 * LEN);
            assert_eq!(stat(backend, file), Stat { len: 2 * LEN, ..before });
            let grow = Op::Grow { file, from: LEN, to: 2 * LEN, allocate: true };
            assert_eq!(run(backend, grow), Ok(Output::Done));
        });
    }
}

#[test]
fn transfers_at_the_end() {
    each(512, |backend, device| {
        for direct in [false, true] {
            let file = open(backend, device.path(), true, direct);
            assert_eq!(read(backend, file, LEN - 512, 4096).unwrap(), [OLD; 512]);
            assert_eq!(read(backend, file, LEN, 512).unwrap(), []);
            assert_eq!(write(backend, file, LEN - 512, &[1; 4096]), Err(Errno(libc::ENOSPC)));
            assert_eq!(write(backend, file, LEN, &[1; 512]), Err(Errno(libc::ENOSPC)));
            assert_eq!(write(backend, file, LEN - 512, &[OLD; 512]), Ok(512));
        }
    });
}

/// More than the device takes in one request, from scattered memory.
#[test]
fn long_transfers_go_in_pieces() {
    each(512, |backend, device| {
        let file = open(backend, device.path(), true, true);
        let bytes: Vec<u8> = (0..2u32 << 20).map(|i| (i / 512 % 251) as u8).collect();
        let mut buffer = Buffer::from(&bytes[..]);
        let cuts = [512, 4096, 700 << 10, 512, 0, 512 << 10];
        let written = Op::Write { file, offset: 512, segments: segments(&mut buffer, &cuts) };
        assert_eq!(run(backend, written), Ok(Output::Bytes(bytes.len() as u64)));
        let mut back = Buffer::zeroed(bytes.len());
        let from = Op::Read { file, offset: 512, segments: segments(&mut back, &[1 << 20, 4096]) };
        assert_eq!(run(backend, from), Ok(Output::Bytes(bytes.len() as u64)));
        assert_eq!(back.as_slice(), bytes);
        assert_eq!(read(backend, file, 0, 512).unwrap(), [OLD; 512]);
    });
}

#[test]
fn zeros_are_zeros_and_no_more() {
    each(512, |backend, device| {
        for (direct, unmap, at) in [(false, false, 0), (false, true, 1 << 20), (true, true, 2 << 20)] {
            let file = open(backend, device.path(), true, direct);
            // what the page cache has changed, too
            let written = write(backend, file, at, &[7; 65536]);
            assert_eq!(written, Ok(65536));
            let (first, len) = (at + 512, 40960 + 512);
            assert_eq!(run(backend, Op::ZeroRange { file, offset: first, len, unmap }), Ok(Output::Done));
            let bytes = read(backend, file, at, 65536).unwrap();
            for (i, byte) in bytes.iter().enumerate() {
                let zero = (first..first + len).contains(&(at + i as u64));
                assert_eq!(*byte, if zero { 0 } else { 7 }, "byte {i}, direct {direct}, unmap {unmap}");
            }
            let hole = Op::PunchHole { file, offset: at + 49152, len: 8192 };
            assert_eq!(run(backend, hole), Ok(Output::Done));
            assert_eq!(read(backend, file, at + 49152, 8192).unwrap(), [0; 8192]);
            assert_eq!(read(backend, file, at + 57344, 512).unwrap(), [7; 512]);
        }
    });
}

/// A loop device has holes, so its bytes are gone; parts of blocks stay.
#[test]
fn a_discard_takes_whole_blocks_and_no_more() {
    for sector in [512, 4096] {
        each(sector, |backend, device| {
            let file = open(backend, device.path(), true, false);
            assert_eq!(run(backend, Op::Discard { file, offset: 512, len: 16384 }), Ok(Output::Done));
            assert_eq!(read(backend, file, 4096, 12288).unwrap(), [0; 12288]);
            assert_eq!(read(backend, file, 0, 4096).unwrap(), [OLD; 4096]);
            assert_eq!(read(backend, file, 16384, 4096).unwrap(), [OLD; 4096]);
            assert_eq!(run(backend, Op::Discard { file, offset: 512, len: 512 }), Ok(Output::Done));
            assert_eq!(read(backend, file, 0, 4096).unwrap(), [OLD; 4096]);
        });
    }
}

#[test]
fn a_claim_keeps_others_who_claim_away() {
    each(512, |backend, device| {
        let flags = OpenFlags { write: true, direct: false, claim: true };
        let claim = |backend: &mut dyn Backend| run(backend, Op::Open { path: c_path(device.path()), flags });
        let Ok(Output::Opened(file)) = claim(backend) else { panic!("nobody has claimed it") };
        assert_eq!(claim(backend), Err(Errno(libc::EBUSY)));
        // as mkfs and mount do
        let exclusive = || std::fs::File::options().read(true).custom_flags(libc::O_EXCL).open(device.path());
        assert_eq!(exclusive().unwrap_err().raw_os_error(), Some(libc::EBUSY));
        let other = open(backend, device.path(), false, false);
        assert_eq!(read(backend, other, 0, 512).unwrap(), [OLD; 512], "who does not claim may look");
        // the page cache's changes are ours: zeros go over them
        assert_eq!(write(backend, file, 0, &[7; 65536]), Ok(65536));
        let zero = Op::ZeroRange { file, offset: 0, len: 32768, unmap: false };
        assert_eq!(run(backend, zero), Ok(Output::Done));
        assert_eq!(read(backend, file, 0, 65536).unwrap(), [[0; 32768], [7; 32768]].concat());
        run(backend, Op::Close { file }).unwrap();
        // a tool that another test of this process is just starting has all its descriptors for a moment
        let until = Instant::now() + Duration::from_secs(10);
        while let Err(error) = exclusive() {
            assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
            assert!(Instant::now() < until, "not given back");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}
