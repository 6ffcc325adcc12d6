//! Random requests in random order against a model of plain bytes.

#[path = "../common/mod.rs"]
mod common;

mod qcow2;
mod qed;
