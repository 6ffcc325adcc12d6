//! A disk image as one file, through FUSE, on one thread in one event loop over [`quod::Driver`].
//!
//! [`Mount::new`] opens the image and mounts its guest's disk at a path, [`Mount::run`] serves it until it is
//! unmounted or asked to end; then what is under way is answered, and the image is committed and closed.
//!
//! Who uses the file is not to be trusted, nor are its requests: each is bounded, at most
//! [`IN_FLIGHT`] are taken from the kernel at once, and the others wait there. What a client asks beyond the
//! disk's end, or of its size, is refused.
//!
//! fuser mounts, unmounts and speaks the protocol's beginning; its own loop would take a thread that waits in
//! read(2) and hands each request to another one. So the requests of one file are read and answered here
//! (`message`), from a descriptor that the loop waits for beside that of the driver.
//!
//! Knows: the driver's public face, FUSE. Must never know: how an image is laid out, what a command line
//! looks like.
#![forbid(unsafe_code)]

mod error;
mod file;
mod limits;
mod message;
mod mount;
mod mounted;
mod pool;
mod seek;
mod serve;

pub use error::MountError;
pub use limits::IN_FLIGHT;
pub use mount::{Mount, MountOptions};
pub use mounted::unmount_when_told;

pub use quod_door::Control;
