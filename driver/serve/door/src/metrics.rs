//! Facts as text for Prometheus (exposition format 0.0.4).
//!
//! Knows: names of metrics, the text's rules. Must never know: who fetches it, the driver.
//! Invariants: each family stands once, with HELP and TYPE; each series is told once, because names of
//! exports differ.

use crate::facts::{DiskFacts, Facts, counters};
use quod::Kind;
use std::fmt::{Display, Write};

/// Upper ends of the buckets of latencies: nanoseconds, and the same in seconds.
const BUCKETS: [(u64, &str); 14] = [
    (10_000, "0.00001"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (50_000_000, "0.05"),
    (100_000_000, "0.1"),
    (500_000_000, "0.5"),
    (1_000_000_000, "1"),
    (10_000_000_000, "10"),
];

/// The text being made.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, help: &str) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        self.head(name, help, kind);
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP quod_{name} {help}\n# TYPE quod_{name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.line(format_args!("quod_{name}{labels} {value}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // cannot fail: it is memory
        let _ = self.0.write_fmt(line);
        self.0.push('\n');
    }

    /// A family with a sample a disk.
    fn of_disks<V: Display>(
        &mut self,
        disks: &[(String, &DiskFacts)],
        (name, help): (&str, &str),
        value: impl Fn(&DiskFacts) -> V,
    ) {
        if disks.is_empty() {
            return;
        }
        self.family(name, help);
        for (labels, disk) in disks {
            self.sample(name, &format!("{{{labels}}}"), value(disk));
        }
    }
}

/// A label's value, with what the format wants escaped.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn labels(disk: &DiskFacts) -> String {
    let image = disk.shown.path.to_string_lossy();
    format!("export=\"{}\",image=\"{}\"", escaped(&disk.shown.name), escaped(&image))
}

/// The whole text.
pub(crate) fn text(facts: &Facts) -> String {
    let mut text = Text(String::new());
    let (version, protocol, backend) = (env!("CARGO_PKG_VERSION"), facts.protocol, facts.backend);
    text.family("build_info", "What serves; always 1.");
    let info = format!("{{version=\"{version}\",protocol=\"{protocol}\",backend=\"{backend}\"}}");
    text.sample("build_info", &info, 1);
    text.family("uptime_seconds", "Time since the server began.");
    text.sample("uptime_seconds", "", facts.uptime);
    for count in &facts.counts {
        text.family(count.name, count.help);
        text.sample(count.name, "", count.value);
    }
    let disks: Vec<(String, &DiskFacts)> = facts.disks.iter().map(|disk| (labels(disk), disk)).collect();
    text.of_disks(&disks, ("image_size_bytes", "Size of the disk."), |disk| disk.size);
    let flag = |flag| u8::from(flag);
    let name = ("image_writable", "Clients may write: 1.");
    text.of_disks(&disks, name, |disk| flag(!disk.shown.read_only));
    let name = ("image_quiesced", "It is quiesced, and requests wait: 1.");
    text.of_disks(&disks, name, |disk| flag(disk.quiesced));
    let name = ("image_poisoned", "An error has ended its writing: 1.");
    text.of_disks(&disks, name, |disk| flag(disk.poisoned.is_some()));
    text.of_disks(&disks, ("image_requests_in_flight", "Requests that the driver has."), |disk| {
        disk.in_flight
    });
    text.of_disks(&disks, ("image_read_bytes_total", "Bytes that were read."), |disk| disk.stats.bytes_read);
    let name = ("image_written_bytes_total", "Bytes that were written, or zeroed.");
    text.of_disks(&disks, name, |disk| disk.stats.bytes_written);
    let name = ("image_request_errors_total", "Requests that failed.");
    text.of_disks(&disks, name, |disk| disk.stats.errors);
    let name = ("image_decompressions_total", "Compressed clusters that were decompressed.");
    text.of_disks(&disks, name, |disk| disk.stats.decompressions);
    if let Some((_, first)) = disks.first() {
        for (index, (_, name, help, _)) in counters(&first.stats.counters).into_iter().enumerate() {
            let value = |disk: &DiskFacts| counters(&disk.stats.counters)[index].3;
            text.of_disks(&disks, (&format!("image_{name}"), help), value);
        }
        latencies(&mut text, &disks);
    }
    text.0
}

/// How long requests took, by kind.
fn latencies(text: &mut Text, disks: &[(String, &DiskFacts)]) {
    const NAME: &str = "image_request_duration_seconds";
    text.head(NAME, "Time of a request in the driver, failed ones too.", "histogram");
    let (bucket, sum, count) = (format!("{NAME}_bucket"), format!("{NAME}_sum"), format!("{NAME}_count"));
    for (labels, disk) in disks {
        // quiesce and resize are few, a close is not told any more
        for kind in [Kind::Read, Kind::Write, Kind::WriteZeroes, Kind::Discard, Kind::Flush, Kind::Map] {
            let times = disk.stats.kind(kind);
            let labels = format!("{labels},kind=\"{}\"", kind.name());
            let (mut below, mut next) = ([0u64; BUCKETS.len()], 0);
            let mut seen = 0;
            for step in times.iter_recorded() {
                while next < BUCKETS.len() && BUCKETS[next].0 < step.value_iterated_to() {
                    below[next] = seen;
                    next += 1;
                }
                seen += step.count_since_last_iteration();
            }
            below[next..].fill(seen);
            for ((_, end), below) in BUCKETS.iter().zip(below) {
                text.sample(&bucket, &format!("{{{labels},le=\"{end}\"}}"), below);
            }
            text.sample(&bucket, &format!("{{{labels},le=\"+Inf\"}}"), times.len());
            let total = if times.is_empty() { 0.0 } else { times.mean() * times.len() as f64 / 1e9 };
            text.sample(&sum, &format!("{{{labels}}}"), total);
            text.sample(&count, &format!("{{{labels}}}"), times.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
    }

    #[test]
    fn buckets_rise() {
        assert!(BUCKETS.windows(2).all(|two| two[0].0 < two[1].0));
        for (nanos, seconds) in BUCKETS {
            let parsed: f64 = seconds.parse().unwrap();
            assert!((parsed * 1e9 - nanos as f64).abs() < 0.5, "{seconds}");
        }
    }
}
