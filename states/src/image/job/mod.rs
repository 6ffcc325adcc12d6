//! Jobs on the whole image: what the general paths ask of them, answered by the one that runs.
//!
//! Knows: which jobs there are. Must never know: the steps of one (`close.rs`, `resize.rs`).

mod close;
mod move_l1;
mod resize;

use super::next::Next;
use super::value::Image;
use crate::acb::AcbIndex;
use crate::acb::request::Kind;
use crate::tables::mapping::Run;

impl Image {
    /// Its first step.
    pub(super) fn start_job(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            Kind::Close => self.start_close(a),
            _ => self.start_resize(a),
        }
    }

    /// It may change the image now.
    pub(super) fn job_may_change(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.acb(a).kind, Kind::Resize);
        self.resize(a)
    }

    /// It is the only request.
    pub(super) fn job_alone(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            Kind::Close => self.close_alone(),
            _ => Next::Look,
        }
    }

    /// A run of its range.
    pub(super) fn job_run(&mut self, a: AcbIndex, run: Run, slot: Option<u32>) -> Next {
        debug_assert_eq!(self.requests.acb(a).kind, Kind::Resize);
        self.resize_run(a, run, slot)
    }

    /// Its range is done.
    pub(super) fn job_range_done(&mut self, a: AcbIndex) -> Next {
        debug_assert_eq!(self.requests.acb(a).kind, Kind::Resize);
        self.range_resized(a)
    }

    /// What it wrote is durable, or all is in order.
    pub(super) fn job_committed(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            Kind::Close => self.trim(a),
            _ => self.size_durable(a),
        }
    }

    /// `Resize`: the file has its new length.
    pub(super) fn length_set(&mut self, a: AcbIndex) -> Next {
        match self.requests.acb(a).kind {
            Kind::Close => self.closed(a),
            _ => self.resized(a),
        }
    }

    /// It has ended, well or not.
    pub(super) fn job_ended(&mut self, kind: Kind) {
        match kind {
            Kind::Resize => self.resize_ended(),
            _ => debug_assert_eq!(kind, Kind::Close),
        }
    }
}
