//! An image that is opened and mounted: what an embedder calls.
//!
//! Knows: options, places, the driver's face. Must never know: requests, FUSE.
//! Invariant: an image that cannot be opened is not mounted.

use crate::error::MountError;
use crate::file::File;
use crate::limits::IN_FLIGHT;
use crate::message::Attributes;
use crate::mounted::Mounted;
use crate::serve::Serving;
use quod::{CompletionKind, Config, DiskId, DiskInfo, Driver, Error, Format, OpenOptions};
use quod_door::Control;
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How an image is mounted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MountOptions {
    open: OpenOptions,
    config: Config,
    others: bool,
}

impl MountOptions {
    /// For this user alone. `open` says how the image is opened: the file can be written if the image can.
    pub fn new(open: OpenOptions) -> MountOptions {
        MountOptions { open, config: Config::default(), others: false }
    }

    /// Other users may use the file, as far as its permissions say (`allow_other`; for others than root
    /// /etc/fuse.conf has to allow it); default: they cannot.
    pub fn allow_other(mut self, allow: bool) -> MountOptions {
        self.others = allow;
        self
    }

    /// Of the driver; default [`Config::default`]. How many requests it takes is set here.
    pub fn config(mut self, config: Config) -> MountOptions {
        self.config = config;
        self
    }
}

/// An image whose guest's disk is a file. Dropped, it is unmounted as by a power cut: see [`Mount::run`].
pub struct Mount {
    serving: Serving,
    info: DiskInfo,
}

impl Mount {
    /// Opens an image, and mounts its guest's disk over the regular file at `place`. Blocks; from then on
    /// whoever opens that file waits for [`Mount::run`].
    ///
    /// # Errors
    /// [`MountError`]: the image cannot be opened, or the place is none.
    pub fn new(image: &Path, place: &Path, options: MountOptions) -> Result<Mount, MountError> {
        let place = checked(place)?;
        let config = options.config.requests(IN_FLIGHT as u32 + 1);
        let mut driver = Driver::new(config)?;
        let (guessed, writable) = (options.open.probes_for_writing(), options.open.writes());
        let (disk, info) = open_disk(&mut driver, image, options.open.clone())?;
        if guessed && info.format() == Format::Raw {
            return Err(MountError::Guessed(image.to_path_buf()));
        }
        let attributes = Attributes {
            size: info.virtual_size(),
            blocks: blocks(image, info.virtual_size()),
            mode: 0o100000 | if writable { 0o600 } else { 0o400 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
            block: 4096,
        };
        let file = File::new(driver, disk, image.to_path_buf(), writable, attributes);
        let (mounted, fd) = Mounted::new(place, writable, options.others)?;
        Ok(Mount { serving: Serving::new(file, mounted, fd)?, info })
    }

    /// Facts about the disk.
    pub fn info(&self) -> &DiskInfo {
        &self.info
    }

    /// Where it is mounted, by a name that stays right.
    pub fn place(&mut self) -> &Path {
        self.serving.mounted().place()
    }

    /// The file is unmounted by another process, which has the other end of this stream and calls
    /// [`unmount_when_told`](crate::unmount_when_told): for one that confines itself, so that it may neither
    /// unmount nor start a program that does.
    ///
    /// # Errors
    /// [`MountError::Wait`]: the stream cannot be made not to block.
    pub fn unmount_through(&mut self, helper: UnixStream) -> Result<(), MountError> {
        self.serving.mounted().unmount_through(helper).map_err(MountError::Wait)
    }

    /// The process has confined the calling thread: what the mount starts from now on is confined, too, and
    /// threads that were not are replaced.
    ///
    /// # Errors
    /// [`MountError::Driver`] as of [`Driver::renew_workers`].
    pub fn is_confined(&mut self) -> Result<(), MountError> {
        Ok(self.serving.driver().renew_workers()?)
    }

    /// The kernel does for the driver's ring what moves bytes, and nothing else; see
    /// [`Driver::is_restricted`].
    pub fn has_restricted_ring(&mut self) -> bool {
        let driver = self.serving.driver();
        driver.is_restricted() || driver.backend_name() != "io_uring"
    }

    /// An end is asked for when this descriptor is readable: the file is unmounted (lazily, if somebody has
    /// it open), what is under way is answered, and clients that go on are for 5 seconds.
    ///
    /// # Errors
    /// [`MountError::Wait`]: the descriptor cannot be waited for.
    pub fn stop_when_readable(&mut self, fd: impl Into<OwnedFd>) -> Result<(), MountError> {
        self.serving.stop_when_readable(fd.into()).map_err(MountError::Wait)
    }

    /// The mount can be looked at, quiesced, resized and ended from there. While it is quiesced requests wait
    /// in the kernel; a new size is seen by those that have the file open, too.
    ///
    /// # Errors
    /// [`MountError::Wait`].
    pub fn use_control(&mut self, control: Control) -> Result<(), MountError> {
        self.serving.use_control(control).map_err(MountError::Wait)
    }

    /// Serves the file until it is unmounted, or an end is asked for; then commits and closes the image.
    /// `report` is told of each request that the driver could not do, beside its client.
    ///
    /// # Errors
    /// [`MountError::Close`]: the image is not closed in order; others: the loop cannot go on, and the image
    /// is closed.
    pub fn run(self, report: &mut dyn FnMut(&Error)) -> Result<(), MountError> {
        self.serving.run(report)
    }
}

/// A regular file that exists, by a name that stays right.
fn checked(place: &Path) -> Result<PathBuf, MountError> {
    let wrong = |error: io::Error| match error.raw_os_error() {
        Some(number) if number == Errno::NOTCONN.raw_os_error() => MountError::Dead(place.to_path_buf()),
        _ => MountError::Mount { path: place.to_path_buf(), error },
    };
    match std::fs::metadata(place) {
        Ok(found) if found.is_file() => place.canonicalize().map_err(wrong),
        Ok(_) => Err(MountError::NotAFile(place.to_path_buf())),
        Err(error) => Err(wrong(error)),
    }
}

/// What the file of the image takes now, as a word about the disk: copies look for holes if it is less than
/// the size, and some programs take 0 for a file of zeros, however it changes later.
fn blocks(image: &Path, size: u64) -> u64 {
    const SOME: u64 = 8;
    let whole = size.div_ceil(512);
    std::fs::metadata(image).map_or(whole, |found| found.blocks().clamp(SOME.min(whole), whole))
}

fn open_disk(
    driver: &mut Driver,
    path: &Path,
    options: OpenOptions,
) -> Result<(DiskId, DiskInfo), MountError> {
    let disk = driver.open(path, options).map_err(MountError::Open)?;
    loop {
        driver.wait(None)?;
        while let Some(done) = driver.next_completion() {
            if let CompletionKind::Opened = done.kind {
                done.result.map_err(MountError::Open)?;
                let info = driver.disk_info(disk).cloned().ok_or(Error::Closed)?;
                return Ok((disk, info));
            }
        }
    }
}
