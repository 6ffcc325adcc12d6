//! Command lines of the engines that are programs, and what their output says.
//!
//! Knows: other programs' words. Must never know: how a process is measured.

pub mod fio;
pub mod qemu;
