//! A load's buffers, registered with the driver while it runs.
//!
//! Knows: buffers. Must never know: requests.

use quod::{Buffer, Driver, Error, MemoryId};
use quod_backend::Backend;

/// Registers each of them; fails as `Driver::register_memory` does, and then none is.
pub(super) fn register<B: Backend>(
    driver: &mut Driver<B>,
    buffers: &mut [Buffer],
    regions: &mut Vec<MemoryId>,
) -> Result<(), Error> {
    for buffer in buffers {
        let len = buffer.as_slice().len();
        // SAFETY: the run takes the regions back before it drops the buffers; if it fails, the driver, which
        // has the buffers that are in flight, is not used for requests again.
        let region = unsafe {
            let whole = buffer.segment(0, len);
            driver.register_memory(whole)
        };
        match region {
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
