//! All the control flow: how an acb gets from step to step.
//!
//! Knows: which step an acb takes when the thing that its state waits for has happened, and what becomes of
//! it after that. Must never know: what a step does.
//!
//! Invariants:
//! * nothing recurses: a step says what comes next (`Next`), and is left before that begins;
//! * an error met while waiting ends the acb, whatever it waited for.

use super::next::Next;
use super::value::Image;
use crate::acb::job::Job;
use crate::acb::request::{Flags, Met, RequestKind};
use crate::acb::{AcbIndex, State, Want};
use crate::base::queue::NONE;
use crate::error::Error;
use alloc::boxed::Box;

impl Image {
    /// The first step of a new acb.
    pub(super) fn start(&mut self, a: AcbIndex, kind: RequestKind) {
        debug_assert_eq!(self.requests.acb(a).state, State::Free, "nothing of it has begun");
        let next = match kind {
            RequestKind::WriteCompressed => {
                self.waits.line_up(a);
                Next::Look
            }
            RequestKind::Read
            | RequestKind::Write
            | RequestKind::WriteZeroes
            | RequestKind::Discard
            | RequestKind::Map => Next::Look,
            RequestKind::Flush | RequestKind::Quiesce if self.options.read_only => Next::Done,
            RequestKind::Flush => Next::Join(Want::Durable),
            RequestKind::Quiesce => Next::Join(Want::Clean),
            RequestKind::Close | RequestKind::Resize { .. } => self.start_job(a),
            RequestKind::Snapshot | RequestKind::Empty => self.start_job(a),
        };
        self.go_on(a, next);
    }

    /// Empties the ready queue.
    #[inline]
    pub(super) fn run_ready(&mut self) {
        while let Some(a) = self.requests.next_ready() {
            debug_assert_ne!(self.requests.acb(a).state, State::Done, "what is done waits for nothing");
            self.advance(a);
        }
    }

    /// The thing that the acb's state waits for has happened.
    pub(super) fn advance(&mut self, a: AcbIndex) {
        let acb = self.requests.acb_mut(a);
        debug_assert_eq!(acb.io.pending, 0);
        let next = match acb.error.take() {
            Some(error) => Next::Fail(error),
            None => self.step(a),
        };
        self.go_on(a, next);
    }

    fn step(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb(a);
        let writes = matches!(acb.state, State::ReadModify | State::CopyOnWrite | State::WriteData);
        debug_assert!(writes || !acb.held.any(), "what is held is for a write");
        match acb.state {
            // nothing of it is written yet: look again, the world may have changed
            State::Free
            | State::ReadL2
            | State::WaitCluster
            | State::WaitSector
            | State::WaitSlot
            | State::WaitTurn
            | State::GrowFile
            | State::AllocL2
            | State::AllocRefcount => Next::Look,
            State::FindCluster => Next::On,
            State::ReadData | State::ReadBacking | State::ReadCompressed => self.extent_read(a),
            State::Compress => self.compressed(a),
            State::ReadModify => self.neighbours_read(a),
            State::CopyOnWrite => self.write_piece(a),
            State::WriteData => self.next_piece(a),
            State::ZeroData => self.extent_zeroed(a),
            State::ClearAutoclear => self.cleared(a),
            State::MarkDirty | State::SyncData | State::UpdateL2 | State::SyncTables => self.committed(a),
            State::WaitRequests => self.job_alone(a),
            State::Resize => self.length_set(a),
            State::Snapshot => self.edited(a),
            State::Done => Next::Done,
        }
    }

    fn go_on(&mut self, a: AcbIndex, mut next: Next) {
        loop {
            next = match next {
                Next::Wait => {
                    let acb = || self.requests.acb(a);
                    let stands = || acb().link != NONE || self.requests.closer() == Some(a);
                    debug_assert!(stands() != (acb().io.pending != 0), "it waits for one thing");
                    return;
                }
                Next::Look => self.look(a),
                Next::On => self.find_cluster(a),
                Next::Extent => {
                    let acb = self.requests.acb(a);
                    debug_assert_eq!(acb.pos, acb.extent.end, "it is done");
                    if acb.pos == acb.end { self.range_done(a) } else { self.look(a) }
                }
                Next::Range => self.range_done(a),
                Next::Join(want) => self.join(a, want),
                Next::Done => return self.end_acb(a, None),
                Next::Fail(error) => return self.end_acb(a, Some(error)),
            };
        }
    }

    /// To `FindCluster`, and on from there.
    #[inline]
    fn look(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.acb(a).pos, self.requests.acb(a).extent.end, "nothing is in progress");
        self.requests.set_state(a, State::FindCluster);
        self.find_cluster(a)
    }

    /// The acb's range is finished, or failed: the acb goes; with its last acb the request ends.
    #[inline]
    pub(super) fn end_acb(&mut self, a: AcbIndex, error: Option<Box<Error>>) {
        let acb = self.requests.acb(a);
        if acb.state == State::ReadData {
            debug_assert!(!acb.held.any());
        } else {
            let kind = acb.kind;
            let holds = acb.held.any();
            if error.is_some() {
                self.give_back(a);
            }
            // whoever wrote without an error has let go before
            if error.is_some() || holds {
                self.let_go(a);
            }
            match Job::of(kind) {
                Some(job) => self.job_ended(job),
                None if kind == RequestKind::Quiesce => self.quiesce_ended(),
                None => {}
            }
            self.waits.turn_over(&mut self.requests, a);
        }
        self.requests.set_state_through(a, State::Done, State::Free);
        self.requests.end(a, error, &mut self.outbox.events);
    }

    /// `ClearAutoclear`: the bits are clear, durably, and the acb begins.
    fn cleared(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb_mut(a);
        debug_assert!(acb.commit.want == Want::Header);
        acb.commit.want = Want::Written;
        if acb.kind.is_job() { self.job_may_change(a) } else { Next::Look }
    }

    /// Tables are written and durable, and the header says so: the pipeline's answer to the acbs that wait
    /// for it.
    fn committed(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            kind if kind.is_job() => self.job_committed(a),
            RequestKind::Quiesce => self.quiet(a),
            _ => Next::Done,
        }
    }

    /// The acb's range is done: complete, or first through the commit pipeline.
    #[inline(always)]
    fn range_done(&mut self, a: AcbIndex) -> Next {
        let acb = self.requests.acb(a);
        if acb.kind.is_job() {
            return self.job_range_done(a);
        }
        debug_assert!(acb.pos == acb.end && acb.extent.end == acb.end, "nothing of it is left");
        // what the range already was may not be durable yet, even if nothing had to be written
        let fua = acb.flags.contains(Flags::FUA)
            && matches!(
                acb.kind,
                RequestKind::Write | RequestKind::WriteCompressed | RequestKind::WriteZeroes
            );
        match acb.commit.uncommitted {
            _ if fua => Next::Join(Want::Durable),
            true => Next::Join(acb.commit.want),
            false => Next::Done,
        }
    }

    fn join(&mut self, a: AcbIndex, want: Want) -> Next {
        debug_assert!(!self.options.read_only, "nothing was written");
        if self.health.is_poisoned() {
            return Next::fail(Error::Poisoned);
        }
        self.requests.note(a, Met::FLUSH);
        self.commit.join(&mut self.requests, a, want, &mut self.outbox);
        Next::Wait
    }
}
