//! New images.

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/files.rs"]
mod files;

mod geometry;
mod layout;
mod qcow2;
