//! Metadata contexts: what block status can tell of.
//!
//! Knows: their names, which queries match them, their status values ("Metadata querying"). Must never know:
//! where a status comes from.

use bitflags::bitflags;

/// A context.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Context {
    /// `base:allocation`: [`STATE_HOLE`], [`STATE_ZERO`].
    Allocation,
    /// `qemu:allocation-depth`: 0, if no layer has the range; otherwise how deep the layer is that has it,
    /// from 1 for the image on.
    Depth,
    /// `x-quod:kind`: a [`Kind`]. The namespace begins with `x-` as the protocol wants it of names that are
    /// not registered.
    Kind,
}

/// Of `base:allocation`: nothing is allocated.
pub const STATE_HOLE: u32 = 1;
/// Of `base:allocation`: it reads as zeros.
pub const STATE_ZERO: u32 = 2;

/// The status values of `x-quod:kind`: what the layer that has a range has there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Nothing, in no layer: it reads as zeros.
    Hole = 0,
    /// Data.
    Data = 1,
    /// Zeros that are told by the metadata.
    Zero = 2,
    /// Compressed data.
    Compressed = 3,
}

bitflags! {
    /// Contexts that were selected.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Contexts: u8 {
        /// [`Context::Allocation`].
        const ALLOCATION = 1;
        /// [`Context::Depth`].
        const DEPTH = 1 << 1;
        /// [`Context::Kind`].
        const KIND = 1 << 2;
    }
}

impl Context {
    pub(crate) const ALL: [Context; 3] = [Context::Allocation, Context::Depth, Context::Kind];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Context::Allocation => "base:allocation",
            Context::Depth => "qemu:allocation-depth",
            Context::Kind => "x-quod:kind",
        }
    }

    /// Its number on the wire.
    pub const fn id(self) -> u32 {
        self as u32 + 1
    }

    pub(crate) const fn bit(self) -> Contexts {
        match self {
            Context::Allocation => Contexts::ALLOCATION,
            Context::Depth => Contexts::DEPTH,
            Context::Kind => Contexts::KIND,
        }
    }

    /// Of this number.
    pub(crate) fn of_id(id: u32) -> Option<Context> {
        Context::ALL.into_iter().find(|context| context.id() == id)
    }
}

impl Contexts {
    /// Each of them.
    pub fn iter_contexts(self) -> impl Iterator<Item = Context> {
        Context::ALL.into_iter().filter(move |context| self.contains(context.bit()))
    }

    /// Those that a query selects; with `wildcard` an empty leaf name stands for the whole namespace, as it
    /// does when contexts are listed. An unknown one selects nothing.
    pub(crate) fn matching(query: &[u8], wildcard: bool) -> Contexts {
        let fits = |context: &Context| {
            let name = context.name().as_bytes();
            let whole = wildcard && query.ends_with(b":") && name.starts_with(query);
            name == query || whole && query.iter().filter(|byte| **byte == b':').count() == 1
        };
        Context::ALL.into_iter().filter(fits).fold(Contexts::empty(), |all, context| all | context.bit())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// "The `base:` metadata namespace", "`NBD_OPT_LIST_META_CONTEXT`".
    #[test]
    fn an_empty_leaf_name_is_a_wildcard_of_lists_alone() {
        assert_eq!(Contexts::matching(b"base:", true), Contexts::ALLOCATION);
        assert_eq!(Contexts::matching(b"qemu:", true), Contexts::DEPTH);
        assert_eq!(Contexts::matching(b"x-quod:", true), Contexts::KIND);
        assert_eq!(Contexts::matching(b"base:", false), Contexts::empty());
        assert_eq!(Contexts::matching(b"base:allocation", false), Contexts::ALLOCATION);
        for unknown in [&b"base:alloc"[..], b"qemu:dirty-bitmap:x", b"", b":", b"base", b"base:allocation:"] {
            assert_eq!(Contexts::matching(unknown, true), Contexts::empty());
        }
    }

    #[test]
    fn numbers_lead_back() {
        for context in Context::ALL {
            assert_eq!(Context::of_id(context.id()), Some(context));
            assert_eq!(context.bit().iter_contexts().next(), Some(context));
        }
        assert_eq!((Context::of_id(0), Context::of_id(4)), (None, None));
    }
}
