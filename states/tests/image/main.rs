//! Requests: what each does, step by step, and what it answers.

mod after_corruption;
mod answers;
mod cancel;
mod docs;
mod extents;
mod first_change;
mod kept_slices;
mod late_loads;
mod long_work;
mod qcow2;
mod qed;
mod raw;
mod state;
mod unmap_extents;
mod waits;
mod zeroes;
