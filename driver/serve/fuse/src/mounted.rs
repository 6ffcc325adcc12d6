//! How a place is mounted, and unmounted: by this process, or by another one that may do so.
//!
//! Knows: fuser's mounting, places. Must never know: images, requests.
//! Invariant: what was mounted is unmounted when [`Mounted`] is dropped, however that comes.

use crate::error::MountError;
use crate::limits::{IN_FLIGHT, TRANSFER};
use fuser::{Filesystem, InitFlags, KernelConfig, MountOption, Session, SessionACL, SessionUnmounter};
use rustix::fs::{Access, OFlags};
use rustix::mount::UnmountFlags;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

/// What fuser opens by itself, also where fusermount3 mounts.
const DEVICE: &str = "/dev/fuse";

/// What fuser asks while it mounts; it serves nothing.
struct Greeting;

impl Filesystem for Greeting {
    fn init(&mut self, _request: &fuser::Request, kernel: &mut KernelConfig) -> io::Result<()> {
        // a kernel that has less, has less: each of these is a wish
        let _ = kernel.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = kernel.set_max_write(TRANSFER as u32);
        let _ = kernel.set_max_readahead(TRANSFER as u32).map_err(|most| kernel.set_max_readahead(most));
        let _ = kernel.set_max_background(IN_FLIGHT as u16);
        let _ = kernel.set_congestion_threshold(IN_FLIGHT as u16);
        Ok(())
    }
}

/// A mount, and its end.
pub struct Mounted {
    session: Session<Greeting>,
    place: PathBuf,
    /// Whoever has the other end unmounts.
    helper: Option<UnixStream>,
    leaving: Leaving,
}

/// How far an unmount has come. The kernel may want writes answered meanwhile, so that another thread waits.
enum Leaving {
    No,
    Begun(JoinHandle<()>),
    /// Another process was told; the stream ends when it has done it.
    Told(UnixStream),
    /// No thread was to be had.
    Detached,
}

impl Mounted {
    /// Mounts over a file; the descriptor that requests come from.
    pub fn new(place: PathBuf, writable: bool, others: bool) -> Result<(Mounted, OwnedFd), MountError> {
        let failed = |error| MountError::Mount { path: place.clone(), error };
        rustix::fs::access(DEVICE, Access::READ_OK | Access::WRITE_OK)
            .map_err(|error| MountError::NoFuse(error.into()))?;
        let mut config = fuser::Config::default();
        config.mount_options = vec![
            MountOption::FSName("quod".into()),
            MountOption::Subtype("quod".into()),
            MountOption::DefaultPermissions,
            MountOption::NoExec,
            if writable { MountOption::RW } else { MountOption::RO },
        ];
        config.acl = if others { SessionACL::All } else { SessionACL::Owner };
        let session = Session::new(Greeting, &place, &config).map_err(failed)?;
        let fd = session.as_fd().try_clone_to_owned().map_err(failed)?;
        let flags = rustix::fs::fcntl_getfl(&fd).map_err(|error| failed(error.into()))?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
        Ok((Mounted { session, place, helper: None, leaving: Leaving::No }, fd))
    }

    /// Where it is mounted.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Whoever has the other end unmounts it when a byte comes, and ends then.
    pub fn unmount_through(&mut self, helper: UnixStream) -> io::Result<()> {
        helper.set_nonblocking(true)?;
        self.helper = Some(helper);
        Ok(())
    }

    /// Begins to unmount. Requests are to be answered meanwhile.
    pub fn begin_to_leave(&mut self) {
        if let Leaving::No = self.leaving {
            // one that has died cannot be told: then it is tried as if there were none
            let told = self.helper.take().filter(|mut helper| helper.write_all(&[0]).is_ok());
            if let Some(helper) = told {
                self.leaving = Leaving::Told(helper);
                return;
            }
            let (unmounter, place) = (self.session.unmount_callable(), self.place.clone());
            let thread = std::thread::Builder::new().name("quod-unmount".into());
            self.leaving = match thread.spawn(move || unmount(unmounter, &place)) {
                Ok(thread) => Leaving::Begun(thread),
                Err(_) => {
                    detach(&self.place);
                    Leaving::Detached
                }
            };
        }
    }

    /// It is unmounted, as far as the names of files go.
    pub fn has_left(&self) -> bool {
        match &self.leaving {
            Leaving::No => false,
            Leaving::Begun(thread) => thread.is_finished(),
            Leaving::Told(helper) => match (&*helper).read(&mut [0]) {
                Ok(_) => true,
                Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
            },
            Leaving::Detached => true,
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.helper.is_some() {
            self.begin_to_leave();
        }
    }
}

/// Waits for a byte, and unmounts what this user has mounted at a place; without one, at the end of the
/// stream, does nothing: it was unmounted by somebody else, or its server has died. Blocks. For the process
/// that [`Mount::unmount_through`](crate::Mount::unmount_through) tells.
///
/// # Errors
/// Of the stream; or nobody could unmount.
pub fn unmount_when_told(place: &Path, mut told: impl Read) -> io::Result<()> {
    let heard = loop {
        match told.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            heard => break heard?,
        }
    };
    if heard == 0 || rustix::mount::unmount(place, UnmountFlags::NOFOLLOW).is_ok() {
        return Ok(());
    }
    let Err(error) = rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) else {
        return Ok(());
    };
    // for others than root it is a program's to do
    for program in ["fusermount3", "fusermount"] {
        let mut command = Command::new(program);
        command.args(["-u", "-q", "-z", "--"]).arg(place);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
    }
    Err(error.into())
}

/// In order, if nobody has it open; otherwise its name goes now, and the rest with the last client.
fn unmount(mut unmounter: SessionUnmounter, place: &Path) {
    if unmounter.unmount().is_err() {
        detach(place);
    }
}

/// Takes the name away, as far as this user may. (For others than root fuser asks fusermount3, which does the
/// same.)
fn detach(place: &Path) {
    let _ = rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
}
