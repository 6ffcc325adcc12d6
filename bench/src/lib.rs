//! The measuring tools of quod: block traces, a replay engine that verifies every byte, a sequential load,
//! histograms, reports.
//!
//! Knows: the public face of the driver. Must never know: image formats, tables, how the driver does its
//! work.

pub mod bare;
pub mod dwell;
pub mod histogram;
pub mod model;
pub mod options;
pub mod payload;
pub mod replay;
pub mod report;
pub mod sequential;
pub mod timeline;
pub mod trace;
pub mod usage;
