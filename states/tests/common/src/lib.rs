//! What the tests of the state machines share: a package, so that each of their binaries links what it needs.
//!
//! Knows: machines, both formats as bytes. Must never know: which test asks, and what it expects.

mod disk;
pub mod faults;
pub mod files;
pub mod narrow;
pub mod ops;
pub mod packed;
pub mod qcow2;
pub mod sparse;

pub use disk::{Answer, Disk, Rng, Step, qed_disk, qed_file, read_all, request, write};
