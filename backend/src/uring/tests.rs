//! What needs a look inside: every ring mode, every missing opcode, the number of system calls.

use super::setup::{Mode, Supported, build_mode};
use super::*;
use crate::buffer::{Buffer, Segments};
use crate::op::{FileId, LockMode, OpenFlags, Stat};
use io_uring::{opcode, types};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

fn run(ring: &mut Uring, op: Op) -> Result<Output, Errno> {
    let mut out = Vec::new();
    ring.push(Token(5), op).unwrap();
    while ring.reap(&mut out) == 0 {
        ring.wait(Some(Duration::from_secs(10))).unwrap();
    }
    assert_eq!(ring.in_flight(), 0);
    out[0].result
}

/// Every kind of operation once.
fn everything(ring: &mut Uring) {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(file.path(), vec![1; 65536]).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    for direct in [false, true] {
        let flags = OpenFlags { write: true, direct, claim: false };
        let Ok(Output::Opened(f)) = run(ring, Op::Open { path: path.clone(), flags }) else { panic!() };
        for cuts in [1, 2] {
            // anew: an O_DIRECT read may zero what lies past the end of the file
            let mut buffer = Buffer::from(&[2u8; 8192][..]);
            let len = 8192 / cuts;
            // SAFETY: outlives the operation.
            let list: Segments = (0..cuts).map(|i| unsafe { buffer.segment(i * len, len) }).collect();
            let op = Op::Write { file: f, offset: 4096, segments: list.clone() };
            assert_eq!(run(ring, op), Ok(Output::Bytes(8192)));
            let op = Op::Read { file: f, offset: 61440, segments: list };
            assert_eq!(run(ring, op), Ok(Output::Bytes(4096)));
            let op = Op::Read { file: f, offset: 0, segments: Segments::new() };
            assert_eq!(run(ring, op), Ok(Output::Bytes(0)));
        }
        let done = Ok(Output::Done);
        assert_eq!(run(ring, Op::Sync { file: f }), done);
        assert_eq!(run(ring, Op::Lock { file: f, mode: LockMode::Write }), done);
        for unmap in [false, true] {
            assert_eq!(run(ring, Op::ZeroRange { file: f, offset: 0, len: 4096, unmap }), done);
        }
        assert_eq!(run(ring, Op::PunchHole { file: f, offset: 4096, len: 4096 }), done);
        for (allocate, to) in [(true, 131072), (false, 262144)] {
            assert_eq!(run(ring, Op::Grow { file: f, from: 65536, to, allocate }), done);
        }
        let Ok(Output::Stat(Stat { len: 262144, .. })) = run(ring, Op::Stat { file: f }) else { panic!() };
        assert_eq!(run(ring, Op::SetLen { file: f, len: 65536 }), done);
        assert_eq!(run(ring, Op::Close { file: f }), done);
    }
    let bytes = std::fs::read(file.path()).unwrap();
    assert_eq!(bytes.len(), 65536);
    assert_eq!(bytes[..8192], [0; 8192]);
    assert_eq!(bytes[8192..12288], [2; 4096]);
}

#[test]
fn every_mode_does_everything() {
    for mode in [Mode::Defer, Mode::Cooperative, Mode::Plain] {
        let mut ring = Uring::with_ring(build_mode(mode, 8).unwrap(), 8).unwrap();
        assert_eq!(ring.disabled, mode == Mode::Defer);
        everything(&mut ring);
        assert!(!ring.disabled);
    }
}

/// Whatever is asked of it: opening, examining, talking to others is refused by the kernel.
#[test]
fn a_restricted_ring_does_everything_and_nothing_else() {
    let mut ring = Uring::restricted(8).unwrap();
    assert!(ring.is_restricted() && !Uring::new(8).unwrap().is_restricted());
    everything(&mut ring);
    let mut buffer = Buffer::zeroed(4096);
    // SAFETY: outlives the ring's use of it.
    let registered = ring.register_memory(unsafe { buffer.segment(0, 4096) }).unwrap();
    assert!(ring.unregister_memory(registered));
    let at = types::Fd(libc::AT_FDCWD);
    for (name, entry) in [
        ("open", opcode::OpenAt::new(at, c"/etc/passwd".as_ptr()).build()),
        ("socket", opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build()),
        ("unlink", opcode::UnlinkAt::new(at, c"/nowhere".as_ptr()).build()),
        ("close", opcode::Close::new(types::Fd(0)).build()),
        ("linked", opcode::Fsync::new(types::Fd(0)).build().flags(squeue::Flags::IO_LINK)),
    ] {
        // SAFETY: its pointers are static.
        unsafe { ring.ring.submission().push(&entry) }.unwrap();
        ring.ring.submit_and_wait(1).unwrap();
        let answer = ring.ring.completion().next().unwrap();
        assert_eq!(answer.result(), -libc::EACCES, "{name}");
    }
    assert!(ring.ring.submitter().register_files(&[0]).is_err());
    ring.renew_workers().unwrap();
    everything(&mut ring);
}

#[test]
fn workers_do_what_the_ring_lacks() {
    for lacks in 0..64u8 {
        let has = |bit: u8| lacks & 1 << bit == 0;
        let mut ring = setup::build(8).unwrap();
        ring.supported = Supported {
            open: has(0),
            close: has(1),
            statx: has(2),
            fallocate: has(3),
            commands: has(4),
            ftruncate: has(4),
            files_update: has(5),
            vectored_fixed: has(5),
        };
        everything(&mut Uring::with_ring(ring, 8).unwrap());
    }
}

#[test]
fn an_idle_turn_costs_no_system_call_and_a_cached_read_one() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(file.path(), vec![1; 65536]).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let mut ring = Uring::new(8).unwrap();
    let Ok(Output::Opened(f)) = run(&mut ring, Op::Open { path, flags: OpenFlags::default() }) else {
        panic!()
    };
    assert!(ring.core.context.files.is_fixed(f.0));
    ring.time_calls(true);
    ring.take_syscall_nanos();
    for _ in 0..10 {
        ring.submit().unwrap();
    }
    assert_eq!((ring.take_syscall_nanos(), ring.enters), (0, ring.enters));
    let mut buffer = Buffer::zeroed(32768);
    // SAFETY: outlives the ring's use of it.
    let _ = ring.register_memory(unsafe { buffer.segment(0, 32768) });
    for _ in 0..10 {
        for i in 0..8 {
            // SAFETY: as above.
            let segment = unsafe { buffer.segment(i * 4096, 4096) };
            assert_eq!(ring.core.context.memory.find(segment), Some(0));
            let op =
                Op::Read { file: f, offset: i as u64 * 4096, segments: Segments::from_slice(&[segment]) };
            ring.push(Token(i as u64), op).unwrap();
        }
        let before = ring.enters;
        ring.submit().unwrap();
        assert_eq!(ring.enters, before + 1);
        let mut out = Vec::new();
        while out.len() < 8 {
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            ring.reap(&mut out);
        }
        assert!(out.iter().all(|c| c.result == Ok(Output::Bytes(4096))));
    }
    assert_eq!(buffer.as_slice(), [1; 32768]);
    drop(ring);
}

#[test]
fn a_wait_for_the_ring_alone_is_one_system_call() {
    let mut ring = Uring::new(8).unwrap();
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(file.path(), vec![3; 4096]).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let open = Op::Open { path, flags: OpenFlags::default() };
    let Ok(Output::Opened(f)) = run(&mut ring, open) else { panic!() };
    let mut buffer = Buffer::zeroed(4096);
    for timeout in [None, Some(Duration::from_secs(10))] {
        for _ in 0..10 {
            // SAFETY: outlives the ring's use of it.
            let segments = Segments::from_slice(&[unsafe { buffer.segment(0, 4096) }]);
            ring.push(Token(1), Op::Read { file: f, offset: 0, segments }).unwrap();
            let before = ring.enters;
            ring.wait(timeout).unwrap();
            assert_eq!(ring.enters, before + 1);
            let mut out = Vec::new();
            assert_eq!(ring.reap(&mut out), 1);
            assert_eq!(out[0].result, Ok(Output::Bytes(4096)));
            assert_eq!(buffer.as_slice(), [3; 4096]);
            buffer.as_mut_slice().fill(0);
        }
    }
    // nothing is in flight: there is only the clock to wait for, or nothing
    let (before, began) = (ring.enters, Instant::now());
    ring.wait(Some(Duration::from_millis(20))).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20));
    ring.wait(None).unwrap();
    assert_eq!(ring.enters, before);
    drop(ring);
}

#[test]
fn file_numbers_are_reused_only_after_close() {
    let mut ring = Uring::new(8).unwrap();
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let flags = OpenFlags::default();
    for _ in 0..50 {
        let Ok(Output::Opened(f)) = run(&mut ring, Op::Open { path: path.clone(), flags }) else { panic!() };
        assert_eq!(f, FileId(0));
        ring.push(Token(1), Op::Close { file: f }).unwrap();
        ring.push(Token(2), Op::Open { path: path.clone(), flags }).unwrap();
        ring.push(Token(3), Op::Stat { file: f }).unwrap();
        let mut out = Vec::new();
        while out.len() < 3 {
            ring.wait(Some(Duration::from_secs(10))).unwrap();
            ring.reap(&mut out);
        }
        let result = |token| out.iter().find(|c| c.token == Token(token)).unwrap().result;
        assert_eq!((result(1), result(3)), (Ok(Output::Done), Err(Errno(libc::EBADF))));
        let Ok(Output::Opened(g)) = result(2) else { panic!() };
        assert_eq!(run(&mut ring, Op::Close { file: g }), Ok(Output::Done));
    }
}

#[test]
fn registered_memory_comes_and_goes() {
    let mut ring = Uring::new(4).unwrap();
    let mut buffers: Vec<Buffer> = (0..3).map(|_| Buffer::zeroed(16384)).collect();
    // SAFETY: nothing is transferred, and the ring goes first.
    let whole: Vec<Segment> = buffers.iter_mut().map(|buffer| unsafe { buffer.segment(0, 16384) }).collect();
    let ids: Vec<_> = whole.iter().map(|region| ring.register_memory(*region).unwrap()).collect();
    let find = |ring: &Uring, segment: Segment| ring.core.context.memory.find(segment);
    let slots: Vec<_> = whole.iter().map(|region| find(&ring, *region).unwrap()).collect();
    assert!(slots[0] != slots[1] && slots[1] != slots[2] && slots[0] != slots[2]);
    let (inside, behind) = (whole[1].skip(4096), whole[1].skip(16384));
    assert_eq!((find(&ring, inside), inside.len()), (Some(slots[1]), 12288));
    let memory = &ring.core.context.memory;
    assert_eq!(memory.find_all(&[inside, whole[1], behind]), Some(slots[1]));
    assert_eq!(memory.find_all(&[inside, whole[0]]), None, "a list has one slot");
    // SAFETY: as above; it ends behind the region.
    let across = unsafe { Segment::new(whole[1].address(), 16385) };
    assert_eq!(find(&ring, across), None);
    assert!(ring.unregister_memory(ids[1]) && !ring.unregister_memory(ids[1]));
    assert_eq!((find(&ring, inside), find(&ring, whole[2])), (None, Some(slots[2])));
    let again = ring.register_memory(whole[1]).unwrap();
    assert!(again != ids[1] && find(&ring, whole[1]) == Some(slots[1]), "its slot, under another name");
    // SAFETY: nobody uses it: there is no memory.
    let nowhere = unsafe { Segment::new(std::ptr::without_provenance_mut(4096), 4096) };
    assert_eq!(ring.register_memory(nowhere).unwrap_err().raw_os_error(), Some(libc::EFAULT));
    assert_eq!(find(&ring, nowhere), None);
}

/// The kernel's version, as far as it has two numbers.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn registered_memory_is_shared_with_another_ring() {
    let (mut first, mut second) = (Uring::new(4).unwrap(), Uring::new(4).unwrap());
    let file = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    std::fs::write(file.path(), [7; 8192]).unwrap();
    let path = CString::new(file.path().as_os_str().as_bytes()).unwrap();
    let mut buffers: Vec<Buffer> = (0..3).map(|_| Buffer::zeroed(16384)).collect();
    // SAFETY: both rings go first; nobody looks at them while something is in flight.
    let whole: Vec<Segment> = buffers.iter_mut().map(|buffer| unsafe { buffer.segment(0, 16384) }).collect();
    let theirs: Vec<_> = whole[..2].iter().map(|region| first.register_memory(*region).unwrap()).collect();
    // their slots differ
    let own = second.register_memory(whole[2]).unwrap();
    let flags = OpenFlags { write: false, direct: false, claim: false };
    // both have been used, and so belong to this thread
    assert!(run(&mut first, Op::Open { path: path.clone(), flags }).is_ok());
    let Ok(Output::Opened(f)) = run(&mut second, Op::Open { path, flags }) else { panic!() };
    let ours: Vec<_> = theirs.iter().map(|id| second.register_memory_of(&first, *id).unwrap()).collect();
    let shared = if kernel() >= (6, 13) { 2 } else { 0 };
    assert_eq!(second.core.context.memory.count(), (3, shared));
    assert!(first.unregister_memory(theirs[1]));
    let gone = second.register_memory_of(&first, theirs[1]).unwrap_err();
    assert_eq!((gone.raw_os_error(), second.core.context.memory.count()), (Some(libc::ENOENT), (3, shared)));
    drop(first);
    let find = |ring: &Uring, segment: Segment| ring.core.context.memory.find(segment);
    let slots: Vec<_> = whole.iter().map(|region| find(&second, *region).unwrap()).collect();
    assert!(slots[0] != slots[1] && slots[1] != slots[2] && slots[0] != slots[2]);
    // the kernel refuses a transfer whose memory is not what its slot has
    for region in &whole {
        let segments: Segments = [region.split(4096).0].into_iter().collect();
        let op = Op::Read { file: f, offset: 0, segments };
        assert_eq!(run(&mut second, op), Ok(Output::Bytes(4096)));
    }
    assert!(second.unregister_memory(ours[0]) && second.unregister_memory(own));
    assert_eq!((find(&second, whole[0]), find(&second, whole[1])), (None, Some(slots[1])));
    drop(second);
    assert!(buffers.iter().all(|buffer| buffer.as_slice()[..4096] == [7; 4096]));
}
