//! The way to the backend: the table of what is in flight, and the queue of what it was not given yet: until
//! the next submission, or because it had no room.
//!
//! Knows: tokens, operations, which machine asked. Must never know: why.
//! Invariants: every operation sent comes back once (the backend's promise) and finds its flight by slot and
//! generation; operations leave in the order in which they were named, none is lost. Both tables are bounded
//! by the machines' slabs.

use super::flight::{Dest, Flight, FlightTask, Place, Target, Whole};
use crate::memory::arena::Arena;
use quod_backend::{Backend, Op, Segments, Token};
use quod_states::IoId;
use std::collections::VecDeque;
use std::time::Duration;

#[derive(Debug)]
struct Entry {
    generation: u32,
    flight: Option<Flight>,
}

/// See the module's header. The backend is the first field: it is dropped first, and waits for what is in
/// flight, so that nothing writes to the arena's or the guests' buffers when those go.
pub(crate) struct Port<B> {
    pub backend: B,
    pub arena: Arena,
    entries: Vec<Entry>,
    free: Vec<u32>,
    pending: VecDeque<(Token, Op)>,
    in_flight: usize,
    unsent: bool,
    /// A call that hands over has begun, and has not yet.
    pub fresh: bool,
    /// Of the write that is being put together.
    pub pieces: Segments,
    /// What goes on in the next turn.
    pub yielded: Vec<(Place, IoId)>,
}

impl<B: Backend> Port<B> {
    pub(crate) fn new(mut backend: B) -> Port<B> {
        let mut arena = Arena::new(!backend.is_model());
        if !backend.is_model() {
            // where that cannot be done it costs speed alone
            let _ = backend.register_memory(arena.first_piece());
        }
        let room = backend.capacity().clamp(64, 4096);
        Port {
            backend,
            arena,
            entries: Vec::with_capacity(room),
            free: Vec::with_capacity(room),
            pending: VecDeque::with_capacity(room),
            in_flight: 0,
            unsent: false,
            fresh: true,
            pieces: Segments::new(),
            yielded: Vec::new(),
        }
    }

    /// Sends an operation with the next submission, or when there is room.
    #[inline]
    pub(crate) fn send(&mut self, flight: Flight, op: Op) {
        let token = self.enter(flight);
        self.unsent = true;
        self.pending.push_back((token, op));
    }

    /// The first flight of the queue that is `wanted`: no longer in flight, and its operation is not done.
    pub(crate) fn take_back(&mut self, wanted: impl Fn(&Flight) -> bool) -> Option<Flight> {
        let is_wanted = |(token, _): &(Token, Op)| {
            let entry = self.entries.get(token.0 as u32 as usize);
            entry.and_then(|entry| entry.flight.as_ref()).is_some_and(&wanted)
        };
        let at = self.pending.iter().position(is_wanted)?;
        let (token, _) = self.pending.remove(at)?;
        self.land(token)
    }

    #[inline]
    fn enter(&mut self, flight: Flight) -> Token {
        self.in_flight += 1;
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.entries.push(Entry { generation: 0, flight: None });
                self.entries.len() as u32 - 1
            }
        };
        let entry = &mut self.entries[index as usize];
        entry.flight = Some(flight);
        Token(u64::from(entry.generation) << 32 | u64::from(index))
    }

    /// The flight of a finished operation; None if the token is stale.
    #[inline]
    pub(crate) fn land(&mut self, token: Token) -> Option<Flight> {
        let index = token.0 as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if entry.generation != (token.0 >> 32) as u32 {
            return None;
        }
        let flight = entry.flight.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(index);
        self.in_flight -= 1;
        Some(flight)
    }

    /// The flight of a finished operation, if it is a read of a request's own bytes and all of them are
    /// there, or a write with such bytes; it stays where it is.
    #[inline]
    pub(crate) fn whole(&self, token: Token, moved: u64) -> Option<Whole> {
        let entry = self.entries.get(token.0 as u32 as usize)?;
        if entry.generation != (token.0 >> 32) as u32 {
            return None;
        }
        let Some(Flight { disk, target: Target::Layer(layer), io, task }) = &entry.flight else {
            return None;
        };
        let slot = match task {
            FlightTask::Read { dest: Dest::Request { index, .. }, len, bounce: None, .. }
                if *len <= moved =>
            {
                *index
            }
            // a backend that says how many says all
            FlightTask::Write { request, bounce: None, hit: true, .. } => *request,
            _ => return None,
        };
        Some(Whole { place: Place { disk: *disk, layer: *layer }, io: *io, slot })
    }

    /// Its flight is over.
    #[inline]
    pub(crate) fn forget(&mut self, token: Token) {
        let index = token.0 as u32;
        if let Some(entry) = self.entries.get_mut(index as usize) {
            debug_assert!(entry.flight.is_some() && entry.generation == (token.0 >> 32) as u32);
            entry.flight = None;
            entry.generation = entry.generation.wrapping_add(1);
            self.free.push(index);
            self.in_flight -= 1;
        }
    }

    /// Takes back what a task holds when nobody waits for it any more.
    pub(crate) fn discard(&mut self, task: FlightTask) {
        match task {
            FlightTask::ReadTable { loan, .. }
            | FlightTask::WriteTable { loan }
            | FlightTask::ReadCompressed { loan, .. } => {
                self.arena.give_back(loan);
            }
            FlightTask::Read { bounce, .. } | FlightTask::Write { bounce, .. } => {
                bounce.into_iter().for_each(|loan| self.arena.give_back(loan));
            }
            FlightTask::Plain | FlightTask::HalfSync | FlightTask::Step | FlightTask::Close => {}
        }
    }

    /// Pushes what waits, as far as there is room.
    pub(crate) fn push_pending(&mut self) {
        while let Some((token, op)) = self.pending.pop_front() {
            if let Err(full) = self.backend.push(token, op) {
                self.pending.push_front((token, full.0));
                return;
            }
        }
    }

    /// Something was pushed since the backend was last told to start, or could be pushed now.
    pub(crate) fn unsent(&self) -> bool {
        self.unsent || (!self.pending.is_empty() && self.backend.in_flight() < self.backend.capacity())
    }

    /// One submission: the first of a call has a portion of its own, those behind it share that.
    pub(crate) fn submit(&mut self) -> std::io::Result<()> {
        self.push_pending();
        self.unsent = false;
        match std::mem::take(&mut self.fresh) {
            true => self.backend.submit(),
            false => self.backend.submit_more(),
        }
    }

    /// A submission that sleeps until something finished or time ran out.
    pub(crate) fn wait(&mut self, until: Option<Duration>) -> std::io::Result<()> {
        self.push_pending();
        (self.unsent, self.fresh) = (false, false);
        self.backend.wait(until)
    }

    /// Operations named and not finished.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}
