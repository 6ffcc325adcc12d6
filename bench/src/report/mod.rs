//! What a replay has to tell: a value that turns into JSON, and into text for people.
//!
//! Knows: numbers and names. Must never know: drivers, where the numbers come from.

use crate::measure::dwell::StateRow;
use crate::measure::histogram::Percentiles;
use serde::Serialize;
use std::fmt;

/// The whole report of a replay.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and the keys of the JSON")]
pub struct ReplayReport {
    pub trace: String,
    pub image: String,
    pub format: String,
    pub disk_size: u64,
    pub backend: String,
    pub direct: bool,
    pub gate: String,
    pub policy: String,
    pub speed: String,
    pub depth: u32,
    pub seed: u64,
    pub operations: u64,
    pub elapsed_s: f64,
    pub operations_per_s: f64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub mib_per_s: f64,
    pub cpu_us_per_operation: f64,
    pub kinds: Vec<Row>,
    pub paths: Vec<Row>,
    pub pacing: Option<Pacing>,
    pub hold: Hold,
    pub states: Vec<StateRow>,
    pub counters: ReplayCounters,
    pub verification: Verification,
    /// How the trace was understood.
    pub notes: Vec<String>,
    /// The phase in which somebody stopped it: what comes after that was not done.
    pub interrupted: Option<&'static str>,
}

impl ReplayReport {
    /// It ran to its end, and everything came out right.
    pub fn passed(&self) -> bool {
        self.interrupted.is_none() && self.verification.passed()
    }
}

/// Latencies of one kind or path.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its distribution.
    #[serde(flatten)]
    pub latency: Percentiles,
}

/// How true a replay with times was to them.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Pacing {
    /// How long the trace takes at this speed.
    pub intended_s: f64,
    /// From due to submitted: what the queue and the harness added, and what a closed loop would hide.
    pub lateness: Percentiles,
    /// Part of the operations that were submitted more than 100 microseconds late.
    pub late_share: f64,
    /// From due to completed.
    pub response: Percentiles,
}

/// How long one call into the driver held the thread.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Hold {
    /// Own code and system calls together.
    pub hold: Percentiles,
    /// The driver's own code.
    pub own: Percentiles,
    /// Inside system calls.
    pub syscall: Percentiles,
}

impl Hold {
    /// What the driver measured.
    pub fn of(hold: &quod::Hold) -> Hold {
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        Hold {
            hold: Percentiles::of(hold.histogram(), nanos(hold.max())),
            own: Percentiles::of(hold.own_histogram(), nanos(hold.own_max())),
            syscall: Percentiles::of(hold.syscall_histogram(), nanos(hold.syscall_max())),
        }
    }
}

/// What the machines counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are those of the driver's counters")]
pub struct ReplayCounters {
    pub hits: u64,
    pub misses: u64,
    pub allocations: u64,
    pub new_tables: u64,
    pub table_reads: u64,
    pub table_writes: u64,
    pub table_bytes_written: u64,
    pub commits: u64,
    pub syncs: u64,
    pub grows: u64,
}

impl From<quod::Counters> for ReplayCounters {
    fn from(c: quod::Counters) -> ReplayCounters {
        ReplayCounters {
            hits: c.hits,
            misses: c.misses,
            allocations: c.allocations,
            new_tables: c.new_tables,
            table_reads: c.table_reads,
            table_writes: c.table_writes,
            table_bytes_written: c.table_bytes_written,
            commits: c.commits,
            syncs: c.syncs,
            grows: c.grows,
        }
    }
}

/// What was proved, and what was not.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "the names are the documentation, and the keys of the JSON")]
pub struct Verification {
    pub blocks_verified_during: u64,
    pub blocks_read_back: u64,
    pub bytes_compared: u64,
    /// Only what was touched was compared at the end: the disk is too large to read whole.
    pub compared_touched_only: bool,
    /// Blocks whose content nobody knew before, passed over.
    pub blocks_unknown: u64,
    pub blocks_wrong: u64,
    /// The first wrong blocks, in words.
    pub mismatches: Vec<String>,
    pub operations_failed: u64,
    /// The first failures, in words.
    pub failures: Vec<String>,
    /// None: the format has no check.
    pub corruptions: Option<u64>,
    pub leaks: u64,
    pub check_errors: u64,
    /// The first findings of the check, in words.
    pub check_problems: Vec<String>,
}

impl Verification {
    /// Everything that was asked came out right.
    pub fn passed(&self) -> bool {
        self.blocks_wrong == 0
            && self.operations_failed == 0
            && self.corruptions.unwrap_or(0) == 0
            && self.check_errors == 0
    }

    /// What did not, in a line: wrong data first, then what could not be done.
    pub fn complaint(&self) -> String {
        let corruptions = self.corruptions.unwrap_or(0);
        let findings = [
            (self.blocks_wrong, "wrong blocks", &self.mismatches),
            (corruptions, "corruptions", &self.check_problems),
            (self.check_errors, "errors of the check", &self.check_problems),
            (self.operations_failed, "operations failed", &self.failures),
        ];
        let texts = findings.into_iter().filter(|(count, ..)| *count > 0).map(|(count, what, words)| {
            let first = words.first().map_or(String::new(), |first| format!(" (the first: {first})"));
            format!("{count} {what}{first}")
        });
        let texts = texts.collect::<Vec<_>>().join(", ");
        match self.blocks_wrong + corruptions + self.check_errors {
            0 => texts,
            _ => format!("verification failed: {texts}"),
        }
    }
}

fn time(us: f64) -> String {
    match us {
        us if us < 0.0005 => "0".to_owned(),
        us if us < 1.0 => format!("{:.0} ns", us * 1e3),
        us if us < 100.0 => format!("{us:.1} us"),
        us if us < 10_000.0 => format!("{us:.0} us"),
        us if us < 10_000_000.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.1} s", us / 1e6),
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn head(f: &mut fmt::Formatter<'_>, title: &str) -> fmt::Result {
    write!(f, "\n{title:<14}{:>9}", "count")?;
    ["p50", "p90", "p99", "p99.9", "max"].iter().try_for_each(|name| write!(f, "{name:>10}"))?;
    writeln!(f)
}

fn line(f: &mut fmt::Formatter<'_>, name: &str, row: &Percentiles) -> fmt::Result {
    write!(f, "  {name:<12}{:>9}", row.count)?;
    for us in [row.p50_us, row.p90_us, row.p99_us, row.p999_us, row.max_us] {
        write!(f, "{:>10}", time(us))?;
    }
    writeln!(f)
}

impl fmt::Display for ReplayReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.direct { "O_DIRECT" } else { "buffered" };
        writeln!(f, "trace   {}: {} operations, speed {}", self.trace, self.operations, self.speed)?;
        self.notes.iter().try_for_each(|note| writeln!(f, "        {note}"))?;
        writeln!(f, "image   {} ({}, {:.0} MiB)", self.image, self.format, mib(self.disk_size))?;
        let (gate, policy) = (&self.gate, &self.policy);
        writeln!(f, "driver  {}, {access}, depth {}, gate {gate}, {policy}", self.backend, self.depth)?;
        let (rate, speed) = (self.operations_per_s, self.mib_per_s);
        writeln!(f, "result  {:.3} s, {rate:.0} operations/s, {speed:.1} MiB/s", self.elapsed_s)?;
        let (read, written) = (mib(self.bytes_read), mib(self.bytes_written));
        let cpu = time(self.cpu_us_per_operation);
        writeln!(f, "        read {read:.1} MiB, wrote {written:.1} MiB, CPU {cpu} per operation")?;
        head(f, "latency")?;
        self.kinds.iter().try_for_each(|row| line(f, &row.name, &row.latency))?;
        head(f, "by path")?;
        self.paths.iter().try_for_each(|row| line(f, &row.name, &row.latency))?;
        if let Some(pacing) = &self.pacing {
            head(f, "pacing")?;
            line(f, "late by", &pacing.lateness)?;
            line(f, "due to done", &pacing.response)?;
            let (late, intended) = (pacing.late_share * 100.0, pacing.intended_s);
            writeln!(
                f,
                "  {late:.1} % more than 100 us late; the trace takes {intended:.3} s at this speed"
            )?;
        }
        head(f, "thread held")?;
        line(f, "hold", &self.hold.hold)?;
        line(f, "own code", &self.hold.own)?;
        line(f, "system calls", &self.hold.syscall)?;
        self.fmt_states(f)?;
        self.fmt_counters(f)?;
        self.fmt_verification(f)
    }
}

impl ReplayReport {
    fn fmt_states(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.states.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "\n{:<14}{:>9}{:>10}{:>10}{:>10}{:>10}",
            "time by state", "visits", "total", "share", "mean", "max"
        )?;
        for row in &self.states {
            let (total, share) = (time(row.total_ms * 1e3), format!("{:.1} %", row.share * 100.0));
            let (mean, max) = (time(row.mean_us), time(row.max_us));
            writeln!(f, "  {:<12}{:>9}{total:>10}{share:>10}{mean:>10}{max:>10}", row.state, row.visits)?;
        }
        match self.states.iter().map(|row| row.at_once).sum::<u64>() {
            0 => Ok(()),
            some => {
                writeln!(f, "  {some} visits ended in the call that began them: not timed, not in the mean")
            }
        }
    }

    fn fmt_counters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let c = &self.counters;
        let (hits, misses, allocations) = (c.hits, c.misses, c.allocations);
        writeln!(f, "\ncounters      {hits} hits, {misses} misses, {allocations} clusters allocated")?;
        let (reads, writes, bytes) = (c.table_reads, c.table_writes, c.table_bytes_written);
        let fresh = c.new_tables;
        writeln!(f, "              tables: {fresh} new, {reads} reads, {writes} writes ({bytes} bytes)")?;
        writeln!(f, "              {} commits, {} syncs, {} growths of the file", c.commits, c.syncs, c.grows)
    }

    fn fmt_verification(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let v = &self.verification;
        let (during, after) = (v.blocks_verified_during, v.blocks_read_back);
        writeln!(f, "\nverified      {during} blocks during the replay, {after} read back after it")?;
        if self.interrupted.is_none() {
            let what = if v.compared_touched_only { "touched blocks" } else { "whole disk" };
            writeln!(f, "compared      {what} after reopening, {:.0} MiB", mib(v.bytes_compared))?;
        }
        match v.corruptions {
            Some(corruptions) => {
                let (leaks, errors) = (v.leaks, v.check_errors);
                writeln!(f, "checked       {corruptions} corruptions, {leaks} leaks, {errors} check errors")?;
            }
            None if self.interrupted.is_some() => {}
            None => writeln!(f, "checked       (the format has no check)")?,
        }
        if v.blocks_unknown > 0 {
            writeln!(f, "not verified  {} blocks that held unknown data", v.blocks_unknown)?;
        }
        v.check_problems.iter().try_for_each(|text| writeln!(f, "found         {text}"))?;
        v.failures.iter().try_for_each(|text| writeln!(f, "failed        {text}"))?;
        v.mismatches.iter().try_for_each(|text| writeln!(f, "wrong         {text}"))?;
        if let Some(phase) = self.interrupted {
            writeln!(f, "INTERRUPTED in the phase '{phase}': what comes after it was not verified")
        } else if v.passed() {
            writeln!(f, "PASSED: every byte is as it must be")
        } else {
            let (wrong, failed) = (v.blocks_wrong, v.operations_failed);
            let corruptions = v.corruptions.unwrap_or(0);
            writeln!(f, "FAILED: {wrong} wrong blocks, {failed} failed operations, {corruptions} corruptions")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_requests_are_no_failed_verification() {
        let full = Verification {
            operations_failed: 2,
            failures: vec!["line 3, Write of 512 bytes at 0x0: x: no space left".into()],
            ..Verification::default()
        };
        let what = "2 operations failed (the first: line 3, Write of 512 bytes at 0x0: x: no space left)";
        assert_eq!((full.passed(), full.complaint().as_str()), (false, what));
        let wrong = Verification { blocks_wrong: 1, corruptions: Some(4), ..full }.complaint();
        assert!(wrong.starts_with("verification failed: 1 wrong blocks, 4 corruptions, 2 op"), "{wrong}");
    }
}
