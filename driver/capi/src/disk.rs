//! The calls about a disk: opened, looked at, cancelled.
//!
//! Knows: options of a disk, what is told of one. Must never know: requests.
//! Invariant: nothing that the caller points to is kept, but for what a gate is called with.

use crate::door::{Inner, call, quod_driver, serial};
use crate::error::failed;
use crate::gate::{choose, is_open, path};
use crate::sized::{self, Growing};
use crate::types::{
    QUOD_INFO_BACKING, QUOD_INFO_BITMAPS, QUOD_INFO_DATA_FILE, QUOD_INFO_DATA_FILE_RAW, QUOD_INFO_DIRTY,
    QUOD_INFO_ZSTD, QUOD_NONE, QUOD_OPEN_BACKING_BUFFERED, QUOD_OPEN_DIRECT, QUOD_OPEN_NO_ALLOCATE_AHEAD,
    QUOD_OPEN_NO_BACKING, QUOD_OPEN_NO_LOCK, QUOD_OPEN_TOLERATE_WRITERS, QUOD_OPEN_WRITE,
    QUOD_OPEN_WRITETHROUGH, quod_disk, quod_format, quod_info, quod_open_options,
};
use quod::{Compression, DiskId, Driver, Error, Format, LayerInfo, OpenOptions, Policy};
use std::ffi::{c_char, c_int};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// SAFETY: begins with a size, and holds numbers, pointers, and a function that may be NULL.
unsafe impl Growing for quod_open_options {}

/// All flags of an opening.
const FLAGS: u32 = QUOD_OPEN_WRITE
    | QUOD_OPEN_DIRECT
    | QUOD_OPEN_NO_LOCK
    | QUOD_OPEN_TOLERATE_WRITERS
    | QUOD_OPEN_NO_BACKING
    | QUOD_OPEN_WRITETHROUGH
    | QUOD_OPEN_NO_ALLOCATE_AHEAD
    | QUOD_OPEN_BACKING_BUFFERED;

fn format(given: u32) -> Result<Option<Format>, Error> {
    let formats = [
        (quod_format::Probe, None),
        (quod_format::Raw, Some(Format::Raw)),
        (quod_format::Qed, Some(Format::Qed)),
        (quod_format::Qcow2, Some(Format::Qcow2)),
    ];
    let known = formats.into_iter().find(|(name, _)| *name as u32 == given);
    known.map(|(_, format)| format).ok_or(Error::Misuse("a format that is none of enum quod_format"))
}

/// Numbers that are 0 for the default.
fn numbers(given: &quod_open_options, mut to: OpenOptions) -> OpenOptions {
    let millis = |ms| if ms == QUOD_NONE { 0 } else { ms };
    if given.cache_bytes != 0 {
        to = to.cache_bytes(given.cache_bytes);
    }
    if given.grow_step != 0 {
        to = to.grow_step(given.grow_step);
    }
    if given.commit_ms != 0 {
        to = to.commit_ms(millis(given.commit_ms));
    }
    if given.need_check_ms != 0 {
        to = to.need_check_ms(millis(given.need_check_ms));
    }
    if given.acbs != 0 {
        to = to.acbs(given.acbs);
    }
    if given.max_depth != 0 {
        to = to.max_depth(given.max_depth);
    }
    to
}

/// The options as `quod` has them.
///
/// # Safety
/// `given` is NULL, or as `quod_open` says.
unsafe fn options(given: *const quod_open_options) -> Result<OpenOptions, Error> {
    if given.is_null() {
        return Ok(OpenOptions::new());
    }
    // SAFETY: passed on.
    let given = unsafe { sized::read(given) }?;
    if given.flags & !FLAGS != 0 || given.reserved != 0 {
        return Err(Error::Misuse("quod_open_options.flags or .reserved has bits that mean nothing"));
    }
    let has = |flag| given.flags & flag != 0;
    let mut to = OpenOptions::new()
        .user(given.user)
        .write(has(QUOD_OPEN_WRITE))
        .direct(has(QUOD_OPEN_DIRECT))
        .backing_direct(has(QUOD_OPEN_BACKING_BUFFERED).then_some(false))
        .format(format(given.format)?)
        .lock(!has(QUOD_OPEN_NO_LOCK))
        .tolerate_writers(has(QUOD_OPEN_TOLERATE_WRITERS))
        .no_backing(has(QUOD_OPEN_NO_BACKING))
        .allocate_ahead(!has(QUOD_OPEN_NO_ALLOCATE_AHEAD));
    if has(QUOD_OPEN_WRITETHROUGH) {
        to = to.policy(Policy::Writethrough);
    }
    // SAFETY: passed on.
    if let Some(file) = unsafe { path(given.data_file) } {
        to = to.data_file(file);
    }
    // SAFETY: passed on.
    unsafe { choose(&given, numbers(&given, to)) }
}

/// Opens with what both kinds of opening have.
///
/// # Safety
/// As of `quod_open`.
unsafe fn open(
    inner: &mut Inner,
    name: *const c_char,
    given: *const quod_open_options,
    disk: *mut quod_disk,
    start: impl FnOnce(&mut Driver, &Path, OpenOptions) -> Result<DiskId, Error>,
) -> Result<c_int, Error> {
    if disk.is_null() || !disk.is_aligned() {
        return Err(Error::Misuse("no place for the name of a disk"));
    }
    // SAFETY: not NULL, and by the caller's word it can be written.
    unsafe { disk.write(0) };
    // SAFETY: passed on.
    let name = unsafe { path(name) }.filter(|name| !name.as_os_str().is_empty());
    let name = name.ok_or(Error::Misuse("a path that is NULL, or empty"))?;
    // SAFETY: passed on.
    let options = unsafe { options(given) }?;
    let serial = serial()?;
    let id = start(&mut inner.driver, name, options)?;
    // SAFETY: as above.
    unsafe { disk.write(inner.disks.add(serial, id)) };
    Ok(0)
}

/// Starts to open an image and its backing files; ends as a completion of QUOD_OP_OPEN, with `options->user`.
/// Until then the disk takes no requests. If the opening fails, the completion says why, every file of it is
/// closed, and `*disk` names nothing any more.
///
/// An image that was not closed cleanly, and is opened for writing, is checked and repaired before the
/// opening ends. A lock that somebody else has is asked for again for 200 ms.
///
/// `path` and `options` are copied, but for what `options->gate_data` points to. `options` may be NULL for
/// the defaults.
///
/// 0, or -EINVAL: options that cannot be, a path that is NULL or empty. What is the matter with files is said
/// by the completion.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `path` is NULL or a text; `options` is
/// NULL or as its `size` says, its texts too; `disk` is NULL (an error) or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_open(
    driver: *mut quod_driver,
    path: *const c_char,
    options: *const quod_open_options,
    disk: *mut quod_disk,
) -> c_int {
    let start = |driver: &mut Driver, path: &Path, options| driver.open(path, options);
    // SAFETY: passed on.
    unsafe { call(driver, |inner| Ok(open(inner, path, options, disk, start)?)) }
}

/// As `quod_open`, of a file that is open already. `name` need not lead anywhere: errors call the file by it,
/// and relative names of backing files start in its folder.
///
/// 0: the descriptor belongs to the driver from now on, which closes it with the disk, or when the opening
/// has failed. It must be open for reading, for writing if the options say so, and without O_APPEND. The
/// driver changes flags and takes locks of the open file description, which duplicates share. After an error
/// the descriptor is still yours: -EBADF if it is none, -EINVAL as of `quod_open`.
///
/// # Safety
/// As of `quod_open`; `fd` is not closed or used by anybody else from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_open_fd(
    driver: *mut quod_driver,
    fd: c_int,
    name: *const c_char,
    options: *const quod_open_options,
    disk: *mut quod_disk,
) -> c_int {
    let start = |driver: &mut Driver, name: &Path, options| {
        use std::os::fd::AsRawFd;
        if !is_open(fd) {
            return Err(Error::Closed);
        }
        if fd == driver.as_raw_fd() {
            return Err(Error::Misuse("the descriptor of the driver is no image"));
        }
        // SAFETY: it is open, and by the caller's word nobody else's.
        driver.open_fd(unsafe { OwnedFd::from_raw_fd(fd) }, name, options)
    };
    // SAFETY: passed on.
    unsafe { call(driver, |inner| Ok(open(inner, name, options, disk, start)?)) }
}

fn told(layer: &LayerInfo, layers: usize, bitmaps: bool) -> quod_info {
    let info = &layer.info;
    let flags = [
        (info.dirty, QUOD_INFO_DIRTY),
        (info.backing.is_some(), QUOD_INFO_BACKING),
        (layer.data_file.is_some(), QUOD_INFO_DATA_FILE),
        (info.data_file_raw, QUOD_INFO_DATA_FILE_RAW),
        (info.compression == Compression::Zstd, QUOD_INFO_ZSTD),
        (bitmaps, QUOD_INFO_BITMAPS),
    ];
    quod_info {
        virtual_size: info.virtual_size,
        format: match info.format {
            Format::Raw => quod_format::Raw,
            Format::Qed => quod_format::Qed,
            Format::Qcow2 => quod_format::Qcow2,
        },
        cluster_size: info.cluster_size,
        unit: info.unit,
        version: info.version,
        layers: layers as u32,
        flags: flags.iter().filter(|(is, _)| *is).fold(0, |all, (_, flag)| all | flag),
    }
}

/// A layer of an open disk.
fn layer(inner: &Inner, disk: quod_disk, layer: u32) -> Result<(&LayerInfo, usize), Error> {
    let id = inner.disks.id(disk)?;
    let info = inner.driver.disk_info(id).ok_or(Error::Misuse("the disk is not open yet"))?;
    let found = info.layers().get(layer as usize).ok_or(Error::Misuse("the disk has fewer layers"))?;
    Ok((found, info.layers().len()))
}

/// Facts about a layer of an open disk; 0: the image, 1: its backing file. `size` is `sizeof *info`.
///
/// 0, or -EBADF: no such disk; -EINVAL: it is not open yet, or has fewer layers.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `size` bytes can be written to `info`,
/// or it is NULL (an error).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_disk_info(
    driver: *const quod_driver,
    disk: quod_disk,
    layer: u32,
    info: *mut quod_info,
    size: usize,
) -> c_int {
    let tell = |inner: &mut Inner| {
        let (found, layers) = self::layer(inner, disk, layer)?;
        let bitmaps = layer == 0 && inner.driver.keeps_bitmaps(inner.disks.id(disk)?);
        // SAFETY: passed on.
        unsafe { sized::write(&told(found, layers, bitmaps), info, size) }?;
        Ok(0)
    };
    // SAFETY: passed on.
    unsafe { call(driver, tell) }
}

/// Where a layer of an open disk was opened: copies the path with its NUL to `path`, as much of it as fits
/// into `size` bytes, the NUL always. Nothing is copied if `size` is 0.
///
/// The bytes of the whole path, without the NUL; or -EBADF: no such disk; -EINVAL: it is not open yet, or has
/// fewer layers, or `path` is NULL and `size` is not 0.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `size` bytes can be written to `path`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_disk_layer_path(
    driver: *const quod_driver,
    disk: quod_disk,
    layer: u32,
    path: *mut c_char,
    size: usize,
) -> c_int {
    let tell = |inner: &mut Inner| {
        let (found, _) = self::layer(inner, disk, layer)?;
        let bytes = found.path.as_os_str().as_bytes();
        if path.is_null() && size != 0 {
            return Err(Error::Misuse("no place for a path").into());
        }
        if let Some(room) = size.checked_sub(1) {
            let fits = bytes.len().min(room);
            // SAFETY: by the caller's word `size` bytes can be written, which are more than `fits`.
            unsafe {
                bytes.as_ptr().copy_to_nonoverlapping(path.cast(), fits);
                path.add(fits).write(0);
            }
        }
        Ok(c_int::try_from(bytes.len()).unwrap_or(c_int::MAX))
    };
    // SAFETY: passed on.
    unsafe { call(driver, tell) }
}

/// Does the disk only read, because of an earlier error? 1: yes, `quod_last_error` has the cause until it has
/// another; 0: no; or -EBADF: no such disk.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_disk_poisoned(driver: *const quod_driver, disk: quod_disk) -> c_int {
    let cause = |inner: &mut Inner| match inner.driver.poisoned(inner.disks.id(disk)?) {
        Some(error) => {
            failed(error.into());
            Ok(1)
        }
        None => Ok(0),
    };
    // SAFETY: passed on.
    unsafe { call(driver, cause) }
}

/// Begins nothing more for the disk's requests with this `user` value. Each of those that are left undone, or
/// done in part, ends with ECANCELED, when what is in flight for it has ended; its memory is in use until its
/// completion was taken. Of the range of a write any part may have been done. A flush, quiesce, close or
/// resize runs to its end, and so does an opening.
///
/// How many are left undone, or in part, 0 also if the disk is not open yet; or -EBADF: no such disk.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_cancel(driver: *mut quod_driver, disk: quod_disk, user: u64) -> c_int {
    let cancel = |inner: &mut Inner| {
        let count = inner.driver.cancel(inner.disks.id(disk)?, user);
        Ok(c_int::try_from(count).unwrap_or(c_int::MAX))
    };
    // SAFETY: passed on.
    unsafe { call(driver, cancel) }
}
