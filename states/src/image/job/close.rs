//! Close: nothing new is accepted; when all else has ended: commit, clear the dirty bit, give back the space
//! ahead of the data.
//!
//! Knows: what a close needs of the commit pipeline. Must never know: how a round goes.

use crate::acb::request::Met;
use crate::acb::{AcbIndex, State, Want};
use crate::image::next::Next;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::rule::Rule;

impl Image {
    pub(super) fn start_close(&mut self, a: AcbIndex) -> Next {
        debug_assert!(!self.jobs.is_closing(), "one close was admitted");
        self.jobs.close();
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return self.close_alone();
        }
        self.requests.wait_for_others(a);
        Next::Wait
    }

    pub(super) fn close_alone(&self) -> Next {
        debug_assert!(self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests));
        if self.options.read_only { Next::Done } else { Next::Join(Want::Clean) }
    }

    /// Committed: the file ends where the data ends.
    pub(super) fn trim(&mut self, a: AcbIndex) -> Next {
        debug_assert!(!self.options.read_only);
        if self.space.has_found() || self.space.is_device() {
            // what was free already stays: nobody but the counts says that nothing is there
            return Next::Done;
        }
        let mut len = self.space.next();
        let bits = self.layout.geometry().map_or(0, |geometry| geometry.cluster_bits);
        // of a corrupt image no more goes than came in this session
        while !self.health.is_halted()
            && let Some(first) =
                self.refcounted.as_deref_mut().and_then(|counted| counted.quarantine.cut_tail(len >> bits))
        {
            len = first << bits;
        }
        if self.layout.is_raw() || self.space.file_len() <= len {
            return Next::Done;
        }
        self.requests.set_state(a, State::Resize);
        self.outbox.emit_own(&mut self.requests, a, Part::Head, IoOp::SetLen { len });
        Next::Wait
    }

    /// It does.
    pub(super) fn closed(&mut self, a: AcbIndex) -> Next {
        debug_assert!(self.jobs.is_closing());
        self.requests.note(a, Met::FLUSH);
        Next::Done
    }
}
