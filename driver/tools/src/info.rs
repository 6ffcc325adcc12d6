//! What is this file?
//!
//! Knows: headers as the machine reports them. Must never know: tables.

use crate::below::{Below, below};
use crate::host::Host;
use crate::luks::Luks;
use quod::Error;
use quod::{Named, Role};
use quod_states::qcow2::bitmap::{self, Bitmap};
use quod_states::qcow2::snapshot::{FIXED, Parsed, Snapshot};
use quod_states::qcow2::{self, Encryption, Purpose};
use quod_states::qed::Header;
use quod_states::{Format, Info};
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
    /// Where its chain goes on, or why that is not known; None: it has no backing file.
    pub below: Option<Result<Below, String>>,
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
    /// The LUKS header in it, if it is encrypted that way.
    pub luks: Option<Luks>,
}

/// Reads an image's header. `force_share`: without taking a lock, even if a writer has it open, which nobody
/// minds of a raw image. Encrypted images, and images whose backing file is of a format that quod does not
/// read, are told about though they cannot be opened.
pub fn info(path: impl AsRef<Path>, format: Option<Format>, force_share: bool) -> Result<ImageInfo, Error> {
    let path = path.as_ref();
    let mut host = match force_share {
        true => Host::open(path, false, false)?,
        false => Host::open_shared(path, format)?,
    };
    let format = format.map_or_else(|| host.probe(), Ok)?;
    let (mut table_size, mut qcow2) = (None, None);
    let info = match format {
        Format::Raw => Info::of_raw(host.len()),
        Format::Qed => {
            let header = read_qed(&mut host)?;
            let name = match header.backing_name() {
                Some((offset, len)) => Some(host.read(offset, len as usize)?),
                None => None,
            };
            table_size = Some(header.table_size);
            Info::of_qed(&header, name.as_deref())
        }
        Format::Qcow2 => {
            let facts = qcow2_info(&mut host)?;
            let info = Info::of_qcow2(&facts.header);
            qcow2 = Some(facts);
            info
        }
    };
    let backing =
        info.backing.as_ref().map(|backing| Named { image: path, name: &backing.name, role: Role::Backing });
    Ok(ImageInfo {
        path: path.to_path_buf(),
        format,
        file_len: host.len(),
        disk_size: disk_size(path)?,
        table_size,
        qcow2,
        backing_path: backing.and_then(|named| named.path()),
        below: info.backing.as_ref().map(|backing| below(path, backing)),
        info,
    })
}

fn read_qed(host: &mut Host) -> Result<Header, Error> {
    let block = host.head(4096)?;
    Header::parse(&block, host.len()).map_err(|error| Error::from_core(host.path(), &error))
}

/// Bytes that a file takes on the host.
pub(crate) fn disk_size(path: &Path) -> Result<u64, Error> {
    let facts = std::fs::metadata(path);
    let facts =
        facts.map_err(|error| Error::io(path, "examine", error.raw_os_error().unwrap_or(libc::EIO)))?;
    Ok(facts.blocks() * 512)
}

fn qcow2_info(host: &mut Host) -> Result<Qcow2Info, Error> {
    let path = host.path().to_path_buf();
    let ours = |error| Error::from_core(&path, &error);
    let header = read_qcow2(host, Purpose::Look)?;
    let luks = match header.encryption {
        Some(Encryption::Luks { offset, .. }) => Some(Luks::read(host, offset)?),
        Some(Encryption::Aes) | None => None,
    };
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
    Ok(Qcow2Info { header, snapshots, bitmaps, luks })
}

/// The header of a qcow2 image.
pub(crate) fn read_qcow2(host: &mut Host, purpose: Purpose) -> Result<qcow2::Header, Error> {
    let start = host.read(0, 512)?;
    let len = qcow2::Header::region(&start);
    let mut region = host.read(0, len)?;
    region.resize(len, 0);
    qcow2::Header::parse(&region, purpose).map_err(|error| Error::from_core(host.path(), &error))
}

/// The format of a file; what has no signature is raw, and what quod does not read an error.
pub fn probe(path: impl AsRef<Path>) -> Result<Format, Error> {
    Host::open(path.as_ref(), false, false)?.probe()
}
