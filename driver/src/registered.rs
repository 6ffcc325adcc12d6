//! Memory that is registered with the ring.
//!
//! Knows: regions by name. Must never know: which requests use them.
//! Invariant: a name is good for one driver, until its region is taken back.

use crate::driver::Driver;
use crate::error::{BackendOp, Error};
use crate::request::MemoryId;
use quod_backend::{Backend, Segment};

impl<B: Backend> Driver<B> {
    /// Registers memory that requests use again and again (the guest's, or a pool of buffers) with the ring:
    /// transfers inside it skip the pinning of its pages, which takes a good part of the processor time of a
    /// small one. Requests need not change, and may use other memory, too; a scatter list gains if all of it
    /// lies in one region (of at most 1 GiB each: a larger one counts as several), on Linux 6.15 or later.
    ///
    /// Blocks while the kernel pins the pages: some 100 us a MiB of pages that were never touched; do it
    /// before the guest runs. Regions may come and go while requests are in flight. The pages count as locked
    /// memory (`RLIMIT_MEMLOCK`), and as used: none is given back to the host meanwhile.
    ///
    /// ```
    /// use quod::{Buffer, Config, Driver, Error};
    /// let mut driver = Driver::new(Config::default())?;
    /// let mut memory = Buffer::zeroed(1 << 20); // or a guest's
    /// // SAFETY: the memory outlives its registration, and stays where it is.
    /// let region = unsafe {
    ///     let whole = memory.segment(0, 1 << 20);
    ///     driver.register_memory(whole)
    /// };
    /// match region {
    ///     Ok(region) => driver.unregister_memory(region)?, // when no request uses it any more
    ///     Err(Error::Backend { errno, .. }) => eprintln!("it goes on without: {errno}"),
    ///     Err(error) => return Err(error),
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Backend`]: nothing is registered, and everything works without. EOPNOTSUPP: worker threads,
    /// or a kernel before 5.19; ENOMEM: over `RLIMIT_MEMLOCK`; ENOSPC: over 1,024 regions; EFAULT: not
    /// memory.
    /// [`Error::WrongThread`] as of [`Driver::turn`].
    ///
    /// # Safety
    /// Until it was taken back, or the driver dropped, the region stays mapped to the same pages: it is not
    /// unmapped, mapped over, or given up (`MADV_DONTNEED`, as a balloon device does). What would be read or
    /// written otherwise is the old pages, which nobody sees.
    pub unsafe fn register_memory(&mut self, region: Segment) -> Result<MemoryId, Error> {
        let region = self.engine.port.backend.register_memory(region);
        let region = region.map_err(|error| Error::backend(BackendOp::Register, &error))?;
        Ok(MemoryId { driver: self.engine.number, region })
    }

    /// As [`Driver::register_memory`], of what another driver of the process has registered: two drivers of
    /// one guest, say. Where the kernel can do that (Linux 6.13, both drivers on one thread, both on a ring),
    /// the registration is shared: it takes some microseconds, and the pages do not count as locked memory a
    /// second time. Elsewhere they are pinned once more. Each driver takes its own back, in any order.
    ///
    /// ```
    /// use quod::{Buffer, Config, Driver, Error};
    /// let (mut first, mut second) = (Driver::new(Config::default())?, Driver::new(Config::default())?);
    /// let mut memory = Buffer::zeroed(1 << 20);
    /// // SAFETY: the memory outlives both registrations, and stays where it is.
    /// let region = unsafe {
    ///     let whole = memory.segment(0, 1 << 20);
    ///     first.register_memory(whole)
    /// };
    /// if let Ok(region) = region {
    ///     // SAFETY: as above.
    ///     let again = unsafe { second.register_memory_of(&first, region)? };
    ///     first.unregister_memory(region)?;
    ///     second.unregister_memory(again)?;
    /// }
    /// # Ok::<(), Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Misuse`] if `other` has nothing of this name; [`Error::Backend`] and [`Error::WrongThread`]
    /// as of [`Driver::register_memory`].
    ///
    /// # Safety
    /// As of [`Driver::register_memory`], until each was taken back, or its driver dropped.
    pub unsafe fn register_memory_of(&mut self, other: &Driver<B>, id: MemoryId) -> Result<MemoryId, Error> {
        let nothing = Error::Misuse("no such memory is registered with the other driver");
        if id.driver != other.engine.number {
            return Err(nothing);
        }
        let region = self.engine.port.backend.register_memory_of(&other.engine.port.backend, id.region);
        match region {
            Ok(region) => Ok(MemoryId { driver: self.engine.number, region }),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Err(nothing),
            Err(error) => Err(Error::backend(BackendOp::Register, &error)),
        }
    }

    /// Takes memory back: no request in flight uses it. Its pages are free when this returns.
    ///
    /// # Errors
    /// [`Error::Misuse`] if nothing is registered with this driver under this name.
    pub fn unregister_memory(&mut self, id: MemoryId) -> Result<(), Error> {
        let mine = id.driver == self.engine.number;
        if mine && self.engine.port.backend.unregister_memory(id.region) {
            return Ok(());
        }
        Err(Error::Misuse("no such memory is registered with this driver"))
    }
}
