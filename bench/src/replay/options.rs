//! How a trace is played: how fast, how many operations at once, on what, through which gate.
//!
//! Knows: the driver's settings, the payload's seed. Must never know: what is done with them.

use crate::contract::blocks::Initial;
use quod::{AllocationGate, BackendKind, CpuSet, Format, Policy};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Longest read or write of a trace, bytes.
pub const TRANSFER_MAX: u64 = 64 << 20;
/// How fast.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Speed {
    /// As fast as the depth allows: a closed loop.
    #[default]
    Max,
    /// So many times as fast as the trace: an open loop.
    Times(f64),
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Speed, String> {
        match text {
            "max" => Ok(Speed::Max),
            "real" => Ok(Speed::Times(1.0)),
            _ => match text.parse::<f64>() {
                Ok(factor) if factor.is_finite() && factor >= 1e-6 => Ok(Speed::Times(factor)),
                _ => Err(format!("'{text}' is not a speed: `max`, `real`, or how many times as fast")),
            },
        }
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Speed::Max => f.write_str("max"),
            Speed::Times(1.0) => f.write_str("real"),
            Speed::Times(factor) => write!(f, "{factor}x"),
        }
    }
}

/// How to play.
#[derive(Clone, Debug)]
pub struct Options {
    /// How fast.
    pub speed: Speed,
    /// Operations in flight at once, at most.
    pub depth: u32,
    /// Of the payload.
    pub seed: u64,
    /// What the image holds before.
    pub initial: Initial,
    /// Its format; None: probe.
    pub format: Option<Format>,
    /// Who moves bytes.
    pub backend: BackendKind,
    /// Past the page cache.
    pub direct: bool,
    /// Buffers are registered with the driver, as a guest's memory is.
    pub registered: bool,
    /// Where the driver's and the kernel's worker threads run; None: anywhere.
    pub worker_cpus: Option<CpuSet>,
    /// What an allocating write waits for.
    pub gate: AllocationGate,
    /// When it completes.
    pub policy: Policy,
    /// Follow the states: time by state in the report, and the timeline.
    pub follow: bool,
    /// Where to write the timeline.
    pub timeline: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            speed: Speed::Max,
            depth: 64,
            seed: 1,
            initial: Initial::Zeros,
            format: None,
            backend: BackendKind::Auto,
            direct: false,
            registered: false,
            worker_cpus: None,
            gate: AllocationGate::default(),
            policy: Policy::default(),
            follow: true,
            timeline: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_told_apart() {
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("real".parse(), Ok(Speed::Times(1.0)));
        assert_eq!("2.5".parse::<Speed>().map(|speed| speed.to_string()), Ok("2.5x".to_owned()));
        for text in ["", "0", "-1", "inf", "nan", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }
}
