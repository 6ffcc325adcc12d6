//! One turn: operations to the backend and back, timers, transforms.
//!
//! Knows: everything of the engine that has its moment in a turn. Must never know: why anything was asked.
//! Invariants: bounded, and never sleeps but in [`Engine::sleep`]; what finishes later makes the descriptor
//! readable again.

use super::Engine;
use crate::error::{BackendOp, Error};
use crate::layer::flight::{Place, Target};
use crate::transform::COPY;
use crate::transform::work::Made;
use quod_backend::{Backend, Completion as Landed, Output};
use quod_states::{Machine, Outcome};
use std::time::Duration;

/// Submissions to the backend that one `turn` makes at most.
const ROUNDS: usize = 4;
/// What one call takes of what the backend has finished: so many hits, about 100 us. The rest waits for the
/// next call, and `next_timeout` is zero.
const PORTION: usize = 512;
/// What anything else counts as.
const HEAVY: usize = 4;

impl<B: Backend> Engine<B> {
    /// A few submissions and a bounded piece of the transforms. `hears`: the descriptor may be waited for
    /// next, and is emptied before what it tells of is taken.
    pub(crate) fn turn(&mut self, hears: bool) -> Result<(), Error> {
        self.fire_timers();
        self.go_on();
        let mut left = PORTION;
        for _ in 0..ROUNDS {
            self.start()?;
            if hears {
                self.port.backend.clear_notify();
            }
            self.reap(&mut left);
            if !self.port.unsent() || left == 0 {
                break;
            }
        }
        if !self.transform.is_unused() {
            self.drive_transforms();
        }
        if self.port.unsent() { self.start() } else { Ok(()) }
    }

    /// Work that was cut short in the turn before.
    fn go_on(&mut self) {
        for (place, io) in std::mem::take(&mut self.port.yielded) {
            let layer = self.disks[place.disk as usize].layers.get_mut(place.layer as usize);
            if let Some(layer) = layer {
                layer.image.handle_completion(io, Outcome::Done);
                self.settle(place);
            }
        }
    }

    fn start(&mut self) -> Result<(), Error> {
        self.port.submit().map_err(|error| Error::backend(BackendOp::Submit, &error))
    }

    /// Takes what the backend has finished, as far as `left` goes.
    fn reap(&mut self, left: &mut usize) {
        let mut reaped = std::mem::take(&mut self.reaped);
        while *left > 0 && (!reaped.is_empty() || self.port.backend.reap(&mut reaped) > 0) {
            // as many as may all be heavy
            let count = left.div_ceil(HEAVY).min(reaped.len());
            let before = self.heavy;
            for landed in reaped.drain(..count) {
                self.land(landed);
            }
            *left = left.saturating_sub(count + (HEAVY - 1) * self.heavy.wrapping_sub(before));
        }
        self.reaped = reaped;
    }

    /// An operation came back.
    #[inline]
    fn land(&mut self, landed: Landed) {
        if let Ok(Output::Bytes(moved)) = landed.result
            && let Some(whole) = self.port.whole(landed.token, moved)
            && self.end_hit(whole)
        {
            return self.port.forget(landed.token);
        }
        self.heavy = self.heavy.wrapping_add(1);
        self.land_any(landed);
    }

    #[inline(never)]
    fn land_any(&mut self, landed: Landed) {
        let Some(flight) = self.port.land(landed.token) else {
            debug_assert!(false, "an operation came back twice");
            return;
        };
        let index = flight.disk;
        match flight.target {
            Target::Close => return self.file_closed(index),
            Target::Layer(layer) => self.layer_landed(Place { disk: index, layer }, flight, landed.result),
            Target::Opener(depth) => self.opener_landed(index, depth, flight, landed.result),
        }
        self.disks[index as usize].flights -= 1;
        self.try_close(index);
    }

    /// What a turn may do for transforms: take what workers have made, or make a slice; copy.
    fn drive_transforms(&mut self) {
        while let Some(made) = self.transform.next_made() {
            self.made(made);
        }
        if let Some(place) = self.transform.next_slice()
            && let Some((out, layer, transform)) = self.at(place)
            && let Some(made) = transform.slice(&mut out.port.arena, layer)
        {
            self.made(made);
        }
        let mut left = COPY;
        while left > 0
            && let Some(place) = self.transform.next_copy()
            && let Some((mut out, layer, transform)) = self.at(place)
        {
            if transform.copy(&mut out, layer, &mut left) {
                self.settle(place);
            }
        }
    }

    /// A cluster has been decompressed, or compressed.
    fn made(&mut self, made: Made) {
        let place = made.place();
        if let Some(stats) = &mut self.disks[place.disk as usize].stats {
            match made {
                Made::Cluster(_) => stats.decompressions += 1,
                Made::Pack(_) => stats.compressions += 1,
            }
        }
        if let Some((mut out, layer, transform)) = self.at(place) {
            transform.made(&mut out, layer, made);
            self.settle(place);
        } else {
            debug_assert!(false, "a layer went away while its bytes were transformed");
        }
        self.disks[place.disk as usize].flights -= 1;
        self.try_close(place.disk);
    }

    /// Sleeps until something finished, a timer is due or `timeout` ran out, unless there is something to do,
    /// or nothing to wait for; and takes what the backend collected meanwhile.
    ///
    /// The descriptor is left as it is, which costs a system call less: whoever waits for it next wakes once
    /// too often, and no wake is lost.
    pub(crate) fn rest(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let alarm = self.earliest.map(|deadline| deadline.saturating_sub(self.time()));
        let until = [timeout, alarm].into_iter().flatten().min();
        let idle = self.done.is_empty() && self.transform.is_idle() && self.port.yielded.is_empty();
        let idle = idle && self.reaped.is_empty();
        let expects = self.port.in_flight() > 0 || self.transform.is_busy() || until.is_some();
        if idle && expects {
            let slept = match self.timed || self.transform.is_busy() {
                true => {
                    // what the call hands over is its own time, the sleep is not
                    self.start()?;
                    if self.port.backend.has_backlog() { Ok(()) } else { self.sleep(until) }
                }
                false => self.port.wait(until),
            };
            slept.map_err(|error| Error::backend(BackendOp::Wait, &error))?;
        }
        self.reap(&mut { PORTION });
        Ok(())
    }

    /// The sleep alone is no time of the call.
    fn sleep(&mut self, until: Option<Duration>) -> std::io::Result<()> {
        let before = self.timed.then(|| self.port.backend.now().saturating_sub(self.now));
        let in_calls = self.port.backend.take_syscall_nanos();
        match self.transform.is_busy() {
            true => {
                self.transform.sleep(until)?;
                // else the next sleep would end at once
                self.port.backend.clear_notify();
            }
            false => self.port.backend.wait(until)?,
        }
        if let Some(held) = before {
            self.port.backend.take_syscall_nanos();
            self.held = (held, in_calls);
            self.now = self.port.backend.now();
        }
        Ok(())
    }

    /// When the next turn has something to do, if nothing finishes before. Zero: now.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        if self.port.unsent()
            || self.port.backend.has_backlog()
            || !self.reaped.is_empty()
            || !self.port.yielded.is_empty()
            || !self.done.is_empty()
            || !self.transform.is_idle()
        {
            return Some(Duration::ZERO);
        }
        self.earliest.map(|deadline| deadline.saturating_sub(self.port.backend.now()))
    }
}

#[cfg(test)]
mod tests;
