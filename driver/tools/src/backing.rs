//! Changes the backing file that an existing image names.
//!
//! Knows: the order of writes that leaves the old name or the new one. Must never know: whether a file of
//! that name is there, or what is in it.
//! Invariant: a QED image that was not closed cleanly is in order before its header is touched.

use crate::check::run;
use crate::create::NAME_AT;
use crate::host::{Host, unsupported};
use crate::info::read_qcow2;
use quod::{Error, Lack};
use quod_states::qcow2::Purpose;
use quod_states::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use quod_states::qed::Header;
use quod_states::{Format, Repair};
use std::path::Path;

/// Changes (or with None removes) the backing file that an image names. The guest's data is not touched. A
/// QED image that was not closed cleanly is checked and repaired first. Neither backing file is opened.
///
/// # Errors
/// [`Lack::Rebase`] for raw images, [`Lack::RebaseDamaged`], a name that does not fit the header, and what
/// the host says.
pub fn set_backing(path: impl AsRef<Path>, backing: Option<(&str, Option<Format>)>) -> Result<(), Error> {
    set_backing_as(path, None, backing)
}

/// The same of an image of this format; None: probed.
///
/// # Errors
/// As of [`set_backing`].
pub fn set_backing_as(
    path: impl AsRef<Path>,
    format: Option<Format>,
    backing: Option<(&str, Option<Format>)>,
) -> Result<(), Error> {
    let backing = backing.map(|(name, format)| (name, format.map(Format::name)));
    set_backing_named(path, format, backing)
}

/// The same with the name of a format that need not be one of quod's: the image cannot be opened with what is
/// below it then, but by programs that know it.
///
/// # Errors
/// As of [`set_backing`].
pub fn set_backing_named(
    path: impl AsRef<Path>,
    format: Option<Format>,
    backing: Option<(&str, Option<&str>)>,
) -> Result<(), Error> {
    let path = path.as_ref();
    let mut host = Host::open(path, true, true)?;
    match format.map_or_else(|| host.probe(), Ok)? {
        Format::Qed => of_qed(&mut host, backing),
        Format::Qcow2 => of_qcow2(&mut host, backing),
        Format::Raw => Err(unsupported(path, Lack::Rebase(Format::Raw))),
    }
}

/// Bytes that a device writes whole.
const SECTOR: usize = 512;

fn of_qcow2(host: &mut Host, backing: Option<(&str, Option<&str>)>) -> Result<(), Error> {
    let mut header = read_qcow2(host, Purpose::Write)?;
    let name = backing.map(|(name, _)| name.as_bytes());
    let format = backing.and_then(|(_, format)| format).map(str::as_bytes);
    header.move_backing(name, format).map_err(|error| host.error(&error))?;
    // the guest's data stays what it is, and so do the bitmaps
    header.clear_autoclear(BITMAPS | RAW_DATA_FILE);
    let block = header.encode();
    match name {
        Some(_) => write_header(host, &block),
        // what is behind does not change
        None => {
            host.write(0, &block[..block.len().min(SECTOR)])?;
            host.sync()
        }
    }
}

/// Writes a header whose first sector leads to what is behind it: that comes first.
pub(crate) fn write_header(host: &mut Host, block: &[u8]) -> Result<(), Error> {
    if block.len() > SECTOR {
        host.write(SECTOR as u64, &block[SECTOR..])?;
        host.sync()?;
    }
    host.write(0, &block[..block.len().min(SECTOR)])?;
    host.sync()
}

fn of_qed(host: &mut Host, backing: Option<(&str, Option<&str>)>) -> Result<(), Error> {
    let path = host.path().to_path_buf();
    let (mut header, _) = read_header(host)?;
    if header.need_check() {
        let report = run(host, header, Some(Repair::All))?;
        if !report.is_sound() {
            return Err(unsupported(&path, Lack::RebaseDamaged));
        }
        header = read_header(host)?.0;
    }
    let raw = backing.is_some_and(|(_, format)| format == Some(Format::Raw.name()));
    let name = backing.map(|(name, _)| name.as_bytes());
    header.set_backing(name, raw).map_err(|error| host.error(&error))?;
    if header.autoclear_features != 0 {
        // before anything else
        let (mut before, _) = read_header(host)?;
        header.autoclear_features = 0;
        before.autoclear_features = 0;
        host.write(0, &before.encode())?;
        host.sync()?;
    }
    if let Some(name) = name {
        host.write(NAME_AT as u64, name)?;
        host.sync()?;
    }
    host.write(0, &header.encode())?;
    host.sync()
}

/// The header of a QED image, and the block that it stands in.
fn read_header(host: &mut Host) -> Result<(Header, Vec<u8>), Error> {
    let block = host.read(0, 4096)?;
    let header = Header::parse(&block, host.len()).map_err(|error| host.error(&error))?;
    Ok((header, block))
}
