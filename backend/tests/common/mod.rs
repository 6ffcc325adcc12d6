//! What every test against a real backend needs: run one operation to its end, with memory that outlives it.

// each test program uses its part
#![allow(dead_code)]

pub mod device;

use quod_backend::*;
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

/// All real backends.
pub fn backends(depth: u32) -> Vec<Box<dyn Backend>> {
    vec![Box::new(Uring::new(depth).unwrap()), Box::new(Threads::with_workers(depth, 4).unwrap())]
}

/// On the disk that holds the sources' target, not in a tmpfs: O_DIRECT and fallocate must work.
pub fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("quod-backend-").tempdir_in("/var/tmp").unwrap()
}

pub fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// Runs one operation; nothing else may be in flight.
pub fn run(backend: &mut dyn Backend, op: Op) -> Result<Output, Errno> {
    let mut out = Vec::new();
    backend.push(Token(77), op).unwrap();
    backend.submit().unwrap();
    while backend.reap(&mut out) == 0 {
        backend.wait(Some(Duration::from_secs(20))).unwrap();
    }
    assert_eq!((out.len(), out[0].token), (1, Token(77)));
    out[0].result
}

pub fn open(backend: &mut dyn Backend, path: &Path, write: bool, direct: bool) -> FileId {
    try_open(backend, path, write, direct).unwrap()
}

pub fn try_open(backend: &mut dyn Backend, path: &Path, write: bool, direct: bool) -> Result<FileId, Errno> {
    match run(backend, Op::Open { path: c_path(path), flags: OpenFlags { write, direct, claim: false } })? {
        Output::Opened(file) => Ok(file),
        other => panic!("open answered {other:?}"),
    }
}

pub fn stat(backend: &mut dyn Backend, file: FileId) -> Stat {
    match run(backend, Op::Stat { file }).unwrap() {
        Output::Stat(stat) => stat,
        other => panic!("stat answered {other:?}"),
    }
}

/// Cuts `buffer` into segments of `cuts` bytes each and a last one with the rest.
pub fn segments(buffer: &mut Buffer, cuts: &[usize]) -> Segments {
    let mut segments = Segments::new();
    let (mut at, len) = (0, buffer.as_slice().len());
    for &cut in cuts {
        let cut = cut.min(len - at);
        // SAFETY: tests keep buffers until they reaped.
        segments.push(unsafe { buffer.segment(at, cut) });
        at += cut;
    }
    // SAFETY: as above.
    segments.push(unsafe { buffer.segment(at, len - at) });
    segments
}

pub fn read(backend: &mut dyn Backend, file: FileId, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut buffer = Buffer::zeroed(len);
    let segments = segments(&mut buffer, &[]);
    match run(backend, Op::Read { file, offset, segments })? {
        Output::Bytes(n) => Ok(buffer.as_slice()[..n as usize].to_vec()),
        other => panic!("read answered {other:?}"),
    }
}

pub fn write(backend: &mut dyn Backend, file: FileId, offset: u64, bytes: &[u8]) -> Result<u64, Errno> {
    let mut buffer = Buffer::from(bytes);
    let segments = segments(&mut buffer, &[]);
    match run(backend, Op::Write { file, offset, segments })? {
        Output::Bytes(n) => Ok(n),
        other => panic!("write answered {other:?}"),
    }
}
