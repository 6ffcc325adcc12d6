//! Ranges of bytes: `[start, end)`, of a guest's disk or of a file.
//!
//! Knows: arithmetic. Must never know: what lies there.
//!
//! Invariant: `start <= end`.

/// See the module's header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Span {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Span {
    #[inline]
    pub(crate) const fn new(start: u64, end: u64) -> Span {
        debug_assert!(start <= end);
        Span { start, end }
    }

    /// `len` bytes from `start` on; as far as there are numbers for them.
    #[inline]
    pub(crate) const fn at(start: u64, len: u64) -> Span {
        Span { start, end: start.saturating_add(len) }
    }

    /// Bytes.
    #[inline]
    pub(crate) const fn len(self) -> u64 {
        debug_assert!(self.start <= self.end);
        self.end - self.start
    }

    #[inline]
    pub(crate) const fn is_empty(self) -> bool {
        debug_assert!(self.start <= self.end);
        self.start >= self.end
    }

    #[inline]
    pub(crate) const fn contains(self, offset: u64) -> bool {
        debug_assert!(self.start <= self.end);
        self.start <= offset && offset < self.end
    }

    /// They have a byte in common, if neither is empty.
    #[inline]
    pub(crate) const fn overlaps(self, other: Span) -> bool {
        debug_assert!(self.start <= self.end && other.start <= other.end);
        self.start < other.end && other.start < self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_overlap_where_they_share_a_byte() {
        let span = Span::new(512, 1024);
        for (other, overlaps) in [
            (Span::new(0, 512), false),
            (Span::new(0, 513), true),
            (Span::at(600, 1), true),
            (Span::new(1023, 4096), true),
            (Span::new(1024, 4096), false),
        ] {
            assert_eq!((span.overlaps(other), other.overlaps(span)), (overlaps, overlaps), "{other:?}");
        }
        assert_eq!([511, 512, 1023, 1024].map(|offset| span.contains(offset)), [false, true, true, false]);
        assert_eq!((span.len(), span.is_empty(), Span::at(7, 0).is_empty()), (512, false, true));
        assert_eq!(Span::at(u64::MAX - 1, 9).end, u64::MAX);
    }
}
