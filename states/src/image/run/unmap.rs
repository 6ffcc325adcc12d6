//! Entries of qcow2 that stop pointing to data: write-zeroes of whole clusters or subclusters, discard, and
//! what a smaller disk does not have any more (formats.md 4.7).
//!
//! Knows: what an entry becomes. Must never know: how zeros are written where data stays (`zero.rs`).
//!
//! Invariants: as those of `link.rs`; ranges are whole clusters, or whole subclusters of one; a cluster
//! that an allocating write holds is waited for (trap T6).

use crate::acb::AcbIndex;
use crate::acb::request::{Flags, Met};
use crate::base::geometry::align_down;
use crate::base::span::Span;
use crate::error::Error;
use crate::image::next::Next;
use crate::image::run::link::units;
use crate::image::value::Image;
use crate::io::{IoOp, Part};
use crate::qcow2::entry::ZERO;
use crate::qcow2::{L2, Shape, Sub, Subclusters};
use crate::tables::dangling::check_dangling;
use crate::tables::mapping::{Mapping, Run};
use alloc::boxed::Box;

/// So many changes of entries are enough for one call.
const PAUSE: u32 = 256;

/// What becomes of the entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unmap {
    /// They read as zeros; `free`: their space is given up.
    Zero { free: bool },
    /// They read as zeros or, where nothing shows through, as nothing; their space is given up.
    Discard,
    /// They hold nothing.
    Drop,
}

impl Unmap {
    /// The words that an entry gets. `mask`: which of its subclusters.
    fn words(self, shape: Shape, old: L2, words: (u64, u64), mask: u32, hides: bool) -> (u64, u64) {
        let zero = match shape.extended {
            true => (0, Subclusters::ALL_ZERO.0),
            false => (ZERO, 0),
        };
        let whole = !shape.extended || mask == u32::MAX;
        let new = match (self, old) {
            (Unmap::Drop, _) => (0, 0),
            // a data file's clusters have their place anyway: only the flag changes (formats.md 3.11)
            // never a part of one (`zero_counted`)
            (Unmap::Zero { .. }, L2::Compressed { .. }) => zero,
            (Unmap::Zero { free: true }, _) if whole && !shape.data_file => zero,
            (Unmap::Zero { .. }, _) if shape.extended => {
                (words.0, Subclusters(words.1).with(mask, Sub::Zero).0)
            }
            (Unmap::Zero { .. }, _) => (words.0 | ZERO, 0),
            (Unmap::Discard, L2::Unallocated) if !hides => words,
            (Unmap::Discard, _) if shape.version < 3 => (0, 0),
            (Unmap::Discard, _) => zero,
        };
        debug_assert!(shape.extended || new.1 == 0, "one word has no subclusters");
        debug_assert!(Subclusters(new.1).is_valid(), "no subcluster is of both kinds");
        new
    }
}

impl Image {
    /// Changes the entries of a guest range; `len` bytes of the request are done with it.
    pub(crate) fn unmap(
        &mut self,
        a: AcbIndex,
        (guest, len): (Span, u64),
        how: Unmap,
        run: Run,
        slot: Option<u32>,
    ) -> Next {
        let Some(geometry) = self.layout.geometry().copied() else { return Next::On };
        let (first, last) = (geometry.cluster_start(guest.start), geometry.cluster_end(guest.end));
        debug_assert!(first < last && len > 0, "it gets on");
        if !self.pass_gate(a, Span::new(first, last), slot.is_none()) {
            return Next::Wait;
        }
        if self.tables.is_overfull() {
            return self.wait_for_slot(a);
        }
        let Some(slot) = slot else {
            let hides = self.backing_len.is_some_and(|backing| backing > guest.start);
            let nothing = how == Unmap::Drop || how == Unmap::Discard && !hides;
            return if nothing { self.skip(a, len) } else { self.new_table(a, guest.start) };
        };
        debug_assert!(run.len > 0 && !guest.is_empty());
        if self.must_copy(slot, guest.start) {
            return self.copy_table(a, guest.start);
        }
        let (mut at, mut changed) = (first, 0);
        while at < last {
            let mask = units(&geometry, at, guest);
            match self.unmap_one(slot, at, mask, how) {
                Ok(one) => changed += u32::from(one),
                Err(error) => return self.fail_lookup(Box::new(error)),
            }
            at += geometry.cluster_size();
        }
        self.requests.note(a, Met::ZERO);
        self.note_written(a, true);
        let go_on = self.skip(a, len);
        if changed < PAUSE || self.requests.acb(a).pos == self.requests.acb(a).end {
            return go_on;
        }
        // the embedder's thread is not held for as long as a large disk takes
        self.outbox.emit_own(&mut self.requests, a, Part::Head, IoOp::Yield);
        Next::Wait
    }

    /// Was there something to change?
    fn unmap_one(&mut self, slot: u32, start: u64, mask: u32, how: Unmap) -> Result<bool, Error> {
        debug_assert!(mask != 0, "a part of the cluster is meant");
        let Some(shape) = self.layout.shape() else { return Ok(false) };
        let Some(words) = self.entry_words(slot, start) else { return Ok(false) };
        // the lookup has seen the first entry of the range alone
        let at = self.layout.geometry().map_or(0, |geometry| geometry.l2_slice(start).1);
        check_dangling(self.tables.slot(slot), at, self.space.found_used())?;
        let old = shape.decode_l2(start, words.0, words.1)?;
        let hides = self.backing_len.is_some_and(|backing| backing > start);
        let new = how.words(shape, old, words, mask, hides);
        if new == words {
            return Ok(false);
        }
        let kept = shape.decode_l2(start, new.0, new.1).ok().and_then(|new| match new {
            L2::Normal { host, .. } | L2::ZeroAllocated { host, .. } => Some(host),
            L2::Split { host, .. } => host,
            _ => None,
        });
        debug_assert!(shape.decode_l2(start, new.0, new.1).is_ok(), "a valid entry becomes another one");
        if let Some(counted) = self.refcounted.as_deref() {
            counted.check_entry_place(start, old)?;
        }
        self.change_entry(slot, start, new.0, new.1);
        self.release_old(shape, old, kept);
        Ok(true)
    }

    /// How far the request reaches in the table that is at hand, a disk's last unit counted whole.
    fn reach(&self, a: AcbIndex, run: Run, slot: Option<u32>) -> Option<(u64, u64, u64)> {
        let (geometry, acb) = (self.layout.geometry()?, self.requests.acb(a));
        let pos = acb.pos;
        // so is that of what comes to light: behind it there is nothing of the guest's
        let whole = if acb.end >= self.size { geometry.cluster_end(acb.end) } else { acb.end };
        debug_assert!(run.len > 0 && pos < acb.end, "something of the range is left");
        let table = match slot {
            Some(_) => pos - pos % geometry.slice_span() + geometry.slice_span(),
            None => geometry.cluster_end(pos + run.len),
        };
        debug_assert!(pos < table, "the table maps the place");
        Some((pos, acb.end.min(table), whole.min(table)))
    }

    /// Discard of a run of qcow2: whole clusters.
    pub(crate) fn discard_counted(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(self.refcounted.is_some() && run.len > 0);
        let (Some(geometry), Some((pos, end, whole))) =
            (self.layout.geometry().copied(), self.reach(a, run, slot))
        else {
            return Next::On;
        };
        let (first, last) = (geometry.cluster_end(pos), geometry.cluster_start(whole));
        debug_assert!(pos <= end && end <= whole, "it reaches no farther than its last unit");
        let Some(counted) = self.refcounted.as_deref() else { return Next::On };
        // with a backing layer version 2 has no entry that hides it
        // nor has an image whose data file must stay a valid raw image one that says more than the file
        let cannot =
            counted.header.version < 3 && self.backing_len.is_some() || counted.header.data_file_raw();
        if first >= last || cannot {
            return self.skip(a, end - pos);
        }
        // what lies in front of `first` is done with it
        self.unmap(a, (Span::new(first, last), end.min(last) - pos), Unmap::Discard, run, slot)
    }

    /// Write-zeroes of a run of qcow2.
    pub(crate) fn zero_counted(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert!(self.refcounted.is_some() && run.len > 0);
        let (Some(geometry), Some((pos, end, whole))) =
            (self.layout.geometry().copied(), self.reach(a, run, slot))
        else {
            return Next::On;
        };
        let Some((shape, raw, free)) = self.zero_rules(a) else { return Next::On };
        let cluster = geometry.cluster_size();
        let unit = if shape.extended { cluster / u64::from(Subclusters::COUNT) } else { cluster };
        let compressed = matches!(run.mapping, Mapping::Compressed { .. });
        let data = matches!(run.mapping, Mapping::Data(_));
        // a data file's zeros are bytes where it has the cluster (formats.md 3.11)
        let bytes = shape.data_file && (data || raw);
        let how = match shape.version {
            3.. => Some(Unmap::Zero { free }),
            // version 2 has no zero flag, but nothing reads as zeros if nothing shows through
            _ if self.backing_len.is_none() => Some(Unmap::Discard),
            _ => None,
        };
        if let (Some(how), false) = (how, bytes) {
            let clusters = align_down(whole, cluster);
            if pos.is_multiple_of(cluster) && clusters > pos {
                return self.unmap(a, (Span::new(pos, clusters), end.min(clusters) - pos), how, run, slot);
            }
            let units = align_down(whole, unit).min(geometry.cluster_start(pos) + cluster);
            if shape.extended && pos.is_multiple_of(unit) && units > pos && !compressed {
                return self.unmap(a, (Span::new(pos, units), end.min(units) - pos), how, run, slot);
            }
        }
        self.zero_part(a, run, slot, unit, how)
    }

    /// Zeros in part of one unit.
    fn zero_part(&mut self, a: AcbIndex, run: Run, slot: Option<u32>, unit: u64, how: Option<Unmap>) -> Next {
        debug_assert!(unit.is_power_of_two() && run.len > 0);
        let pos = self.requests.acb(a).pos;
        let start = align_down(pos, unit);
        let len = run.len.min(start + unit - pos);
        debug_assert!(len > 0 && start <= pos, "the unit holds the place");
        let run = Run { len, ..run };
        let hidden = self.backing_len.is_none_or(|backing| backing <= start);
        match run.mapping {
            Mapping::Data(host) if run.private => self.zero_in_place(a, host, len),
            Mapping::Zero | Mapping::ZeroAllocated(_) => self.skip(a, len),
            Mapping::NoTable | Mapping::Unallocated | Mapping::Reserved(_) if hidden => match how {
                // all of the unit reads as zeros already
                Some(how @ Unmap::Zero { .. }) => self.unmap(a, (Span::at(start, unit), len), how, run, slot),
                _ => self.skip(a, len),
            },
            _ => self.write_run(a, run, slot),
        }
    }

    /// The entries' shape, whether a data file must be a valid raw image, and whether space may be given up.
    fn zero_rules(&self, a: AcbIndex) -> Option<(Shape, bool, bool)> {
        let shape = self.layout.shape()?;
        let free = self.requests.acb(a).flags.contains(Flags::MAY_UNMAP);
        Some((shape, self.refcounted.as_deref()?.header.data_file_raw(), free))
    }

    /// A run of what a smaller disk does not have any more.
    pub(crate) fn drop_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        let (Some(geometry), Some((pos, end, whole))) =
            (self.layout.geometry().copied(), self.reach(a, run, slot))
        else {
            return Next::On;
        };
        debug_assert_eq!(pos, geometry.cluster_start(pos));
        debug_assert!(end > pos, "it gets on");
        self.unmap(a, (Span::new(pos, geometry.cluster_end(whole)), end - pos), Unmap::Drop, run, slot)
    }
}
