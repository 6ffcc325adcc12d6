//! What came out, as values, as a table in Markdown and as JSON.
//!
//! Knows: figures. Must never know: how they were measured.

use crate::engine::{Engine, Maker};
use crate::runner::Figures;
use crate::task::Tail;
use crate::workload::{Unit, Workload};
use serde_json::{Value, json};
use std::fmt::Write;

/// Median, smallest and largest.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Spread {
    /// The one in the middle; of an even number the mean of two.
    pub median: f64,
    /// The smallest.
    pub low: f64,
    /// The largest.
    pub high: f64,
}

impl Spread {
    /// Of some figures; `None` of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Spread> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let median = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median, low, high })
    }
}

/// One engine on one work.
#[derive(Clone, Debug)]
pub struct Row {
    /// The engine.
    pub engine: Engine,
    /// Of qemu-img, who moved bytes in the best run.
    pub mover: Option<String>,
    /// Speed, in the unit of the work.
    pub speed: Spread,
    /// Of a run of its own, in which times are measured.
    pub tail: Option<Tail>,
    /// Processor time a request, microseconds.
    pub cpu: f64,
    /// Instructions a request.
    pub instructions: Option<f64>,
    /// Operations and bytes of the device a request.
    pub device: Option<(f64, f64)>,
    /// Space of the file afterwards, bytes.
    pub space: u64,
    /// Longest hold of that run: own code, kernel; microseconds.
    pub hold: Option<(f64, f64)>,
}

impl Row {
    /// Of the runs of an engine; `None` if there were none.
    pub fn of(engine: Engine, workload: &Workload, runs: &[Figures]) -> Option<Row> {
        let (count, size) = (workload.work.count() as f64, workload.size() as f64);
        let speed = |run: &Figures| match workload.unit {
            Unit::KiloIops => count / run.seconds.max(1e-6) / 1e3,
            Unit::MibPerSecond => count * size / run.seconds.max(1e-6) / f64::from(1 << 20),
        };
        let median =
            |of: &dyn Fn(&Figures) -> f64| Spread::of(runs.iter().map(of)).map(|spread| spread.median);
        let devices = runs.iter().all(|run| run.device.is_some());
        let device = |of: fn((f64, f64)) -> f64| median(&|run| run.device.map_or(0.0, of));
        Some(Row {
            engine,
            mover: None,
            speed: Spread::of(runs.iter().map(speed))?,
            tail: None,
            cpu: median(&|run| run.cpu)?,
            instructions: None,
            device: device(|done| done.0).zip(device(|done| done.1)).filter(|_| devices),
            space: median(&|run| run.space as f64)? as u64,
            hold: None,
        })
    }

    /// Its name, with who moved bytes.
    pub fn name(&self) -> String {
        match &self.mover {
            Some(mover) => format!("{}, {mover}", self.engine.name()),
            None => self.engine.name(),
        }
    }

    fn json(&self) -> Value {
        json!({
            "engine": self.engine.name(),
            "mover": self.mover,
            "speed": { "median": self.speed.median, "low": self.speed.low, "high": self.speed.high },
            "latency_us": self.tail,
            "cpu_us_per_request": self.cpu,
            "instructions_per_request": self.instructions,
            "device_operations_per_request": self.device.map(|device| device.0),
            "device_bytes_per_request": self.device.map(|device| device.1),
            "file_bytes": self.space,
            "longest_hold_us": self.hold.map(|(own, kernel)| json!({ "own": own, "kernel": kernel })),
        })
    }
}

/// One work and everybody who did it.
#[derive(Clone, Debug)]
pub struct Section {
    /// The work.
    pub workload: Workload,
    /// Who did it, in the order of the engines.
    pub rows: Vec<Row>,
    /// Who did not, and why.
    pub missing: Vec<String>,
    /// What must be known of rows.
    pub notes: Vec<String>,
}

/// A figure with three digits that count.
pub fn digits(figure: f64) -> String {
    match figure.abs() {
        size if size >= 99.95 => format!("{figure:.0}"),
        size if size >= 9.995 => format!("{figure:.1}"),
        _ => format!("{figure:.2}"),
    }
}

impl Section {
    /// Its part of the table.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}: {}\n\n", self.workload.name, self.workload.title);
        let counted = self.rows.iter().any(|row| row.instructions.is_some());
        let instructions = if counted { " instructions |" } else { "" };
        let unit = self.workload.unit.name();
        // writing to a string cannot fail; so in all that follows
        let _ = writeln!(
            text,
            "| engine | {unit} | p50, p99, p99.9 us | CPU us |{instructions} host ops | host bytes | \
             file MiB | longest hold us: own, kernel |"
        );
        let _ = writeln!(
            text,
            "| --- | --- | --- | --- |{} --- | --- | --- | --- |",
            if counted { " --- |" } else { "" }
        );
        for row in &self.rows {
            let Spread { median, low, high } = row.speed;
            let speed = format!("{} ({}-{})", digits(median), digits(low), digits(high));
            let tail = row.tail.map(|tail| [tail.p50, tail.p99, tail.p999].map(digits).join(", "));
            let counted = match row.instructions {
                Some(figure) => format!(" {figure:.0} |"),
                None if counted => " |".to_owned(),
                None => String::new(),
            };
            let (operations, bytes) = match row.device {
                Some((operations, bytes)) => (digits(operations), format!("{bytes:.0}")),
                None => Default::default(),
            };
            let hold = row.hold.map(|(own, kernel)| format!("{own:.0}, {kernel:.0}"));
            let space = digits(row.space as f64 / f64::from(1 << 20));
            let _ = writeln!(
                text,
                "| {} | {speed} | {} | {} |{counted} {operations} | {bytes} | {space} | {} |",
                row.name(),
                tail.unwrap_or_default(),
                digits(row.cpu),
                hold.unwrap_or_default()
            );
        }
        text.push('\n');
        let lines: Vec<String> = self.missing.iter().map(|line| format!("Not compared: {line}.")).collect();
        let notes: Vec<String> = self.notes.iter().map(|line| format!("Note: {line}.")).collect();
        for line in lines.iter().chain(&notes) {
            let _ = writeln!(text, "{line}");
        }
        if !lines.is_empty() || !notes.is_empty() {
            text.push('\n');
        }
        text
    }

    /// All figures.
    pub fn json(&self) -> Value {
        json!({
            "workload": self.workload.name,
            "title": self.workload.title,
            "unit": self.workload.unit.name(),
            "rows": self.rows.iter().map(Row::json).collect::<Vec<Value>>(),
            "missing": self.missing,
            "notes": self.notes,
        })
    }
}

/// What is told in short, and drawn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Figure {
    /// Requests or bytes a second: longer is better.
    Speed,
    /// Processor time a request: shorter is better.
    Cpu,
}

impl Figure {
    /// Of a row.
    pub fn spread(self, row: &Row) -> Spread {
        match self {
            Figure::Speed => row.speed,
            Figure::Cpu => Spread { median: row.cpu, low: row.cpu, high: row.cpu },
        }
    }

    /// Its unit.
    pub fn unit(self, section: &Section) -> &'static str {
        match self {
            Figure::Speed => section.workload.unit.name(),
            Figure::Cpu => "processor time a request, microseconds",
        }
    }
}

impl Figure {
    /// The best of some rows.
    fn best(self, section: &Section, is: impl Fn(&Row) -> bool) -> Option<f64> {
        let figures = section.rows.iter().filter(|row| is(row)).map(|row| self.spread(row).median);
        match self {
            Figure::Speed => figures.reduce(f64::max),
            Figure::Cpu => figures.reduce(f64::min),
        }
    }

    /// A line of the short form.
    fn line(self, section: &Section) -> String {
        let of = |maker: Maker, format: &str| {
            self.best(section, |row| row.engine.maker == maker && row.engine.format.name() == format)
        };
        let imago = |row: &Row| matches!(row.engine.maker, Maker::Imago | Maker::ImagoPool);
        let formats = ["raw", "qed", "qcow2"];
        let mut cells = vec![of(Maker::Fio, "raw")];
        cells.extend(formats.map(|format| of(Maker::Quod, format)));
        cells.extend(formats.map(|format| of(Maker::Qemu, format)));
        cells.extend([self.best(section, imago), of(Maker::Qcow2Rs, "qcow2")]);
        let ratio = |format: &str| {
            let peer = |row: &Row| row.engine.format.name() == format && row.engine.maker.is_peer();
            let (ours, theirs) = (of(Maker::Quod, format)?, self.best(section, peer)?);
            Some(if theirs > 0.0 { ours / theirs } else { return None })
        };
        let told = |cell: Option<f64>, none: &str| cell.map_or_else(|| none.to_owned(), digits);
        let cells: Vec<String> = cells.into_iter().map(|cell| told(cell, "")).collect();
        let ratios = formats.map(|format| told(ratio(format), "-"));
        let unit = if self == Figure::Speed { section.workload.unit.name() } else { "us" };
        format!("| {}, {unit} | {} | {} |\n", section.workload.name, cells.join(" | "), ratios.join(", "))
    }
}

/// The short form, a line a work. The last column is quod (ring, writeback) to the best other engine on the
/// same format: raw, QED, qcow2.
pub fn short(sections: &[Section], figure: Figure) -> String {
    let lines: String = sections.iter().map(|section| figure.line(section)).collect();
    format!("{HEAD}\n{lines}")
}

const HEAD: &str = "\
| work | fio | quod raw | qed | qcow2 | qemu-img raw | qed | qcow2 | imago | qcow2-rs | quod to others |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |";
