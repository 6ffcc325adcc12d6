//! Recorded transitions, until somebody takes them.
//!
//! Knows: when and where. Must never know: what a state means.
//! Invariant: bounded; what does not fit is counted. Times are those of the call that caused the transition.

use crate::request::DiskId;
use quod_states::Transition;
use std::collections::VecDeque;
use std::time::Duration;

/// Transitions kept at most.
const KEPT: usize = 1 << 16;

/// One step of one control block, with when and where.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub struct TimedTransition {
    /// Whose.
    pub disk: DiskId,
    /// Which file of it: 0 is the image.
    pub layer: usize,
    /// On the backend's clock: when the call that caused it began.
    pub at: Duration,
    /// What.
    pub transition: Transition,
}

/// See the module's header.
#[derive(Debug)]
pub(crate) struct Transitions {
    queue: VecDeque<TimedTransition>,
    lost: u64,
}

impl Transitions {
    pub(crate) fn new(on: bool) -> Transitions {
        Transitions { queue: VecDeque::with_capacity(if on { KEPT } else { 0 }), lost: 0 }
    }

    pub(crate) fn push(&mut self, transition: TimedTransition) {
        if self.queue.len() < KEPT {
            self.queue.push_back(transition);
        } else {
            self.lost += 1;
        }
    }

    pub(crate) fn drain(&mut self, sink: &mut dyn FnMut(TimedTransition)) {
        self.queue.drain(..).for_each(sink);
    }

    pub(crate) fn lost(&self) -> u64 {
        self.lost
    }
}
