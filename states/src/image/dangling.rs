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

use super::Image;
use crate::error::Error;
use crate::fault::{DanglingFault, Fault};
use crate::qcow2::Shape;
use crate::qcow2::entry::{COMPRESSED, OFFSET};
use crate::rule::Rule;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

/// Dangling pointers that are remembered at most.
const DANGLING_MAX: usize = 1 << 16;

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Dangling {
    /// First byte behind the file as it was opened.
    end: u64,
    /// Slices that clusters were linked into: what lies beyond `end` there is ours, but for what `found`
    /// lists.
    linked: BTreeSet<u64>,
    found: BTreeMap<u64, Vec<u16>>,
    count: usize,
}

impl Dangling {
    pub(super) fn new(end: u64) -> Dangling {
        Dangling { end, linked: BTreeSet::new(), found: BTreeMap::new(), count: 0 }
    }

    /// Nothing that was there when the image was opened lies from here on.
    pub(super) fn file_end(&self) -> u64 {
        self.end
    }

    /// A slice gets its first change since it was loaded.
    pub(super) fn note_linked(&mut self, number: u64) {
        self.linked.insert(number);
    }
}

/// How an entry says where it points to.
#[derive(Clone, Copy)]
enum Kind {
    /// It is the offset (QED).
    Plain,
    L1,
    L2(Shape),
}

impl Kind {
    fn offset(self, index: usize, entry: u64) -> u64 {
        match self {
            Kind::Plain => entry,
            Kind::L1 => entry & OFFSET,
            Kind::L2(shape) if shape.extended && index % 2 == 1 => 0,
            Kind::L2(shape) if entry & COMPRESSED != 0 => shape.compressed_range(entry).0,
            Kind::L2(_) => entry & OFFSET,
        }
    }
}

impl Image {
    /// A table slice of an image that may be written was just loaded.
    pub(super) fn find_dangling(&mut self, slot: u32) -> Result<(), Error> {
        let number = crate::base::geometry::SliceNumber(self.tables.slot(slot).number);
        let none = self.layout.geometry().is_none_or(|geometry| geometry.is_refcount(number));
        let data_file = self.layout.shape().is_some_and(|shape| shape.data_file);
        if self.options.read_only || none || data_file || self.options.sabotaged(Rule::DanglingStaysDead) {
            return Ok(());
        }
        let is_l1 = self.layout.geometry().is_some_and(|geometry| geometry.is_l1(number));
        let kind = match self.layout.shape() {
            Some(_) if is_l1 => Kind::L1,
            Some(shape) => Kind::L2(shape),
            None => Kind::Plain,
        };
        let slice = self.tables.slot_mut(slot);
        if let Some(found) = self.dangling.found.get(&slice.number) {
            slice.dangling.extend_from_slice(found);
            return Ok(());
        }
        if self.dangling.linked.contains(&slice.number) {
            return Ok(());
        }
        let (end, (free, taken)) = (self.dangling.end, self.space.found());
        let mut lies = false;
        for (index, entry) in slice.entries.iter().enumerate() {
            match kind.offset(index, *entry) {
                offset if offset < free => {}
                offset if offset >= end || offset < taken => slice.dangling.push(index as u16),
                _ => lies = true,
            }
        }
        if lies {
            self.space.distrust_found();
        }
        let slice = self.tables.slot(slot);
        if slice.dangling.is_empty() {
            return Ok(());
        }
        self.dangling.count += slice.dangling.len();
        if self.dangling.count > DANGLING_MAX {
            return Err(Error::Corrupt(Fault::TooManyDangling { slice: slice.number, end }));
        }
        self.dangling.found.insert(slice.number, slice.dangling.clone());
        Ok(())
    }

    /// Is entry `index` of a slice one of them?
    pub(super) fn check_dangling(&self, slot: u32, index: usize) -> Result<(), Error> {
        let slice = self.tables.slot(slot);
        if !slice.dangling.iter().any(|dangling| usize::from(*dangling) == index) {
            return Ok(());
        }
        let entry = slice.entries.get(index).copied().unwrap_or(0);
        let (free, taken) = self.space.found();
        let why = if free < taken { DanglingFault::Used } else { DanglingFault::File };
        Err(Error::Corrupt(Fault::Dangling { index: index as u64, entry, why }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::entry::COPIED;
    use crate::qcow2::header::incompatible::{DATA_FILE, EXTENDED_L2};
    use alloc::vec;

    #[test]
    fn an_entry_says_where_it_points_to_in_its_own_way() {
        let shape = |extended| Shape { version: 3, cluster_bits: 16, extended, data_file: false };
        let entry = COPIED | 0x5_0000;
        assert_eq!(Kind::Plain.offset(0, 0x5_0000), 0x5_0000);
        assert_eq!(Kind::L1.offset(1, entry), 0x5_0000);
        for index in 0..4 {
            assert_eq!(Kind::L2(shape(false)).offset(index, entry), 0x5_0000);
            // the second word of an extended entry is a bitmap
            let expected = if index % 2 == 1 { 0 } else { 0x5_0000 };
            assert_eq!(Kind::L2(shape(true)).offset(index, entry), expected, "word {index}");
        }
        let large = Shape { cluster_bits: 21, ..shape(false) };
        assert_eq!(Kind::L2(large).offset(0, COPIED | 1 << 55), 1 << 55, "not compressed");
        // of compressed data every bit counts
        let compressed = shape(false).encode_compressed(0x5_0123, 4000).unwrap();
        assert_eq!(Kind::L2(shape(false)).offset(0, compressed), 0x5_0123);
    }

    /// An image of 512-byte clusters in a file of 1 MiB.
    fn image(incompatible: u64, options: &crate::Options) -> Image {
        let bits = if incompatible & EXTENDED_L2 == 0 { 9 } else { 14 };
        let mut header = crate::qcow2::Header::new(3, bits, 4, [incompatible, 0, 0], None).unwrap();
        (header.size, header.l1_entries, header.l1_offset) = (1 << 24, 1024, 1 << 15);
        Image::qcow2(&header, 1 << 20, Some(super::super::Tables::default()), options)
    }

    /// Which entries are found in a slice of this number, loaded first.
    fn found(image: &mut Image, number: u64, entries: &[u64]) -> Result<Vec<u16>, Error> {
        let (number, host) =
            (crate::base::geometry::SliceNumber(number), crate::base::geometry::HostOffset(0));
        let slot = image.tables.claim(number, host, entries.len()).unwrap();
        image.tables.slot_mut(slot).entries.copy_from_slice(entries);
        image.find_dangling(slot).map(|()| image.tables.slot(slot).dangling.clone())
    }

    #[test]
    fn slices_are_searched_by_what_they_are() {
        const END: u64 = 1 << 20;
        let options = crate::Options::default();
        let mut image = image(0, &options);
        let base = image.layout.geometry().unwrap().l2_base;
        let compressed = Shape { version: 3, cluster_bits: 9, extended: false, data_file: false };
        let data = compressed.encode_compressed(END - 512, 100).unwrap();
        let entries = [0, END - 512, END | COPIED, END, data, compressed.encode_compressed(END, 9).unwrap()];
        assert_eq!(found(&mut image, base, &entries), Ok(vec![2, 3, 5]));
        assert_eq!(found(&mut image, 0, &[0, END, (END - 512) | COPIED, END | COPIED]), Ok(vec![1, 3]));
        assert_eq!(found(&mut image, base - 1, &[u64::MAX; 4]), Ok(vec![]), "counts point nowhere");
        assert_eq!(found(&mut image, base + 1, &[0, 0]), Ok(vec![]));
        let reading = crate::Options { read_only: true, ..options };
        assert_eq!(found(&mut self::image(0, &reading), base, &entries), Ok(vec![]));
        // every second word of extended entries is a bitmap, but not of L1 entries
        let mut extended = self::image(EXTENDED_L2, &options);
        let base = extended.layout.geometry().unwrap().l2_base;
        assert_eq!(found(&mut extended, base, &[END, u64::MAX, 0, END]), Ok(vec![0]));
        assert_eq!(found(&mut extended, 0, &[0, END, 0, END]), Ok(vec![1, 3]));
        let mut remote = self::image(DATA_FILE, &options);
        let base = remote.layout.geometry().unwrap().l2_base;
        assert_eq!(found(&mut remote, base, &[END; 4]), Ok(vec![]), "that is another file");
    }

    #[test]
    fn so_many_are_remembered_and_no_more() {
        let mut image = image(0, &crate::Options::default());
        let base = image.layout.geometry().unwrap().l2_base;
        image.dangling.count = DANGLING_MAX - 5;
        assert_eq!(found(&mut image, base, &[1 << 20; 3]), Ok(vec![0, 1, 2]));
        assert_eq!(found(&mut image, base + 1, &[1 << 20; 2]), Ok(vec![0, 1]));
        let error = Error::Corrupt(Fault::TooManyDangling { slice: base + 2, end: 1 << 20 });
        assert_eq!(found(&mut image, base + 2, &[1 << 20]), Err(error));
    }
}
