//! Blocking helpers for command lines and tests. Never call them from an event loop.
//!
//! Knows: paths and whole images. Must never know: how the driver pumps.

mod check;
mod create;
mod first_sector;
mod host;
mod info;
mod session;

pub use check::{CheckReport, Checker, Finding, Problem, Repair, check, check_with};
pub use create::{CreateOptions, Qcow2Options, create, create_until, set_backing};
pub use first_sector::FirstSector;
pub use info::{ImageInfo, Qcow2Info, info, probe};
pub use quod_states::qcow2::{Compression, Preallocation};
pub use session::Session;
