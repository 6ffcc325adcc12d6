//! What a server has done, gathered at one moment: for replies and for metrics.
//!
//! Knows: the driver's numbers. Must never know: who asks for them, sockets.

use crate::door::{Count, Door, Shown};
use quod::{Counters, DiskId, Kind, Stats};
use serde_json::{Map, Value, json};
use std::time::Instant;

/// Of one disk.
pub(crate) struct DiskFacts {
    pub shown: Shown,
    pub format: &'static str,
    pub size: u64,
    pub poisoned: Option<String>,
    pub quiesced: bool,
    pub in_flight: u64,
    pub stats: Stats,
}

/// Of the server.
pub(crate) struct Facts {
    pub protocol: &'static str,
    pub backend: &'static str,
    pub uptime: f64,
    pub counts: Vec<Count>,
    pub disks: Vec<DiskFacts>,
}

/// A counter of an image: its name in replies, its name and help for Prometheus, its value.
pub(crate) type Named = (&'static str, &'static str, &'static str, u64);

/// All counters of the machines.
pub(crate) fn counters(all: &Counters) -> [Named; 13] {
    [
        ("hits", "table_cache_hits_total", "Lookups that found their table in the cache.", all.hits),
        ("misses", "table_cache_misses_total", "Lookups that waited for a table.", all.misses),
        ("allocations", "clusters_allocated_total", "Clusters allocated for data.", all.allocations),
        ("table_reads", "table_reads_total", "Reads of parts of tables.", all.table_reads),
        ("table_writes", "table_writes_total", "Writes of parts of tables.", all.table_writes),
        (
            "table_bytes_written",
            "table_written_bytes_total",
            "Bytes of tables that were written.",
            all.table_bytes_written,
        ),
        ("syncs", "syncs_total", "Syncs of the file.", all.syncs),
        ("grows", "grows_total", "Times that the file was grown ahead.", all.grows),
        ("commits", "commits_total", "Rounds of the commit pipeline.", all.commits),
        ("new_tables", "tables_allocated_total", "L2 tables allocated.", all.new_tables),
        ("header_writes", "header_writes_total", "Writes of the header.", all.header_writes),
        (
            "stale_completions",
            "stale_completions_total",
            "Completions that named no I/O in flight; a fault of quod's own.",
            all.stale_completions,
        ),
        (
            "lost_transitions",
            "lost_transitions_total",
            "Transitions that nobody took in time.",
            all.lost_transitions,
        ),
    ]
}

impl Facts {
    /// Gathers them.
    pub fn of(door: &mut dyn Door, since: Instant, is_quiet: &dyn Fn(DiskId) -> bool) -> Facts {
        let (protocol, counts, shown) = (door.protocol(), door.counts(), door.shown());
        let driver = door.driver();
        let facts = |shown: Shown| {
            let (info, stats) = (driver.disk_info(shown.disk)?, driver.stats(shown.disk)?);
            Some(DiskFacts {
                format: info.format().name(),
                size: info.virtual_size(),
                poisoned: driver.poisoned(shown.disk).map(|error| error.to_string()),
                quiesced: is_quiet(shown.disk),
                in_flight: driver.outstanding(shown.disk) as u64,
                stats,
                shown,
            })
        };
        let disks = shown.into_iter().filter_map(facts).collect();
        let backend = driver.backend_name();
        Facts { protocol, backend, uptime: since.elapsed().as_secs_f64(), counts, disks }
    }

    /// The reply to `stats`.
    pub fn to_json(&self) -> Value {
        let counts: Map<String, Value> =
            self.counts.iter().map(|count| (count.name.to_string(), count.value.into())).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "protocol": self.protocol,
            "pid": std::process::id(),
            "backend": self.backend,
            "uptime": self.uptime,
            "counts": counts,
            "images": self.disks.iter().map(DiskFacts::to_json).collect::<Vec<Value>>(),
        })
    }
}

impl DiskFacts {
    fn to_json(&self) -> Value {
        let counters: Map<String, Value> = counters(&self.stats.counters)
            .iter()
            .map(|named| (named.0.to_string(), named.3.into()))
            .collect();
        let mut requests = Map::new();
        for kind in Kind::ALL {
            let times = self.stats.kind(kind);
            if times.is_empty() {
                continue;
            }
            let seconds = |nanos: u64| nanos as f64 / 1e9;
            let told = json!({
                "count": times.len(),
                "mean": times.mean() / 1e9,
                "p50": seconds(times.value_at_quantile(0.5)),
                "p99": seconds(times.value_at_quantile(0.99)),
                "max": seconds(times.max()),
            });
            requests.insert(kind.name().to_string(), told);
        }
        json!({
            "name": self.shown.name,
            "path": self.shown.path.to_string_lossy(),
            "format": self.format,
            "size": self.size,
            "read_only": self.shown.read_only,
            "quiesced": self.quiesced,
            "poisoned": self.poisoned,
            "in_flight": self.in_flight,
            "bytes_read": self.stats.bytes_read,
            "bytes_written": self.stats.bytes_written,
            "errors": self.stats.errors,
            "decompressions": self.stats.decompressions,
            "requests": requests,
            "counters": counters,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_counter_is_forgotten() {
        let shown = format!("{:?}", Counters::default());
        let fields = shown.matches(": ").count();
        let names = counters(&Counters::default());
        assert_eq!(fields, names.len(), "{shown}");
        for (name, metric, help, _) in names {
            assert!(shown.contains(&format!("{name}: ")), "{name}");
            assert!(metric.ends_with("_total") && help.ends_with('.'), "{metric}");
        }
    }
}
