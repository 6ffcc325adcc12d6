//! Makes images, and changes the backing name of an existing one.
//!
//! Knows: what stands where in a new image. Must never know: how it is used later.
//! Invariant: a file that somebody else uses is not touched: the write lock comes first.

use super::host::Host;
use crate::error::Error;
use quod_states::qed::{self, Header};
use quod_states::{Format, Repair};
use std::path::Path;

/// Where the backing file's name stands: behind the header's fields.
const NAME_AT: usize = 64;

/// What to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Format.
    pub format: Format,
    /// Size of the guest disk, bytes.
    pub size: u64,
    /// Bytes of a cluster; None: 64 KiB.
    pub cluster_size: Option<u32>,
    /// QED: clusters of a table; None: 4.
    pub table_size: Option<u32>,
    /// Backing file: its name as it will stand in the image, and its format (None: probed at each open).
    pub backing: Option<(String, Option<Format>)>,
}

impl CreateOptions {
    /// An image of this format and guest size, everything else by default.
    pub fn new(format: Format, size: u64) -> CreateOptions {
        CreateOptions { format, size, cluster_size: None, table_size: None, backing: None }
    }
}

/// Creates (or overwrites) an image. The caller decides whether it must be durable.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<(), Error> {
    let path = path.as_ref();
    match options.format {
        Format::Raw if options.backing.is_some() => Err(Error::Misuse("a raw image has no backing file")),
        Format::Raw => {
            let mut host = fresh(path)?;
            host.set_len(options.size)
        }
        Format::Qed => create_qed(path, options),
        Format::Qcow2 => Err(unsupported(path, "creating qcow2 images")),
    }
}

/// An empty file, locked for writing.
fn fresh(path: &Path) -> Result<Host, Error> {
    // the backend never creates files
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io(path, "create", error.raw_os_error().unwrap_or(libc::EIO)))?;
    let mut host = Host::open(path, true, true)?;
    host.set_len(0)?;
    Ok(host)
}

fn create_qed(path: &Path, options: &CreateOptions) -> Result<(), Error> {
    let backing = options.backing.as_ref();
    let header = Header::create(&qed::CreateOptions {
        size: options.size,
        cluster_size: options.cluster_size.unwrap_or(64 << 10),
        table_size: options.table_size.unwrap_or(4),
        backing: backing.map(|(name, _)| name.as_bytes()),
        backing_raw: backing.is_some_and(|(_, format)| *format == Some(Format::Raw)),
    })
    .map_err(|error| Error::from_core(path, &error))?;
    let mut start = header.encode().to_vec();
    debug_assert_eq!(start.len(), NAME_AT);
    start.extend(backing.map_or(&b""[..], |(name, _)| name.as_bytes()));
    let mut host = fresh(path)?;
    host.set_len(header.l1_table_offset + header.table_bytes())?;
    host.write(0, &start)
}

/// Changes (or with None removes) the backing file that an image names. The guest's data is not touched. An
/// image that was not closed cleanly is checked and repaired first.
pub fn set_backing(path: impl AsRef<Path>, backing: Option<(&str, Option<Format>)>) -> Result<(), Error> {
    let path = path.as_ref();
    let mut host = Host::open(path, true, true)?;
    let (mut header, _) = read_header(&mut host)?;
    if header.need_check() {
        let report = super::check::run(&mut host, header, Some(Repair::All))?;
        if !report.is_sound() {
            return Err(unsupported(path, "changing the backing file of a damaged image"));
        }
        header = read_header(&mut host)?.0;
    }
    let raw = backing.is_some_and(|(_, format)| format == Some(Format::Raw));
    let name = backing.map(|(name, _)| name.as_bytes());
    header.set_backing(name, raw).map_err(|error| Error::from_core(path, &error))?;
    if let Some(name) = name {
        host.write(NAME_AT as u64, name)?;
        host.sync()?;
    }
    host.write(0, &header.encode())?;
    host.sync()
}

/// The header of a QED image, and the block that it stands in.
pub(super) fn read_header(host: &mut Host) -> Result<(Header, Vec<u8>), Error> {
    let block = host.read(0, 4096)?;
    match Format::probe(&block) {
        Format::Qed => {
            let header =
                Header::parse(&block, host.len()).map_err(|error| Error::from_core(host.path(), &error))?;
            Ok((header, block))
        }
        other => Err(unsupported(host.path(), &format!("this for the format {}", other.name()))),
    }
}

pub(super) fn unsupported(path: &Path, what: &str) -> Error {
    Error::Unsupported { path: path.to_path_buf(), what: what.to_string() }
}
