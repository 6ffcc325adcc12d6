//! The grammar that every machine of this crate speaks: things that happened go in, things to do come out.

use crate::io::{Io, IoId, Outcome};

/// A machine that names I/O. After every mutator drain `poll_io` (and the machine's other drains) until
/// empty.
pub trait Machine {
    /// The next thing to do.
    fn poll_io(&mut self) -> Option<Io>;
    /// Bytes of the file that it will read soon, offset and length, each range told once: an embedder may
    /// have the device begin. No promise: they are read when `poll_io` says so, or never. None: nothing new.
    fn poll_ahead(&mut self) -> Option<(u64, u64)> {
        None
    }
    /// Fills in the bytes of a `WriteTable` that `poll_io` just gave out; `buf` has exactly its length.
    fn encode(&mut self, id: IoId, buf: &mut [u8]);
    /// An I/O ended.
    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>);
}
