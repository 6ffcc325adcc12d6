//! A part of a disk gets its space from the start.
//!
//! Knows: sessions, what a format needs to have a cluster. Must never know: how large a disk is to be.
//! Invariant: what the part reads stays zeros; [`DEPTH`] writes in flight, of [`PIECE`] bytes at most.

use crate::host::Host;
use crate::session::Session;
use quod::{Buffer, Error, Request};
use quod_states::Format;
use quod_states::qcow2::Preallocation;

/// Bytes of a write at most.
const PIECE: u64 = 1 << 20;
/// Writes in flight.
const DEPTH: usize = 8;
/// Bytes that give a cluster its place.
const SECTOR: u64 = 512;

/// Gives the bytes of an open disk from `from` to `to`, which read as zeros and are new, their space: of
/// qcow2 their clusters, for all but [`Preallocation::Metadata`] with the host's space; of a raw file the
/// host's. `stop` is asked between two requests.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{CreateOptions, Preallocation, Session, create, preallocate};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk");
/// create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20))?;
/// let mut session = Session::open(&path, OpenOptions::new().write(true))?;
/// session.resize(3 << 20)?;
/// preallocate(&mut session, 1 << 20, 3 << 20, Preallocation::Full, || false)?;
/// session.close()?;
/// assert!(std::fs::metadata(&path)?.len() > 2 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Misuse`] for what the format cannot, [`Error::Cancelled`], and how a request ended: a part may
/// have its space then.
pub fn preallocate(
    session: &mut Session,
    from: u64,
    to: u64,
    how: Preallocation,
    stop: fn() -> bool,
) -> Result<(), Error> {
    let info = session.info().ok_or(Error::Closed)?;
    let (path, cluster) = (info.image().path.clone(), u64::from(info.image().info.cluster_size));
    match (info.format(), how) {
        (_, Preallocation::Off) => Ok(()),
        (Format::Raw, Preallocation::Falloc) => {
            // the session has the lock
            let mut host = Host::open(&path, true, false)?;
            host.reserve(from, to)
        }
        (Format::Raw, Preallocation::Full) | (Format::Qcow2, Preallocation::Falloc | Preallocation::Full) => {
            write_zeros(session, (from..to).step_by(PIECE as usize), PIECE, to, stop)
        }
        (Format::Qcow2, Preallocation::Metadata) => {
            // a cluster that has a sector of data has its place, and new space is zeros
            let first = std::iter::once(from).filter(|from| from % cluster != 0 && *from < to);
            let others = (from.next_multiple_of(cluster)..to).step_by(cluster as usize);
            write_zeros(session, first.chain(others), SECTOR, to, stop)
        }
        (Format::Raw, Preallocation::Metadata) | (Format::Qed, _) => {
            Err(Error::Misuse("the format has no such preallocation"))
        }
    }
}

/// Writes zeros as data, so many bytes at each of these places.
fn write_zeros(
    session: &mut Session,
    places: impl Iterator<Item = u64>,
    len: u64,
    end: u64,
    stop: fn() -> bool,
) -> Result<(), Error> {
    let mut flying = 0;
    for at in places {
        if stop() {
            return Err(Error::Cancelled);
        }
        while flying == DEPTH {
            take(session, &mut flying)?;
        }
        session.submit(Request::write(at, Buffer::zeroed(len.min(end - at) as usize), at + 1))?;
        flying += 1;
    }
    while flying > 0 {
        take(session, &mut flying)?;
    }
    Ok(())
}

/// Waits for something to end.
fn take(session: &mut Session, flying: &mut usize) -> Result<(), Error> {
    session.wait()?;
    for done in session.take_ended() {
        *flying -= 1;
        done.result?;
    }
    Ok(())
}
