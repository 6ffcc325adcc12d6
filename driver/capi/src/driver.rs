//! The calls about a driver as a whole: made, turned, waited for, freed.
//!
//! Knows: options of a driver, time as C counts it. Must never know: disks.
//! Invariant: what is wrong with options is said before anything is made.

use crate::door::{Inner, alone, ask, call, free, quod_driver, serial};
use crate::sized::{self, Growing};
use crate::types::{QUOD_CONFIG_TIMING, QUOD_NONE, quod_backend, quod_config, quod_memory};
use quod::{BackendKind, Config, Driver, Error, Segment};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::time::Duration;

// SAFETY: begins with a size, and holds numbers alone.
unsafe impl Growing for quod_config {}

/// The version of the library, "0.1.0". Is there for as long as the process. May be called by any thread.
#[unsafe(no_mangle)]
pub extern "C" fn quod_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };
    VERSION.as_ptr()
}

fn config(given: &quod_config) -> Result<Config, Error> {
    let backend = match given.backend {
        backend if backend == quod_backend::Auto as u32 => BackendKind::Auto,
        backend if backend == quod_backend::Uring as u32 => BackendKind::Uring,
        backend if backend == quod_backend::Threads as u32 => BackendKind::Threads,
        _ => return Err(Error::Misuse("quod_config.backend is none of enum quod_backend")),
    };
    if given.flags & !QUOD_CONFIG_TIMING != 0 || given.reserved != 0 {
        return Err(Error::Misuse("quod_config.flags or .reserved has bits that mean nothing"));
    }
    let mut config = Config::default().backend(backend).timing(given.flags & QUOD_CONFIG_TIMING != 0);
    if given.queue_depth != 0 {
        config = config.queue_depth(given.queue_depth);
    }
    if given.requests != 0 {
        config = config.requests(given.requests);
    }
    Ok(match given.decompressors {
        0 => config,
        QUOD_NONE => config.decompressors(0),
        most => config.decompressors(most),
    })
}

/// Makes a driver; opens no file. It has a ring, an eventfd, and one worker thread from the first call on
/// that a ring cannot make; or an eventfd and up to 8 worker threads. No signal is delivered to any of them.
///
/// `config` may be NULL for the defaults, and is not kept. `*driver` is yours: free it with
/// `quod_driver_free`. After an error it is NULL.
///
/// 0, or -EINVAL: a setting that cannot be; -ENOMEM, -EMFILE, -ENOSYS, -EPERM and the like: the host has not
/// what it needs.
///
/// # Safety
/// `config` is NULL or as its `size` says, `driver` is NULL (an error) or a pointer can be written there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_driver_new(config: *const quod_config, driver: *mut *mut quod_driver) -> c_int {
    alone(|| {
        if driver.is_null() || !driver.is_aligned() {
            return Err(Error::Misuse("no place for a driver").into());
        }
        // SAFETY: it is not NULL, and by the caller's word a pointer can be written.
        unsafe { driver.write(ptr::null_mut()) };
        let config = match config.is_null() {
            true => Config::default(),
            // SAFETY: passed on.
            false => self::config(&unsafe { sized::read(config) }?)?,
        };
        let made = quod_driver::new(Driver::new(config)?);
        // SAFETY: as above.
        unsafe { driver.write(Box::into_raw(made)) };
        Ok(0)
    })
}

/// Ends a driver and everything it has. For disks that are not closed this is like a power cut: nothing is
/// corrupt, what was not flushed may be lost. Waits for the operations in flight, because they use memory of
/// yours; that memory is yours again when this returns 0. NULL is 0, and nothing.
///
/// 0: `driver` must not be used again, as after free(3). -EPERM: it belongs to another thread; -EINVAL: it is
/// called by its own open gate; in both cases nothing was done.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_driver_free(driver: *mut quod_driver) -> c_int {
    // SAFETY: passed on.
    unsafe { free(driver) }
}

/// The descriptor to wait for, with poll, epoll or any loop, until it is readable: then call `quod_turn`. It
/// is an eventfd, the same one for as long as the driver lives, which owns it: never read, write or close it.
/// Edge-triggered and level-triggered are the same. A wake is a hint: it may come early, or without cause.
/// May be called by any thread, and gives the driver to none.
///
/// The descriptor, or -EINVAL: `driver` is NULL.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_driver_fd(driver: *const quod_driver) -> c_int {
    alone(|| match driver.is_null() || !driver.is_aligned() {
        true => Err(Error::Misuse("a driver that is NULL").into()),
        // SAFETY: by the caller's word it points to a driver, of which this never changes.
        false => Ok(unsafe { (*driver).fd }),
    })
}

/// What moves the bytes: "io_uring" or "threads"; is there for as long as the process. NULL: see
/// `quod_last_error`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_driver_backend(driver: *const quod_driver) -> *const c_char {
    let name = |inner: &mut Inner| {
        Ok(match inner.driver.backend_name() {
            "io_uring" => c"io_uring",
            "threads" => c"threads",
            _ => c"other",
        })
    };
    // SAFETY: passed on.
    unsafe { ask(driver, name) }.map_or(ptr::null(), CStr::as_ptr)
}

/// Hands over what was submitted, takes what ended, fires the timers that are due: one system call, or none.
/// Never blocks. Call it when the descriptor is readable, when `quod_next_timeout_ns` has passed, and after
/// submitting; then take completions until there is none. Open gates are called inside it.
///
/// 0, or a negative number of errno(3): the kernel refuses to take or give operations; try again later, or
/// free the driver. What goes wrong with a request comes with its completion.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_turn(driver: *mut quod_driver) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| Ok(inner.driver.turn().map(|()| 0)?)) }
}

/// As `quod_turn`, but sleeps until something ended, a timer is due, or `timeout_ns` nanoseconds have passed
/// (negative: no limit). Returns at once when there is something to take, or nothing to wait for. For tools
/// and tests, never in an event loop.
///
/// 0, or a negative number of errno(3) as `quod_turn`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_wait(driver: *mut quod_driver, timeout_ns: i64) -> c_int {
    let timeout = u64::try_from(timeout_ns).ok().map(Duration::from_nanos);
    // SAFETY: passed on.
    unsafe { call(driver, |inner| Ok(inner.driver.wait(timeout).map(|()| 0)?)) }
}

/// Nanoseconds until `quod_turn` must be called, if the descriptor is not readable before; 0: now, because
/// there are operations to hand over, completions to take, or clusters to decompress; -1: no timer runs, only
/// the descriptor says when. Makes no system call. After a failure it is 0: `quod_turn` says what is wrong.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_next_timeout_ns(driver: *const quod_driver) -> i64 {
    let nanos = |inner: &mut Inner| {
        let timeout = inner.driver.next_timeout();
        Ok(timeout.map_or(-1, |time| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)))
    };
    // SAFETY: passed on.
    unsafe { ask(driver, nanos) }.unwrap_or(0)
}

/// As `quod_next_timeout_ns`, in milliseconds, rounded up so that the timer is due then: what poll(2) and
/// epoll_wait(2) take, -1 included.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_next_timeout_ms(driver: *const quod_driver) -> c_int {
    // SAFETY: passed on.
    match unsafe { quod_next_timeout_ns(driver) } {
        -1 => -1,
        nanos => c_int::try_from((nanos as u64).div_ceil(1_000_000)).unwrap_or(c_int::MAX),
    }
}

/// 1: nothing is in flight, and nothing waits to be taken (timers of open disks may run all the same); 0: not
/// so; negative: an error.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_driver_idle(driver: *const quod_driver) -> c_int {
    // SAFETY: passed on.
    unsafe { call(driver, |inner| Ok(inner.driver.idle().into())) }
}

/// Registers memory that requests use again and again (a guest's, or a pool of buffers) with the ring: their
/// transfers skip the pinning of its pages. Requests need not change, and may use other memory too.
///
/// Blocks while the kernel pins the pages (some 100 us a MiB of pages that were never touched). They count as
/// locked memory (RLIMIT_MEMLOCK). The memory stays yours; until `quod_unregister_memory` or
/// `quod_driver_free` it stays mapped to the same pages: not unmapped, mapped over, or given up
/// (MADV_DONTNEED).
///
/// 0, and `*memory` names it; or nothing is registered, and everything works without: -EOPNOTSUPP (worker
/// threads, Linux before 5.19), -ENOMEM (over RLIMIT_MEMLOCK), -ENOSPC (over 1,024 regions of at most 1 GiB),
/// -EFAULT (not memory), -EINVAL (a length of 0, or beyond the address space).
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; the memory is as said above; `memory` is
/// NULL (an error), or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_register_memory(
    driver: *mut quod_driver,
    address: *mut c_void,
    length: usize,
    memory: *mut quod_memory,
) -> c_int {
    let register = |inner: &mut Inner| {
        if memory.is_null() || !memory.is_aligned() || address.is_null() || length == 0 {
            return Err(Error::Misuse("no memory, or no place for its name").into());
        }
        if !spans(address, length) {
            return Err(Error::Misuse("a length that no memory has").into());
        }
        let name = serial()?;
        // SAFETY: the caller's promise is that of a segment, and of registered memory.
        let id = unsafe { inner.driver.register_memory(Segment::new(address.cast(), length)) }?;
        inner.memory.push((name, id));
        // SAFETY: not NULL, and by the caller's word it can be written.
        unsafe { memory.write(name) };
        Ok(0)
    };
    // SAFETY: passed on.
    unsafe { call(driver, register) }
}

/// Could so many bytes lie there?
pub(crate) fn spans(address: *const c_void, length: usize) -> bool {
    length <= isize::MAX as usize && address.addr().checked_add(length).is_some()
}

/// Takes memory back, which no request in flight may use. Its pages are free when this returns.
///
/// 0, or -EINVAL: nothing is registered with this driver under this name.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_unregister_memory(driver: *mut quod_driver, memory: quod_memory) -> c_int {
    let unregister = |inner: &mut Inner| {
        let at = inner.memory.iter().position(|(name, _)| *name == memory);
        let at = at.ok_or(Error::Misuse("no such memory is registered with this driver"))?;
        inner.driver.unregister_memory(inner.memory[at].1)?;
        inner.memory.swap_remove(at);
        Ok(0)
    };
    // SAFETY: passed on.
    unsafe { call(driver, unregister) }
}
