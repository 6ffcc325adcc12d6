//! Flush, quiesce, close: requests about the whole image. (`resize.rs` has the fourth.)
//!
//! Knows: which of them needs what of the commit pipeline. Must never know: how a round goes.

use crate::acb::State;
use crate::acb::Want;
use crate::acb::request::Kind;
use crate::image::Image;
use crate::io::{IoOp, Part};
use crate::rule::Rule;

impl Image {
    pub(crate) fn start_flush(&mut self, a: u32, kind: Kind) {
        if self.options.read_only {
            return self.finish(a, Ok(()));
        }
        self.join_commit(a, if kind == Kind::Flush { Want::Durable } else { Want::Clean });
    }

    /// Nothing new is accepted; when all else has ended: commit, clear the dirty bit, give back the space
    /// ahead of the data.
    pub(crate) fn start_close(&mut self, a: u32) {
        self.closing = true;
        self.requests.set_state(a, State::WaitRequests);
        if self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests) {
            return self.all_requests_ended(a);
        }
        self.requests.wait_for_others(a);
    }

    pub(crate) fn all_requests_ended(&mut self, a: u32) {
        debug_assert!(self.requests.len() == 1 || self.options.sabotaged(Rule::WaitRequests));
        if !self.closing {
            // a smaller disk
            return self.look(a);
        }
        if self.options.read_only {
            return self.finish(a, Ok(()));
        }
        self.join_commit(a, Want::Clean);
    }

    /// Close, committed: the file ends where the data ends.
    pub(crate) fn trim(&mut self, a: u32) {
        if self.space.has_found() {
            // what was free already stays: nobody but the counts says that nothing is there
            return self.finish(a, Ok(()));
        }
        let mut end = self.space.next();
        let bits = self.layout.geometry().map_or(0, |geometry| geometry.cluster_bits);
        // of a corrupt image no more goes than came in this session
        while !self.health.is_halted()
            && let Some(first) =
                self.refcounted.as_deref_mut().and_then(|counted| counted.quarantine.cut_tail(end >> bits))
        {
            end = first << bits;
        }
        let len = end;
        if self.layout.is_raw() || self.space.file_len() <= len {
            return self.finish(a, Ok(()));
        }
        self.requests.set_state(a, State::Resize);
        self.outbox.emit_own(&mut self.requests, a, Part::Head, IoOp::SetLen { len });
    }
}
