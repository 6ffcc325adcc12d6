//! Persistent bitmaps in an image, by its path: changed, and their bits read.
//!
//! Knows: a session, where the bits of a bitmap lie. Must never know: how a bitmap is changed.
//!
//! Invariant: no more bits are read than are merged at once, and none that lie beyond the end of the file.

use crate::host::Host;
use crate::info::{directory, read_qcow2};
use crate::session::Session;
use quod::fault::{BitmapFault, BitmapLack, FormatLack, LayerError, ReferenceFault};
use quod::{
    BitmapAsk, BitmapBits, BitmapChange, Error, ErrorKind, Fault, Format, Lack, OpenOptions, Request,
};
use quod_states::qcow2::bitmap::{self, Bitmap, Piece};
use quod_states::qcow2::{Header, Purpose};
use quod_states::snapshots::BITS_MAX;
use std::path::Path;

/// Changes a persistent bitmap of the image, durably: all of it, or nothing. `options` are to write.
///
/// ```
/// use quod::{BitmapAsk, BitmapChange, Format, OpenOptions};
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// let options = || OpenOptions::new().write(true).format(Some(Format::Qcow2));
/// for name in ["monday", "tuesday"] {
///     let change = BitmapChange::Add { granularity_bits: Some(16), enabled: true };
///     quod_tools::bitmap(&path, options(), BitmapAsk { name: name.into(), change })?;
/// }
/// let bits = quod_tools::bitmap_bits(&path, None, b"monday", false)?;
/// assert!(bits.bits.iter().all(|byte| *byte == 0));
/// let change = BitmapChange::Merge(bits);
/// quod_tools::bitmap(&path, options(), BitmapAsk { name: b"tuesday".to_vec(), change })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`ErrorKind::NoBitmap`](quod::ErrorKind::NoBitmap), [`BitmapLack`](quod::fault::BitmapLack), and those of
/// [`Session::open`] and [`Session::run`].
pub fn bitmap(path: impl AsRef<Path>, options: OpenOptions, ask: BitmapAsk) -> Result<(), Error> {
    let mut session = Session::open(path, options)?;
    let done = session.run(Request::bitmap(ask, 0)).map(drop);
    // what could not be done is closed as it was
    let closed = session.close();
    done.and(closed)
}

/// The bits of a persistent bitmap, to be merged into another one. `format`: None: probed. `force_share`:
/// whoever writes to the image is let be.
///
/// # Errors
/// [`ErrorKind::NoBitmap`](quod::ErrorKind::NoBitmap), also of an image whose format has none;
/// [`BitmapLack::InUse`](quod::fault::BitmapLack::InUse) of one whose bits nobody knows, and what the host
/// says.
pub fn bitmap_bits(
    path: impl AsRef<Path>,
    format: Option<Format>,
    name: &[u8],
    force_share: bool,
) -> Result<BitmapBits, Error> {
    let mut host = match force_share {
        true => Host::open(path.as_ref(), false, false)?,
        false => Host::open_shared(path.as_ref(), format)?,
    };
    if format.map_or_else(|| host.probe(), Ok)? != Format::Qcow2 {
        return Err(host.fault(ErrorKind::NoBitmap));
    }
    let header = read_qcow2(&mut host, Purpose::Read)?;
    let found = directory(&mut host, &header)?.into_iter().find(|bitmap| bitmap.name == name);
    let Some(bitmap) = found else { return Err(host.fault(ErrorKind::NoBitmap)) };
    if bitmap.in_use() {
        return Err(refused(&host, BitmapLack::InUse));
    }
    let (size, granularity_bits) = (header.guest_size(), bitmap.granularity_bits);
    let bytes = bitmap::bytes_of(size, granularity_bits);
    if bytes > BITS_MAX {
        return Err(refused(&host, BitmapLack::TooLargeToMerge));
    }
    let entries = bitmap::entries_of(size, granularity_bits, header.cluster_bits);
    if entries != Some(bitmap.table_entries) {
        let (value, why) = (bitmap.table_entries.into(), BitmapFault::TableSize);
        return Err(corrupt(&host, Fault::Bitmap { index: 0, value, why }));
    }
    let bits = read_bits(&mut host, &header, &bitmap, bytes as usize)?;
    Ok(BitmapBits { granularity_bits, size, bits })
}

/// Copies a bitmap of an image to that of a session, of the same size, durably: with its granularity and
/// bits, enabled or not. Whoever writes to the source is let be.
///
/// # Errors
/// As of [`bitmap()`] and [`bitmap_bits`]: an error may leave it without its bits, and not enabled.
pub fn copy_bitmap(source: &Path, bitmap: &Bitmap, session: &mut Session) -> Result<(), Error> {
    let bits = bitmap_bits(source, Some(Format::Qcow2), &bitmap.name, true)?;
    let add = BitmapChange::Add { granularity_bits: Some(bitmap.granularity_bits), enabled: false };
    let merged = bits.bits.iter().any(|byte| *byte != 0).then_some(BitmapChange::Merge(bits));
    // it is complete before anybody keeps it up
    let enabled = bitmap.auto().then_some(BitmapChange::Enable);
    for change in [Some(add), merged, enabled].into_iter().flatten() {
        session.run(Request::bitmap(BitmapAsk { name: bitmap.name.clone(), change }, 0))?;
    }
    Ok(())
}

fn refused(host: &Host, lack: BitmapLack) -> Error {
    host.fault(ErrorKind::Unsupported(Lack::Format(FormatLack::Bitmap(lack))))
}

fn corrupt(host: &Host, fault: Fault) -> Error {
    host.error(&LayerError::Corrupt(fault))
}

/// The bits that a table leads to, so many bytes.
fn read_bits(host: &mut Host, header: &Header, bitmap: &Bitmap, bytes: usize) -> Result<Vec<u8>, Error> {
    let (cluster, len) = (header.cluster_size(), host.len());
    let mut bits = vec![0; bytes];
    let table = host.read(bitmap.table_offset, bitmap.table_bytes() as usize)?;
    let words = table.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
    for ((index, word), bits) in (0..).zip(words).zip(bits.chunks_mut(cluster as usize)) {
        let piece = bitmap::decode_piece(index, word, header.shape()).map_err(|error| host.error(&error))?;
        match piece {
            Piece::All(set) => bits.fill(if set { 0xff } else { 0 }),
            Piece::Stored(offset) if offset.saturating_add(cluster) > len => {
                let (cluster, why) = (offset >> header.cluster_bits, ReferenceFault::Beyond);
                return Err(corrupt(host, Fault::Reference { cluster, offset, why }));
            }
            Piece::Stored(offset) => bits.copy_from_slice(&host.read(offset, bits.len())?),
        }
    }
    Ok(bits)
}
