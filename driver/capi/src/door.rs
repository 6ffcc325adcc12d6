//! The door of a driver: what every call by C goes through, one way in and one way out.
//!
//! Knows: threads, panics, calls inside calls. Must never know: what a call does.
//! Invariants: a driver is looked at by one call at a time, of one thread; none goes on after a panic; what a
//! call returns is 0 or more, or a negative number of errno(3) with its words in `quod_last_error`.

use crate::error::{Failure, Shown, failed};
use quod::{DiskId, Driver, Error, MemoryId};
use std::cell::UnsafeCell;
use std::ffi::c_int;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// One driver with its disks. Opaque: made by `quod_driver_new`, freed by `quod_driver_free`.
///
/// A driver belongs to the thread that first calls a function with it, `quod_driver_fd` apart. Calls of
/// another thread are refused with EPERM (QUOD_ERROR_KIND_WRONG_THREAD), and do nothing. A child made by
/// fork(2) must not use the drivers of its parent.
pub struct quod_driver {
    /// Number of the thread that it belongs to; 0: of none yet.
    owner: AtomicU64,
    /// A call is under way.
    inside: AtomicBool,
    /// A call has panicked.
    broken: AtomicBool,
    /// The descriptor of the driver, which never changes.
    pub(crate) fd: RawFd,
    inner: UnsafeCell<Inner>,
}

/// What the calls of one driver work on.
pub(crate) struct Inner {
    pub driver: Driver,
    pub disks: Disks,
    pub memory: Vec<(u64, MemoryId)>,
    /// The error of the completion that was taken last.
    pub shown: Option<Box<Shown>>,
}

/// The names of a driver's open disks.
#[derive(Default)]
pub(crate) struct Disks {
    /// By the disks' own numbers: what C calls each, and what the driver does.
    named: Vec<Option<(u64, DiskId)>>,
}

/// The next serial number of the process: no disk's or region's name is used again.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// The lower half of a disk's name is its number, the upper half is never used again.
const NUMBERS: u32 = 32;

/// A number that nothing of this process has had.
pub(crate) fn serial() -> Result<u64, Error> {
    let next = |serial: u64| (serial >> NUMBERS == 0).then_some(serial + 1);
    SERIAL.fetch_update(Relaxed, Relaxed, next).map_err(|_| Error::Misuse("every name of disks is used up"))
}

impl Disks {
    /// Gives a disk its name.
    pub(crate) fn add(&mut self, serial: u64, id: DiskId) -> u64 {
        let name = serial << NUMBERS | id.index() as u64;
        if self.named.len() <= id.index() {
            self.named.resize(id.index() + 1, None);
        }
        self.named[id.index()] = Some((name, id));
        name
    }

    fn index(name: u64) -> usize {
        (name & ((1 << NUMBERS) - 1)) as usize
    }

    /// The disk of this name.
    pub(crate) fn id(&self, name: u64) -> Result<DiskId, Error> {
        match self.named.get(Disks::index(name)) {
            Some(Some((known, id))) if *known == name => Ok(*id),
            _ => Err(Error::Closed),
        }
    }

    /// The name of a disk that a completion is about.
    pub(crate) fn name(&self, id: DiskId) -> u64 {
        let named = self.named.get(id.index()).copied().flatten();
        named.filter(|(_, known)| *known == id).map_or(0, |(name, _)| name)
    }

    /// The name means nothing any more.
    pub(crate) fn remove(&mut self, name: u64) {
        if self.id(name).is_ok() {
            self.named[Disks::index(name)] = None;
        }
    }
}

/// The number of the calling thread, which no other of the process has had. 0: the thread is ending.
fn thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static NUMBER: u64 = NEXT.fetch_add(1, Relaxed);
    }
    NUMBER.try_with(|number| *number).unwrap_or(0)
}

/// A call is under way, until this is dropped.
struct Inside<'a>(&'a AtomicBool);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.store(false, Relaxed);
    }
}

impl quod_driver {
    pub(crate) fn new(driver: Driver) -> Box<quod_driver> {
        use std::os::fd::AsRawFd;
        Box::new(quod_driver {
            owner: AtomicU64::new(0),
            inside: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            fd: driver.as_raw_fd(),
            inner: UnsafeCell::new(Inner {
                driver,
                disks: Disks::default(),
                memory: Vec::new(),
                shown: None,
            }),
        })
    }

    /// Is the calling thread the one that the driver belongs to? It does from now on, if it belongs to none.
    fn claim(&self) -> Result<(), Error> {
        let me = thread();
        let owner = self.owner.load(Relaxed);
        if me != 0
            && (owner == me || owner == 0 && self.owner.compare_exchange(0, me, Relaxed, Relaxed).is_ok())
        {
            return Ok(());
        }
        Err(Error::WrongThread)
    }

    /// One call comes in; none may while another is inside, which is one of this thread.
    fn enter(&self) -> Result<Inside<'_>, Failure> {
        self.claim()?;
        if self.inside.load(Relaxed) {
            return Err(Error::Misuse("a driver that is called by its own open gate").into());
        }
        self.inside.store(true, Relaxed);
        Ok(Inside(&self.inside))
    }

    fn act<T>(&self, act: impl FnOnce(&mut Inner) -> Result<T, Failure>) -> Result<T, Failure> {
        let _inside = self.enter()?;
        if self.broken.load(Relaxed) {
            return Err(Failure::Panicked);
        }
        // SAFETY: `enter` lets in one thread for all the driver's life, and one call of it at a time, until
        // `_inside` is dropped.
        let inner = unsafe { &mut *self.inner.get() };
        caught(|| act(inner)).inspect_err(|failure| {
            if let Failure::Panicked = failure {
                self.broken.store(true, Relaxed);
            }
        })
    }
}

/// Ends a panic.
fn caught<T>(act: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // what a panic leaves half done is not looked at again
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(Failure::Panicked))
}

/// A call that needs no driver: what it returns to C.
pub(crate) fn alone(act: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    caught(act).unwrap_or_else(failed)
}

/// As `call`, for answers of any kind; the error is what C gets.
///
/// # Safety
/// As of `call`.
pub(crate) unsafe fn ask<T>(
    driver: *const quod_driver,
    act: impl FnOnce(&mut Inner) -> Result<T, Failure>,
) -> Result<T, c_int> {
    if driver.is_null() || !driver.is_aligned() {
        return Err(failed(Error::Misuse("a driver that is NULL").into()));
    }
    // SAFETY: by the caller's word it points to a driver; all that threads share is atomic, or behind `act`.
    unsafe { &*driver }.act(act).map_err(failed)
}

/// A call with a driver: what it returns to C.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and is not freed before this returns.
pub(crate) unsafe fn call(
    driver: *const quod_driver,
    act: impl FnOnce(&mut Inner) -> Result<c_int, Failure>,
) -> c_int {
    // SAFETY: passed on.
    unsafe { ask(driver, act) }.unwrap_or_else(|number| number)
}

/// Ends a driver.
///
/// # Safety
/// As of `call`, and nobody uses `driver` afterwards, if the answer is 0.
pub(crate) unsafe fn free(driver: *mut quod_driver) -> c_int {
    if driver.is_null() {
        return 0;
    }
    if !driver.is_aligned() {
        return failed(Error::Misuse("no driver").into());
    }
    // SAFETY: by the caller's word it points to a driver. The guard is not dropped: nothing is left to mark.
    let entered = unsafe { &*driver }.enter().map(std::mem::forget);
    // SAFETY: made by `Box` in `quod_driver_new`; the only call inside is this one, and it is the last.
    let ended = || entered.map(|()| drop(unsafe { Box::from_raw(driver) })).map(|()| 0);
    alone(ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{quod_error, quod_error_kind};
    use quod::{BackendKind, Config};

    fn driver() -> *mut quod_driver {
        let config = Config::default().backend(BackendKind::Threads);
        Box::into_raw(quod_driver::new(Driver::new(config).unwrap()))
    }

    fn last() -> &'static quod_error {
        // SAFETY: a call has failed, and no other will before this is looked at.
        unsafe { &*crate::quod_last_error() }
    }

    #[test]
    fn a_panic_ends_the_driver_and_nothing_else() {
        let (one, other) = (driver(), driver());
        // SAFETY: both are freed at the end.
        unsafe {
            assert_eq!(call(one, |_| panic!("as a test asks")), -libc::ENOTRECOVERABLE);
            assert_eq!(last().kind, quod_error_kind::Panicked);
            assert_eq!(call(one, |_| Ok(1)), -libc::ENOTRECOVERABLE, "what it left is not looked at");
            assert_eq!(call(other, |_| Ok(1)), 1);
            assert_eq!((free(one), free(other)), (0, 0));
        }
        assert_eq!(alone(|| panic!("as a test asks")), -libc::ENOTRECOVERABLE);
    }

    #[test]
    fn one_call_of_one_thread_is_inside() {
        let driver = driver();
        // SAFETY: freed at the end.
        unsafe {
            let inner = call(driver, |_| Ok(call(driver, |_| Ok(1)) + free(driver)));
            assert_eq!(inner, -2 * libc::EINVAL);
            assert_eq!(call(driver, |_| Ok(1)), 1);
            let address = driver as usize;
            let elsewhere = std::thread::spawn(move || {
                let driver = address as *mut quod_driver;
                (call(driver, |_| Ok(1)), last().kind, free(driver))
            });
            let refused = (-libc::EPERM, quod_error_kind::WrongThread, -libc::EPERM);
            assert_eq!(elsewhere.join().unwrap(), refused);
            assert_eq!(free(driver), 0);
            assert_eq!((free(std::ptr::null_mut()), call(std::ptr::null(), |_| Ok(1))), (0, -libc::EINVAL));
        }
    }

    #[test]
    fn names_of_disks_are_used_once() {
        let mut driver = Driver::new(Config::default().backend(BackendKind::Threads)).unwrap();
        let mut disks = Disks::default();
        let id = driver.open("no/such/file", quod::OpenOptions::new()).unwrap();
        let first = disks.add(serial().unwrap(), id);
        assert_eq!((disks.id(first), disks.name(id)), (Ok(id), first));
        disks.remove(first);
        assert_eq!((disks.id(first), disks.name(id)), (Err(Error::Closed), 0));
        let second = disks.add(serial().unwrap(), id);
        disks.remove(first); // closed twice
        assert_eq!((disks.id(first), disks.id(second)), (Err(Error::Closed), Ok(id)));
        for name in [0, 1, u64::MAX, second ^ 1] {
            assert_eq!(disks.id(name), Err(Error::Closed), "{name:#x}");
        }
    }
}
