//! Cancelling: nothing more is begun for a request.
//!
//! Knows: whose acbs they are, what they have in flight. Must never know: how a wait ends.
//!
//! Invariants:
//! * I/O in flight and extents in progress go on to their end: a cancelled write leaves an image as one that
//!   failed there does;
//! * nobody leaves a queue: an acb that waits is answered when what it waits for has happened.

use crate::acb::Acb;
use crate::acb::request::{Flags, Kind};
use crate::error::Error;
use crate::image::Image;
use alloc::boxed::Box;

impl Image {
    /// Begins nothing more for the requests with this `user` value: reads, writes, write-zeroes, discards and
    /// maps; the others run to their end. One that is left undone, or in part, ends with
    /// [`Error::Cancelled`]: of its range any part may have been done. How many are so.
    pub fn cancel(&mut self, user: u64) -> usize {
        let mut cancelled = 0;
        for a in 0..self.options.acbs.max(1) {
            let Some(acb) = self.acbs.find(a) else { continue };
            let index = acb.request.index;
            if self.requests.get(index).is_none_or(|open| open.user != user) {
                continue;
            }
            let Some(acb) = self.acbs.get_mut(a) else { continue };
            if !acb.cancel() {
                continue;
            }
            let Some(open) = self.requests.get_mut(index) else { continue };
            if open.error.is_none() {
                open.error = Some(Box::new(Error::Cancelled));
                cancelled += 1;
            }
        }
        cancelled
    }
}

impl Acb {
    /// Is something left undone now?
    fn cancel(&mut self) -> bool {
        if matches!(self.kind, Kind::Flush | Kind::Quiesce | Kind::Close | Kind::Resize) {
            return false;
        }
        // who waits has no extent in progress: woken, it looks again, and finds nothing left to do
        let more = self.run_end < self.end;
        self.end = self.run_end;
        if more {
            // what was not asked for any more need not be durable
            self.flags.remove(Flags::FUA);
        }
        more
    }
}
