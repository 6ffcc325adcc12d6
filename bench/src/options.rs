//! Words of the two measuring command lines, turned into values and back.
//!
//! Knows: text. Must never know: which command it came from.

use crate::trace::Waits;
use quod::{AllocationGate, BackendKind, CpuSet, Format};

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

/// Processors: `1`, `2-3`, or several of these with commas between.
pub fn cpus(text: &str) -> Result<CpuSet, String> {
    let wrong =
        || format!("'{text}' are not processors: numbers and ranges (2-3) below 1024, with commas between");
    let mut set = CpuSet::default();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = first.parse::<usize>().ok().zip(last.parse().ok()).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        for cpu in first..=last {
            set = set.with(cpu).ok_or_else(wrong)?;
        }
    }
    Ok(set)
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
    fn processors_are_numbers_and_ranges() {
        let set = cpus("3,5-7").unwrap();
        assert_eq!((0..1100).filter(|cpu| set.has(*cpu)).collect::<Vec<_>>(), [3, 5, 6, 7]);
        for text in ["", "a", "1,", "2-1", "0-1024", "0-18446744073709551615", "-1", "1-2-3"] {
            assert!(cpus(text).is_err(), "{text}");
        }
    }

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
