//! What blocks: the tools of images, for command lines and tests. Never call them from an event loop.
//!
//! A function opens the files that it needs, takes QEMU-compatible locks on them (a lock that somebody else
//! has is asked for again for 200 ms), and has closed them when it returns. Sizes and offsets are bytes.
//! Errors are [`quod::Error`]: [`Error::File`](quod::Error::File) with the file and what is the matter with
//! it. Those that work without a driver ([`create`], [`info`], [`check`], [`set_backing`]) make no ring: they
//! use a worker thread of their own, which ends with them.
//!
//! An embedder links `quod`, which never blocks, and not this crate; a program that makes, describes, checks
//! or maps images links both.
//!
//! Knows: paths and whole images. Must never know: how the driver pumps.

#![warn(clippy::missing_errors_doc)]

mod amend;
mod backing;
mod below;
mod bitmap;
mod bytes;
mod chain;
mod check;
mod compare;
mod convert;
mod create;
mod disks;
mod dump;
mod first_sector;
mod foreign;
mod host;
mod info;
mod layers;
mod luks;
mod map;
mod measure;
mod merge;
mod pace;
mod preallocate;
mod range;
mod rebase;
mod restore;
mod session;
mod snapshot;

pub use amend::{Amendment, amend};
pub use backing::{set_backing, set_backing_as, set_backing_named};
pub use below::Below;
pub use bitmap::{bitmap, bitmap_bits, copy_bitmap};
pub use chain::{ChainError, chain};
pub use check::{CheckReport, Checker, Finding, Problem, Repair, check, check_with};
pub use compare::{CompareError, CompareStep, Comparison, compare};
pub use convert::{CopyError, CopyPlan, CopyStep, Sources};
pub use create::{CreateOptions, Qcow2Options, create, create_until};
pub use dump::{DumpError, dump};
pub use first_sector::FirstSector;
pub use foreign::{ForeignInfo, foreign};
pub use info::{ImageInfo, Qcow2Info, info, probe};
pub use layers::MapRun;
pub use luks::{KeySlot, Luks};
pub use map::Mapper;
pub use measure::{Measure, measure, measure_bitmaps, measure_copy};
pub use merge::{MergeError, MergePlan, merge};
pub use preallocate::preallocate;
pub use quod_states::qcow2::bitmap::Bitmap;
pub use quod_states::qcow2::snapshot::Snapshot;
pub use quod_states::qcow2::{Encryption, Preallocation};
pub use range::{Part, PartError};
pub use rebase::{RebaseError, RebasePlan, rebase};
pub use restore::{RestoreError, RestoreOptions, Restored, TextFault, Unfit, restore};
pub use session::Session;
pub use snapshot::{snapshot, snapshot_now};

/// The example of the README, compiled.
#[doc = include_str!("../README.md")]
#[cfg(doctest)]
pub struct ReadmeDoctests;
