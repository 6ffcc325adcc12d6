//! Checks and repairs of both formats.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/files.rs"]
mod files;
#[path = "../common/sparse.rs"]
mod sparse;

mod ahead;
mod answers;
mod beyond;
mod damage;
mod damaged;
mod device;
mod moved;
mod qcow2;
mod qed;
mod repair;
mod report;
mod snapshots;
mod tables;
mod walk;
