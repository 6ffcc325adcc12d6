//! Disks whose size changes.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/ops.rs"]
mod ops;

mod growing;
mod layout;
mod poisoned_moves;
mod sizes;
