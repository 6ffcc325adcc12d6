//! Proof for quod: every completion order, every power cut, every failure, against a model of what a disk
//! owes its guest.
//!
//! The system under test is the real core and the real pump ([`quod::Driver`]) over the simulated disk of the
//! backend; nothing here models them. Every decision (which completion is next, what fails, what survives a
//! power cut, what the guest does) is asked of one [`Chooser`](quod_backend::sim::Chooser), so that the
//! simulator, the explorer and a replay share one harness and one schedule text.
//!
//! * [`sim`]: long random runs, one a seed;
//! * [`explore`]: small scenarios, all orders, all crash images up to a bound;
//! * [`nth`]: a fixed workload in which the n-th operation fails, for every n;
//! * [`targets`]: fuzz targets over the same harness, for libFuzzer and for seeds;
//! * [`schedule`]: the text that replays a finding, and its shrinking.
//!
//! Knows: the guest's contract (what may be read when: `quod_bench::contract`), the QED format where a rule
//! is about it. Must never know: how the driver keeps the contract.

pub mod explore;
pub mod image;
pub mod nth;
pub mod probe;
pub mod replay;
pub mod schedule;
pub mod sim;
pub mod targets;
pub mod world;
