//! The measuring tools of quod: block traces, a replay engine that verifies every byte, a sequential load,
//! histograms, reports; and the contract that a disk is judged by, here and by the proof.
//!
//! Knows: the public face of the driver. Must never know: image formats, tables, how the driver does its
//! work.

pub mod bare;
pub mod contract;
pub mod load;
pub mod measure;
pub mod options;
pub mod replay;
pub mod report;
pub mod trace;
