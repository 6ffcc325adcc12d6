//! The end of every mutator: the only place that starts what nobody asked for by name.
//!
//! Whether a round starts, a hole is punched, space is looked for, those that wait are woken: the parts only
//! say that it may be due (`Due`), in the call in which it became so; it is seen to here, in this order.
//!
//! Knows: what may start by itself. Must never know: what made it possible.
//!
//! Invariants: when it returns nothing is ready and nothing is due; it ends, as what it starts consumes a
//! demand and makes an acb wait, or names I/O.

use super::value::Image;
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::{Due, InFlight, Purpose};
use crate::rule::Rule;
use crate::space::append::Ask;
use crate::space::kind::ClusterRun;

/// No mutator needs more turns than that, however many acbs wait.
const TURNS_MAX: u32 = 10_000;

impl Image {
    /// Sees to all that is ready and due.
    #[inline(always)]
    pub(super) fn settle(&mut self) {
        if self.requests.has_ready() || !self.outbox.due.is_empty() {
            self.settle_all();
        }
        debug_assert!(!self.requests.has_ready() && self.outbox.due.is_empty());
    }

    // apart, so that a hit asks no more than the question above
    #[inline(never)]
    fn settle_all(&mut self) {
        self.run_ready();
        let mut turns = 0;
        while !self.outbox.due.is_empty() {
            debug_assert!(turns < TURNS_MAX, "{:?} is due again and again", self.outbox.due);
            turns += 1;
            self.see_to_due();
            self.run_ready();
        }
    }

    fn see_to_due(&mut self) {
        let first = Due::WROTE | Due::SLOTS | Due::COUNT | Due::LOOK;
        let mut due = self.outbox.take_due(Due::all());
        debug_assert!(!due.is_empty(), "something is due");
        if due.contains(Due::WROTE) {
            self.commit.wrote();
        }
        if due.contains(Due::SLOTS) {
            self.waits.wake_slots(&mut self.requests);
            if self.is_counting() {
                due |= Due::COUNT;
            }
        }
        if due.contains(Due::COUNT) {
            self.count_down();
            due |= Due::ROUND;
        }
        if due.contains(Due::LOOK) {
            self.look_on();
        }
        // what was just counted, or found, may go at once
        due |= self.outbox.take_due(!first);
        if due.contains(Due::PUNCH) {
            self.punch_dead();
        }
        if due.contains(Due::SPACE) {
            self.more_space();
        }
        if due.contains(Due::FEED) {
            self.feed();
        }
        if due.contains(Due::JOB) {
            self.snapshot_due();
        }
        self.see_to_rounds(due);
    }

    fn see_to_rounds(&mut self, mut due: Due) {
        due |= self.outbox.take_due(Due::ARM | Due::SOON | Due::ROUND | Due::REST);
        if due.contains(Due::ARM) {
            self.commit.arm(self.options.commit_ms, &mut self.outbox);
        }
        if due.contains(Due::SOON) {
            self.demand_soon();
        }
        if due.intersects(Due::ROUND | Due::SOON) {
            self.next_round();
        }
        if due.contains(Due::REST) && self.commit.is_idle() {
            // young entries that the round left behind still need their alarm
            match self.is_due() {
                true => self.commit.arm(self.options.commit_ms, &mut self.outbox),
                false => self.commit.arm_check(self.options.need_check_ms, &mut self.outbox),
            }
        }
        due |= self.outbox.take_due(Due::SHOW | Due::TABLES);
        if due.contains(Due::SHOW) {
            self.commit.show(&mut self.requests, !self.layout.is_raw());
        }
        if due.contains(Due::TABLES) && !self.health.is_poisoned() {
            self.write_tables();
        }
    }

    /// What is dirty shall be written, though nobody waits for it.
    pub(super) fn demand_soon(&mut self) {
        if (self.tables.dirty > 0 || !self.refcounts_settled()) && !self.health.is_poisoned() {
            self.commit.windows.demand_sync();
        }
    }

    /// Lets counts go down whose pointers are gone, durably.
    fn count_down(&mut self) {
        let durable = self.commit.windows.tables_durable();
        if let Some((counted, mut cx)) = self.counting() {
            counted.quarantine.removals_durable(durable);
            counted.count_down(&mut cx);
        }
    }

    /// Looks for free clusters, if more of them were wanted.
    fn look_on(&mut self) {
        if let Some((counted, mut cx)) = self.counting()
            && counted.hungry
        {
            counted.look_for_free(&mut cx);
        }
    }

    /// Punches holes where no request in flight is.
    fn punch_dead(&mut self) {
        let Some(bits) = self.layout.geometry().map(|geometry| geometry.cluster_bits) else { return };
        let runs = self.refcounted.as_deref().map_or(0, |counted| counted.quarantine.dead_runs());
        for _ in 0..runs {
            if self.health.is_halted() {
                return;
            }
            let Some(counted) = self.refcounted.as_deref_mut() else { return };
            let removed = self.options.sabotaged(Rule::ReuseAfterReaders);
            let (requests, out) = (&self.requests, &self.outbox);
            let in_use = |run: ClusterRun| {
                let host = Span::new(run.first << bits, run.end() << bits);
                !removed && (is_loading(out.in_flight(), host) || requests.use_host(host))
            };
            let Some(hole) = counted.quarantine.next_punch(in_use) else { continue };
            let run = hole.run();
            let (host, len) = (run.first << bits, run.count << bits);
            debug_assert!(host > 0 && len > 0, "the header's cluster is never free");
            self.outbox.tell(IoOp::ForgetCompressed { host, len });
            if self.options.sabotaged(Rule::PunchedFirst) {
                counted.quarantine.give(hole.believed());
            }
            // where the file cannot grow its space is kept
            let (tried, op) = match counted.starving {
                true => (Op::Clear, IoOp::Clear { host, len }),
                false => (Op::PunchHole, IoOp::PunchHole { host, len }),
            };
            self.outbox.emit(Purpose::Punch(hole), tried, host, op);
        }
    }

    /// Space behind what is in use, if more of it is wanted.
    fn more_space(&mut self) {
        let Some(need) = self.space.need() else { return };
        debug_assert!(!self.space.is_growing() && !self.options.read_only, "more may be had");
        if self.health.is_halted() {
            return self.space.answer(&mut self.requests, &Error::Poisoned);
        }
        match self.space.ask(need, self.commit.windows.durable() > 0) {
            Ask::Nothing => {}
            Ask::Sync => {
                self.commit.windows.demand_sync();
                self.outbox.due |= Due::ROUND;
            }
            Ask::Clear(_, to) if self.options.sabotaged(Rule::ClearBeforeUse) => {
                self.space.skip_clear(to);
                self.space.wake(&mut self.requests);
            }
            Ask::Clear(from, to) => self.space.clear(from, to, &mut self.outbox),
            Ask::Again => self.space.wake(&mut self.requests),
            Ask::Length => self.space.ask_length(&mut self.outbox),
            Ask::Grow(need) => {
                if self.may_grow(need > 0) {
                    self.space.grow_for(need, &mut self.outbox);
                }
            }
        }
    }

    /// May the file grow now? If not, and somebody waits for it, it may soon.
    fn may_grow(&mut self, wanted: bool) -> bool {
        debug_assert!(!self.space.is_growing(), "one growth at a time");
        let removed =
            self.options.sabotaged(Rule::BitBeforeGrowth) || self.options.sabotaged(Rule::MarkDirty);
        !self.layout.marks_growth() || removed || self.commit.may_grow(wanted, &mut self.outbox)
    }
}

/// Is a slice being loaded from there (of a table that was copied since)? It lies in one cluster.
fn is_loading<'a>(mut in_flight: impl Iterator<Item = &'a InFlight>, host: Span) -> bool {
    debug_assert!(!host.is_empty());
    in_flight.any(|io| matches!(io.purpose, Purpose::Load(_)) && host.contains(io.offset))
}
