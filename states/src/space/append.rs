//! Space in the file: an append pointer, and a file that grows in large steps ahead of it.
//!
//! The pointer begins at the end of the file; or, where counts say that nothing is in use there (qcow2: a
//! program that was killed left the space that the file had grown ahead), at the begin of that free end.
//! Nobody knows what bytes it holds, so it is cleared step by step before it is handed out, as if the file
//! grew. When it is used up, the file grows.
//!
//! Knows: host offsets, the file's length. Must never know: what is stored where.
//!
//! Invariants:
//! * space is handed out below `grown` only, whole clusters, but for what needs no zeros (`take_stale`);
//!   space from `append` on was beyond the end of the file when it was opened, or was cleared, so it reads as
//!   zeros (a partial cluster at the end is never used: trap in formats.md 1.4);
//! * what another program counted down just before is durable, by a sync of ours, before it is cleared;
//! * a free end into which an entry of a table leads is not free: it is left alone as soon as one is met;
//! * nothing is written beyond `grown`; one growth at a time, so on XFS no allocation runs beside a write
//!   behind it;
//! * metadata that the header names beyond the end of the file is reached by a longer file before any space
//!   is handed out: a close, which cuts off what is behind `append`, leaves it;
//! * space that a failed write got is not handed out again from here: it may hold bytes (QED: a leak; qcow2
//!   punches a hole first, in `quarantine.rs`).

use crate::acb::AcbIndex;
use crate::acb::requests::Requests;
use crate::base::geometry::{align_down, align_up};
use crate::base::queue::Queue;
use crate::error::Error;
use crate::fault::Op;
use crate::io::IoOp;
use crate::options::Options;
use crate::outbox::{Due, Outbox, Purpose};
use crate::rule::Rule;
use crate::space::kind::Need;
use alloc::format;
use alloc::string::String;

/// Blocks of file systems have at most so many bytes, as a rule.
const BLOCK: u64 = 4096;
/// The first steps are at least this long.
const STEP_MIN: u64 = 8 << 20;
/// So much of a free end is cleared at once: no more than is about to be wanted, should the counts lie.
const CLEAR: u64 = 4 << 20;
/// Host offsets stay below this, as a file's length does (off_t is signed).
const HOST_MAX: u64 = 1 << 62;
/// No file is as long.
const NOWHERE: u64 = 1 << 63;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Append {
    /// Where the next cluster comes from.
    append: u64,
    /// First byte behind all that the file had, and all that was handed out since.
    end: u64,
    /// What it was when the file was opened.
    opened_end: u64,
    /// Where a partial cluster that nothing may refer to began when the file was opened, or `NOWHERE`.
    torn: u64,
    /// Where what may be handed out ends, and where the file does.
    grown: u64,
    len: u64,
    /// Metadata that will be written reaches so far, be the file shorter.
    floor: u64,
    /// The free end that was found: where it begins, and up to where it was taken; and where it ends, `grown`
    /// if nothing is left of it.
    found: (u64, u64),
    found_end: u64,
    distrusted: bool,
    /// From `append` on a device's clusters were given up: its free end, when that is durable.
    emptied: bool,
    cluster: u64,
    /// The file is a device: its length is not ours, and its free end, longer whenever the device is, holds
    /// anything.
    device: bool,
    step_max: u64,
    /// The length that the growth in flight will give.
    growing: Option<u64>,
    /// The growth in flight was already the smallest that helps.
    smallest: bool,
    /// Bytes that the waiters need, and the fewest that one of them does, if none of them needs zeros.
    wanted: u64,
    any_wanted: Option<u64>,
    /// Somebody came to wait, or took much of it, since that was last looked at.
    asked: bool,
    waiters: Queue,
    /// Why the file could not grow, the last time that somebody waited for it.
    full: Option<Error>,
}

impl Append {
    /// A file in which nothing is allocated.
    pub(crate) fn fixed(len: u64) -> Append {
        Append {
            append: len,
            end: len,
            opened_end: len,
            torn: NOWHERE,
            grown: len,
            floor: 0,
            len,
            found: (len, len),
            found_end: len,
            distrusted: false,
            emptied: false,
            cluster: 1,
            device: false,
            step_max: 0,
            growing: None,
            smallest: false,
            wanted: 0,
            any_wanted: None,
            asked: false,
            waiters: Queue::new(),
            full: None,
        }
    }

    pub(crate) fn new(file_len: u64, cluster: u64, step_max: u64) -> Append {
        debug_assert!(cluster.is_power_of_two());
        // both are rounded up: what is in a partial last cluster is not known, and `grown` must not exceed
        // the file's length, so the first growth starts from there
        let (append, len) = (align_up(file_len, cluster), file_len);
        debug_assert!(
            append >= len || append.checked_add(cluster).is_none(),
            "a partial cluster is left out"
        );
        Append { append, grown: append.min(len), found_end: 0, cluster, step_max, ..Append::fixed(append) }
            .with_len(len)
    }

    fn with_len(self, len: u64) -> Append {
        debug_assert!(self.grown <= len, "what may be handed out the file has");
        Append { len, ..self }
    }

    /// On a device, or not.
    pub(crate) fn on_device(self, device: bool) -> Append {
        debug_assert!(self.growing.is_none() && self.waiters.is_empty(), "nothing is on its way yet");
        Append { device, ..self }
    }

    /// Nothing of the file is in use from `tail` on, whole clusters.
    pub(crate) fn begin_at(&mut self, tail: u64) {
        debug_assert!(tail.is_multiple_of(self.cluster));
        let end = align_down(self.len, self.cluster);
        debug_assert!(self.found.0 == self.found.1, "nothing was taken yet");
        if tail < end {
            (self.append, self.grown, self.found, self.found_end) = (tail, tail, (tail, tail), end);
        }
        debug_assert!(self.append <= self.end && self.found_end <= self.len, "it lies in the file");
    }

    /// There is something left of a free end that was found.
    pub(crate) fn has_found(&self) -> bool {
        debug_assert!(self.found.0 <= self.found.1);
        self.grown < self.found_end
    }

    /// Of the free end that was found: where it begins, and up to where it was taken.
    pub(crate) fn found(&self) -> (u64, u64) {
        debug_assert!(self.found.0 <= self.found.1);
        self.found
    }

    /// Some of it was taken.
    pub(crate) fn found_used(&self) -> bool {
        debug_assert!(self.found.0 <= self.found.1, "what was taken does not run backwards");
        self.found.0 < self.found.1
    }

    /// Entries lead into the free end that was found: what is left of it is left alone.
    pub(crate) fn distrust_found(&mut self) {
        self.distrusted = true;
        if self.has_found() {
            self.leave_found();
            debug_assert!(!self.has_found(), "nothing is left of it");
        }
    }

    /// That happened.
    pub(crate) fn was_left(&self) -> bool {
        debug_assert!(!self.distrusted || !self.has_found() || self.device, "what is left alone is not used");
        self.distrusted
    }

    /// What is left of the free end that was found is not used.
    fn leave_found(&mut self) {
        self.found_end = 0;
        (self.append, self.grown) = (self.end, self.len.min(self.end));
        debug_assert!(self.grown <= self.len && self.append <= self.end);
    }

    /// Metadata that will be written reaches up to `end`, maybe beyond the end of the file: space is handed
    /// out behind it, and when the file is as long.
    pub(crate) fn reach(&mut self, end: u64) {
        let end = align_up(end, self.cluster);
        if end > self.append {
            (self.append, self.end, self.floor) = (end, self.end.max(end), end);
        }
        debug_assert!(self.append <= self.end && self.floor <= self.end);
    }

    /// Metadata that will be written lies beyond the end of the file.
    pub(crate) fn is_short(&self) -> bool {
        debug_assert!(self.floor <= self.end);
        self.len < self.floor
    }

    /// First byte behind everything that is, or was, allocated.
    #[inline]
    pub(crate) fn end(&self) -> u64 {
        debug_assert!(self.append <= self.end);
        self.end
    }

    /// Where the next cluster comes from.
    pub(crate) fn next(&self) -> u64 {
        debug_assert!(self.append.is_multiple_of(self.cluster));
        self.append
    }

    /// A format whose clusters lie wholly inside the file (QED): one that the file cuts off holds nothing.
    pub(crate) fn whole_clusters(self) -> Append {
        debug_assert!(!self.has_found(), "no such format has a free end");
        debug_assert!(self.cluster.is_power_of_two());
        let torn = if self.len < self.append { align_down(self.len, self.cluster) } else { NOWHERE };
        Append { torn, ..self }
    }

    /// The end that a reference to `len` bytes at `offset` must keep: the file's, or its whole clusters'.
    #[inline]
    pub(crate) fn end_for(&self, offset: u64, len: u64) -> u64 {
        debug_assert!(self.append <= self.end);
        if offset <= self.torn && self.torn - offset < len { self.torn } else { self.end }
    }

    /// Is it the cluster that the file cuts off?
    #[inline]
    pub(crate) fn is_torn(&self, cluster: u64) -> bool {
        debug_assert!(self.torn == NOWHERE || self.torn.is_multiple_of(self.cluster), "it is a cluster");
        cluster == self.torn
    }

    /// The file grows, or its free end is being cleared.
    pub(crate) fn is_growing(&self) -> bool {
        debug_assert!(self.growing.is_none_or(|to| to > self.grown), "it grows to more than it has");
        self.growing.is_some()
    }

    /// The file is a device.
    pub(crate) fn is_device(&self) -> bool {
        self.device
    }

    /// The file's length.
    pub(crate) fn file_len(&self) -> u64 {
        debug_assert!(self.grown <= self.len, "no space is handed out that the file has not");
        self.len
    }

    /// Nothing is in use from `tail` on (QED): before space is handed out again the file is cut there. A
    /// device cannot be cut: what it holds there is its free end then, which is cleared before it is used.
    pub(crate) fn empty_from(&mut self, tail: u64) {
        debug_assert!(tail.is_multiple_of(self.cluster), "space is whole clusters");
        if tail >= self.append {
            return;
        }
        debug_assert!(self.device || !self.has_found(), "no such format has a free end in a file");
        (self.append, self.emptied) = (tail, self.device);
        if tail <= self.torn {
            self.torn = NOWHERE;
        }
        debug_assert!(self.floor <= self.append && self.waiters.is_empty(), "nobody waits for space");
    }

    /// The file is about to be cut behind what was handed out: how long it will be, if it is longer.
    pub(crate) fn cut(&mut self) -> Option<u64> {
        debug_assert!(!self.is_growing(), "nothing grows while the file is cut");
        if core::mem::take(&mut self.emptied) {
            // what was cleared lies behind old bytes now, to which nothing leads any more
            let end = align_down(self.len, self.cluster);
            (self.grown, self.found_end, self.distrusted) = (self.append, end, false);
        }
        if self.len <= self.append || self.has_found() || self.device {
            return None;
        }
        (self.grown, self.len) = (self.append, self.append);
        debug_assert!(self.floor <= self.len, "metadata that will be written stays");
        Some(self.append)
    }

    pub(crate) fn waiters(&self) -> &Queue {
        debug_assert!(
            !self.waiters.is_empty() || self.any_wanted.is_none(),
            "only those that wait want some"
        );
        &self.waiters
    }

    /// First byte behind what may have come free again: of a device whole clusters, which can be cleared.
    pub(crate) fn used_end(&self) -> u64 {
        debug_assert!(self.append <= self.end, "what is handed out lies before the end");
        match self.device {
            true => self.append.min(align_down(self.len, self.cluster)),
            false => self.append,
        }
    }

    /// The file cannot grow, or could not when somebody waited for it last.
    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.full.is_some()
    }

    pub(crate) fn set_full(&mut self, error: Error) {
        debug_assert!(!self.is_growing(), "whether it can grow is known when that has ended");
        self.full = Some(error);
    }

    pub(crate) fn take_full(&mut self) -> Option<Error> {
        self.full.take()
    }

    /// What lies before `offset` is not used, though it may be free.
    pub(crate) fn skip_to(&mut self, offset: u64) {
        debug_assert!(offset >= self.append);
        debug_assert!(offset.is_multiple_of(self.cluster), "space is whole clusters");
        self.append = offset;
        self.end = self.end.max(offset);
        debug_assert!(self.append <= self.end, "it lies before the end");
    }

    /// A length at a border of clusters, and of the blocks of file systems: where a file ends within a
    /// block, growing it again goes through the page cache, which collides with direct transfers to that
    /// block.
    fn whole(&self, len: u64) -> u64 {
        let whole = align_up(len, self.cluster.max(BLOCK));
        debug_assert!(whole.is_multiple_of(self.cluster), "the file ends with a cluster");
        whole
    }

    /// The next length to grow to, `need` bytes behind `append` at least.
    fn target(&self, need: u64) -> u64 {
        debug_assert!(self.append < NOWHERE, "no file is as long");
        self.whole(self.append.saturating_add(need).saturating_add(self.step()))
    }

    /// How far ahead of the data the file grows: half of what it has, within limits.
    fn step(&self) -> u64 {
        let half = (self.append / 2).clamp(STEP_MIN, STEP_MIN.max(self.step_max));
        let step = half.min(self.step_max.max(self.cluster));
        debug_assert!(step >= self.cluster.min(STEP_MIN), "a step gets on");
        step
    }

    /// So little space is left that the next growth should start before anybody has to wait for it.
    fn runs_low(&self) -> bool {
        let left = self.grown.saturating_sub(self.append);
        debug_assert!(left <= self.len, "what is left is of the file");
        let step = if self.has_found() { CLEAR } else { self.step() };
        self.growing.is_none() && self.step_max >= STEP_MIN && left < step / 2
    }

    /// Behind what may be handed out lies the cluster that the file cuts off: it is left out when what is in
    /// front of it does not do any more.
    fn stops_short(&self) -> bool {
        debug_assert!(self.grown <= self.len, "no space is handed out that the file has not");
        !self.has_found() && self.grown < self.len
    }

    /// The next piece of the free end to be cleared, `need` bytes behind `append` at least: from where to
    /// where. What was found to be in use there is left out.
    fn next_found(&mut self, need: u64) -> Option<(u64, u64)> {
        if !self.has_found() {
            if self.stops_short() {
                self.leave_found();
            }
            return None;
        }
        let piece = self.take_found(need);
        if piece.is_none() {
            self.leave_found();
        }
        piece
    }

    /// The same, if there is something left.
    fn take_found(&mut self, need: u64) -> Option<(u64, u64)> {
        let from = self.grown.max(self.append);
        debug_assert!(from.is_multiple_of(self.cluster), "whole clusters are cleared");
        let to = align_up(self.append.saturating_add(need.max(CLEAR)), self.cluster).min(self.found_end);
        if from >= to {
            return None;
        }
        debug_assert!(from < to && to <= self.found_end && self.found_end <= self.len);
        self.grown = from;
        self.note_found(to);
        debug_assert!(self.grown < to, "there is something to clear");
        Some((from, to))
    }

    /// The free end that was there at the opening is taken up to here.
    fn note_found(&mut self, to: u64) {
        self.found.1 = to.min(self.opened_end).max(self.found.0);
        debug_assert!(self.found.0 == self.found.1 || self.found.1 <= self.opened_end, "it was there before");
    }
}

/// What a lack of space asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ask {
    Nothing,
    /// A sync: see the module's header.
    Sync,
    /// The acbs that wait look again: what they need is there.
    Again,
    /// How long the device is by now.
    Length,
    /// The free end of the file is cleared, from here to there.
    Clear(u64, u64),
    /// The file grows, by so many bytes behind `append` at least.
    Grow(u64),
}

/// How a growth ended.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Grown {
    /// The file is longer.
    Longer,
    /// Not as long as was tried: less is tried, if anybody waits for it.
    Less,
    /// It cannot grow.
    Not(Error),
}

impl Append {
    /// Is there so much space behind what is in use? Err: no file is as long.
    pub(crate) fn has(&mut self, len: u64, options: &Options, out: &mut Outbox) -> Result<bool, Error> {
        debug_assert!(len > 0);
        debug_assert!(self.grown <= self.len, "no space is handed out that the file has not");
        if self.append.checked_add(len).is_some_and(|end| end <= self.grown) {
            return Ok(true);
        }
        if options.sabotaged(Rule::WaitGrowFile) {
            // space that the file does not have yet
            let target = self.target(len);
            if !self.is_growing() {
                self.grow(target, false, out);
            }
            (self.grown, self.len) = (self.grown.max(target), self.len.max(target));
            return Ok(true);
        }
        match self.append.checked_add(len).is_none_or(|end| end > HOST_MAX) {
            true => Err(Error::NoSpace),
            false => Ok(false),
        }
    }

    /// Is there so much of the free end, as it is, of a device? `synced`: see [`Append::ask`].
    pub(crate) fn has_stale(&self, len: u64, synced: bool) -> bool {
        let end = self.append.checked_add(len);
        debug_assert!(len > 0, "nobody asks for nothing");
        // what is zeros already is used first
        let fits = self.grown <= self.append && end.is_some_and(|end| end <= self.found_end);
        self.device && synced && fits && !self.is_growing()
    }

    /// Takes that.
    pub(crate) fn take_stale(&mut self, len: u64) -> u64 {
        debug_assert!(self.has_stale(len, true) && len.is_multiple_of(self.cluster));
        let offset = self.append;
        self.append += len;
        self.grown = self.append;
        debug_assert!(self.grown <= self.found_end, "it lies in the free end");
        self.end = self.end.max(self.append);
        self.note_found(self.append);
        offset
    }

    /// Takes space that is there, and asks for more in time.
    pub(crate) fn take(&mut self, len: u64, need: Need, out: &mut Outbox) -> Option<u64> {
        debug_assert!(self.grown <= self.len, "no space is handed out that the file has not");
        debug_assert!(len.is_multiple_of(self.cluster));
        let offset = self.append;
        let end = offset.checked_add(len).filter(|end| *end <= self.grown)?;
        self.append = end;
        self.end = self.end.max(end);
        debug_assert!(self.append <= self.grown, "what is handed out the file has");
        debug_assert!(offset.is_multiple_of(self.cluster), "space is whole clusters");
        // nothing is cleared ahead of what needs no zeros
        if self.runs_low() && !(self.device && need == Need::Any) {
            self.asked = true;
            out.due |= Due::SPACE;
        }
        Some(offset)
    }

    /// The acb waits for so much more.
    pub(crate) fn wait(
        &mut self,
        requests: &mut Requests,
        a: AcbIndex,
        (len, need): (u64, Need),
        out: &mut Outbox,
    ) {
        debug_assert!(len > 0, "nobody waits for nothing");
        let fewest =
            if self.waiters.is_empty() { Some(len) } else { self.any_wanted.map(|any| any.min(len)) };
        self.any_wanted = fewest.filter(|_| need == Need::Any);
        requests.wait_in(&mut self.waiters, a);
        self.wanted = self.wanted.saturating_add(len);
        self.asked = true;
        out.due |= Due::SPACE;
    }

    /// So many bytes are waited for, or 0 if space runs low; None: no more is wanted now. Where the file
    /// could not grow, that is tried again only when more is asked for.
    pub(crate) fn need(&mut self) -> Option<u64> {
        let asked = core::mem::take(&mut self.asked);
        debug_assert!(self.waiters.is_empty() || self.wanted > 0, "those that wait want something");
        match self.waiters.is_empty() {
            _ if self.is_growing() => None,
            true => (asked && self.runs_low()).then_some(0),
            false => (asked || !self.is_full()).then_some(self.wanted),
        }
    }

    /// How `need` bytes behind what is in use (0: nobody waits for them) are to be had: what the file has
    /// there, and when that is used up, more of a file. `synced`: what was counted down before us is durable.
    pub(crate) fn ask(&mut self, need: u64, synced: bool) -> Ask {
        debug_assert!(!self.is_growing());
        debug_assert!(self.grown <= self.len, "no space is handed out that the file has not");
        if self.has_found() && !synced {
            return if need > 0 { Ask::Sync } else { Ask::Nothing };
        }
        if self.device {
            return self.ask_device(need);
        }
        if need == 0 && self.stops_short() {
            return Ask::Nothing;
        }
        match self.next_found(need) {
            Some((from, to)) => Ask::Clear(from, to),
            None => Ask::Grow(need),
        }
    }

    /// A device's free end is used up to its last cluster; then the device may have grown.
    fn ask_device(&mut self, need: u64) -> Ask {
        debug_assert!(self.device && !self.is_growing(), "one question at a time");
        if need > 0 && self.any_wanted.is_some_and(|len| self.has_stale(len, true)) {
            return Ask::Again;
        }
        match self.take_found(need) {
            Some((from, to)) => Ask::Clear(from, to),
            None if need > 0 => Ask::Length,
            None => Ask::Nothing,
        }
    }

    /// The device is asked how long it is.
    pub(crate) fn ask_length(&mut self, out: &mut Outbox) {
        debug_assert!(self.device && !self.is_growing());
        self.growing = Some(NOWHERE);
        out.emit(Purpose::Length, Op::Length, self.len, IoOp::Length);
    }

    /// It has told. What it has come to have may hold anything.
    pub(crate) fn told_length(&mut self, told: Result<u64, Error>) -> Grown {
        debug_assert!(self.device && self.is_growing(), "only what is asked is told");
        self.growing = None;
        let len = match told {
            Ok(len) => len,
            Err(error) => return Grown::Not(error),
        };
        let end = align_down(len, self.cluster);
        if end <= align_up(self.len, self.cluster).max(self.append) {
            return Grown::Not(Error::NoSpace);
        }
        if !self.len.is_multiple_of(self.cluster) {
            // what led to the cluster that the device cut off when it was opened leads nowhere still
            self.append = self.append.max(align_up(self.len, self.cluster));
        }
        self.grown = self.grown.max(self.append.min(end));
        debug_assert!(self.grown <= end, "what may be handed out lies on the device");
        (self.found_end, self.len, self.full) = (end, len, None);
        Grown::Longer
    }

    /// There is a little left, for whoever asks for no more than a cluster.
    pub(crate) fn has_rest(&self) -> bool {
        self.device && self.append.saturating_add(self.cluster) <= self.grown
    }

    /// A piece of the free end is being cleared.
    pub(crate) fn clear(&mut self, from: u64, to: u64, out: &mut Outbox) {
        debug_assert!(to <= self.len, "the file has it");
        debug_assert!(from < to && !self.is_growing());
        self.growing = Some(to);
        out.emit(Purpose::Clear, Op::Clear, from, IoOp::Clear { host: from, len: to - from });
    }

    /// As if it had been: only where that rule is removed.
    pub(crate) fn skip_clear(&mut self, to: u64) {
        debug_assert!(to <= self.len);
        debug_assert!(to > self.grown, "there was something to clear");
        self.grown = to;
    }

    /// The file grows, for `need` bytes and what will be wanted next.
    pub(crate) fn grow_for(&mut self, need: u64, out: &mut Outbox) {
        let target = self.target(need).min(HOST_MAX);
        debug_assert!(target <= HOST_MAX, "no file is longer");
        self.grow(target, false, out);
    }

    fn grow(&mut self, to: u64, smallest: bool, out: &mut Outbox) {
        debug_assert!(!self.is_growing());
        let from = self.len;
        // up to metadata that lies far behind the end there is a hole
        let (to, op) = match self.is_short() {
            true => (self.floor, IoOp::SetLen { len: self.floor }),
            false => (to, IoOp::Grow { from, to }),
        };
        if to <= from {
            return;
        }
        (self.growing, self.smallest) = (Some(to), smallest);
        out.counters.grows += 1;
        out.emit(Purpose::Grow, Op::Grow, from, op);
    }

    /// A growth ended.
    pub(crate) fn grown(&mut self, result: Result<(), Error>, out: &mut Outbox) -> Grown {
        debug_assert!(self.is_growing());
        debug_assert!(!self.device, "the length of a device is not ours");
        let Some(to) = self.growing.take() else { return Grown::Less };
        match result {
            Ok(()) => {
                debug_assert!(to > self.grown);
                (self.grown, self.len, self.full) = (to, to, None);
                Grown::Longer
            }
            Err(_) if !self.smallest => {
                // a large step failed: what is needed may still fit (nothing, if nobody waits)
                let need = self.whole(self.append.saturating_add(self.wanted));
                self.grow(need, true, out);
                Grown::Less
            }
            // ENOSPC, EDQUOT; a limit of a file's size (EFBIG) says so itself
            Err(Error::Device { errno: 28 | 122, .. }) => Grown::Not(Error::NoSpace),
            Err(error) => Grown::Not(error),
        }
    }

    /// A piece of the free end reads as zeros, or will not: then the file grows instead (a device has nothing
    /// else).
    pub(crate) fn cleared(&mut self, good: bool) {
        debug_assert!(self.is_growing());
        debug_assert!(self.len >= self.grown, "what is cleared the file has");
        let Some(to) = self.growing.take() else { return };
        match good {
            // it was left alone meanwhile
            _ if !self.has_found() => {}
            true => self.grown = to,
            false if self.device => {}
            false => self.leave_found(),
        }
    }

    /// The acbs that wait for space look again.
    pub(crate) fn wake(&mut self, requests: &mut Requests) {
        (self.wanted, self.any_wanted) = (0, None);
        requests.wake(&mut self.waiters);
        debug_assert!(self.waiters.is_empty());
    }

    /// The acbs that wait for space get this answer.
    pub(crate) fn answer(&mut self, requests: &mut Requests, error: &Error) {
        requests.fail_all(&self.waiters, error);
        self.wake(requests);
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("space: {what} ({self:?})"));
        match self {
            _ if self.append > self.end => wrong("something is handed out behind the end"),
            _ if self.asked => wrong("somebody asked, and nobody looked"),
            _ if self.has_found() && self.found_end > self.len => wrong("a free end behind the file"),
            _ if self.growing.is_some_and(|to| to <= self.grown) => wrong("it grows to less than it has"),
            _ if self.grown > self.len => wrong("what the file has not may be handed out"),
            _ if self.floor > self.end => wrong("metadata behind the end"),
            _ if self.waiters.is_empty() && self.wanted > 0 => wrong("nobody waits, and something is wanted"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
