//! From one header to another that does not lie in one sector.
//!
//! What is behind the first 512 bytes of a header may be written partly, and in any order. So the new
//! extensions, and the name of the backing file, are first written where the old header has nothing; then the
//! first sector, with fields that say that the extensions begin there, as a longer header's do; then they are
//! written where they belong, which is nobody's meanwhile; and then the first sector as it shall be.
//!
//! Knows: the header's layout. Must never know: what has changed, or when a write is durable.
//!
//! Invariant: whatever part of a step is in the file, together with the step before, is the old header or the
//! new one, whole.

use super::*;

/// Bytes that are written whole.
const SECTOR: usize = 512;

impl Header {
    /// The blocks that lead from this header, as it stands in the file, to `next`: each is written to the
    /// file's first bytes, and is durable before the one that follows. They have one length, which is that of
    /// `next` from now on.
    ///
    /// # Errors
    /// [`Error::NoSpace`] where the first cluster has no room for both.
    pub(crate) fn steps_to(&self, next: &mut Header) -> Result<Vec<Vec<u8>>, Error> {
        debug_assert!(next.cluster_bits == self.cluster_bits && next.version == self.version);
        let (mut old, new) = (self.encode(), next.encode());
        debug_assert!(new.len() >= old.len(), "a new layout covers the old one");
        let same = old.len() == new.len() && old.get(SECTOR..) == new.get(SECTOR..);
        if same || new.len() <= SECTOR {
            return Ok(alloc::vec![new]);
        }
        let used = self.used(&self.block).max(next.used(&next.block)).next_multiple_of(SECTOR);
        let mut far = next.clone();
        old.resize(new.len().max(used), 0);
        // fields that no version knows stay; behind them, where the extensions were, are none
        let fields = (next.header_length as usize).min(SECTOR);
        far.block = new.get(..fields).unwrap_or(&new).to_vec();
        far.block.resize(SECTOR, 0);
        far.block.extend(old.get(SECTOR..used).unwrap_or_default());
        far.header_length = used as u32;
        far.lay_out()?;
        let mut far = far.encode();
        let len = far.len().max(new.len());
        [&mut old, &mut far, &mut next.block].into_iter().for_each(|block| block.resize(len, 0));
        let new = next.encode();
        let parts = |first: &[u8], middle: &[u8], last: &[u8]| {
            [&first[..SECTOR], &middle[SECTOR..used], &last[used..]].concat()
        };
        debug_assert!(used <= len && old.len() == len, "all of them have one length");
        Ok(alloc::vec![
            parts(&old, &old, &far),
            far.clone(),
            parts(&far, &new, &far),
            parts(&new, &new, &far),
            new,
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;

    const FIRST: bitmap::Extension =
        bitmap::Extension { count: 1, directory_size: 32, directory_offset: 0x20_0000 };
    const SECOND: bitmap::Extension =
        bitmap::Extension { count: 2, directory_size: 64, directory_offset: 0x40_0000 };

    fn header(cluster_bits: u32, backing: Option<&[u8]>) -> Header {
        let mut header = Header::new(3, cluster_bits, 4, [0; 3], None).unwrap();
        (header.l1_offset, header.l1_entries, header.size) = (3 << cluster_bits, 1, 512);
        header.set_backing(backing, None).unwrap();
        header
    }

    fn read(bytes: &[u8], cluster_bits: u32) -> Header {
        let mut bytes = bytes.to_vec();
        bytes.resize(1 << cluster_bits, 0);
        Header::parse(&bytes, Purpose::Write).unwrap()
    }

    /// What a header says.
    fn says(header: &Header) -> (Option<bitmap::Extension>, Option<Vec<u8>>, u64, Vec<Extension>) {
        let mut others = header.extensions.clone();
        others.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
        (header.bitmaps(), header.backing().map(<[u8]>::to_vec), header.reftable_offset, others)
    }

    /// Every mixture of the sectors of two steps that follow each other.
    fn follow(old: &Header, new: &mut Header) -> usize {
        let steps = old.steps_to(new).unwrap();
        let bits = old.cluster_bits;
        let (before, after) = (says(old), says(new));
        let mut file = old.encode();
        file.resize(1 << bits, 0);
        let mut switched = false;
        for step in &steps {
            let mut next = file.clone();
            next[..step.len()].copy_from_slice(step);
            let changed: Vec<usize> = (0..file.len() / SECTOR)
                .filter(|n| file[n * SECTOR..][..SECTOR] != next[n * SECTOR..][..SECTOR])
                .collect();
            assert!(changed.len() <= 12, "few enough for all of them: {}", changed.len());
            for mask in 0..1u32 << changed.len() {
                let mut torn = file.clone();
                for (bit, sector) in changed.iter().enumerate() {
                    if mask >> bit & 1 != 0 {
                        torn[sector * SECTOR..][..SECTOR].copy_from_slice(&next[sector * SECTOR..][..SECTOR]);
                    }
                }
                let found = says(&read(&torn, bits));
                assert!(found == after || found == before && !switched, "{mask:b} of {changed:?}: {found:?}");
            }
            switched |= says(&read(&next, bits)) == after;
            file = next;
        }
        assert_eq!(read(&file, bits), read(&new.encode(), bits), "it is laid out as any other");
        steps.len()
    }

    #[test]
    fn a_header_is_the_old_one_or_the_new_one_wherever_its_sectors_are_torn() {
        let long = vec![b'n'; 1000];
        let names: [Option<&[u8]>; 4] = [None, Some(b"base"), Some(&long), Some(&long[..460])];
        let mut most = 0;
        for (bits, name) in
            [9, 11, 12, 13, 16, 21].into_iter().flat_map(|bits| names.map(|name| (bits, name)))
        {
            // what the first cluster has room for
            if name.is_some_and(|name| bits == 9 && name.len() > 300 || bits == 11 && name.len() > 900) {
                continue;
            }
            let plain = header(bits, name);
            let (mut one, mut two) = (plain.clone(), plain.clone());
            one.set_bitmaps(Some(FIRST)).unwrap();
            one.reftable_offset = 9 << bits;
            most = most.max(follow(&plain, &mut one));
            two.set_bitmaps(Some(SECOND)).unwrap();
            two.reftable_offset = 7 << bits;
            follow(&one, &mut two);
            let mut none = two.clone();
            none.set_bitmaps(None).unwrap();
            none.reftable_offset = 1 << bits;
            follow(&two, &mut none);
            assert_eq!(says(&none), says(&plain), "{bits} {name:?}");
        }
        assert_eq!(most, 5);
    }

    #[test]
    fn what_lies_in_one_sector_is_one_step() {
        let old = header(12, Some(b"base"));
        let mut new = old.clone();
        new.set_bitmaps(Some(FIRST)).unwrap();
        assert_eq!(follow(&old, &mut new), 1);
    }

    /// Fields that no version knows, and extensions, are kept; a first cluster that is full says so.
    #[test]
    fn unknown_fields_stay_and_a_full_cluster_is_told() {
        let mut block = header(16, Some(b"base")).encode();
        block.resize(65536, 0);
        let mut old = read(&block, 16);
        old.header_length = 128;
        old.block[112..128].fill(0x77);
        old.extensions.push(Extension { kind: 0x1234, data: vec![5; 600] });
        old.lay_out().unwrap();
        let mut new = old.clone();
        new.set_bitmaps(Some(FIRST)).unwrap();
        assert_eq!(follow(&old, &mut new), 5);
        assert_eq!(new.encode()[112..128], [0x77; 16]);
        let old = header(11, Some(&[b'n'; 1020]));
        let mut new = old.clone();
        new.set_bitmaps(Some(FIRST)).unwrap();
        assert_eq!(old.steps_to(&mut new), Err(Error::NoSpace));
    }
}
