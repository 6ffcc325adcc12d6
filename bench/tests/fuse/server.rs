//! A file system in this process's memory that misbehaves as stores do: it answers late, says that it has
//! zeroed what it has not, has no locks, or is gone for a while.
//!
//! Knows: FUSE. Must never know: who uses it.

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLock, ReplyOpen, ReplyWrite, Request, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};

/// Attributes are asked for every time.
const TTL: Duration = Duration::ZERO;
/// Requests that are answered at once.
const THREADS: usize = 16;

/// How it behaves, and what it was asked.
#[derive(Default)]
pub struct State {
    files: BTreeMap<u64, Vec<u8>>,
    names: BTreeMap<String, u64>,
    next: u64,
    /// Reads and writes take so long.
    pub delay: Duration,
    /// fallocate answers 0 to whatever makes zeros, and makes none.
    pub lies: bool,
    /// Every answer but those about names.
    pub gone: Option<Errno>,
    /// Modes of fallocate that were asked for, in their order.
    pub fallocates: Vec<i32>,
    pub syncs: u64,
}

/// What the server asks the kernel for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Serves {
    /// Nothing: a direct transfer is waited for inside the system call; the kernel keeps the locks.
    Plainly,
    /// FUSE_ASYNC_DIO, as GlusterFS does: direct transfers of an io_uring are in flight together.
    AsyncDirect,
    /// To be asked for locks, each of which it answers with ENOSYS.
    NoLocks,
}

/// A mounted store. Unmounted when dropped.
pub struct Store {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    folder: tempfile::TempDir,
}

struct Served {
    state: Arc<Mutex<State>>,
    /// What the kernel is told that the server can do.
    asks: InitFlags,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Store {
    /// An empty one.
    pub fn mount(serves: Serves) -> Store {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(Mutex::new(State { next: 2, ..State::default() }));
        let asks = match serves {
            Serves::Plainly => InitFlags::empty(),
            Serves::AsyncDirect => InitFlags::FUSE_ASYNC_DIO,
            Serves::NoLocks => InitFlags::FUSE_POSIX_LOCKS,
        };
        let served = Served { state: Arc::clone(&state), asks };
        let mut config = Config::default();
        config.n_threads = Some(THREADS);
        let session = fuser::spawn_mount(served, folder.path(), &config).unwrap_or_else(|error| {
            panic!(
                "no FUSE mount ({error}): /dev/fuse is needed, and root or fusermount3 (apt install fuse3)"
            )
        });
        Store { state, session: Some(session), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub fn put(&self, name: &str, bytes: Vec<u8>) {
        let mut state = self.state();
        let ino = state.next;
        state.next += 1;
        state.files.insert(ino, bytes);
        state.names.insert(name.to_string(), ino);
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.files[&state.names[name]].clone()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.state().gone = None;
        if let Some(session) = self.session.take() {
            let _ = session.umount_and_join();
        }
    }
}

impl State {
    fn attr(&self, ino: u64) -> Option<FileAttr> {
        let root = ino == 1;
        let size = if root { 0 } else { self.files.get(&ino)?.len() as u64 };
        let (kind, perm) = if root { (FileType::Directory, 0o755) } else { (FileType::RegularFile, 0o644) };
        let (uid, gid) = owner();
        Some(FileAttr {
            ino: INodeNo(ino),
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid,
            gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

/// User and group of this process.
fn owner() -> (u32, u32) {
    std::fs::metadata("/proc/self").map_or((0, 0), |meta| (meta.uid(), meta.gid()))
}

impl Served {
    /// The state, when the time is over that the store takes; an error if it is gone.
    fn late(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let delay = lock(&self.state).delay;
        std::thread::sleep(delay);
        self.here()
    }

    fn here(&self) -> Result<MutexGuard<'_, State>, Errno> {
        let state = lock(&self.state);
        state.gone.map_or(Ok(state), Err)
    }

    fn make(&self, ino: u64, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        let mut state = self.here()?;
        state.fallocates.push(mode);
        let lies = state.lies;
        let file = state.files.get_mut(&ino).ok_or(Errno::ENOENT)?;
        let end = (offset + len) as usize;
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && end > file.len() {
            file.resize(end, 0);
        }
        if mode & (libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_PUNCH_HOLE) != 0 && !lies {
            let end = end.min(file.len());
            file[(offset as usize).min(end)..end].fill(0);
        }
        Ok(())
    }
}

impl Filesystem for Served {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // a kernel without them has fewer ways to be slow
        let _ = config.add_capabilities(self.asks);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = lock(&self.state);
        let ino = state.names.get(name.to_string_lossy().as_ref());
        match ino.and_then(|ino| state.attr(*ino)) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.state).attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<fuser::TimeOrNow>,
        _mtime: Option<fuser::TimeOrNow>,
        _ctime: Option<std::time::SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<std::time::SystemTime>,
        _chgtime: Option<std::time::SystemTime>,
        _bkuptime: Option<std::time::SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.state);
        if let (Some(size), Some(file)) = (size, state.files.get_mut(&ino.0)) {
            file.resize(size as usize, 0);
        }
        match state.attr(ino.0) {
            Some(attr) => reply.attr(&TTL, &attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn create(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = lock(&self.state);
        let ino = state.next;
        state.next += 1;
        state.files.insert(ino, Vec::new());
        state.names.insert(name.to_string_lossy().into_owned(), ino);
        match state.attr(ino) {
            Some(attr) => reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty()),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// What is still open keeps its bytes until it is forgotten.
    fn unlink(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match lock(&self.state).names.remove(name.to_string_lossy().as_ref()) {
            Some(_) => reply.ok(),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn rename(
        &self,
        _req: &Request,
        _parent: INodeNo,
        name: &OsStr,
        _newparent: INodeNo,
        newname: &OsStr,
        _flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mut state = lock(&self.state);
        match state.names.remove(name.to_string_lossy().as_ref()) {
            Some(ino) => {
                state.names.insert(newname.to_string_lossy().into_owned(), ino);
                reply.ok();
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        let mut state = lock(&self.state);
        if !state.names.values().any(|named| *named == ino.0) {
            state.files.remove(&ino.0);
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.late() {
            Err(errno) => reply.error(errno),
            Ok(state) => {
                let file = state.files.get(&ino.0).map_or(&[][..], Vec::as_slice);
                let start = (offset as usize).min(file.len());
                reply.data(&file[start..(start + size as usize).min(file.len())]);
            }
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.late() {
            Err(errno) => reply.error(errno),
            Ok(mut state) => {
                let Some(file) = state.files.get_mut(&ino.0) else { return reply.error(Errno::ENOENT) };
                let (start, end) = (offset as usize, offset as usize + data.len());
                file.resize(file.len().max(end), 0);
                file[start..end].copy_from_slice(data);
                reply.written(data.len() as u32);
            }
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self.make(ino.0, offset, length, mode) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        match self.here() {
            Ok(mut state) => {
                state.syncs += 1;
                reply.ok();
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = lock(&self.state);
        for (number, (name, ino)) in state.names.iter().enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*ino), number as u64 + 1, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        reply: ReplyLock,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn setlk(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        _start: u64,
        _end: u64,
        _typ: i32,
        _pid: u32,
        _sleep: bool,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
