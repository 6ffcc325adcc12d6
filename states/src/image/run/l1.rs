//! Where an entry of the L1 table leads.
//!
//! Knows: L1 entries, what must not be followed. Must never know: what is looked for in the table.
//!
//! Invariant: an entry is checked before it is used, and a bad one is an error with its place.

use crate::base::geometry::Geometry;
use crate::error::Error;
use crate::image::value::Image;
use crate::tables::dangling::check_dangling;

impl Image {
    /// Where an L1 entry says that its table lies, and whether others may share it; None: there is none.
    pub(crate) fn l2_table(
        &mut self,
        geometry: &Geometry,
        slot: u32,
        index: u64,
        entry: usize,
    ) -> Result<Option<(u64, bool)>, Error> {
        let slice = self.tables.slot(slot);
        debug_assert!(slice.number == index >> geometry.l1_slice_bits, "the slice has the entry");
        check_dangling(slice, entry, self.space.found_used())?;
        let word = slice.entries.get(entry).copied().unwrap_or(0);
        let (table, shared) = self.layout.decode_l1(index, word)?;
        if table == 0 {
            return Ok(None);
        }
        geometry.check_table(index, table, self.space.end_for(table, geometry.table_bytes))?;
        if let Some(counted) = self.refcounted.as_deref_mut() {
            counted.check_l2_place(index, table, geometry.table_bytes, !shared)?;
        }
        Ok(Some((table, shared)))
    }
}
