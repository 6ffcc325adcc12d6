//! Changes the backing file that an existing image names.
//!
//! Knows: the order of writes that leaves the old name or the new one. Must never know: whether a file of
//! that name is there, or what is in it.
//! Invariant: an image that was not closed cleanly is in order before its header is touched.

use crate::check::run;
use crate::create::NAME_AT;
use crate::host::{Host, unsupported};
use quod::{Error, Lack};
use quod_states::qed::Header;
use quod_states::{Format, Repair};
use std::path::Path;

/// Changes (or with None removes) the backing file that an image names. The guest's data is not touched. An
/// image that was not closed cleanly is checked and repaired first. Neither backing file is opened.
///
/// # Errors
/// [`Lack::Rebase`] for all formats but QED, [`Lack::RebaseDamaged`], a name that does not fit the header,
/// and what the host says.
pub fn set_backing(path: impl AsRef<Path>, backing: Option<(&str, Option<Format>)>) -> Result<(), Error> {
    let path = path.as_ref();
    let mut host = Host::open(path, true, true)?;
    let (mut header, _) = read_header(&mut host)?;
    if header.need_check() {
        let report = run(&mut host, header, Some(Repair::All))?;
        if !report.is_sound() {
            return Err(unsupported(path, Lack::RebaseDamaged));
        }
        header = read_header(&mut host)?.0;
    }
    let raw = backing.is_some_and(|(_, format)| format == Some(Format::Raw));
    let name = backing.map(|(name, _)| name.as_bytes());
    header.set_backing(name, raw).map_err(|error| host.error(&error))?;
    if header.autoclear_features != 0 {
        // before anything else
        let (mut before, _) = read_header(&mut host)?;
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
    match host.probe()? {
        Format::Qed => {
            let header = Header::parse(&block, host.len()).map_err(|error| host.error(&error))?;
            Ok((header, block))
        }
        other => Err(unsupported(host.path(), Lack::Rebase(other))),
    }
}
