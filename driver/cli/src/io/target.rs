//! One open image: requests that are waited for, and requests that are not.
//!
//! Knows: the driver. Must never know: commands, texts.
//! Invariant: every request that was started ends in `finished` or is waited for; nothing is in flight after
//! `close`.

use crate::words::failure::{warn_about_bitmaps, why_not_opened};
use crate::words::nodes::COPIED;
use crate::words::open::{Fitted, Mode};
use quod::{AllowAll, Bitmaps, Buffer, Buffers, Completion, Config, DiskInfo, Driver};
use quod::{DeviceOp, Error, ErrorKind, Extent, FileRole, Format};
use quod::{OpenOptions, Refusal, Request, RequestKind, Status};
use quod_tools::{self as tools, CreateOptions, Session};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Bytes that copy-on-read moves at a time.
const COPY_STEP: u64 = 1 << 20;

/// An open image. `T` is what the caller wants to remember of a request that it does not wait for.
pub struct Target<T> {
    session: Session,
    /// How it was opened.
    pub mode: Mode,
    /// Its file.
    pub path: PathBuf,
    /// Bitmaps that the first change will end.
    bitmaps: Option<Bitmaps>,
    size: u64,
    next_user: u64,
    /// It was said that the image is corrupt.
    pub told_corrupt: bool,
    started: HashMap<u64, T>,
    finished: Vec<(T, Completion)>,
    /// The folder of the temporary overlay.
    _overlay: Option<TempDir>,
}

impl<T> Target<T> {
    /// Opens an image.
    pub fn open(path: &Path, mode: Mode) -> Result<Target<T>, String> {
        if let Some(text) = mode.contradiction() {
            return Err(text.into());
        }
        let (file, overlay) = match mode.snapshot {
            true => make_overlay(path, &mode).map(|(file, folder)| (file, Some(folder)))?,
            false => (path.to_path_buf(), None),
        };
        let reason = |error: Error| why_not_opened(path, &error);
        let fitted = match mode.needs_facts() {
            // the options are looked at before anything is changed
            true => mode.fit(&tools::info(path, mode.format, true).map_err(reason)?)?,
            false => Fitted::default(),
        };
        let config = Config::default().backend(mode.engine);
        let mut options = OpenOptions::new()
            .format(mode.format.filter(|_| overlay.is_none()))
            .write(!mode.read_only)
            .direct(mode.direct)
            .lock(mode.takes_locks())
            .lock_data_file(mode.data_locked.filter(|_| !mode.force_share))
            .tolerate_writers(true)
            .no_backing(mode.no_backing)
            .open_gate(AllowAll);
        options = fitted.add_to(options);
        if let Some(data_file) = &mode.data_file {
            options = options.data_file(data_file);
        }
        let session = Session::with_config(&file, options, config).map_err(reason)?;
        let info = session.info().ok_or("the disk is not open")?;
        let size = info.virtual_size();
        let bitmaps = info.image().info.bitmaps.clone();
        let mut target = Target {
            session,
            mode,
            path: path.to_path_buf(),
            bitmaps,
            size,
            next_user: 1,
            told_corrupt: false,
            started: HashMap::new(),
            finished: Vec::new(),
            _overlay: overlay,
        };
        if target.bitmaps.as_ref().is_some_and(|bitmaps| bitmaps.dropped) {
            target.warn(false);
        }
        Ok(target)
    }

    /// Writes to the first sector are restricted.
    pub fn guarded(&self) -> bool {
        self.session.first_sector().is_some()
    }

    /// Facts about the disk.
    pub fn info(&self) -> Option<&DiskInfo> {
        self.session.info()
    }

    /// The guest disk's length: whole sectors.
    pub fn size(&self) -> u64 {
        self.size.next_multiple_of(512)
    }

    /// EIO, as QEMU answers, for a range that is not inside the disk.
    pub fn check_range(&self, offset: u64, len: u64) -> Result<(), i32> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size());
        if inside { Ok(()) } else { Err(libc::EIO) }
    }

    /// Can the range become zeros without a byte written? A raw file can promise it where the file system
    /// helps, a qcow2 image of version 3 for whole clusters; QED never promises it to QEMU's tools.
    pub fn zeros_cost_nothing(&self, offset: u64, len: u64) -> bool {
        let Some(top) = self.info().map(DiskInfo::image) else { return false };
        let cluster = u64::from(top.info.cluster_size.max(1));
        let end = offset + len;
        let whole = offset.is_multiple_of(cluster) && (end.is_multiple_of(cluster) || end == self.size());
        match top.info.format {
            Format::Raw => true,
            Format::Qed => false,
            Format::Qcow2 => whole && top.info.version >= 3,
        }
    }

    /// Bytes of a cluster, if it can be written compressed.
    pub fn compressed_cluster(&self) -> Option<u64> {
        let top = self.info().map(DiskInfo::image)?;
        let can = top.info.format == Format::Qcow2 && top.data_file.is_none();
        can.then_some(u64::from(top.info.cluster_size))
    }

    /// Runs a request to its end. Others that end meanwhile are in `take_finished`.
    pub fn run(&mut self, request: impl FnOnce(u64) -> Request) -> Result<Completion, Error> {
        let user = self.submit(request)?;
        let done = self.session.wait_for(user);
        self.sort();
        done
    }

    /// Starts a request and goes on.
    pub fn start(&mut self, request: impl FnOnce(u64) -> Request, memo: T) -> Result<(), Error> {
        let user = self.submit(request)?;
        self.started.insert(user, memo);
        self.turn()
    }

    fn submit(&mut self, request: impl FnOnce(u64) -> Request) -> Result<u64, Error> {
        let user = self.next_user;
        self.next_user += 1;
        let mut request = request(user);
        if request.kind.name().changes() {
            self.warn(matches!(request.kind, RequestKind::Resize { .. }));
        }
        loop {
            match self.session.submit(request) {
                Ok(()) => return Ok(user),
                Err(rejected) if rejected.reason == Refusal::Busy => request = rejected.request,
                Err(rejected) => return Err(rejected.reason.into()),
            }
            self.pump()?;
        }
    }

    /// Says once what happens to the bitmaps, if they are not kept up, or the disk gets another size.
    fn warn(&mut self, resize: bool) {
        if let Some(bitmaps) = self.bitmaps.take_if(|bitmaps| resize || !bitmaps.kept) {
            warn_about_bitmaps(&self.path, &bitmaps);
        }
    }

    /// Tells what was started from the rest of what has ended.
    fn sort(&mut self) {
        for done in self.session.take_ended() {
            if let Some(memo) = self.started.remove(&done.user) {
                self.finished.push((memo, done));
            }
        }
    }

    /// Waits for something to happen.
    fn pump(&mut self) -> Result<(), Error> {
        let waited = self.session.wait();
        self.sort();
        waited
    }

    /// Looks whether something has happened.
    pub fn turn(&mut self) -> Result<(), Error> {
        let turned = self.session.turn();
        self.sort();
        turned
    }

    /// Waits until everything that was started has ended.
    pub fn wait_all(&mut self) -> Result<(), Error> {
        while !self.started.is_empty() {
            self.pump()?;
        }
        Ok(())
    }

    /// Requests that were started and have ended since the last call, in the order in which they ended.
    pub fn take_finished(&mut self) -> Vec<(T, Completion)> {
        std::mem::take(&mut self.finished)
    }

    /// The driver, to wait for it together with something else.
    pub fn driver(&self) -> &Driver {
        self.session.as_driver()
    }

    /// Sets the guest disk's length.
    pub fn resize(&mut self, len: u64) -> Result<(), Error> {
        self.run(|user| Request::resize(len, user))?;
        self.size = len;
        Ok(())
    }

    /// The first run of a range, in the top layer.
    pub fn map(&mut self, offset: u64, len: u64) -> Result<Extent, Error> {
        let done = self.run(|user| Request::map(0, offset, len, user))?;
        done.kind.extent().ok_or(Error::Misuse("map gave no extent"))
    }

    /// Bytes that hold data or do not: a cluster, or one of its subclusters.
    fn unit(&self) -> u64 {
        let Some(top) = self.info().map(DiskInfo::image) else { return 512 };
        u64::from(top.info.unit).max(512)
    }

    /// Copy-on-read: what the top layer does not have, of the units that the range touches, is written to it.
    pub fn populate(&mut self, offset: u64, len: u64) -> Result<(), Error> {
        let unit = self.unit();
        let mut at = offset - offset % unit;
        let end = (offset + len).next_multiple_of(unit).min(self.size());
        while at < end {
            let run = self.map(at, end - at)?;
            let take = run.len.min(end - at);
            if run.status != Status::Unallocated {
                at += take;
                continue;
            }
            let take = take.min(COPY_STEP);
            let read = self.run(|user| Request::read(at, Buffer::zeroed(take as usize), user))?;
            let buffer = read.kind.into_buffers().and_then(Buffers::into_owned);
            let buffer = buffer.ok_or(Error::Misuse("a read lost its buffer"))?;
            if let Some(errno) = self.mode.filters.fails(COPIED, at, take) {
                return Err(injected(&self.path, at, errno));
            }
            if buffer.as_slice().iter().all(|&byte| byte == 0) {
                self.run(|user| Request::write_zeroes(at, take, user))?;
            } else {
                self.run(|user| Request::write(at, buffer, user))?;
            }
            at += take;
        }
        Ok(())
    }

    /// Ends everything and closes the image. What was started is in the answer.
    pub fn close(mut self) -> (Vec<(T, Completion)>, Result<(), Error>) {
        let waited = self.wait_all();
        let closed = self.run(Request::close).map(drop);
        (self.take_finished(), waited.and(closed))
    }
}

/// An error that was asked for.
fn injected(path: &Path, offset: u64, errno: i32) -> Error {
    let kind = ErrorKind::Device { op: DeviceOp::Write, offset, errno };
    Error::File { path: path.to_path_buf(), role: FileRole::Image, kind }
}

/// A QED overlay in a temporary folder.
fn make_overlay(path: &Path, mode: &Mode) -> Result<(PathBuf, TempDir), String> {
    let words = |error: std::io::Error| format!("Could not make a temporary overlay: {error}");
    let info =
        tools::info(path, mode.format, !mode.takes_locks()).map_err(|error| why_not_opened(path, &error))?;
    let folder = tempfile::tempdir().map_err(words)?;
    let file = folder.path().join("overlay.qed");
    let full = std::path::absolute(path).map_err(words)?.display().to_string();
    // QED has two words for a backing format: raw, and look for yourself
    let format = (info.info.format == Format::Raw).then_some(Format::Raw);
    let size = info.info.virtual_size.next_multiple_of(512);
    let options = CreateOptions { backing: Some((full, format)), ..CreateOptions::new(Format::Qed, size) };
    tools::create(&file, &options).map_err(|error| error.to_string())?;
    Ok((file, folder))
}
