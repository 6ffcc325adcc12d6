//! The header's dirty bit (QED: need-check), as far as the file has it.
//!
//! Knows: what was written. Must never know: why the bit is wanted.

/// Clear -> Marking -> Written -> Set -> Cleared -> Clear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum DirtyBit {
    /// Not in the file, durably.
    Clear,
    /// A header with it is being written.
    Marking,
    /// It was written, if not durably.
    Written,
    /// It is there, durably.
    Set,
    /// A header without it was written, if not durably.
    Cleared,
}

impl DirtyBit {
    /// A header is being written that has it, or has not.
    pub(crate) fn emitted(&mut self, set: bool) {
        match (*self, set) {
            (DirtyBit::Clear, true) => *self = DirtyBit::Marking,
            (DirtyBit::Cleared, _) => debug_assert!(false, "nothing but a sync follows the clearing"),
            _ => {}
        }
    }

    /// That is written; `cleared`: it was about clearing the bit.
    pub(crate) fn written(&mut self, cleared: bool) {
        debug_assert!(!cleared || *self == DirtyBit::Set);
        match *self {
            _ if cleared => *self = DirtyBit::Cleared,
            DirtyBit::Marking => *self = DirtyBit::Written,
            _ => {}
        }
    }

    /// A sync has ended that covers it. True: the clearing is durable.
    pub(crate) fn synced(&mut self) -> bool {
        let cleared = *self == DirtyBit::Cleared;
        *self = match *self {
            DirtyBit::Clear | DirtyBit::Cleared => DirtyBit::Clear,
            DirtyBit::Marking | DirtyBit::Written | DirtyBit::Set => DirtyBit::Set,
        };
        debug_assert!(matches!(self, DirtyBit::Clear | DirtyBit::Set), "nothing is on its way");
        cleared
    }

    /// It was written to the file, if not durably.
    pub(crate) const fn is_in_file(self) -> bool {
        matches!(self, DirtyBit::Written | DirtyBit::Set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bit_goes_round() {
        let mut bit = DirtyBit::Clear;
        let mut seen = alloc::vec![bit];
        bit.emitted(false);
        assert_eq!(bit, DirtyBit::Clear);
        bit.emitted(true);
        seen.push(bit);
        bit.written(false);
        seen.push(bit);
        assert!(!bit.synced());
        seen.push(bit);
        bit.emitted(true);
        bit.written(false);
        assert_eq!(bit, DirtyBit::Set, "another header keeps it");
        bit.written(true);
        seen.push(bit);
        assert!(bit.synced());
        assert_eq!((bit, bit.synced()), (DirtyBit::Clear, false));
        let in_file: alloc::vec::Vec<bool> = seen.iter().map(|bit| bit.is_in_file()).collect();
        assert_eq!(in_file, [false, false, true, true, false]);
    }
}
