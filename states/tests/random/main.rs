//! Random requests in random order against a model of plain bytes.

mod qcow2;
mod qed;
mod snapshots;
