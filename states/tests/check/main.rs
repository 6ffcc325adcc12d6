//! Checks and repairs of both formats.

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
