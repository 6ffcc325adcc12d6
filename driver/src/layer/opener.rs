//! The opening of a disk, as data: which file is opened now, with which lock, and what comes after it.
//!
//! Knows: the steps (open, stat, lock, the format's own opening), the gate, the chain's limits. Must never
//! know: the backend, what a header says, beyond the names of other files.
//! Invariant: a file named by an image is opened only if the gate allows it, and never twice in one chain.

use super::{Layer, LayerFile};
use crate::config::{Config, LOCK_PATIENCE, LOCK_RETRY, OpenOptions};
use crate::error::{Error, ErrorKind, FileOp, FileRole, Lack, Lock};
use crate::gate::{Allowed, Named, Role};
use crate::info::LayerInfo;
use quod_backend::{Errno, FileId, LockMode, Proven, Stat};
use quod_states::{Backing, Format, Opened, Opening};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// What an opening is waiting for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OpenStep {
    Open,
    Stat,
    Lock,
    /// The length may have changed until we had the lock.
    StatAgain,
    /// What its file system answers is tried before it is believed.
    Prove,
    Machine,
}

/// The opening of a disk; its layers so far stand in the disk.
pub(crate) struct Opener {
    pub(crate) options: OpenOptions,
    pub(crate) started: Duration,
    /// The file that is being opened.
    pub(crate) path: PathBuf,
    /// Its descriptor, if it was given one, until that is taken over.
    pub(crate) given: Option<Arc<OwnedFd>>,
    /// Which file of the disk that is.
    pub(crate) role: FileRole,
    pub(crate) format: Option<Format>,
    pub(crate) step: OpenStep,
    pub(crate) direct: bool,
    /// What was seen of its file system, if it had to be.
    pub(crate) proven: Option<Proven>,
    pub(crate) file: FileId,
    pub(crate) stat: Option<Stat>,
    pub(crate) lock: LockMode,
    /// If the lock is refused, a lesser one may do.
    pub(crate) shares: bool,
    /// When the lock that is wanted now was refused first.
    pub(crate) refused: Option<Duration>,
    /// When to ask for it again.
    pub(crate) retry: Option<Duration>,
    pub(crate) machine: Option<Opening>,
    /// The layer whose data file is being opened.
    pub(crate) image: Option<Box<(Opened, LayerFile)>>,
    /// The data file of the layer that is being opened.
    pub(crate) data: Option<LayerFile>,
    pub(crate) infos: Vec<LayerInfo>,
}

impl Opener {
    pub(crate) fn new(
        path: PathBuf,
        given: Option<OwnedFd>,
        options: OpenOptions,
        started: Duration,
    ) -> Opener {
        let given = given.map(Arc::new);
        let format = options.format;
        Opener {
            options,
            started,
            path,
            given,
            role: FileRole::Image,
            format,
            step: OpenStep::Open,
            direct: false,
            proven: None,
            file: FileId(u32::MAX),
            stat: None,
            lock: LockMode::None,
            shares: false,
            refused: None,
            retry: None,
            machine: None,
            image: None,
            data: None,
            infos: Vec::new(),
        }
    }
}

/// What goes on next.
pub(crate) enum Next {
    /// Wait for an operation.
    Wait,
    /// The format's machine starts.
    Machine,
    /// The data file is there.
    Data(Stat),
}

impl Opener {
    /// The file at hand.
    pub(crate) fn layer_file(&self, stat: Stat, path: PathBuf) -> LayerFile {
        let Opener { file: id, role, direct, proven, .. } = *self;
        LayerFile { id, stat, path, role, direct, proven }
    }

    /// What is the matter with the file at hand.
    pub(crate) fn error(&self, kind: ErrorKind) -> Error {
        Error::of(&self.path, self.role, kind)
    }

    /// No file may serve twice in one disk.
    pub(crate) fn refuse_loop(&self, layers: &[Layer], stat: &Stat) -> Result<(), Error> {
        let own = self.image.as_ref().map(|image| &image.1);
        let mut files = layers.iter().flat_map(Layer::files).chain(own);
        if files.any(|file| file.stat.identity == stat.identity) {
            let image = own.or(layers.last().map(|layer| &layer.file));
            let kind = ErrorKind::BackingLoop { repeated: self.path.clone() };
            return Err(match image {
                Some(file) => file.fault(kind),
                None => self.error(kind),
            });
        }
        Ok(())
    }

    /// The file at hand is locked; the image is there while its data file is opened.
    pub(crate) fn takes_lock(&self) -> bool {
        let options = &self.options;
        options.lock_data.filter(|_| self.image.is_some()).unwrap_or(options.lock)
    }

    /// The lock for the file that is opened next, and whether a lesser one may do: a raw image may be read
    /// while others write to it, if the embedder says so; that it is raw may only come out later.
    pub(crate) fn wanted_lock(&self, depth: usize) -> (LockMode, bool) {
        let own = self.image.is_none();
        match self.format {
            _ if depth == 0 && self.options.write => (LockMode::Write, false),
            Some(Format::Raw) if own && self.options.tolerate_writers => (LockMode::Share, false),
            None if own && self.options.tolerate_writers => (LockMode::Read, true),
            _ => (LockMode::Read, false),
        }
    }

    /// Its lock was refused at `now`: is it asked for again, or a lesser one?
    pub(crate) fn waits(&mut self, now: Duration) -> bool {
        if std::mem::take(&mut self.shares) {
            self.lock = LockMode::Share;
            return true;
        }
        self.retry = Some(now + LOCK_RETRY);
        now.saturating_sub(*self.refused.get_or_insert(now)) < LOCK_PATIENCE
    }

    /// The file is open, and locked if it is to be.
    pub(crate) fn ready(&mut self, depth: usize, stat: Stat, config: &Config) -> Next {
        if self.image.is_some() {
            return Next::Data(stat);
        }
        self.begin(depth, stat, config);
        Next::Machine
    }

    pub(crate) fn begin(&mut self, depth: usize, stat: Stat, config: &Config) {
        let options = self.options.core(config, depth, &stat, stricter(&stat, self.data.as_ref()));
        self.step = OpenStep::Machine;
        let snapshot = self.options.snapshot.clone().filter(|_| depth == 0);
        self.machine = Some(match snapshot {
            Some(snapshot) => Opening::of_snapshot(self.format, stat.len, options, snapshot),
            None => Opening::new(self.format, stat.len, options),
        });
    }

    /// Sets out for the backing file that the layer at `depth` names.
    pub(crate) fn next(&mut self, depth: usize, backing: Backing) -> Result<(), Error> {
        if depth + 1 >= self.options.max_depth as usize {
            return Err(self.error(ErrorKind::TooDeep { limit: self.options.max_depth }));
        }
        (self.path, self.given) = self.allowed(Role::Backing, &backing.name)?;
        self.role = FileRole::image(depth + 1);
        self.format = backing.format;
        self.stat = None;
        Ok(())
    }

    /// Sets out for the data file that the layer at `depth` names.
    pub(crate) fn next_data(&mut self, depth: usize, name: &[u8]) -> Result<(), Error> {
        (self.path, self.given) = match self.options.data_file.clone().filter(|_| depth == 0) {
            Some(path) => (path, None),
            None if name.is_empty() => {
                return Err(self.error(ErrorKind::Unsupported(Lack::UnnamedDataFile)));
            }
            None => self.allowed(Role::Data, name)?,
        };
        self.role = FileRole::data(depth);
        self.stat = None;
        Ok(())
    }

    /// The path of a file that the image names, if it may be opened, and its descriptor, if the gate has one.
    fn allowed(&self, role: Role, name: &[u8]) -> Result<(PathBuf, Option<Arc<OwnedFd>>), Error> {
        let named = Named { image: &self.path, name, role };
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(here) = named.path() else {
            let lack = Lack::Protocol { role, name: shown };
            return Err(self.error(ErrorKind::Unsupported(lack)));
        };
        match self.options.ask_gate(&named) {
            Some(Allowed::Path(path)) => Ok((path, None)),
            Some(Allowed::Fd { fd, name }) => Ok((name, Some(Arc::new(fd)))),
            None => Err(self.error(match named.beside() {
                Some(beside) => ErrorKind::Ambiguous { name: shown, here, beside },
                None => ErrorKind::NotAllowed { name: shown },
            })),
        }
    }
}

/// What the offsets and lengths of writes must be multiples of.
pub(crate) fn stricter(image: &Stat, data: Option<&LayerFile>) -> u32 {
    image.offset_align.max(data.map_or(1, |data| data.stat.offset_align))
}

/// Somebody else holds a lock.
pub(crate) fn is_conflict(errno: Errno) -> bool {
    errno.0 == libc::EAGAIN || errno.0 == libc::EACCES
}

pub(crate) fn step_error(opener: &Opener, errno: Errno) -> Error {
    let op = match opener.step {
        OpenStep::Open if opener.direct && errno.0 == libc::EINVAL => FileOp::OpenDirect,
        OpenStep::Open => FileOp::opening(errno.0),
        OpenStep::Stat | OpenStep::StatAgain => FileOp::Examine,
        OpenStep::Lock if is_conflict(errno) => {
            let lock = if opener.lock == LockMode::Write { Lock::Write } else { Lock::Read };
            return opener.error(ErrorKind::Locked(lock));
        }
        OpenStep::Lock => FileOp::locking(errno.0),
        OpenStep::Prove | OpenStep::Machine => FileOp::Read,
    };
    opener.error(ErrorKind::Io { op, errno: errno.0 })
}
