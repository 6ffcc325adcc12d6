//! The measuring tools of quod: block traces, a replay engine that verifies every byte, a sequential load, histograms,
//! reports.
//!
//! Knows: the public face of the driver. Must never know: image formats, tables, how the driver does its work.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod model;
pub mod payload;
pub mod trace;
