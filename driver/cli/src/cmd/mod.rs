//! The subcommands, a file each: options, the call of the library, the answer in QEMU's words.
//!
//! Knows: the libraries' faces, words. Must never know: how a library does it; `io`, a room of its own.

pub mod amend;
pub mod bench;
pub mod bitmap;
mod carried;
pub mod check;
pub mod commit;
mod common;
pub mod compare;
pub mod control;
pub mod convert;
pub mod create;
pub mod dd;
pub mod dump;
pub mod info;
pub mod map;
pub mod measure;
pub mod mount;
mod named;
mod progress;
pub mod rebase;
pub mod replay;
pub mod resize;
pub mod restore;
mod sandbox;
pub mod serve;
mod serving;
pub mod snapshot;
