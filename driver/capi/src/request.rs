//! Requests go in, completions come out.
//!
//! Knows: scatter lists and kinds of requests as C has them. Must never know: options, gates.
//! Invariants: a request that was refused keeps nothing of the caller's; one that was taken uses the memory,
//! not the list that named it, until its completion was taken.

use crate::door::{Inner, call, quod_driver};
use crate::driver::spans;
use crate::error::{Failure, Shown};
use crate::sized;
use crate::types::{
    QUOD_FUA, QUOD_IOV_MAX, QUOD_MAY_UNMAP, quod_completion, quod_disk, quod_op, quod_status,
};
use libc::iovec;
use quod::{Completion, Error, Extent, Kind, RawBuffers, Request, Segment, Status};
use std::ffi::c_int;
use std::ptr;

/// A scatter list of the caller's.
///
/// # Safety
/// `iov` is NULL, or has `iovcnt` entries. The memory that they name is the request's until its completion
/// was taken.
unsafe fn buffers(iov: *const iovec, iovcnt: c_int) -> Result<RawBuffers, Error> {
    let count = u32::try_from(iovcnt).ok().filter(|count| (1..=QUOD_IOV_MAX).contains(count));
    let (false, true, Some(count)) = (iov.is_null(), iov.is_aligned(), count) else {
        return Err(Error::Misuse("a scatter list that is NULL, empty, or of more than QUOD_IOV_MAX pieces"));
    };
    // SAFETY: by the caller's word; it is read before this returns.
    let list = unsafe { std::slice::from_raw_parts(iov, count as usize) };
    let mut total = 0u64;
    for piece in list {
        let has = !piece.iov_base.is_null() || piece.iov_len == 0;
        total = total.saturating_add(piece.iov_len as u64);
        if !has || !spans(piece.iov_base, piece.iov_len) || total > i64::MAX as u64 {
            return Err(Error::Misuse("a piece of a scatter list that no memory has"));
        }
    }
    // SAFETY: the caller's promise is that of a segment.
    let segment = |piece: &iovec| unsafe { Segment::new(piece.iov_base.cast(), piece.iov_len) };
    // SAFETY: as said above, the caller lends the memory for as long.
    Ok(unsafe { RawBuffers::new(list.iter().map(segment)) })
}

/// The bits of `flags` that mean something here; others are refused.
fn flagged(request: Request, flags: u32, known: u32) -> Result<Request, Error> {
    if flags & !known != 0 {
        return Err(Error::Misuse("flags that mean nothing for this request"));
    }
    let request = if flags & QUOD_FUA != 0 { request.fua() } else { request };
    Ok(if flags & QUOD_MAY_UNMAP != 0 { request.may_unmap() } else { request })
}

fn submit(inner: &mut Inner, disk: quod_disk, request: Request) -> Result<c_int, Failure> {
    let id = inner.disks.id(disk)?;
    // what C lent needs nobody to give it back
    inner.driver.submit(id, request).map_err(Error::from)?;
    Ok(0)
}

/// Fills memory with bytes of the guest disk, from `offset` on; how many the scatter list says. `flags` is 0.
///
/// The list is copied. The memory that it names is lent to the driver until the completion was taken, or the
/// driver freed: it stays mapped, and nobody else reads or writes it. (A guest that does so with its own
/// memory is allowed.) Requests in flight have no order among each other, also where they overlap.
///
/// Makes no system call: call `quod_turn` after the last one of a batch. 0: ends as a completion; or it was
/// not taken, and nothing is kept: -EAGAIN: all slots of the disk are in use, submit again after a
/// completion; -EBADF: no such disk, or it is closing; -EINVAL: a range, list or flags that cannot be, or the
/// disk is not open yet.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `iov` is NULL (an error) or has `iovcnt`
/// entries, of memory as said above.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_read(
    driver: *mut quod_driver,
    disk: quod_disk,
    offset: u64,
    iov: *const iovec,
    iovcnt: c_int,
    flags: u32,
    user: u64,
) -> c_int {
    let act = |inner: &mut Inner| {
        // SAFETY: passed on.
        let request = Request::read(offset, unsafe { buffers(iov, iovcnt) }?, user);
        submit(inner, disk, flagged(request, flags, 0)?)
    };
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// Writes memory to the guest disk, from `offset` on. `flags` is 0 or QUOD_FUA. When it completes reads see
/// the data; the next flush makes it durable. After an error any part of it may be there.
///
/// All else as of `quod_submit_read`, but that others may read the memory meanwhile.
///
/// # Safety
/// As of `quod_submit_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_write(
    driver: *mut quod_driver,
    disk: quod_disk,
    offset: u64,
    iov: *const iovec,
    iovcnt: c_int,
    flags: u32,
    user: u64,
) -> c_int {
    let act = |inner: &mut Inner| {
        // SAFETY: passed on.
        let request = Request::write(offset, unsafe { buffers(iov, iovcnt) }?, user);
        submit(inner, disk, flagged(request, flags, QUOD_FUA)?)
    };
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// As `quod_submit_write`, compressed, of qcow2: one whole cluster a request (the disk's last may end with
/// the disk), where nothing is allocated. What does not become shorter is written as it is. -EINVAL: no such
/// cluster; -ENOTSUP: the image has no compressed clusters. A cluster that is allocated already stays as it
/// is: the completion's error says EIO.
///
/// # Safety
/// As of `quod_submit_read`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_write_compressed(
    driver: *mut quod_driver,
    disk: quod_disk,
    offset: u64,
    iov: *const iovec,
    iovcnt: c_int,
    flags: u32,
    user: u64,
) -> c_int {
    let act = |inner: &mut Inner| {
        // SAFETY: passed on.
        let request = Request::write_compressed(offset, unsafe { buffers(iov, iovcnt) }?, user);
        submit(inner, disk, flagged(request, flags, QUOD_FUA)?)
    };
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// The range reads as zeros afterwards, as durably as a write. `flags`: QUOD_FUA, QUOD_MAY_UNMAP. Costs
/// little where a format can say it (whole clusters). Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_write_zeroes(
    driver: *mut quod_driver,
    disk: quod_disk,
    offset: u64,
    length: u64,
    flags: u32,
    user: u64,
) -> c_int {
    let act = |inner: &mut Inner| {
        let request = Request::write_zeroes(offset, length, user);
        submit(inner, disk, flagged(request, flags, QUOD_FUA | QUOD_MAY_UNMAP)?)
    };
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// The guest does not need the range any more: a hint. What is read there afterwards is the old data or
/// zeros. `flags` is 0. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_discard(
    driver: *mut quod_driver,
    disk: quod_disk,
    offset: u64,
    length: u64,
    flags: u32,
    user: u64,
) -> c_int {
    let act =
        |inner: &mut Inner| submit(inner, disk, flagged(Request::discard(offset, length, user), flags, 0)?);
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// All that completed before it was submitted becomes durable, mappings included, before it completes: what a
/// guest means by a flush. One that fails ends the writing of the image. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_flush(driver: *mut quod_driver, disk: quod_disk, user: u64) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| submit(inner, disk, Request::flush(user))) }
}

/// What is the first run of the range made of, in this layer (0: the image, 1: its backing file)? The answer
/// is in the `extent_` fields of the completion. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_map(
    driver: *mut quod_driver,
    disk: quod_disk,
    layer: u32,
    offset: u64,
    length: u64,
    user: u64,
) -> c_int {
    let act = |inner: &mut Inner| submit(inner, disk, Request::map(layer as usize, offset, length, user));
    // SAFETY: passed on.
    unsafe { call(driver, act) }
}

/// Makes the file self-consistent without stopping service: all metadata durable, no dirty bit, as far as
/// what completed before it was submitted is concerned. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_quiesce(driver: *mut quod_driver, disk: quod_disk, user: u64) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| submit(inner, disk, Request::quiesce(user))) }
}

/// Sets the size of the guest disk, durably; what is new reads as zeros. `size` is bytes; of qcow2 and QED a
/// multiple of 512, and QED only grows. Another resize meanwhile is -EAGAIN. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_resize(
    driver: *mut quod_driver,
    disk: quod_disk,
    size: u64,
    user: u64,
) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| submit(inner, disk, Request::resize(size, user))) }
}

/// The image holds nothing of the disk any more, durably: what its backing file has shows, or zeros. For an
/// image that was merged into its backing file, durably; anything else is lost. qcow2 and QED alone. What is
/// submitted meanwhile is -EAGAIN. Returns as `quod_submit_read`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_empty(driver: *mut quod_driver, disk: quod_disk, user: u64) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| submit(inner, disk, Request::empty(user))) }
}

/// Finishes everything that was taken, writes and syncs the metadata, closes the files and gives the locks
/// back. From now on the disk takes no requests; its completion is the last, and with it, error or not,
/// `disk` names nothing any more. Returns as `quod_submit_read`: -EBADF if it is closed, or closing, already.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_submit_close(driver: *mut quod_driver, disk: quod_disk, user: u64) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| submit(inner, disk, Request::close(user))) }
}

fn op(done: &Completion) -> quod_op {
    match done.kind.request() {
        None => quod_op::Open,
        Some(Kind::Read) => quod_op::Read,
        Some(Kind::Write) => quod_op::Write,
        Some(Kind::WriteCompressed) => quod_op::WriteCompressed,
        Some(Kind::WriteZeroes) => quod_op::WriteZeroes,
        Some(Kind::Discard) => quod_op::Discard,
        Some(Kind::Flush) => quod_op::Flush,
        Some(Kind::Map) => quod_op::Map,
        // none is submitted from C
        Some(Kind::Quiesce | Kind::Snapshot | Kind::Bitmap) => quod_op::Quiesce,
        Some(Kind::Resize) => quod_op::Resize,
        Some(Kind::Close) => quod_op::Close,
        Some(Kind::Empty) => quod_op::Empty,
    }
}

fn status(extent: &Extent) -> quod_status {
    match extent.status {
        Status::Unallocated => quod_status::Unallocated,
        Status::Zero => quod_status::Zero,
        Status::Data => quod_status::Data,
        Status::Compressed => quod_status::Compressed,
    }
}

/// As C has it; what the disk was called, and what the error is kept by.
fn told(inner: &mut Inner, done: Completion) -> quod_completion {
    let (op, disk) = (op(&done), inner.disks.name(done.disk));
    let gone = op == quod_op::Close || op == quod_op::Open && done.result.is_err();
    if gone {
        inner.disks.remove(disk);
    }
    let extent = done.kind.extent();
    inner.shown = done.result.err().map(|error| Shown::of(&Failure::Quod(error)));
    quod_completion {
        disk,
        user: done.user,
        error: inner.shown.as_ref().map_or(ptr::null(), |shown| shown.error()),
        op,
        met: done.met.bits().into(),
        latency_ns: done.latency.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        extent_offset: extent.map_or(0, |extent| extent.offset),
        extent_length: extent.map_or(0, |extent| extent.len),
        extent_host: extent.and_then(|extent| extent.host).unwrap_or(u64::MAX),
        extent_status: extent.as_ref().map_or(quod_status::Unallocated, status),
        reserved: 0,
    }
}

/// Takes the next thing that ended, in the order in which things ended, and frees the request's slot; the
/// memory of a read or a write is yours again. `size` is `sizeof *completion`.
///
/// 1: `*completion` says what ended; 0: nothing, until the next `quod_turn` (or a call that ends something at
/// once); negative: an error, and nothing was taken.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `size` bytes can be written to
/// `completion`, or it is NULL (an error).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_next_completion(
    driver: *mut quod_driver,
    completion: *mut quod_completion,
    size: usize,
) -> c_int {
    let take = |inner: &mut Inner| {
        sized::fits(completion, size)?;
        inner.shown = None;
        let Some(done) = inner.driver.next_completion() else { return Ok(0) };
        let told = told(inner, done);
        // SAFETY: passed on.
        unsafe { sized::write(&told, completion, size) }?;
        Ok(1)
    };
    // SAFETY: passed on.
    unsafe { call(driver, take) }
}
