//! Requests about the VM state, which lies behind the disk.
//!
//! Knows: where it begins, what the L1 table maps of it. Must never know: how it is found, read and written
//! (as the disk is), how the table moves (`resize.rs`).
//!
//! Invariants: nothing is looked up that no table maps; none is taken while the disk's size changes, which
//! says where the state lies.

use crate::acb::request::{Refused, Request, RequestKind};
use crate::error::Error;
use crate::image::value::Image;
use crate::rule::Rule;

impl Image {
    /// A request about the VM state becomes one about what lies behind the disk: a read or a write there, or
    /// room for more in the L1 table. Returns how far that table maps.
    pub(in crate::image) fn admit_state_request(&self, request: &mut Request) -> Result<u64, Refused> {
        let begin = self.layout.state_begin(self.size, self.backing_len).map_err(Refused::Invalid)?;
        let misuse = |what| Err(Refused::Invalid(Error::Misuse(what)));
        let room = self.mapped().max(begin);
        let (pos, end) = match request.kind {
            RequestKind::Read | RequestKind::Write => {
                let pos =
                    begin.checked_add(request.offset).filter(|pos| pos.checked_add(request.len).is_some());
                let Some(pos) = pos else { return misuse("no VM state is so long") };
                (pos, pos + request.len)
            }
            RequestKind::Resize { size } => {
                let Some(end) = begin.checked_add(size) else { return misuse("no VM state is so long") };
                request.kind = RequestKind::Resize { size: end };
                (0, 0)
            }
            _ => return misuse("a VM state is read and written"),
        };
        if request.kind == RequestKind::Write && end > room {
            return misuse("the L1 table has no room for so much VM state");
        }
        if request.kind.changes() && self.options.read_only {
            return misuse("the image is open for reading only");
        }
        if let RequestKind::Resize { size } = request.kind {
            self.layout.admit_state(size).map_err(Refused::Invalid)?;
        }
        if self.jobs.is_closing() {
            return Err(Refused::Invalid(Error::Closed));
        }
        self.jobs.admits(request.kind, !self.options.sabotaged(Rule::Exclusive))?;
        // where the state lies depends on the disk's size
        if self.requests.is_full() || self.jobs.resizing().is_some() {
            return Err(Refused::Busy);
        }
        debug_assert!(pos <= end, "a length was added");
        request.offset = pos;
        Ok(room)
    }
}
