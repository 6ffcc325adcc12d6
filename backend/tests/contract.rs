//! What every real backend must do, one by one.

mod common;
use common::*;
use quod_backend::*;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// Runs a test against every real backend, each with a directory of its own.
fn each(test: impl Fn(&mut dyn Backend, &std::path::Path)) {
    for mut backend in backends(32) {
        let dir = temp_dir();
        test(&mut *backend, dir.path());
        assert_eq!(backend.in_flight(), 0, "{}", backend.name());
    }
}

#[test]
fn errors_come_back_as_errno() {
    each(|b, dir| {
        assert_eq!(try_open(b, &dir.join("missing"), false, false), Err(Errno(libc::ENOENT)));
        assert_eq!(try_open(b, dir, false, false), Err(Errno(libc::EISDIR)));
        assert_eq!(run(b, Op::Sync { file: FileId(99) }), Err(Errno(libc::EBADF)));
        assert_eq!(read(b, FileId(99), 0, 10), Err(Errno(libc::EBADF)));
        std::fs::write(dir.join("f"), b"x").unwrap();
        let f = open(b, &dir.join("f"), false, false);
        assert_eq!(write(b, f, 0, b"no"), Err(Errno(libc::EBADF)));
        assert_eq!(run(b, Op::Close { file: f }), Ok(Output::Done));
        assert_eq!(read(b, f, 0, 10), Err(Errno(libc::EBADF)));
        assert_eq!(run(b, Op::Close { file: f }), Err(Errno(libc::EBADF)));
    });
}

#[test]
fn a_fifo_is_refused_and_does_not_hang() {
    each(|b, dir| {
        let path = c_path(&dir.join("fifo"));
        // SAFETY: a NUL terminated path.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o600) }, 0);
        assert_eq!(try_open(b, &dir.join("fifo"), false, false), Err(Errno(libc::EINVAL)));
        assert_eq!(try_open(b, &dir.join("fifo"), true, false), Err(Errno(libc::EINVAL)));
    });
}

#[test]
fn reads_end_at_the_end_of_the_file() {
    each(|b, dir| {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        std::fs::write(dir.join("f"), &bytes).unwrap();
        for direct in [false, true] {
            let f = open(b, &dir.join("f"), false, direct);
            assert_eq!(read(b, f, 8192, 8192).unwrap(), bytes[8192..]);
            assert_eq!(read(b, f, 0, 16384).unwrap(), bytes);
            assert_eq!(read(b, f, 65536, 4096).unwrap(), b"");
            assert_eq!(read(b, f, 0, 0).unwrap(), b"");
        }
    });
}

#[test]
fn scatter_lists_of_all_lengths() {
    each(|b, dir| {
        std::fs::write(dir.join("f"), b"").unwrap();
        let f = open(b, &dir.join("f"), true, false);
        for count in [1usize, 2, 4, 5, 100, 1500, 3000] {
            let bytes: Vec<u8> = (0..count * 7).map(|i| (i * 31 + count) as u8).collect();
            let mut from = Buffer::from(&bytes[..]);
            let cuts = vec![7; count - 1];
            let list = segments(&mut from, &cuts);
            assert_eq!(
                run(b, Op::Write { file: f, offset: 3, segments: list }),
                Ok(Output::Bytes(bytes.len() as u64))
            );
            let mut to = Buffer::zeroed(bytes.len());
            let list = segments(&mut to, &cuts);
            assert_eq!(
                run(b, Op::Read { file: f, offset: 3, segments: list }),
                Ok(Output::Bytes(bytes.len() as u64))
            );
            assert_eq!(to.as_slice(), bytes);
        }
    });
}

#[test]
fn stat_tells_length_identity_and_alignment() {
    each(|b, dir| {
        std::fs::write(dir.join("f"), vec![1; 12345]).unwrap();
        std::fs::hard_link(dir.join("f"), dir.join("g")).unwrap();
        let (f, g) = (open(b, &dir.join("f"), false, false), open(b, &dir.join("g"), true, true));
        let (s, t) = (stat(b, f), stat(b, g));
        assert_eq!((s.len, s.offset_align, s.memory_align, s.block_device), (12345, 1, 1, false));
        assert_eq!(s.identity, t.identity);
        let offset_align = t.offset_align;
        assert!(offset_align.is_power_of_two() && (512..=65536).contains(&offset_align), "{offset_align}");
        assert!(t.memory_align >= 1 && t.memory_align <= 4096);
    });
}

#[test]
fn growth_allocates_or_extends_and_never_shrinks() {
    each(|b, dir| {
        let path = dir.join("f");
        std::fs::write(&path, vec![1; 1000]).unwrap();
        let f = open(b, &path, true, false);
        let grow = |from, to, allocate| Op::Grow { file: f, from, to, allocate };
        assert_eq!(run(b, grow(1000, 1 << 20, true)), Ok(Output::Done));
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 1 << 20);
        assert!(meta.blocks() * 512 >= 1 << 20, "allocated {} blocks", meta.blocks());
        assert_eq!(run(b, grow(1 << 20, 1 << 30, false)), Ok(Output::Done));
        let meta = std::fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), 1 << 30);
        assert!(meta.blocks() * 512 < 1 << 24, "a sparse extension allocates nothing");
        // the caller believes in a length that is long past
        assert_eq!(run(b, grow(1000, 2000, false)), Ok(Output::Done));
        assert_eq!(run(b, grow(1000, 2000, true)), Ok(Output::Done));
        assert_eq!(run(b, grow(5000, 2000, true)), Ok(Output::Done));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);
        assert_eq!(
            run(b, grow(1 << 30, 1 << 62, true)).map_err(|e| e.0 == libc::ENOSPC || e.0 == libc::EFBIG),
            Err(true)
        );
        assert_eq!(run(b, Op::SetLen { file: f, len: 500 }), Ok(Output::Done));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 500);
        assert_eq!(run(b, Op::SetLen { file: f, len: u64::MAX }), Err(Errno(libc::EFBIG)));
    });
}

#[test]
fn zeroing_and_punching() {
    // a tmpfs has no ZERO_RANGE: there zeros are written
    each(|b, dir| {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        for path in [dir.join("f"), shm.path().join("f")] {
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
            let f = open(b, &path, true, false);
            let zero = |offset, len, unmap| Op::ZeroRange { file: f, offset, len, unmap };
            assert_eq!(run(b, zero(1000, 700_001, false)), Ok(Output::Done));
            let mut want = vec![7; 1 << 20];
            want[1000..701_001].fill(0);
            assert!(std::fs::read(&path).unwrap() == want, "{path:?}");
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
            assert_eq!(run(b, zero(4096, 65536, true)), Ok(Output::Done));
            assert_eq!(run(b, Op::PunchHole { file: f, offset: 131072, len: 131072 }), Ok(Output::Done));
            assert_eq!(run(b, zero(1 << 20, 0, false)), Ok(Output::Done));
            let mut want = vec![7; 1 << 20];
            want[4096..4096 + 65536].fill(0);
            want[131072..262144].fill(0);
            assert!(std::fs::read(&path).unwrap() == want, "{path:?}");
            let blocks = std::fs::metadata(&path).unwrap().blocks();
            assert!(blocks * 512 <= (1 << 20) - 65536 - 131072 + 8192, "space was given back: {blocks}");
        }
    });
}

/// Whether a file system has holes or not: whole blocks may be gone, nothing else is touched, and it
/// succeeds.
#[test]
fn a_discard_never_fails_for_lack_of_means() {
    each(|backend, folder| {
        let path = folder.join("discarded");
        std::fs::write(&path, [7; 32768]).unwrap();
        let file = open(backend, &path, true, false);
        assert_eq!(run(backend, Op::Discard { file, offset: 100, len: 20000 }), Ok(Output::Done));
        let bytes = read(backend, file, 0, 32768).unwrap();
        let expected = [&[7; 4096][..], &[0; 12288], &[7; 16384]].concat();
        assert_eq!(bytes, expected);
    });
}

#[test]
fn what_is_not_believed_is_not_asked_for() {
    each(|b, dir| {
        for direct in [false, true] {
            let path = dir.join(format!("f{direct}"));
            std::fs::write(&path, vec![7; 1 << 20]).unwrap();
            let f = open(b, &path, true, direct);
            assert_eq!(stat(b, f).store, Store::Known);
            let none = Some(Proven::NONE);
            let believed = run(b, Op::Prove { file: f, shown: none });
            assert_eq!(believed, Ok(Output::Proven(Proven::NONE)));
            let hole = Op::PunchHole { file: f, offset: 65536, len: 65536 };
            assert_eq!(run(b, hole.clone()), Err(Errno(libc::EOPNOTSUPP)));
            for unmap in [false, true] {
                let zeros = Op::ZeroRange { file: f, offset: 131_072, len: 400 << 10, unmap };
                assert_eq!(run(b, zeros), Ok(Output::Done));
            }
            let zeros = Op::ZeroRange { file: f, offset: 4096 - 512, len: 1024, unmap: true };
            assert_eq!(run(b, zeros), Ok(Output::Done));
            let mut want = vec![7; 1 << 20];
            want[131_072..131_072 + (400 << 10)].fill(0);
            want[3584..4608].fill(0);
            assert!(std::fs::read(&path).unwrap() == want, "direct {direct}");
            let grow = Op::Grow { file: f, from: 1 << 20, to: 8 << 20, allocate: true };
            assert_eq!(run(b, grow), Ok(Output::Done));
            let meta = std::fs::metadata(&path).unwrap();
            let blocks = meta.blocks();
            assert!(meta.len() == 8 << 20 && blocks * 512 < 2 << 20, "no fallocate: {blocks} blocks");
            assert!(blocks * 512 >= 1 << 20, "zeros were written: {blocks} blocks");
            // this file system does what it answers, and the file is not touched by the proof
            assert_eq!(run(b, Op::Prove { file: f, shown: None }), Ok(Output::Proven(Proven::ALL)));
            assert_eq!(run(b, hole), Ok(Output::Done));
            want[65536..131_072].fill(0);
            assert!(std::fs::read(&path).unwrap()[..1 << 20] == want, "direct {direct}");
            assert!(std::fs::metadata(&path).unwrap().blocks() < blocks, "a hole");
        }
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 2, "nothing is left of the proofs");
    });
}

#[test]
fn a_full_queue_gives_the_operation_back() {
    for mut backend in backends(4) {
        let b = &mut *backend;
        let dir = temp_dir();
        std::fs::write(dir.path().join("f"), b"x").unwrap();
        let f = open(b, &dir.path().join("f"), true, false);
        let capacity = b.capacity();
        for i in 0..capacity {
            b.push(Token(i as u64), Op::Sync { file: f }).unwrap();
        }
        assert_eq!(b.in_flight(), capacity);
        let Err(Full(op)) = b.push(Token(99), Op::SetLen { file: f, len: 3 }) else { panic!("not full") };
        assert!(matches!(op, Op::SetLen { file, len: 3 } if file == f));
        let mut out = Vec::new();
        while out.len() < capacity {
            b.wait(Some(Duration::from_secs(10))).unwrap();
            b.reap(&mut out);
        }
        let mut tokens: Vec<u64> = out.iter().map(|c| c.token.0).collect();
        tokens.sort();
        assert_eq!(tokens, (0..capacity as u64).collect::<Vec<_>>());
        assert_eq!(b.in_flight(), 0);
        b.push(Token(0), Op::Sync { file: f }).unwrap();
        b.wait(None).unwrap();
        assert_eq!(b.reap(&mut out), 1);
    }
}

#[test]
fn nothing_happens_before_submit_and_wait_times_out() {
    each(|b, dir| {
        std::fs::write(dir.join("f"), b"old").unwrap();
        let f = open(b, &dir.join("f"), true, false);
        let mut buffer = Buffer::from(&b"new"[..]);
        b.push(Token(1), Op::Write { file: f, offset: 0, segments: segments(&mut buffer, &[]) }).unwrap();
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"old");
        let mut out = Vec::new();
        assert_eq!(b.reap(&mut out), 0);
        b.wait(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(b.reap(&mut out), 1);
        assert_eq!(std::fs::read(dir.join("f")).unwrap(), b"new");
        let start = Instant::now();
        b.wait(Some(Duration::from_millis(30))).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(30) && start.elapsed() < Duration::from_secs(5));
        b.wait(None).unwrap();
    });
}

#[test]
fn registered_memory_is_read_and_written_as_other_memory() {
    each(|b, dir| {
        std::fs::write(dir.join("f"), vec![0; 65536]).unwrap();
        for direct in [false, true] {
            let f = open(b, &dir.join("f"), true, direct);
            let mut memory = Buffer::zeroed(32768);
            for (at, byte) in memory.as_mut_slice().iter_mut().enumerate() {
                *byte = (at / 512) as u8 + 1;
            }
            let want = memory.as_slice().to_vec();
            // SAFETY: each operation is reaped before the buffer is looked at, and it outlives the region.
            let part = |memory: &mut Buffer, at, len| unsafe { memory.segment(at, len) };
            let region = b.register_memory(part(&mut memory, 0, 32768));
            assert_eq!(region.is_ok(), b.name() == "io_uring", "{region:?}");
            let write = |b: &mut dyn Backend, offset, segments| {
                assert!(matches!(run(b, Op::Write { file: f, offset, segments }), Ok(Output::Bytes(16384))));
            };
            let one = Segments::from_iter([part(&mut memory, 0, 16384)]);
            write(b, 0, one);
            let several = [(20480, 4096), (16384, 4096), (24576, 8192)];
            let several = several.map(|(at, len)| part(&mut memory, at, len));
            write(b, 16384, Segments::from_iter(several));
            memory.as_mut_slice().fill(0);
            let segments = Segments::from_iter(several);
            assert_eq!(run(b, Op::Read { file: f, offset: 16384, segments }), Ok(Output::Bytes(16384)));
            // the region goes, and the rest is read as ever
            assert_eq!(region.is_ok_and(|region| b.unregister_memory(region)), b.name() == "io_uring");
            let segments = Segments::from_iter([part(&mut memory, 0, 16384)]);
            assert_eq!(run(b, Op::Read { file: f, offset: 0, segments }), Ok(Output::Bytes(16384)));
            assert!(memory.as_slice() == want);
        }
    });
}

fn readable(b: &dyn Backend, timeout_ms: i32) -> bool {
    let fd = b.notify_fd().unwrap().as_raw_fd();
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd.
    unsafe { libc::poll(&raw mut poll, 1, timeout_ms) == 1 }
}

/// More than the ring hands over in one turn, whatever it believes that they cost.
const MANY: u64 = 600;

#[test]
fn what_a_turn_leaves_goes_with_the_next_ones_and_is_announced() {
    for mut backend in backends(MANY as u32) {
        let b = &mut *backend;
        let dir = temp_dir();
        std::fs::write(dir.path().join("f"), vec![7; 8 << 20]).unwrap();
        for direct in [false, true] {
            let f = open(b, &dir.path().join("f"), true, direct);
            let len = |i: u64| [4096, 4096, 24 << 10, 4096, 64 << 10, 200 << 10][i as usize % 6];
            let mut buffers: Vec<Buffer> = (0..MANY).map(|i| Buffer::zeroed(len(i))).collect();
            for (i, buffer) in (0..).zip(&mut buffers) {
                let (offset, segments) = (i % 2000 * 4096, segments(buffer, &[4096]));
                let op = match i % 4 {
                    3 => Op::Write { file: f, offset: 8 << 20 | offset, segments },
                    _ => Op::Read { file: f, offset, segments },
                };
                b.push(Token(i), op).unwrap();
            }
            let (mut out, mut cut) = (Vec::new(), 0);
            loop {
                b.submit().unwrap();
                b.clear_notify();
                b.reap(&mut out);
                if out.len() as u64 == MANY {
                    break;
                }
                if b.has_backlog() {
                    cut += 1;
                    assert!(readable(b, 0), "what is left is announced");
                }
                assert!(readable(b, 10_000), "{}: a lost wake-up, {} of {MANY}", b.name(), out.len());
            }
            assert_eq!((b.in_flight(), b.has_backlog()), (0, false));
            assert!(cut > 0 || b.name() != "io_uring", "this many are more than a turn's portion");
            out.sort_by_key(|done| done.token.0);
            for (i, done) in (0..).zip(&out) {
                assert_eq!((done.token, done.result), (Token(i), Ok(Output::Bytes(len(i) as u64))));
            }
            let read = |&(i, _): &(u64, &Buffer)| i % 4 != 3;
            assert!((0..).zip(&buffers).filter(read).all(|(_, b)| b.as_slice().iter().all(|&x| x == 7)));
        }
    }
}

#[test]
fn a_wait_hands_over_what_turns_left() {
    for mut backend in backends(MANY as u32) {
        let b = &mut *backend;
        let dir = temp_dir();
        std::fs::write(dir.path().join("f"), vec![7; 1 << 20]).unwrap();
        let f = open(b, &dir.path().join("f"), false, false);
        let mut buffers: Vec<Buffer> = (0..MANY).map(|_| Buffer::zeroed(4096)).collect();
        for (i, buffer) in (0..).zip(&mut buffers) {
            let (offset, segments) = (i % 256 * 4096, segments(buffer, &[]));
            b.push(Token(i), Op::Read { file: f, offset, segments }).unwrap();
        }
        // within the portion of one turn, however often it is asked
        b.submit().unwrap();
        (0..3).for_each(|_| b.submit_more().unwrap());
        assert!(b.has_backlog() || b.name() != "io_uring");
        let mut out = Vec::new();
        while out.len() < buffers.len() {
            b.wait(Some(Duration::from_secs(10))).unwrap();
            assert!(b.reap(&mut out) > 0, "a wait ends with something");
        }
        assert!(out.iter().all(|done| done.result == Ok(Output::Bytes(4096))));
    }
}
