//! The buffers of a load or of a replay, registered with the driver while it runs.
//!
//! Knows: buffers. Must never know: requests.

use quod::{Buffer, Driver, Error, MemoryId};
use quod_backend::Backend;

/// Registers a buffer. It is taken back before it is freed; where a run fails, the driver, which has the
/// buffers that are in flight, is not used for requests again.
pub(crate) fn register_one<B: Backend>(
    driver: &mut Driver<B>,
    buffer: &mut Buffer,
) -> Result<MemoryId, Error> {
    let len = buffer.as_slice().len();
    // SAFETY: the callers' promise, as above.
    unsafe {
        let whole = buffer.segment(0, len);
        driver.register_memory(whole)
    }
}

/// Registers each of them; fails as `Driver::register_memory` does, and then none is.
pub(super) fn register<B: Backend>(
    driver: &mut Driver<B>,
    buffers: &mut [Buffer],
    regions: &mut Vec<MemoryId>,
) -> Result<(), Error> {
    for buffer in buffers {
        match register_one(driver, buffer) {
            Ok(region) => regions.push(region),
            Err(error) => {
                take_back(driver, regions)?;
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Takes all of them back.
pub(super) fn take_back<B: Backend>(
    driver: &mut Driver<B>,
    regions: &mut Vec<MemoryId>,
) -> Result<(), Error> {
    regions.drain(..).try_for_each(|region| driver.unregister_memory(region))
}
