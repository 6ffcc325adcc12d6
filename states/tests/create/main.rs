//! New images.

mod geometry;
mod layout;
mod qcow2;
