//! What becomes of an acb after a step.
//!
//! Steps (`run/`, `job/`) only say it; `advance.rs` does it, so that no step calls another acb's, nor the
//! one that comes next.

use crate::acb::Want;
use crate::error::Error;
use alloc::boxed::Box;

/// See the module's header.
#[must_use]
#[derive(Debug)]
pub(crate) enum Next {
    /// It waits: its own I/O is in flight, or it stands in a list.
    Wait,
    /// Its next byte is looked up: from another state,
    Look,
    /// or in `FindCluster` already.
    On,
    /// Its extent is done; what is left of its range?
    Extent,
    /// Its range is done.
    Range,
    /// It waits for the commit pipeline until this is so.
    Join(Want),
    /// It ends.
    Done,
    /// It ends with an error.
    Fail(Box<Error>),
}

impl Next {
    pub(crate) fn fail(error: Error) -> Next {
        Next::Fail(Box::new(error))
    }
}
