//! What a server has to offer, as far as the protocol asks.
//!
//! Knows: names, sizes, limits. Must never know: what is behind a name.

use crate::wire::TransmissionFlags as Flags;

/// An export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Export<'a> {
    /// Its name: at most [`NAME_MAX`](crate::NAME_MAX) bytes. Empty: the default export.
    pub name: &'a str,
    /// A text for people, as long at most; empty: none.
    pub description: &'a str,
    /// Bytes; a multiple of `minimum`.
    pub size: u64,
    /// Changes are refused.
    pub read_only: bool,
    /// Smallest length and alignment of a request, bytes: a power of two, at most 65,536.
    pub minimum: u32,
    /// From which length and alignment on requests are efficient, bytes: a power of two, at least 512.
    pub preferred: u32,
}

impl Export<'_> {
    /// "Transmission flags": a flush covers all connections, so that several may be used.
    pub(crate) fn flags(&self, structured: bool, filters: bool) -> Flags {
        let mut flags = Flags::HAS_FLAGS
            | Flags::SEND_FLUSH
            | Flags::SEND_FUA
            | Flags::CAN_MULTI_CONN
            | Flags::SEND_CACHE;
        let changes = Flags::SEND_TRIM | Flags::SEND_WRITE_ZEROES | Flags::SEND_FAST_ZERO;
        flags |= if self.read_only { Flags::READ_ONLY } else { changes };
        flags.set(Flags::SEND_DF, structured);
        flags.set(Flags::BLOCK_STATUS_PAYLOAD, filters);
        flags
    }
}

/// What a server has to offer. An index stays the same export's for as long as a connection lasts; its size
/// may change.
pub trait Exports {
    /// How many.
    fn count(&self) -> usize;

    /// The one of this index, which is less than the count.
    fn export(&self, index: usize) -> Export<'_>;

    /// The one that a client asks for by this name. The empty name is that of the default export, which is
    /// the only one, if there is one alone, whatever its name ("`NBD_OPT_EXPORT_NAME`").
    fn find(&self, name: &str) -> Option<usize> {
        let found = (0..self.count()).find(|index| self.export(*index).name == name);
        found.or((name.is_empty() && self.count() == 1).then_some(0))
    }
}
