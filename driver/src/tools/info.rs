//! What is this file?
//!
//! Knows: headers as the machine reports them. Must never know: tables.

use super::host::Host;
use crate::error::Error;
use crate::gate::{Named, Role};
use quod_states::qcow2::bitmap::{self, Bitmap};
use quod_states::qcow2::snapshot::{FIXED, Parsed, Snapshot};
use quod_states::qcow2::{self, Purpose};
use quod_states::qed::Header;
use quod_states::{Format, Info, Opening, Options};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Facts about an image file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageInfo {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// What its header says.
    pub info: Info,
    /// Length of the file, bytes.
    pub file_len: u64,
    /// Bytes that it takes on the host.
    pub disk_size: u64,
    /// QED: clusters of a table.
    pub table_size: Option<u32>,
    /// qcow2: what only it has.
    pub qcow2: Option<Qcow2Info>,
    /// The file that its backing name leads to, if it is a file's name. See [`Named::path`].
    pub backing_path: Option<PathBuf>,
}

/// What a qcow2 image says about itself beyond the common facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qcow2Info {
    /// Its header.
    pub header: qcow2::Header,
    /// Its internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Its persistent bitmaps.
    pub bitmaps: Vec<Bitmap>,
}

/// Reads an image's header. `force_share`: without taking a lock, even if a writer has it open, which nobody
/// minds of a raw image.
pub fn info(path: impl AsRef<Path>, format: Option<Format>, force_share: bool) -> Result<ImageInfo, Error> {
    let path = path.as_ref();
    let mut host = match force_share {
        true => Host::open(path, false, false)?,
        false => Host::open_shared(path, format)?,
    };
    let options =
        Options { requests: 1, acbs: 1, cache_bytes: 64 << 10, read_only: true, ..Options::default() };
    let mut opening = Opening::new(format, host.len(), options);
    let opened = host.pump(&mut opening, Opening::poll_result)?;
    let info = opened.map_err(|error| Error::from_core(path, &error))?.info;
    let table_size = match info.format {
        Format::Qed => Header::parse(&host.read(0, 4096)?, host.len()).ok().map(|header| header.table_size),
        Format::Raw | Format::Qcow2 => None,
    };
    let qcow2 = match info.format {
        Format::Qcow2 => Some(qcow2_info(&mut host)?),
        Format::Raw | Format::Qed => None,
    };
    let blocks = std::fs::metadata(path)
        .map_err(|error| Error::io(path, "examine", error.raw_os_error().unwrap_or(libc::EIO)))?
        .blocks();
    let backing =
        info.backing.as_ref().map(|backing| Named { image: path, name: &backing.name, role: Role::Backing });
    Ok(ImageInfo {
        path: path.to_path_buf(),
        format: info.format,
        file_len: host.len(),
        disk_size: blocks * 512,
        table_size,
        qcow2,
        backing_path: backing.and_then(|named| named.path()),
        info,
    })
}

fn qcow2_info(host: &mut Host) -> Result<Qcow2Info, Error> {
    let path = host.path().to_path_buf();
    let ours = |error| Error::from_core(&path, &error);
    let header = read_qcow2(host, Purpose::Read)?;
    let mut snapshots = Vec::new();
    let mut at = header.snapshots_offset;
    for index in 0..u64::from(header.snapshots) {
        let mut len = FIXED;
        let (snapshot, size) = loop {
            match Snapshot::parse(&host.read(at, len)?, index, false).map_err(ours)? {
                Parsed::Entry(snapshot, size) => break (snapshot, size),
                Parsed::Needs(more) if more > len => len = more,
                Parsed::Needs(_) => return Err(Error::io(&path, "read the snapshot table", libc::EIO)),
            }
        };
        snapshots.push(snapshot);
        at += size as u64;
    }
    let bitmaps = match header.bitmaps() {
        Some(list) => {
            let directory = host.read(list.directory_offset, list.directory_size as usize)?;
            bitmap::parse_directory(&directory, list.count, header.shape(), header.guest_size())
                .map_err(ours)?
        }
        None => Vec::new(),
    };
    Ok(Qcow2Info { header, snapshots, bitmaps })
}

/// The header of a qcow2 image.
pub(super) fn read_qcow2(host: &mut Host, purpose: Purpose) -> Result<qcow2::Header, Error> {
    let start = host.read(0, 512)?;
    let len = qcow2::Header::region(&start);
    let mut region = host.read(0, len)?;
    region.resize(len, 0);
    qcow2::Header::parse(&region, purpose).map_err(|error| Error::from_core(host.path(), &error))
}

/// The format of a file; what is no known image is raw.
pub fn probe(path: impl AsRef<Path>) -> Result<Format, Error> {
    Host::open(path.as_ref(), false, false)?.probe()
}
