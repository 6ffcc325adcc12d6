//! Blocking helpers for command lines and tests. Never call them from an event loop.
//!
//! Knows: paths and whole images. Must never know: how the driver pumps.

mod check;
mod create;
mod host;
mod info;
mod session;

pub use check::{CheckReport, Problem, Repair, check, check_with};
pub use create::{CreateOptions, create, set_backing};
pub use info::{ImageInfo, Qcow2Info, info, probe};
pub use session::Session;
