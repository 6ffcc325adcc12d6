//! The calls that tell what a disk has done.
//!
//! Knows: counters and latencies of `quod`. Must never know: requests.
//! Invariant: nothing is counted here; numbers only grow.

use crate::door::{Inner, call, quod_driver};
use crate::sized;
use crate::types::{quod_disk, quod_latency, quod_op, quod_stats};
use quod::{Error, Kind, Stats};
use std::ffi::c_int;

/// What a disk has done, if it is open.
fn of(inner: &Inner, disk: quod_disk) -> Result<Stats, Error> {
    let stats = inner.driver.stats(inner.disks.id(disk)?);
    stats.ok_or(Error::Misuse("the disk is not open yet"))
}

fn told(stats: &Stats) -> quod_stats {
    let counters = &stats.counters;
    quod_stats {
        bytes_read: stats.bytes_read,
        bytes_written: stats.bytes_written,
        errors: stats.errors,
        decompressions: stats.decompressions,
        table_hits: counters.hits,
        table_misses: counters.misses,
        table_reads: counters.table_reads,
        table_writes: counters.table_writes,
        table_bytes_written: counters.table_bytes_written,
        allocations: counters.allocations,
        new_tables: counters.new_tables,
        grows: counters.grows,
        commits: counters.commits,
        syncs: counters.syncs,
        header_writes: counters.header_writes,
    }
}

/// What a disk has done since it was opened, all layers together. `size` is `sizeof *stats`.
///
/// 0, or -EBADF: no such disk; -EINVAL: it is not open yet.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `size` bytes can be written to `stats`,
/// or it is NULL (an error).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_disk_stats(
    driver: *const quod_driver,
    disk: quod_disk,
    stats: *mut quod_stats,
    size: usize,
) -> c_int {
    let tell = |inner: &mut Inner| {
        let found = told(&of(inner, disk)?);
        // SAFETY: passed on.
        unsafe { sized::write(&found, stats, size) }?;
        Ok(0)
    };
    // SAFETY: passed on.
    unsafe { call(driver, tell) }
}

/// The requests whose completions have this `op`.
fn kind(op: u32) -> Result<Kind, Error> {
    let known = [
        (quod_op::Read, Kind::Read),
        (quod_op::Write, Kind::Write),
        (quod_op::WriteZeroes, Kind::WriteZeroes),
        (quod_op::Discard, Kind::Discard),
        (quod_op::Flush, Kind::Flush),
        (quod_op::Map, Kind::Map),
        (quod_op::Quiesce, Kind::Quiesce),
        (quod_op::Resize, Kind::Resize),
        (quod_op::Close, Kind::Close),
        (quod_op::WriteCompressed, Kind::WriteCompressed),
        (quod_op::Empty, Kind::Empty),
    ];
    let found = known.into_iter().find(|(name, _)| *name as u32 == op);
    found.map(|(_, kind)| kind).ok_or(Error::Misuse("an op that is no request's of enum quod_op"))
}

/// How long requests of one kind took, from submission to completion, those that failed included: `op` is one
/// of enum quod_op. All zeros without QUOD_CONFIG_TIMING. `size` is `sizeof *latency`.
///
/// 0, or -EBADF: no such disk; -EINVAL: it is not open yet, or no request has this `op`.
///
/// # Safety
/// `driver` is NULL, or was made by `quod_driver_new` and not freed; `size` bytes can be written to
/// `latency`, or it is NULL (an error).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn quod_disk_latency(
    driver: *const quod_driver,
    disk: quod_disk,
    op: u32,
    latency: *mut quod_latency,
    size: usize,
) -> c_int {
    let tell = |inner: &mut Inner| {
        let stats = of(inner, disk)?;
        let times = stats.kind(kind(op)?);
        let found = quod_latency {
            count: times.len(),
            mean_ns: times.mean() as u64,
            median_ns: times.value_at_quantile(0.5),
            p99_ns: times.value_at_quantile(0.99),
            p999_ns: times.value_at_quantile(0.999),
            longest_ns: times.max(),
        };
        // SAFETY: passed on.
        unsafe { sized::write(&found, latency, size) }?;
        Ok(0)
    };
    // SAFETY: passed on.
    unsafe { call(driver, tell) }
}
