//! The image under test, and how it is opened.
//!
//! Knows: what is true of the image from the start. Must never know: requests in flight, what was found.

use super::ask::Ask;
use crate::image::{Data, Form, Qcow2};
use quod::{Format, OpenOptions};
use std::sync::Arc;

/// What each snapshot of a list holds.
pub type Kept = Vec<Arc<[u8]>>;

/// The image under test.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its format.
    pub form: Form,
    /// It has a backing file.
    pub backed: bool,
    /// Bytes of the disk below: they may not come to light when the disk grows.
    pub below: u64,
    /// What each of its snapshots holds.
    pub snapshots: Kept,
    /// The lists of snapshots that requests lead to.
    pub lists: Vec<Kept>,
    /// Requests are about its bitmaps, of which it has none at first.
    pub mapped: bool,
    /// Nothing but the list changes: no power cut may leave a leak that was not there.
    pub tight: bool,
    /// Clusters in use by nothing, at the start.
    pub leaks: u64,
    /// Bytes of the file that must stay as they are, and where they lie.
    pub kept: (u64, Arc<[u8]>),
    /// Guest bytes whose pointer is bad from the start: requests for them may be refused, and the check finds
    /// it.
    pub bad: (u64, u64),
    /// Entries lead beyond the end of the file from the start: a repair may drop them.
    pub dangling: bool,
    /// It is on a device: allocations may find no space.
    pub fills_up: bool,
    /// Its files as they were, if its header says something that is wrong when one of them has changed.
    pub stale: Vec<(Vec<u8>, Arc<[u8]>)>,
}

impl Subject {
    /// Without a backing file and snapshots.
    pub fn new(form: Form) -> Subject {
        Subject {
            form,
            backed: false,
            below: 0,
            snapshots: Vec::new(),
            lists: Vec::new(),
            mapped: false,
            tight: false,
            leaks: 0,
            kept: (0, [].into()),
            bad: (0, 0),
            dangling: false,
            fills_up: false,
            stale: Vec::new(),
        }
    }

    /// A discard makes whole units of so many bytes read as zeros; None: it may have no effect.
    pub(super) fn discard_unit(&self) -> Option<u64> {
        match self.form {
            // a raw data file shows what it holds, whatever the entries say
            Form::Qcow2(Qcow2 { data: Data::Raw, .. }) => None,
            Form::Qcow2(qcow2) if qcow2.version == 3 || !self.backed => Some(qcow2.cluster.into()),
            _ => None,
        }
    }

    /// What emptying it leaves is known: nothing of it is kept elsewhere.
    pub(super) fn empties(&self) -> bool {
        let raw = matches!(self.form, Form::Raw | Form::Qcow2(Qcow2 { data: Data::Raw, .. }));
        !self.backed && !raw
    }

    pub(super) fn checks(&self) -> bool {
        self.form.format() != Format::Raw && self.bad.0 == self.bad.1
    }

    /// May this request be refused?
    pub(super) fn may_refuse(&self, ask: Ask) -> bool {
        ask.range().is_some_and(|(start, end)| start < self.bad.1 && self.bad.0 < end)
    }
}

/// How the image is opened; a test may remove rules here.
pub type Tweak = fn(OpenOptions) -> OpenOptions;

/// No tweak.
pub fn as_is(options: OpenOptions) -> OpenOptions {
    options
}

/// Settings of a session.
#[derive(Clone)]
pub struct Session {
    /// How to open.
    pub options: OpenOptions,
    /// Requests at once.
    pub requests: u32,
    /// Count the edges of the state tables.
    pub trace: bool,
}
