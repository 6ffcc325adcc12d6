//! Makes images.
//!
//! Knows: what stands where in a new image. Must never know: how it is used later.
//! Invariant: a file that somebody else uses is not touched: the write lock comes first.

use crate::host::{Host, unsupported};
use quod::{Error, ErrorKind, FileOp, FileRole, Lack, Named, Role};
use quod_states::Format;
use quod_states::qcow2::{self, Compression, Preallocation};
use quod_states::qed::{self, Header};
use std::path::{Path, PathBuf};

/// Where a QED image's backing name stands: behind the header's fields.
pub(crate) const NAME_AT: usize = 64;

/// QEMU's, since 5.1.
const EXTENT_SIZE_HINT: u32 = 1 << 20;

/// What to create.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateOptions {
    /// Format.
    pub format: Format,
    /// Size of the guest disk, bytes: a multiple of 512, but for raw, up to what the tables reach.
    pub size: u64,
    /// Bytes of a cluster, a power of two; None: 64 KiB. QED: 4 KiB to 64 MiB; qcow2: 512 bytes to 2 MiB.
    /// Raw has none.
    pub cluster_size: Option<u32>,
    /// QED: clusters of a table, a power of two from 1 to 16; None: 4.
    pub table_size: Option<u32>,
    /// Backing file: its name as it will stand in the image, and its format (None: probed at each open).
    pub backing: Option<(String, Option<Format>)>,
    /// What the host's file system allocates for the file at once, bytes, where it can be told that (XFS);
    /// default 1 MiB, as qemu-img has it; 0: what the file system wants. A raw image whose guest writes a
    /// little here and there takes more space by that, and grows more than twice as fast.
    pub extent_size_hint: u32,
    /// qcow2: what only it has.
    pub qcow2: Qcow2Options,
}

impl CreateOptions {
    /// An image of this format and guest size, everything else by default.
    pub fn new(format: Format, size: u64) -> CreateOptions {
        let qcow2 = Qcow2Options::default();
        let (cluster_size, table_size, backing) = (None, None, None);
        let extent_size_hint = EXTENT_SIZE_HINT;
        CreateOptions { format, size, cluster_size, table_size, backing, extent_size_hint, qcow2 }
    }
}

/// What only a qcow2 image can be. The default is qemu-img's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Qcow2Options {
    /// 2 (compat=0.10) or 3 (compat=1.1); default 3.
    pub version: u32,
    /// Bits of a refcount: a power of two from 1 to 64; default 16, which is all that version 2 has.
    pub refcount_bits: u32,
    /// Refcounts may be postponed while the dirty bit is set; default off, version 3 alone.
    pub lazy_refcounts: bool,
    /// L2 entries of 128 bits: 32 subclusters each; default off, version 3 alone, clusters of 16 KiB and
    /// more.
    pub extended_l2: bool,
    /// For compressed clusters; default [`Compression::Deflate`](quod::Compression::Deflate).
    pub compression: Compression,
    /// The file that guest data goes to: it is made, or overwritten. A relative name is one from the working
    /// directory, now and whenever the image is opened, as for QEMU. A `file:` in front does not come to
    /// stand in the image.
    pub data_file: Option<String>,
    /// The data file alone shall be a valid raw image; default off.
    pub data_file_raw: bool,
    /// What exists from the start; default nothing but the header and the first tables.
    pub preallocation: Preallocation,
}

impl Default for Qcow2Options {
    fn default() -> Qcow2Options {
        let qcow2::CreateOptions { version, refcount_bits, lazy_refcounts, extended_l2, .. } =
            qcow2::CreateOptions::default();
        Qcow2Options {
            version,
            refcount_bits,
            lazy_refcounts,
            extended_l2,
            compression: Compression::Deflate,
            data_file: None,
            data_file_raw: false,
            preallocation: Preallocation::Off,
        }
    }
}

/// Creates (or overwrites) an image. It is not synced: the caller decides whether it must be durable. A
/// backing file is named, and not looked at.
///
/// ```
/// use quod::{Error, Format};
/// use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("base.qcow2");
/// # let top = folder.path().join("top.qcow2");
/// create(&path, &CreateOptions::new(Format::Qcow2, 20 << 30))?;
/// assert!(std::fs::metadata(&path)?.len() < 200 << 10); // a header, three tables
///
/// let mut options = CreateOptions::new(Format::Qcow2, 20 << 30);
/// options.backing = Some(("base.qcow2".into(), Some(Format::Qcow2))); // beside it
/// options.qcow2.extended_l2 = true; // copies on write are of 4 KiB then, not 64
/// options.cluster_size = Some(128 << 10);
/// create(&top, &options)?;
///
/// options.cluster_size = Some(96 << 10); // no power of two: nothing has happened to `top`
/// let error = create(&top, &options).unwrap_err();
/// assert!(matches!(error, Error::Misuse(_)), "{error}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Options that contradict each other, and sizes that the format cannot have, leave what was there before:
/// [`ErrorKind::Corrupt`](quod::ErrorKind::Corrupt) with a `Fault::New`, [`Error::Misuse`], or
/// [`ErrorKind::Unsupported`](quod::ErrorKind::Unsupported). So does a file that somebody else has locked
/// ([`ErrorKind::Locked`](quod::ErrorKind::Locked)). After that the old file is gone: what the host refuses
/// then (no space, an error of the device) leaves no image (qcow2), or an empty one.
pub fn create(path: impl AsRef<Path>, options: &CreateOptions) -> Result<(), Error> {
    create_until(path, options, || false)
}

/// As [`create`]; `stop` is asked between two operations, for a signal's flag or the like.
///
/// # Errors
/// As of [`create`]. If `stop` answers true what was made is removed, and the answer is [`Error::Cancelled`].
pub fn create_until(
    path: impl AsRef<Path>,
    options: &CreateOptions,
    stop: fn() -> bool,
) -> Result<(), Error> {
    let path = path.as_ref();
    match options.format {
        Format::Raw if options.backing.is_some() => Err(Error::Misuse("a raw image has no backing file")),
        Format::Raw => {
            let mut host = fresh(path, FileRole::Image, options.extent_size_hint)?;
            // a device keeps what it has
            room(&mut host, options.size)
        }
        Format::Qed => create_qed(path, options),
        Format::Qcow2 => create_qcow2(path, options, stop),
    }
}

/// A device, or an empty file, locked for writing.
fn fresh(path: &Path, role: FileRole, extent_size_hint: u32) -> Result<Host, Error> {
    // the backend never creates files
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io(path, role, FileOp::Create, error.raw_os_error().unwrap_or(libc::EIO)))?;
    let mut host = Host::open_as(role, path, true, true)?;
    if !host.is_device() {
        host.set_len(0)?;
        if extent_size_hint > 0 {
            host.hint_extents(extent_size_hint)?;
        }
    }
    Ok(host)
}

/// Makes the file so long; a device has to be.
fn room(host: &mut Host, needs: u64) -> Result<(), Error> {
    match host.len() {
        _ if !host.is_device() => host.set_len(needs),
        has if has < needs => Err(host.fault(ErrorKind::DeviceTooSmall { has, needs })),
        _ => Ok(()),
    }
}

/// Makes the file so long, with nothing in it. A device holds what it held: it is zeroed, durably, before
/// anything of an image is written, so that no old table is taken for ours.
fn blank(host: &mut Host, len: u64, mode: Preallocation) -> Result<(), Error> {
    room(host, len)?;
    if host.is_device() {
        // what is reserved stays so
        host.zero(0, len, matches!(mode, Preallocation::Off | Preallocation::Metadata))?;
        host.sync()?;
    }
    Ok(())
}

/// The header of a new QED image.
pub(crate) fn plan_qed(path: &Path, options: &CreateOptions) -> Result<Header, Error> {
    let backing = options.backing.as_ref();
    Header::create(&qed::CreateOptions {
        size: options.size,
        cluster_size: options.cluster_size.unwrap_or(64 << 10),
        table_size: options.table_size.unwrap_or(4),
        backing: backing.map(|(name, _)| name.as_bytes()),
        backing_raw: backing.is_some_and(|(_, format)| *format == Some(Format::Raw)),
    })
    .map_err(|error| Error::from_core(path, FileRole::Image, &error))
}

fn create_qed(path: &Path, options: &CreateOptions) -> Result<(), Error> {
    let header = plan_qed(path, options)?;
    let mut start = header.encode().to_vec();
    debug_assert_eq!(start.len(), NAME_AT);
    start.extend(options.backing.as_ref().map_or(&b""[..], |(name, _)| name.as_bytes()));
    let mut host = fresh(path, FileRole::Image, options.extent_size_hint)?;
    blank(&mut host, header.l1_table_offset + header.table_bytes(), Preallocation::Off)?;
    host.write(0, &start)
}

/// A new qcow2 image, planned. `data`: the name of its data file.
pub(crate) fn plan_qcow2(
    path: &Path,
    options: &CreateOptions,
    data: Option<&str>,
    preallocation: Preallocation,
) -> Result<qcow2::Created, Error> {
    let own = &options.qcow2;
    let backing = options.backing.as_ref();
    qcow2::create(&qcow2::CreateOptions {
        size: options.size,
        version: own.version,
        cluster_size: options.cluster_size.unwrap_or(64 << 10),
        refcount_bits: own.refcount_bits,
        lazy_refcounts: own.lazy_refcounts,
        extended_l2: own.extended_l2,
        compression: own.compression,
        backing: backing.map(|(name, _)| name.as_bytes()),
        backing_format: backing.and_then(|(_, format)| *format).map(|format| format.name().as_bytes()),
        data_file: data.map(str::as_bytes),
        data_file_raw: own.data_file_raw,
        preallocation,
    })
    .map_err(|error| match error {
        // nothing was written: it is the header that has no room
        quod_states::Error::NoSpace => Error::Misuse("the backing file's name does not fit the header"),
        other => Error::from_core(path, FileRole::Image, &other),
    })
}

fn create_qcow2(path: &Path, options: &CreateOptions, stop: fn() -> bool) -> Result<(), Error> {
    let own = &options.qcow2;
    let data = own.data_file.as_deref().map(|name| data_name(path, name)).transpose()?;
    let image = plan_qcow2(path, options, data.as_deref(), own.preallocation)?;
    let mut host = fresh(path, FileRole::Image, options.extent_size_hint)?;
    host.stop = stop;
    let mut files = vec![path.to_path_buf()];
    let data = data.map(|path| (PathBuf::from(path), own.data_file_raw));
    let result = write_qcow2(&mut host, data, &mut files, &image, own.preallocation);
    if result.is_err() {
        // half an image is of no use to anybody; what it overwrote is gone already. A device stays
        for file in files.iter().filter(|file| file.is_file()) {
            let _ = std::fs::remove_file(file);
        }
    }
    result
}

/// The name of the data file as it stands in the image, which is its path too.
fn data_name(image: &Path, name: &str) -> Result<String, Error> {
    // on a command line, unlike in an image, it is read as a backing file's name is
    let named = |name| Named { image: Path::new(""), name, role: Role::Backing };
    let path = named(name.as_bytes())
        .path()
        .ok_or_else(|| unsupported(image, Lack::DataFileName(name.to_string())))?;
    if path == image {
        return Err(Error::Misuse("an image is not its own data file"));
    }
    let plain = name.strip_prefix("file:").unwrap_or(name);
    // what reads it as a command line does shall find it too
    let plain_leads_there = named(plain.as_bytes()).path().is_some();
    Ok(if plain_leads_there { plain.to_string() } else { format!("./{plain}") })
}

/// Writes the pieces of a new image, and its data file (`data`: its path, and whether it is a raw image,
/// too). `files` gets what was made.
fn write_qcow2(
    host: &mut Host,
    data: Option<(PathBuf, bool)>,
    files: &mut Vec<PathBuf>,
    image: &qcow2::Created,
    mode: Preallocation,
) -> Result<(), Error> {
    if let (Some((path, raw)), Some(len)) = (data, image.data_file_len()) {
        let mut data = fresh(&path, FileRole::Data, EXTENT_SIZE_HINT)?;
        data.stop = host.stop;
        files.push(path);
        if data.is_device() {
            // what is mapped, or read past the image, reads as zeros; the rest is written before it is read
            match raw || mode != Preallocation::Off {
                true => blank(&mut data, len, mode)?,
                false => room(&mut data, len)?,
            }
        } else {
            preallocate(&mut data, (0, len), mode)?;
            data.set_len(len)?;
        }
    }
    if host.is_device() {
        return write_on_device(host, image, mode);
    }
    if let Some(range) = image.data_range() {
        preallocate(host, range, mode)?;
    }
    // after what was reserved, which may have made the file longer or, where it cannot be, shorter
    host.set_len(image.len())?;
    image.pieces().try_for_each(|(offset, bytes)| host.go_on().and_then(|()| host.write(offset, &bytes)))
}

/// The same on a device: the header is last, and durable with all that it leads to.
fn write_on_device(host: &mut Host, image: &qcow2::Created, mode: Preallocation) -> Result<(), Error> {
    blank(host, image.len(), mode)?;
    for header in [false, true] {
        for (offset, bytes) in image.pieces().filter(|(offset, _)| (*offset == 0) == header) {
            host.go_on()?;
            host.write(offset, &bytes)?;
        }
        host.sync()?;
    }
    Ok(())
}

/// Gives a range of an empty file its space.
fn preallocate(host: &mut Host, (offset, len): (u64, u64), mode: Preallocation) -> Result<(), Error> {
    match mode {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        _ if len == 0 => Ok(()),
        Preallocation::Falloc => host.reserve(offset, offset + len),
        Preallocation::Full => host.write_zeros(offset, len),
    }
}
