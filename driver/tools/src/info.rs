//! What is this file?
//!
//! Knows: headers as the machine reports them. Must never know: tables.

use crate::below::{Below, below};
use crate::host::Host;
use crate::luks::Luks;
use quod::{Error, FileOp, FileRole, Named, Role};
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
    /// What its header says, as the driver tells it of an open disk.
    pub info: Info,
    /// What only qcow2 has: of each image whose `info.format` is that, and of no other.
    pub qcow2: Option<Box<Qcow2Info>>,
    /// Length of the file, bytes.
    pub file_len: u64,
    /// It is a block device.
    pub is_device: bool,
    /// Bytes that it takes on the host.
    pub disk_size: u64,
    /// The file that its backing name leads to, if it is a file's name. See [`Named::path`].
    pub backing_path: Option<PathBuf>,
    /// Where its chain goes on, or why that is not known; None: it has no backing file.
    pub below: Option<Result<Below, String>>,
}

/// What a qcow2 image says about itself beyond the common facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qcow2Info {
    /// Refcounts may be postponed while the dirty bit is set.
    pub lazy_refcounts: bool,
    /// Bits of a refcount.
    pub refcount_bits: u64,
    /// Somebody found it corrupt, and nobody has repaired it.
    pub corrupt: bool,
    /// L2 entries of 128 bits: clusters have subclusters.
    pub extended_l2: bool,
    /// The name of a data file, as it stands in the image.
    pub data_file_name: Option<Vec<u8>>,
    /// How it is encrypted.
    pub encryption: Option<Encryption>,
    /// Bytes at the end of the disk that no guest sees: less than a sector.
    pub not_shown: u64,
    /// Where QEMU keeps the state of a virtual machine: behind the disk, at the first L2 table of its own.
    pub vm_state_offset: u64,
    /// Its internal snapshots.
    pub snapshots: Vec<Snapshot>,
    /// Its persistent bitmaps.
    pub bitmaps: Vec<Bitmap>,
    /// The LUKS header in it, if it is encrypted that way.
    pub luks: Option<Luks>,
}

/// Reads an image's header, and of qcow2 its snapshot table and bitmap directory; no tables, and no backing
/// file. `format` None: probed. `force_share`: without taking a lock, even if a writer has it open, which
/// nobody minds of a raw image. Encrypted images, and images whose backing file is of a format that quod does
/// not read, are told about though they cannot be opened.
///
/// ```
/// use quod::Format;
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// let image = quod_tools::info(&path, None, false)?;
/// assert_eq!((image.info.format, image.info.virtual_size), (Format::Qcow2, 1 << 30));
/// assert_eq!(image.qcow2.map(|facts| (facts.refcount_bits, facts.corrupt)), Some((16, false)));
/// assert!(image.backing_path.is_none() && image.disk_size < 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ErrorKind::Foreign`](quod::ErrorKind::Foreign) for a format that quod does not read
/// ([`foreign`](crate::foreign) tells of it), [`ErrorKind::Corrupt`](quod::ErrorKind::Corrupt) and
/// [`ErrorKind::Unsupported`](quod::ErrorKind::Unsupported) for what its header says,
/// [`ErrorKind::Locked`](quod::ErrorKind::Locked), and what the host refuses.
pub fn info(path: impl AsRef<Path>, format: Option<Format>, force_share: bool) -> Result<ImageInfo, Error> {
    let path = path.as_ref();
    let mut host = match force_share {
        true => Host::open(path, false, false)?,
        false => Host::open_shared(path, format)?,
    };
    let format = format.map_or_else(|| host.probe(), Ok)?;
    let (info, qcow2) = match format {
        Format::Raw => (Info::of_raw(host.len()), None),
        Format::Qed => {
            let header = read_qed(&mut host)?;
            let name = match header.backing_name() {
                Some((offset, len)) => Some(host.read(offset, len as usize)?),
                None => None,
            };
            (Info::of_qed(&header, name.as_deref()), None)
        }
        Format::Qcow2 => {
            let header = read_qcow2(&mut host, Purpose::Look)?;
            (Info::of_qcow2(&header), Some(Box::new(qcow2_info(&mut host, &header)?)))
        }
    };
    let backing =
        info.backing.as_ref().map(|backing| Named { image: path, name: &backing.name, role: Role::Backing });
    Ok(ImageInfo {
        path: path.to_path_buf(),
        qcow2,
        file_len: host.len(),
        is_device: host.is_device(),
        disk_size: disk_size(path)?,
        backing_path: backing.and_then(|named| named.path()),
        below: info.backing.as_ref().map(|backing| below(path, backing)),
        info,
    })
}

fn read_qed(host: &mut Host) -> Result<Header, Error> {
    let block = host.head(4096)?;
    Header::parse(&block, host.len()).map_err(|error| host.error(&error))
}

/// Bytes that a file takes on the host.
pub(crate) fn disk_size(path: &Path) -> Result<u64, Error> {
    let facts = std::fs::metadata(path);
    let facts = facts.map_err(|error| {
        Error::io(path, FileRole::Image, FileOp::Examine, error.raw_os_error().unwrap_or(libc::EIO))
    })?;
    Ok(facts.blocks() * 512)
}

fn qcow2_info(host: &mut Host, header: &qcow2::Header) -> Result<Qcow2Info, Error> {
    let path = host.path().to_path_buf();
    let ours = |error| Error::from_core(&path, FileRole::Image, &error);
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
                Parsed::Needs(_) => {
                    return Err(Error::io(&path, FileRole::Image, FileOp::ReadSnapshots, libc::EIO));
                }
            }
        };
        snapshots.push(snapshot);
        at += size as u64;
    }
    let bitmaps = directory(host, header)?;
    let (shape, guest_size) = (header.shape(), header.guest_size());
    Ok(Qcow2Info {
        lazy_refcounts: header.lazy_refcounts(),
        refcount_bits: 1 << header.refcount_order,
        corrupt: header.is_corrupt(),
        extended_l2: shape.extended,
        data_file_name: header.data_file().map(<[u8]>::to_vec),
        encryption: header.encryption,
        not_shown: header.size.saturating_sub(guest_size),
        vm_state_offset: guest_size.next_multiple_of(shape.l2_entries() << shape.cluster_bits),
        snapshots,
        bitmaps,
        luks,
    })
}

/// The image's persistent bitmaps; none, if nobody keeps them up.
pub(crate) fn directory(host: &mut Host, header: &qcow2::Header) -> Result<Vec<Bitmap>, Error> {
    let Some(list) = header.bitmaps() else { return Ok(Vec::new()) };
    let directory = host.read(list.directory_offset, list.directory_size as usize)?;
    let bitmaps = bitmap::parse_directory(&directory, list.count, header.shape(), header.guest_size());
    bitmaps.map_err(|error| host.error(&error))
}

/// The header of a qcow2 image.
pub(crate) fn read_qcow2(host: &mut Host, purpose: Purpose) -> Result<qcow2::Header, Error> {
    let start = host.read(0, 512)?;
    let len = qcow2::Header::region(&start);
    let mut region = host.read(0, len)?;
    region.resize(len, 0);
    qcow2::Header::parse(&region, purpose).map_err(|error| host.error(&error))
}

/// The format of a file; what has no signature is raw.
///
/// # Errors
/// [`ErrorKind::Foreign`](quod::ErrorKind::Foreign) for what quod does not read, and what the host says.
pub fn probe(path: impl AsRef<Path>) -> Result<Format, Error> {
    Host::open(path.as_ref(), false, false)?.probe()
}
