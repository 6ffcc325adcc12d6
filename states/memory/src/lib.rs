//! An embedder in memory: what a machine names is done on bytes at once, when its caller says so.
//!
//! Three steps, each of use alone. [`Store`] is a file: a byte vector, or [`Sparse`]. [`plain`] does what has
//! to do with metadata alone, and [`run`] drives a machine that names nothing else (an opening, a check) to
//! its end. [`Memory`] has guest buffers and fill buffers, too: all that an image can name.
//!
//! Knows: the machine's grammar, files as bytes, guest buffers. Must never know: image formats, the order in
//! which I/O ends, what fails (both are its caller's), time.

mod guest;
mod plain;
mod store;

pub use guest::{Deflate, Inflate, Memory};
pub use plain::{encode, outcome, plain, run};
pub use store::{Sparse, Store};
