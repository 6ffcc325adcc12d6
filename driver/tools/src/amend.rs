//! Changes what the header of a qcow2 image says of its format.
//!
//! Knows: the order of writes that leaves the old header or the new one. Must never know: guest data.
//! Invariant: an image that is not in order is not touched.

use crate::backing::write_header;
use crate::host::{Host, unsupported};
use crate::info::read_qcow2;
use crate::session::Session;
use quod::{Error, Lack, OpenOptions};
use quod_states::qcow2::Purpose;
use quod_states::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use quod_states::{Format, Status};
use std::path::Path;

/// What shall be otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Amendment {
    /// The version of the format: 2 or 3.
    pub version: Option<u32>,
    /// Refcounts may be postponed.
    pub lazy_refcounts: Option<bool>,
}

/// Changes the header of a qcow2 image. An image that was not closed cleanly is repaired first. Version 2 has
/// no zero clusters: an image that has some is refused.
///
/// # Errors
/// [`Error::Misuse`] for what the version has not, [`Lack::Rebase`] for other formats, and what the host
/// says.
pub fn amend(path: impl AsRef<Path>, options: OpenOptions, change: Amendment) -> Result<(), Error> {
    let path = path.as_ref();
    // whatever opens an image for writing puts it in order
    let mut session = Session::open(path, options.no_backing(true).write(true))?;
    let format = session.info().map(quod::DiskInfo::format);
    let plain = match change.version {
        Some(2) => has_no_zeros(&mut session)?,
        _ => true,
    };
    session.close()?;
    if format != Some(Format::Qcow2) {
        return Err(unsupported(path, Lack::Rebase(format.unwrap_or(Format::Raw))));
    }
    let mut host = Host::open(path, true, true)?;
    let mut header = read_qcow2(&mut host, Purpose::Write)?;
    let misuse = |what| Err(Error::Misuse(what));
    let version = change.version.unwrap_or(header.version);
    if version != header.version {
        if version == 2 && (!plain || header.snapshots > 0) {
            return misuse("version 2 has no zero clusters, and snapshots are not searched for them");
        }
        header.set_version(version).map_err(|error| match error {
            quod_states::Error::Misuse(what) => Error::Misuse(what),
            other => host.error(&other),
        })?;
    }
    match change.lazy_refcounts {
        Some(true) if version == 2 => return misuse("version 2 has no lazy refcounts"),
        Some(lazy) if version == 3 => header.set_lazy_refcounts(lazy),
        _ => {}
    }
    header.clear_autoclear(BITMAPS | RAW_DATA_FILE);
    write_header(&mut host, &header.encode())
}

/// No cluster of the image itself says that it is zeros.
fn has_no_zeros(session: &mut Session) -> Result<bool, Error> {
    let (mut at, end) = (0, session.info().map_or(0, quod::DiskInfo::virtual_size));
    while at < end {
        let extent = session.map(0, at, end - at)?;
        if extent.status == Status::Zero {
            return Ok(false);
        }
        at += extent.len;
    }
    Ok(true)
}
