//! The engine: one backend, the disks on it, and what one turn does with them.
//!
//! Knows: all floors below, and what the embedder's words mean (`config`, `request`, `error`). Must never
//! know: the driver's face, how an image is laid out, how a system call is made.
//! Invariant: the number of accepted requests and of undelivered completions is bounded by
//! [`Config::requests`] per disk.

mod cancel;
mod close;
mod hit;
mod open;
mod pump;
mod timers;
mod translate;
mod turn;

use crate::completion::Ended;
use crate::config::Config;
use crate::layer::Layer;
use crate::layer::disk::Disk;
use crate::layer::flight::Place;
use crate::layer::out::{LayerJob, Out};
use crate::layer::port::Port;
use crate::request::DiskId;
use crate::trace::Transitions;
use crate::transform::Transform;
use quod_backend::{Backend, Completion as Landed};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// See the module's header.
pub(crate) struct Engine<B> {
    // Fields are dropped in this order: the workers of the transforms end first, which read the arena's
    // buffers; the port's first field is the backend, which waits for everything in
    // flight, so the buffers in the port's arena and in the disks' request slots go only when nothing uses
    // them any more.
    pub(crate) transform: Transform,
    pub(crate) port: Port<B>,
    pub(crate) disks: Vec<Disk>,
    vacant: Vec<u32>,
    jobs: VecDeque<LayerJob>,
    pub(crate) done: VecDeque<Ended>,
    pub(crate) transitions: Transitions,
    /// The earliest deadline of any timer, or an earlier moment.
    pub(crate) earliest: Option<Duration>,
    /// The backend's clock, if calls are timed when the present one began (in `wait`: after the sleep), else
    /// when it was last asked; see `time`.
    pub(crate) now: Duration,
    /// How long the present call held the thread before its sleep, and nanoseconds of that inside system
    /// calls.
    pub(crate) held: (Duration, u64),
    /// Each call reads the clock where it begins and ends.
    pub(crate) timed: bool,
    /// Requests and openings accepted and not completed.
    pub(crate) accepted: usize,
    pub(crate) config: Config,
    /// In `submit`: what ends now gets its time when the call ends.
    pub(crate) submitting: bool,
    /// What the backend has finished, and no turn has taken yet.
    reaped: Vec<Landed>,
    /// Operations that came back and were no hits, ever.
    heavy: usize,
    /// Which driver of the process this is: so that nobody takes the id of another one's disk for his own's.
    pub(crate) number: u32,
}

/// Drivers made so far.
static DRIVERS: AtomicU32 = AtomicU32::new(0);

impl<B: Backend> Engine<B> {
    pub(crate) fn new(mut backend: B, config: Config) -> Engine<B> {
        backend.time_calls(config.timing);
        if let Some(cpus) = config.worker_cpus {
            backend.set_worker_cpus(cpus);
        }
        let room = backend.capacity().clamp(64, 4096);
        Engine {
            transform: Transform::new(config.decompressors as usize, config.worker_cpus),
            port: Port::new(backend),
            disks: Vec::new(),
            vacant: Vec::new(),
            jobs: VecDeque::with_capacity(room),
            done: VecDeque::with_capacity(config.requests as usize + 1),
            transitions: Transitions::new(config.trace),
            earliest: None,
            now: Duration::ZERO,
            held: (Duration::ZERO, 0),
            timed: config.timing || config.trace,
            accepted: 0,
            config,
            submitting: false,
            reaped: Vec::with_capacity(room),
            heavy: 0,
            number: DRIVERS.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A slot for a disk, which is vacant.
    pub(crate) fn vacant(&mut self) -> u32 {
        self.vacant.pop().unwrap_or_else(|| {
            self.disks.push(Disk::vacant(self.number));
            self.disks.len() as u32 - 1
        })
    }

    /// The disk of this name.
    pub(crate) fn disk(&self, id: DiskId) -> Option<&Disk> {
        self.disks.get(id.index as usize).filter(|disk| disk.has(id))
    }

    /// As `disk`, to change.
    pub(crate) fn disk_mut(&mut self, id: DiskId) -> Option<&mut Disk> {
        self.disks.get_mut(id.index as usize).filter(|disk| disk.has(id))
    }

    /// What time it is for the present call.
    pub(crate) fn time(&mut self) -> Duration {
        if !self.timed {
            self.now = self.port.backend.now();
        }
        self.now
    }

    /// A layer, the ways out of it, and the transforms.
    fn at(&mut self, place: Place) -> Option<(Out<'_, B>, &mut Layer, &mut Transform)> {
        let Disk { layers, flights, .. } = &mut self.disks[place.disk as usize];
        let Engine { port, jobs, transform, .. } = self;
        let layer = layers.get_mut(place.layer as usize)?;
        Some((Out { port, jobs, flights, place }, layer, transform))
    }

    /// Puts a completion where the embedder takes it.
    #[inline]
    fn complete(&mut self, ended: Ended) {
        self.accepted -= 1;
        self.done.push_back(ended);
    }
}
