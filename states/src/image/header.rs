//! The header of an image, in memory and on its way into the file.
//!
//! Knows: that there is one. Must never know: when it is written (`round.rs`).
//!
//! Invariant: what is encoded is what memory holds when the write is named.

use super::value::Image;
#[cfg(feature = "sabotage")]
use crate::rule::Rule;
use crate::space::counts::Refcounted;

impl Image {
    /// Does this image's dirty bit allow what is not in order to be written?
    pub(super) fn uses_dirty_bit(&self) -> bool {
        self.layout.uses_dirty_bit(self.refcounted.as_deref())
    }

    /// Sets the bit that says so, in memory.
    pub(super) fn set_dirty_bit(&mut self, set: bool) {
        debug_assert!(!set || self.uses_dirty_bit());
        if let Some(header) = self.layout.header_mut(self.refcounted.as_deref_mut()) {
            header.set_dirty_bit(set);
        }
        debug_assert!(self.header_len().is_none() || self.dirty_bit() == set, "memory has it");
    }

    /// The bit, in memory.
    pub(super) fn dirty_bit(&self) -> bool {
        self.layout.header(self.refcounted.as_deref()).is_some_and(|header| header.dirty_bit())
    }

    /// Clears the autoclear bits that are not kept up, in memory.
    pub(super) fn clear_autoclear_bits(&mut self) {
        debug_assert!(self.header_len().is_some(), "a raw image has none");
        let keep = self.refcounted.as_deref().map_or(0, Refcounted::kept_up);
        if let Some(header) = self.layout.header_mut(self.refcounted.as_deref_mut()) {
            header.clear_autoclear(keep);
        }
    }

    /// Bytes of the block that a change of the header writes.
    pub(super) fn header_len(&self) -> Option<u32> {
        self.layout.header(self.refcounted.as_deref()).map(|header| header.block_len())
    }

    pub(super) fn encode_header(&self, buf: &mut [u8]) {
        debug_assert_eq!(self.header_len(), Some(buf.len() as u32));
        if let Some(header) = self.layout.header(self.refcounted.as_deref()) {
            header.encode_block(buf);
        }
        #[cfg(feature = "sabotage")]
        if self.options.sabotaged(Rule::HeaderBytes) {
            self.clear_header_rest(buf);
        }
    }
}
