//! Pointers beyond the end of the file (QE7, trap Q5).
//!
//! A program that crashed may have left an image that says it is clean, with pointers past its end. As the
//! file grows, those would come to point at space that is handed out to others. So a slice that is loaded for
//! the first time is searched for them; they stay invalid however long the file gets. A slice that this
//! machine linked clusters into was loaded, and searched, before.
//!
//! Knows: where the file ended when it was opened, which slices were linked into. Must never know: what to do
//! about it (that is check and repair's).
//!
//! Invariant: memory is bounded: an image with more than `DANGLING_MAX` such pointers in the slices that were
//! read is refused.

use super::slice::Slice;
use crate::error::Error;
use crate::fault::{DanglingFault, Fault};
use crate::qcow2::Shape;
use crate::qcow2::entry::{COMPRESSED, OFFSET};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Dangling pointers that are remembered at most.
const DANGLING_MAX: usize = 1 << 16;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Dangling {
    /// First byte behind the file as it was opened.
    end: u64,
    /// Slices that clusters were linked into: what lies beyond `end` there is ours, but for what `found`
    /// lists.
    linked: BTreeSet<u64>,
    found: BTreeMap<u64, Vec<u16>>,
    count: usize,
}

impl Dangling {
    pub(crate) fn new(end: u64) -> Dangling {
        debug_assert!(end <= 1 << 63, "no file is longer");
        Dangling { end, linked: BTreeSet::new(), found: BTreeMap::new(), count: 0 }
    }

    /// Nothing that was there when the image was opened lies from here on.
    pub(crate) fn file_end(&self) -> u64 {
        debug_assert!(self.count >= self.found.len(), "a slice that is remembered has such pointers");
        self.end
    }

    /// A slice gets its first change since it was loaded.
    pub(crate) fn note_linked(&mut self, number: u64) {
        self.linked.insert(number);
    }
}

/// How an entry says where it points to.
#[derive(Clone, Copy)]
pub(crate) enum Pointers {
    /// It is the offset (QED).
    Plain,
    L1,
    L2(Shape),
}

impl Pointers {
    fn offset(self, index: usize, entry: u64) -> u64 {
        match self {
            Pointers::Plain => entry,
            Pointers::L1 => entry & OFFSET,
            Pointers::L2(shape) if shape.extended && index % 2 == 1 => 0,
            Pointers::L2(shape) if entry & COMPRESSED != 0 => shape.compressed_range(entry).0,
            Pointers::L2(_) => entry & OFFSET,
        }
    }
}

impl Dangling {
    /// Searches a slice that was just loaded. Err: there are too many. True: entries lead to what the counts
    /// call free, the file's end that was `found` free from its first byte on, up to where it was taken.
    pub(crate) fn search(
        &mut self,
        slice: &mut Slice,
        kind: Pointers,
        found: (u64, u64),
    ) -> Result<bool, Error> {
        debug_assert!(!slice.is_dirty(), "a slice is searched before it changes");
        debug_assert!(slice.dangling.is_empty() && found.0 <= found.1);
        if let Some(found) = self.found.get(&slice.number) {
            debug_assert!(!found.is_empty(), "a slice that is remembered has such pointers");
            slice.dangling.extend_from_slice(found);
            return Ok(false);
        }
        if self.linked.contains(&slice.number) {
            return Ok(false);
        }
        let (end, (free, taken)) = (self.end, found);
        let mut lies = false;
        for (index, entry) in slice.entries.iter().enumerate() {
            debug_assert!(index <= usize::from(u16::MAX), "an entry's index fits the list");
            match kind.offset(index, *entry) {
                offset if offset < free => {}
                offset if offset >= end || offset < taken => slice.dangling.push(index as u16),
                _ => lies = true,
            }
        }
        if slice.dangling.is_empty() {
            return Ok(lies);
        }
        self.count += slice.dangling.len();
        debug_assert!(slice.dangling.len() <= slice.entries.len(), "an entry dangles once");
        if self.count > DANGLING_MAX {
            return Err(Error::Corrupt(Fault::TooManyDangling { slice: slice.number, end }));
        }
        debug_assert!(slice.dangling.is_sorted());
        self.found.insert(slice.number, slice.dangling.clone());
        Ok(lies)
    }

    /// No slice of an L2 table that was there leads anywhere any more.
    pub(crate) fn forget_l2(&mut self, base: u64) {
        debug_assert!(self.count >= self.found.len(), "a slice that is remembered has such pointers");
        self.found.retain(|number, _| *number < base);
        self.count = self.found.values().map(Vec::len).sum();
    }

    /// The first invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        let count: usize = self.found.values().map(Vec::len).sum();
        match count <= self.count && self.count <= DANGLING_MAX + usize::from(u16::MAX) {
            true => Ok(()),
            false => Err(format!("{count} dangling entries are remembered, counted as {}", self.count)),
        }
    }
}

/// Is entry `index` of a slice one of them? `used`: what lay there was taken since, by us.
pub(crate) fn check_dangling(slice: &Slice, index: usize, used: bool) -> Result<(), Error> {
    debug_assert!(slice.dangling.len() <= slice.entries.len(), "an entry dangles once");
    debug_assert!(index < slice.entries.len());
    if !slice.dangling.iter().any(|dangling| usize::from(*dangling) == index) {
        return Ok(());
    }
    let entry = slice.entries.get(index).copied().unwrap_or(0);
    let why = if used { DanglingFault::Used } else { DanglingFault::File };
    Err(Error::Corrupt(Fault::Dangling { index: index as u64, entry, why }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::entry::COPIED;
    use alloc::vec;

    #[test]
    fn an_entry_says_where_it_points_to_in_its_own_way() {
        let shape = |extended| Shape { version: 3, cluster_bits: 16, extended, data_file: false };
        let entry = COPIED | 0x5_0000;
        assert_eq!(Pointers::Plain.offset(0, 0x5_0000), 0x5_0000);
        assert_eq!(Pointers::L1.offset(1, entry), 0x5_0000);
        for index in 0..4 {
            assert_eq!(Pointers::L2(shape(false)).offset(index, entry), 0x5_0000);
            // the second word of an extended entry is a bitmap
            let expected = if index % 2 == 1 { 0 } else { 0x5_0000 };
            assert_eq!(Pointers::L2(shape(true)).offset(index, entry), expected, "word {index}");
        }
        let large = Shape { cluster_bits: 21, ..shape(false) };
        assert_eq!(Pointers::L2(large).offset(0, COPIED | 1 << 55), 1 << 55, "not compressed");
        // of compressed data every bit counts
        let compressed = shape(false).encode_compressed(0x5_0123, 4000).unwrap();
        assert_eq!(Pointers::L2(shape(false)).offset(0, compressed), 0x5_0123);
    }

    const END: u64 = 1 << 20;

    /// Which entries are found in a slice of this number, loaded first.
    fn found(
        dangling: &mut Dangling,
        number: u64,
        kind: Pointers,
        entries: &[u64],
    ) -> Result<Vec<u16>, Error> {
        let mut slice = Slice { number, entries: entries.to_vec(), ..Slice::empty() };
        dangling.search(&mut slice, kind, (END, END)).map(|lies| {
            assert!(!lies);
            slice.dangling
        })
    }

    #[test]
    fn slices_are_searched_by_what_they_are() {
        let mut dangling = Dangling::new(END);
        let shape = |extended| Shape { version: 3, cluster_bits: 9, extended, data_file: false };
        let (plain, extended) = (Pointers::L2(shape(false)), Pointers::L2(shape(true)));
        let data = shape(false).encode_compressed(END - 512, 100).unwrap();
        let beyond = shape(false).encode_compressed(END, 9).unwrap();
        let entries = [0, END - 512, END | COPIED, END, data, beyond];
        assert_eq!(found(&mut dangling, 70, plain, &entries), Ok(vec![2, 3, 5]));
        assert_eq!(found(&mut dangling, 70, plain, &[0; 6]), Ok(vec![2, 3, 5]), "they stay invalid");
        assert_eq!(
            found(&mut dangling, 0, Pointers::L1, &[0, END, (END - 512) | COPIED, END | COPIED]),
            Ok(vec![1, 3])
        );
        assert_eq!(found(&mut dangling, 71, plain, &[0, 0]), Ok(vec![]));
        // every second word of extended entries is a bitmap, but not of L1 entries
        assert_eq!(found(&mut dangling, 72, extended, &[END, u64::MAX, 0, END]), Ok(vec![0]));
        dangling.note_linked(73);
        assert_eq!(found(&mut dangling, 73, plain, &[END; 4]), Ok(vec![]), "those are ours");
        assert_eq!(dangling.check(), Ok(()));
        dangling.count -= 1;
        let said = "6 dangling entries are remembered, counted as 5";
        assert_eq!(dangling.check(), Err(String::from(said)));
    }

    #[test]
    fn entries_that_lead_to_what_is_called_free_are_told() {
        let mut dangling = Dangling::new(END);
        let mut slice = Slice { entries: vec![0, END - 4096, END - 8192, 512], ..Slice::empty() };
        assert_eq!(dangling.search(&mut slice, Pointers::Plain, (END - 8192, END - 4096)), Ok(true));
        assert_eq!(slice.dangling, [2], "what was taken is ours; the rest is whoever wrote the entry's");
        assert!(check_dangling(&slice, 1, true).is_ok());
        let fault = |why| Error::Corrupt(Fault::Dangling { index: 2, entry: END - 8192, why });
        assert_eq!(check_dangling(&slice, 2, true), Err(fault(DanglingFault::Used)));
        assert_eq!(check_dangling(&slice, 2, false), Err(fault(DanglingFault::File)));
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let mut dangling = Dangling::new(END);
        dangling.count = DANGLING_MAX - 5;
        assert_eq!(found(&mut dangling, 70, Pointers::Plain, &[END; 3]), Ok(vec![0, 1, 2]));
        assert_eq!(found(&mut dangling, 71, Pointers::Plain, &[END; 2]), Ok(vec![0, 1]));
        let error = Error::Corrupt(Fault::TooManyDangling { slice: 72, end: END });
        assert_eq!(found(&mut dangling, 72, Pointers::Plain, &[END]), Err(error));
    }
}
