//! qcow2: its structures on disk, new images, and the check. What requests do with them is shared with QED
//! (`image/`).
//!
//! Knows: the format, version 2 and 3. Must never know: requests, or how bytes come from and go to a file.

pub(crate) mod be;
pub mod bitmap;
pub mod check;
pub mod create;
pub mod entry;
pub mod header;
pub mod refcount;
pub mod snapshot;
pub(crate) mod tail;

pub use check::{Check, Finding};
pub use create::{CreateOptions, Created, Preallocation, create};
pub use entry::{L1, L2, Shape, Sub, Subclusters};
pub use header::{Compression, Encryption, Header, Purpose};
