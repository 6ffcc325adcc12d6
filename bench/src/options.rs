//! Words of the two measuring command lines, turned into values and back.
//!
//! Knows: text. Must never know: which command it came from.

use crate::trace::Waits;
use quod::{AllocationGate, BackendKind, Format};

/// `image`, `new-table`, `table` or `cluster`.
pub fn gate(text: &str) -> Result<AllocationGate, String> {
    match text {
        "image" => Ok(AllocationGate::Image),
        "new-table" => Ok(AllocationGate::NewTable),
        "table" => Ok(AllocationGate::Table),
        "cluster" => Ok(AllocationGate::Cluster),
        _ => Err(format!("'{text}' is not a gate: image, new-table, table or cluster")),
    }
}

/// The word of a gate.
pub fn gate_name(gate: AllocationGate) -> &'static str {
    match gate {
        AllocationGate::Image => "image",
        AllocationGate::NewTable => "new-table",
        AllocationGate::Table => "table",
        AllocationGate::Cluster => "cluster",
    }
}

/// `auto`, `uring` or `threads`.
pub fn backend(text: &str) -> Result<BackendKind, String> {
    match text {
        "auto" => Ok(BackendKind::Auto),
        "uring" => Ok(BackendKind::Uring),
        "threads" => Ok(BackendKind::Threads),
        _ => Err(format!("'{text}' is not a backend: auto, uring or threads")),
    }
}

/// `us` or `ms`.
pub fn waits(text: &str) -> Result<Waits, String> {
    match text {
        "us" => Ok(Waits::Micros),
        "ms" => Ok(Waits::Millis),
        _ => Err(format!("'{text}' is not a unit of `wait`: us or ms")),
    }
}

/// The word of a format.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qed => "qed",
        Format::Qcow2 => "qcow2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for value in
            [AllocationGate::Image, AllocationGate::NewTable, AllocationGate::Table, AllocationGate::Cluster]
        {
            assert_eq!(gate(gate_name(value)), Ok(value));
        }
        assert!(gate("").is_err() && backend("aio").is_err());
        assert_eq!(backend("threads"), Ok(BackendKind::Threads));
    }
}
