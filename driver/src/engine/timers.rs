//! Timers: machines ask for alarms in milliseconds, the driver keeps deadlines on the backend's clock; an
//! opening asks again for a lock that was refused.
//!
//! Knows: deadlines. Must never know: what a timer is for.
//! Invariant: `Engine::earliest` is never later than the earliest deadline; it may be earlier after an alarm
//! was called off, which costs one early call of `turn`.

use super::Engine;
use crate::layer::TIMERS;
use crate::layer::disk::Phase;
use crate::layer::flight::Place;
use quod_backend::Backend;

impl<B: Backend> Engine<B> {
    /// Fires what is due.
    pub(super) fn fire_timers(&mut self) {
        let Some(earliest) = self.earliest else { return };
        if earliest > self.time() {
            return;
        }
        for disk in 0..self.disks.len() {
            self.retry_lock(disk as u32);
            // a timer may end with the disk closed and its layers gone: look again each time
            let mut layer = 0;
            while layer < self.disks[disk].layers.len() {
                for timer in 0..TIMERS.len() {
                    self.fire(Place { disk: disk as u32, layer: layer as u16 }, timer);
                }
                layer += 1;
            }
        }
        let retries = self.disks.iter().filter_map(|disk| match &disk.phase {
            Phase::Opening(opener) => opener.retry,
            _ => None,
        });
        let layers = self.disks.iter().flat_map(|disk| &disk.layers);
        self.earliest = layers.flat_map(|layer| layer.deadlines).flatten().chain(retries).min();
    }

    fn fire(&mut self, place: Place, timer: usize) {
        let Some(layer) = self.disks[place.disk as usize].layers.get_mut(place.layer as usize) else {
            return;
        };
        if layer.deadlines[timer].is_some_and(|deadline| deadline <= self.now) {
            layer.deadlines[timer] = None;
            layer.image.handle_timeout(TIMERS[timer]);
            self.settle(place);
        }
    }
}
