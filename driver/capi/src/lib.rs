//! The C interface of `quod`: an asynchronous block driver that an event loop written in C embeds.
//!
//! C sees `libquod` and `quod.h`, which a test holds to these sources; Rust programs use the crate `quod`
//! itself. What each function owns, who frees, and from which thread it may be called stands with it; the
//! contract as a whole is docs/c.md in the repository. The names here are those of C, because this is where
//! they are made.
//!
//! Three promises hold for every function:
//! * no panic crosses it: a driver in which one happened answers ENOTRECOVERABLE from then on;
//! * what can be seen to be wrong (NULL, a thread, a name of a closed disk, a length) is an error;
//! * none blocks, but `quod_wait`, `quod_register_memory`, `quod_driver_free` and `quod_create`.
//!
//! Knows: C's types, the public face of `quod`, and of what blocks (quod-tools) how an image is made. Must
//! never know: their inside.
//! Invariant: structs that C makes or is given can grow at their ends, old callers with old sizes included.

#![allow(non_camel_case_types, reason = "the names are those of C")]

mod create;
mod disk;
mod door;
mod driver;
mod error;
mod gate;
mod request;
mod sized;
mod stats;
mod types;

pub use create::quod_create;
pub use disk::{
    quod_cancel, quod_disk_info, quod_disk_layer_path, quod_disk_poisoned, quod_open, quod_open_fd,
};
pub use door::quod_driver;
pub use driver::{
    quod_driver_backend, quod_driver_fd, quod_driver_free, quod_driver_idle, quod_driver_new,
    quod_next_timeout_ms, quod_next_timeout_ns, quod_register_memory, quod_turn, quod_unregister_memory,
    quod_version, quod_wait,
};
pub use error::quod_last_error;
pub use request::{
    quod_next_completion, quod_submit_close, quod_submit_discard, quod_submit_empty, quod_submit_flush,
    quod_submit_map, quod_submit_quiesce, quod_submit_read, quod_submit_resize, quod_submit_write,
    quod_submit_write_compressed, quod_submit_write_zeroes,
};
pub use stats::{quod_disk_latency, quod_disk_stats};
pub use types::*;
