//! The call that makes an image.
//!
//! Knows: options of a new image, the tool that makes one, which blocks. Must never know: drivers, disks.
//! Invariant: options that make no sense have left what was there before.

use crate::door::alone;
use crate::gate::path;
use crate::sized::{self, Growing};
use crate::types::{
    QUOD_CREATE_DATA_FILE_RAW, QUOD_CREATE_EXTENDED_L2, QUOD_CREATE_LAZY_REFCOUNTS, QUOD_CREATE_ZSTD,
    QUOD_NONE, quod_create_options, quod_format, quod_preallocation,
};
use quod::{Compression, Error, Format};
use quod_tools::{CreateOptions, Preallocation};
use std::ffi::{c_char, c_int};

// SAFETY: begins with a size, and holds numbers and pointers.
unsafe impl Growing for quod_create_options {}

/// All flags of a new image.
const FLAGS: u32 =
    QUOD_CREATE_LAZY_REFCOUNTS | QUOD_CREATE_EXTENDED_L2 | QUOD_CREATE_ZSTD | QUOD_CREATE_DATA_FILE_RAW;

/// None: probed.
fn format(given: u32) -> Result<Option<Format>, Error> {
    let known = [
        (quod_format::Probe, None),
        (quod_format::Raw, Some(Format::Raw)),
        (quod_format::Qed, Some(Format::Qed)),
        (quod_format::Qcow2, Some(Format::Qcow2)),
    ];
    let found = known.into_iter().find(|(name, _)| *name as u32 == given);
    found.map(|(_, format)| format).ok_or(Error::Misuse("a format that is none of enum quod_format"))
}

fn preallocation(given: u32) -> Result<Preallocation, Error> {
    let known = [
        (quod_preallocation::Off, Preallocation::Off),
        (quod_preallocation::Metadata, Preallocation::Metadata),
        (quod_preallocation::Falloc, Preallocation::Falloc),
        (quod_preallocation::Full, Preallocation::Full),
    ];
    let found = known.into_iter().find(|(name, _)| *name as u32 == given);
    found.map(|(_, mode)| mode).ok_or(Error::Misuse("a mode that is none of enum quod_preallocation"))
}

/// A name that will stand in the image; None if there is none.
///
/// # Safety
/// `name` is NULL or a text.
unsafe fn name(name: *const c_char) -> Result<Option<String>, Error> {
    // SAFETY: passed on.
    let Some(name) = (unsafe { path(name) }) else { return Ok(None) };
    let text = name.to_str().filter(|text| !text.is_empty());
    text.map(|text| Some(text.into())).ok_or(Error::Misuse("the name of a file that is empty, or not UTF-8"))
}

/// What only one format has is not asked of another.
fn check(given: &quod_create_options, format: Format) -> Result<(), Error> {
    if given.flags & !FLAGS != 0 || given.reserved != 0 {
        return Err(Error::Misuse("quod_create_options.flags or .reserved has bits that mean nothing"));
    }
    let qcow2 = [given.version, given.refcount_bits, given.preallocation, given.flags];
    if format != Format::Qcow2 && (qcow2 != [0; 4] || !given.data_file.is_null()) {
        return Err(Error::Misuse("options of a new image that only qcow2 has"));
    }
    if format != Format::Qed && given.table_size != 0 {
        return Err(Error::Misuse("a size of tables, which only QED has"));
    }
    if format == Format::Raw && given.cluster_size != 0 {
        return Err(Error::Misuse("a size of clusters, which a raw image has not"));
    }
    if given.backing_file.is_null() && given.backing_format != 0 {
        return Err(Error::Misuse("the format of a backing file, and no backing file"));
    }
    Ok(())
}

/// The options as the tool has them.
///
/// # Safety
/// `given` is as `quod_create` says.
unsafe fn options(given: *const quod_create_options) -> Result<CreateOptions, Error> {
    // SAFETY: passed on.
    let given = unsafe { sized::read(given) }?;
    let format = format(given.format)?.ok_or(Error::Misuse("a new image whose format is not named"))?;
    check(&given, format)?;
    let number = |number: u32| (number != 0).then_some(number);
    let has = |flag| given.flags & flag != 0;
    let mut to = CreateOptions::new(format, given.virtual_size);
    to.cluster_size = number(given.cluster_size);
    to.table_size = number(given.table_size);
    to.extent_size_hint = match given.extent_size_hint {
        0 => to.extent_size_hint,
        QUOD_NONE => 0,
        bytes => bytes,
    };
    // SAFETY: passed on.
    if let Some(file) = unsafe { name(given.backing_file) }? {
        to.backing = Some((file, self::format(given.backing_format)?));
    }
    to.qcow2.version = number(given.version).unwrap_or(to.qcow2.version);
    to.qcow2.refcount_bits = number(given.refcount_bits).unwrap_or(to.qcow2.refcount_bits);
    to.qcow2.lazy_refcounts = has(QUOD_CREATE_LAZY_REFCOUNTS);
    to.qcow2.extended_l2 = has(QUOD_CREATE_EXTENDED_L2);
    to.qcow2.data_file_raw = has(QUOD_CREATE_DATA_FILE_RAW);
    if has(QUOD_CREATE_ZSTD) {
        to.qcow2.compression = Compression::Zstd;
    }
    // SAFETY: passed on.
    to.qcow2.data_file = unsafe { name(given.data_file) }?;
    to.qcow2.preallocation = preallocation(given.preallocation)?;
    Ok(to)
}

/// Makes an image at `path`, or makes another one of what is there; a block device keeps its size. A backing
/// file is named in it, and not looked at. It is not synced. Needs no driver, and may be called by any
/// thread.
///
/// Blocks until it is made: milliseconds, but for `QUOD_PREALLOCATION_FULL` and devices, which are written
/// from end to end. From an event loop call it on a thread of your own.
///
/// 0, or -EINVAL: options that contradict each other, a size that the format cannot have; -EAGAIN: somebody
/// else has locked the file; in both cases what was there is left as it was. Otherwise what the host said
/// (-ENOSPC, -EACCES), and there is no image.
///
/// # Safety
/// `path` is NULL (an error) or a text; `options` is NULL (an error) or as its `size` says, its texts too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_create(path: *const c_char, options: *const quod_create_options) -> c_int {
    alone(|| {
        // SAFETY: passed on.
        let path = unsafe { self::path(path) }.filter(|path| !path.as_os_str().is_empty());
        let path = path.ok_or(Error::Misuse("a path that is NULL, or empty"))?;
        // SAFETY: passed on.
        let options = unsafe { self::options(options) }?;
        quod_tools::create(path, &options)?;
        Ok(0)
    })
}
