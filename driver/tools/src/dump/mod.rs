//! An image's metadata as text: what it says, where it stands, and what is wrong with it.
//!
//! Knows: which format has its own teller. Must never know: guest data, command lines.
//!
//! Invariants:
//! * nothing is written to the image; what is damaged is told and never stops the rest;
//! * tables are read in pieces: memory does not grow with the image (but for at most 8 MiB of refcount table,
//!   and sets of a million offsets);
//! * tables are told as far as the file goes, so the text is bounded by the file.

use crate::host::Host;
use quod::Format;
use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

mod counts;
mod header;
mod places;
mod qcow2;
mod qed;
mod records;
mod telling;
pub(crate) mod text;
mod words;

use telling::Telling;
use text::Text;

pub use telling::DumpError;

/// The text's first line. [`restore`](crate::restore) reads no other version.
pub(crate) const FIRST_LINE: &str = "quod dump 1";

/// Tells an image's metadata as text: header, tables, and of qcow2 refcounts, snapshots and bitmaps; what is
/// wrong stands where it is, behind `# !`. Returns how often that is. No guest data is read, and no other
/// file. `format` None: probed; an image whose header is damaged needs to be called by its format.
/// `force_share`: as for [`info`](crate::info). `stop` is asked between reads: true ends with
/// [`Error::Cancelled`](quod::Error::Cancelled).
///
/// ```
/// use quod::Format;
/// # use quod_tools::{CreateOptions, RestoreOptions, create};
/// # use std::os::unix::fs::FileExt;
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// let mut text = Vec::new();
/// let faults = quod_tools::dump(&path, None, false, || false, &mut text)?;
/// assert!(faults == 0 && text.starts_with(b"quod dump 1\nformat qcow2\n"));
///
/// // somebody overwrites the refcount table
/// let file = std::fs::File::options().write(true).open(&path)?;
/// file.write_all_at(&[7; 4096], 1 << 16)?;
/// assert!(quod_tools::dump(&path, None, false, || false, &mut Vec::new())? > 0);
///
/// let done = quod_tools::restore(&path, &mut text.as_slice(), RestoreOptions::default())?;
/// assert_eq!((done.bytes, done.places), (4096, 1));
/// assert!(quod_tools::check(&path, None, None)?.is_sound());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What the host refuses, a raw image, and what the text's writer refuses. Never what the image says.
pub fn dump(
    path: impl AsRef<Path>,
    format: Option<Format>,
    force_share: bool,
    stop: fn() -> bool,
    to: &mut dyn Write,
) -> Result<u64, DumpError> {
    let mut host = match force_share {
        true => Host::open(path.as_ref(), false, false)?,
        false => Host::open_shared(path.as_ref(), format)?,
    };
    host.stop = stop;
    let format = format.map_or_else(|| host.probe(), Ok)?;
    let mut text = Text::new(to);
    let name = match format {
        Format::Raw => return Err(DumpError::Raw),
        Format::Qed => "qed",
        Format::Qcow2 => "qcow2",
    };
    text.line(FIRST_LINE)?;
    text.line(&format!("format {name}"))?;
    text.line(&format!("length {}", host.len()))?;
    let mut telling = Telling { host, text: &mut text, known: HashSet::new() };
    match format {
        Format::Qed => qed::tell(&mut telling)?,
        _ => qcow2::tell(&mut telling)?,
    }
    text.line("")?;
    let faults = text.faults;
    text.remark(&match faults {
        0 => "nothing that is told contradicts itself".to_string(),
        1 => "1 thing is wrong".to_string(),
        faults => format!("{faults} things are wrong"),
    })?;
    text.line("end")?;
    Ok(faults)
}
