//! Snapshots in an image, by its path: made, applied, deleted.
//!
//! Knows: a session. Must never know: formats, how a snapshot is made.

use crate::session::Session;
use quod::{Error, OpenOptions, Request, SnapshotAsk};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Makes, applies or deletes a snapshot in the image, durably: all of it, or nothing. `options` are to write.
///
/// ```
/// use quod::{Format, OpenOptions, SnapshotAsk, SnapshotSelector};
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// let options = || OpenOptions::new().write(true).format(Some(Format::Qcow2));
/// quod_tools::snapshot(&path, options(), quod_tools::snapshot_now("before"))?;
/// let image = quod_tools::info(&path, None, false)?;
/// let snapshots = image.qcow2.map(|facts| facts.snapshots).unwrap_or_default();
/// assert_eq!(snapshots[0].name, b"before");
/// let which = SnapshotSelector::Name(b"before".to_vec());
/// quod_tools::snapshot(&path, options(), SnapshotAsk::Delete(which))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ErrorKind::NoSnapshot`](quod::ErrorKind::NoSnapshot), and those of [`Session::open`] and
/// [`Session::run`].
pub fn snapshot(path: impl AsRef<Path>, options: OpenOptions, ask: SnapshotAsk) -> Result<(), Error> {
    let mut session = Session::open(path, options)?;
    let done = session.run(Request::snapshot(ask, 0)).map(drop);
    // what could not be done is closed as it was
    let closed = session.close();
    done.and(closed)
}

/// The disk as it is now, to be kept under this name.
pub fn snapshot_now(name: impl AsRef<[u8]>) -> SnapshotAsk {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // the format's date ends in the year 2106
    let date_sec = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    SnapshotAsk::Create { name: name.as_ref().to_vec(), date_sec, date_nsec: now.subsec_nanos() }
}
