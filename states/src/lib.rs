//! stub
#![no_std]
#![forbid(unsafe_code)]
extern crate alloc;
pub mod acb;
pub mod error;
pub mod image;
pub mod io;
pub mod machine;
pub mod open;
pub mod options;
pub mod request;
pub mod state;
pub use acb::AcbId;
pub use error::Error;
pub use image::{Alarm, Counters, Image, Timer};
pub use io::{FillSource, Io, IoId, IoOp, Outcome, Part};
pub use machine::Machine;
pub use open::{Backing, Format, Info, Opened, Opening};
pub use options::{Gate, Options, Policy};
pub use request::{Event, Extent, Flags, Kind, Path, Refused, Request, RequestId, Status};
pub use state::{State, Transition};
