//! Slices on their way into the cache, and what keeps them there while they change.
//!
//! Knows: slots, and I/O for slices. Must never know: what an entry means, which acbs wait for a slice, and
//! why.
//!
//! Invariants:
//! * concurrent misses of one slice share one load: whoever looks finds the slot that is being loaded;
//! * a change is young until its data is durable (QE3): `set_entries` says in which window it was made;
//! * a slice that is pinned stays, as often as it was pinned.

use super::cache::TableCache;
use super::slice::{SliceState, Young};
use crate::base::geometry::{Geometry, SliceNumber};
use crate::fault::Op;
use crate::io::IoOp;
use crate::outbox::{Due, Outbox, Purpose};
use crate::rule::Rule;

/// Uncommitted mappings that are remembered at most; half of it asks for a commit.
pub(crate) const YOUNG_MAX: usize = 16384;

impl TableCache {
    /// Starts to load a slice: into which slot. None: none is free.
    pub(crate) fn load(
        &mut self,
        number: SliceNumber,
        host: u64,
        geometry: &Geometry,
        out: &mut Outbox,
    ) -> Option<u32> {
        let (words, len, op) = match number {
            _ if geometry.is_l1(number) => {
                (1 << geometry.l1_slice_bits, geometry.l1_slice_bytes(), Op::ReadL1)
            }
            _ if geometry.is_refcount(number) => {
                (geometry.slice_words(), geometry.slice_bytes(), Op::ReadRefcounts)
            }
            _ => (geometry.slice_words(), geometry.slice_bytes(), Op::ReadL2),
        };
        debug_assert!(words * 8 <= len as usize, "all its entries are read");
        let slot = self.claim(number, host, words)?;
        debug_assert_eq!(self.slot(slot).state, SliceState::Loading, "whoever looks finds that it is loaded");
        out.counters.table_reads += 1;
        out.emit(Purpose::Load(slot), op, host, IoOp::ReadTable { offset: host, len });
        Some(slot)
    }

    /// The bytes of a slice that was being loaded.
    pub(crate) fn fill(&mut self, slot: u32, bytes: &[u8], decode: fn([u8; 8]) -> u64) {
        let slice = self.slot_mut(slot);
        debug_assert_eq!(slice.state, SliceState::Loading);
        debug_assert!(!slice.is_dirty(), "a slice that is loaded has no changes");
        debug_assert_eq!(bytes.len(), slice.entries.len() * 8);
        for (entry, bytes) in slice.entries.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *entry = decode(*bytes);
        }
        slice.state = SliceState::Present;
    }

    /// Of a slice only the first `keep` entries are the table's: it may have been read from beyond its end.
    pub(crate) fn cut(&mut self, slot: u32, keep: u64) {
        debug_assert!(!self.slot(slot).is_dirty(), "nothing of it has changed yet");
        let slice = self.slot_mut(slot);
        let keep = keep.min(slice.entries.len() as u64) as usize;
        debug_assert!(keep <= slice.entries.len(), "no entry is made");
        slice.entries.iter_mut().skip(keep).for_each(|entry| *entry = 0);
    }

    /// A slot for a slice that is known to be zeros: of a table that is new.
    pub(crate) fn claim_zeros(&mut self, number: SliceNumber, host: u64, words: usize) -> Option<u32> {
        debug_assert!(words > 0);
        let slot = self.claim(number, host, words)?;
        debug_assert!(self.slot(slot).entries.iter().all(|entry| *entry == 0), "a new table is zeros");
        self.slot_mut(slot).state = SliceState::Present;
        Some(slot)
    }

    /// Changes entries `[first, first + count)` of a slice, all equal so far, to `value`, `value + step`, ...
    /// The change belongs to this window: it is written only after a sync that was submitted from now on
    /// (QE3). True: the slice was clean.
    pub(crate) fn set_entries(
        &mut self,
        slot: u32,
        (first, count): (usize, usize),
        (value, step): (u64, u64),
        window: u64,
        out: &mut Outbox,
    ) -> bool {
        debug_assert!(count > 0 && first + count <= usize::from(u16::MAX));
        let slice = self.slot_mut(slot);
        debug_assert!(matches!(slice.state, SliceState::Present | SliceState::Writing));
        debug_assert!(first + count <= slice.entries.len());
        let was_dirty = slice.is_dirty();
        debug_assert!(window > 0, "a change belongs to a window");
        let Some(range) = slice.entries.get_mut(first..first + count) else { return false };
        let Some(&old) = range.first() else { return false };
        debug_assert!(range.iter().all(|entry| *entry == old), "a run is of one kind");
        let mut next = value;
        for entry in range {
            *entry = next;
            next += step;
        }
        debug_assert!(slice.young.last().is_none_or(|last| last.window <= window), "windows only rise");
        slice.young.push(Young { first: first as u16, count: count as u16, old, window });
        self.young += 1;
        self.dirty += usize::from(!was_dirty);
        debug_assert!(self.dirty > 0 && self.dirty <= self.slots().len(), "the slot is dirty now");
        if self.young > YOUNG_MAX / 2 || self.is_half_dirty() {
            out.due |= Due::SOON;
        }
        !was_dirty
    }

    /// Blocks of a slice have changed that may be written at any time. True: the slice was clean.
    pub(crate) fn mark_dirty(&mut self, slot: u32, blocks: u64, out: &mut Outbox) -> bool {
        debug_assert!(blocks != 0);
        let slice = self.slot_mut(slot);
        debug_assert!(matches!(slice.state, SliceState::Present | SliceState::Writing));
        let was_dirty = slice.is_dirty();
        debug_assert!(!slice.entries.is_empty(), "what changes has entries");
        slice.dirty |= blocks;
        if !was_dirty {
            self.dirty += 1;
            debug_assert!(self.dirty <= self.slots().len(), "each dirty slot is counted once");
            if self.is_half_dirty() {
                out.due |= Due::SOON;
            }
        }
        !was_dirty
    }

    /// Changes of a slice whose data is durable may be written from now on.
    pub(crate) fn age(&mut self, slot: u32, durable: u64, entries_per_block: usize) {
        debug_assert!(self.slot(slot).is_dirty(), "only what has changed ages");
        let slice = self.slot_mut(slot);
        let young = slice.young.len();
        slice.age(durable, entries_per_block);
        let aged = young - slice.young.len();
        debug_assert!(aged <= self.young);
        self.young -= aged;
    }

    /// More than half of all slots are.
    fn is_half_dirty(&self) -> bool {
        debug_assert!(self.dirty <= self.capacity());
        self.dirty > self.capacity() / 2
    }

    /// So many uncommitted changes are enough.
    pub(crate) fn is_overfull(&self) -> bool {
        debug_assert!(self.young == 0 || self.dirty > 0, "what is not committed is dirty");
        self.young >= YOUNG_MAX
    }

    /// One reason more for a slice to stay in the cache; `rule` names it.
    pub(crate) fn pin(&mut self, slot: u32, rule: Rule) {
        debug_assert_ne!(self.slot(slot).state, SliceState::Empty, "what is pinned is there");
        let pins = u32::from(!self.is_removed(rule));
        debug_assert!(self.slot(slot).pins < u32::MAX, "there are fewer acbs");
        self.slot_mut(slot).pins += pins;
    }

    /// One reason less.
    pub(crate) fn unpin(&mut self, slot: u32, rule: Rule, out: &mut Outbox) {
        debug_assert_ne!(self.slot(slot).state, SliceState::Empty, "what is pinned stays");
        self.unpin_quietly(slot, rule);
        if self.slot(slot).pins == 0 {
            out.due |= Due::SLOTS;
        }
    }

    /// The same, where nobody can have waited for it.
    pub(crate) fn unpin_quietly(&mut self, slot: u32, rule: Rule) {
        let pins = u32::from(!self.is_removed(rule));
        let slice = self.slot_mut(slot);
        debug_assert!(slice.pins >= pins);
        slice.pins -= pins;
        debug_assert_ne!(slice.state, SliceState::Empty, "what is pinned stays");
    }
}
