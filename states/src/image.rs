//! stub
use crate::{Error, Event, Io, IoId, Machine, Outcome, Refused, Request, RequestId, state::Transition};
/// The timers of an image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Timer {
    /// Write dirty tables after a while.
    Commit,
    /// Clear the need-check bit after a while.
    NeedCheck,
}
/// Set or clear a timer: a new alarm replaces the timer's old one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Alarm {
    /// Which.
    pub timer: Timer,
    /// Milliseconds from now; None: off.
    pub after_ms: Option<u32>,
}
/// Counts since the image was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub hits: u64, pub misses: u64, pub allocations: u64, pub table_reads: u64, pub table_writes: u64,
    pub table_bytes_written: u64, pub syncs: u64, pub grows: u64, pub commits: u64, pub new_tables: u64,
}
/// One open image.
#[derive(Clone, Debug)]
pub struct Image {}
impl Image {
    /// Length of the backing layer's guest disk; call before the first request. None: no backing layer.
    pub fn set_backing_len(&mut self, _len: Option<u64>) { unimplemented!() }
    /// Size of the guest disk, bytes.
    pub fn virtual_size(&self) -> u64 { unimplemented!() }
    /// Takes a request, or says why not.
    pub fn submit(&mut self, _request: Request) -> Result<RequestId, Refused> { unimplemented!() }
    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> { unimplemented!() }
    /// The next change of a timer.
    pub fn poll_timeout(&mut self) -> Option<Alarm> { unimplemented!() }
    /// The next transition, if tracing is on.
    pub fn poll_transition(&mut self) -> Option<Transition> { unimplemented!() }
    /// A timer ran out.
    pub fn handle_timeout(&mut self, _timer: Timer) { unimplemented!() }
    /// Counts.
    pub fn counters(&self) -> &Counters { unimplemented!() }
    /// The error that poisoned it, if any.
    pub fn poisoned(&self) -> Option<&Error> { unimplemented!() }
}
impl Machine for Image {
    fn poll_io(&mut self) -> Option<Io> { unimplemented!() }
    fn encode(&mut self, _id: IoId, _buf: &mut [u8]) { unimplemented!() }
    fn handle_completion(&mut self, _id: IoId, _outcome: Outcome<'_>) { unimplemented!() }
}
