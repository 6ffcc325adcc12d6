//! Acbs that wait for the pipeline: what they want, when they have it, what their state says meanwhile.
//!
//! Knows: windows and wants. Must never know: what an acb does with its answer.
//!
//! Invariant: whoever waits here wants something that is demanded: a round answers it, or a failure.

use super::pipeline::{Commit, Phase};
use crate::acb::requests::Requests;
use crate::acb::{AcbIndex, State, Want};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::outbox::{Due, Outbox};
use alloc::format;
use alloc::string::String;

impl Commit {
    /// The acb waits until what it wrote (or, without a write, all that was written before now) is as it
    /// wants it.
    pub(crate) fn join(&mut self, requests: &mut Requests, a: AcbIndex, want: Want, out: &mut Outbox) {
        debug_assert!(want != Want::Header);
        if requests.acb(a).state != State::SyncData {
            requests.set_state(a, State::SyncData);
        }
        let acb = requests.acb_mut(a);
        // the acb may have waited since it wrote, but its own window is the one that counts
        if acb.commit.window == 0 {
            acb.commit.window = self.windows.open();
        }
        acb.commit.want = want;
        self.windows.demand(acb.commit.window, want >= Want::Durable);
        if want == Want::Clean {
            self.windows.demand_clean();
        }
        requests.wait_in(&mut self.waiters, a);
        out.due |= Due::ROUND | Due::SHOW;
        debug_assert!(self.is_demanded(requests, a), "a round will answer it");
    }

    /// The acb waits until the header's autoclear bits are cleared, durably.
    pub(crate) fn wait_for_header(&mut self, requests: &mut Requests, a: AcbIndex, out: &mut Outbox) {
        debug_assert_eq!(requests.acb(a).commit.window, 0, "it has changed nothing yet");
        requests.set_state(a, State::ClearAutoclear);
        requests.acb_mut(a).commit.want = Want::Header;
        requests.wait_in(&mut self.waiters, a);
        out.due |= Due::ROUND;
    }

    /// Readies the acbs that have what they want. `clean`: the dirty bit is cleared, or was never set;
    /// `autoclear`: so are the autoclear bits.
    pub(crate) fn release(&mut self, requests: &mut Requests, clean: bool, autoclear: bool) {
        let mut waiters = core::mem::replace(&mut self.waiters, Queue::new());
        let mut left = Queue::new();
        let mut clean_wanted = false;
        let (written, durable) = (self.windows.written(), self.windows.tables_durable());
        debug_assert!(durable <= written, "what is not written is not durable");
        while let Some(a) = requests.take_first(&mut waiters) {
            let acb = requests.acb(a);
            debug_assert!(acb.error.is_none(), "a failure answers all at once");
            let satisfied = match acb.commit.want {
                Want::Header => autoclear,
                Want::Written => acb.commit.window <= written,
                Want::Durable => acb.commit.window <= durable,
                Want::Clean => clean && acb.commit.window <= durable,
            };
            clean_wanted |= acb.commit.want == Want::Clean && !satisfied;
            if satisfied { requests.ready(a) } else { requests.wait_in(&mut left, a) }
        }
        if clean {
            self.windows.still_clean(clean_wanted);
        }
        debug_assert!(self.waiters.is_empty(), "nothing comes to wait while those are looked at");
        self.waiters = left;
    }

    /// Sets the states of those that wait to what they wait for now. `has_tables`: the image has some.
    pub(crate) fn show(&mut self, requests: &mut Requests, has_tables: bool) {
        let mut waiters = core::mem::replace(&mut self.waiters, Queue::new());
        let mut kept = Queue::new();
        while let Some(a) = requests.take_first(&mut waiters) {
            requests.wait_in(&mut kept, a);
            let acb = requests.acb(a);
            let next = if acb.commit.window > self.windows.round()
                || self.is_idle()
                || acb.commit.want == Want::Header
            {
                acb.state
            } else if has_tables && acb.commit.window <= self.windows.written() {
                State::SyncTables
            } else {
                match self.phase {
                    Phase::Mark | Phase::MarkAhead | Phase::Refcounts => State::MarkDirty,
                    Phase::Tables => State::UpdateL2,
                    _ => State::SyncData,
                }
            };
            if next != acb.state {
                requests.set_state(a, next);
            }
        }
        debug_assert!(self.waiters.is_empty(), "nothing comes to wait while those are looked at");
        self.waiters = kept;
    }

    /// Nothing is written any more: all that wait get this answer.
    pub(crate) fn fail(&mut self, requests: &mut Requests, error: &Error) {
        self.stop();
        requests.fail_all(&self.waiters, error);
        requests.wake(&mut self.waiters);
        debug_assert!(self.waiters.is_empty());
    }

    /// What it wants is demanded.
    fn is_demanded(&self, requests: &Requests, a: AcbIndex) -> bool {
        let commit = &requests.acb(a).commit;
        match commit.want {
            // by the header, which is in memory as it shall be
            Want::Header => true,
            Want::Written => self.windows.is_demanded(commit.window, false),
            Want::Durable => self.windows.is_demanded(commit.window, true),
            Want::Clean => self.windows.is_demanded(commit.window, true) && self.windows.wants_clean(),
        }
    }

    /// The invariant that does not hold.
    pub(crate) fn check_waiters(&self, requests: &Requests) -> Result<(), String> {
        match requests.members(&self.waiters).find(|a| !self.is_demanded(requests, *a)) {
            Some(a) => Err(format!("acb {a} waits for what nobody demands")),
            None => Ok(()),
        }
    }

    /// Those that wait.
    pub(crate) const fn waiters(&self) -> &Queue {
        &self.waiters
    }
}
