//! Checks and repairs of files on the simulated disk, by the formats' own machines.
//!
//! Knows: the machines' grammar. Must never know: what a check looks at.

use super::head::{is_marked, probe};
use super::{qcow2 as qcow2_file, qed as qed_file};
use quod_backend::sim::Sim;
use quod_bench::contract::{Checked, Failure, fail};
use quod_memory::{Store, run};
use quod_states::qcow2 as format;
use quod_states::{Format, Io, IoId, IoOp, Machine, Outcome, Repair, Report, qed};

/// No file that is repaired here becomes longer.
const LEN_MAX: u64 = 256 << 20;

/// A file as it is visible now, to read.
struct Visible<'a> {
    sim: &'a Sim,
    path: &'a str,
}

impl Store for Visible<'_> {
    fn end(&self) -> u64 {
        self.sim.file_len(self.path).unwrap_or(0)
    }

    fn read(&self, offset: u64, to: &mut [u8]) {
        to.copy_from_slice(&self.sim.file_range(self.path, offset, to.len()));
    }

    fn set_end(&mut self, _: u64) {
        unreachable!("only reads are admitted");
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        unreachable!("only reads are admitted");
    }

    fn zero(&mut self, _: u64, _: u64) {
        unreachable!("only reads are admitted");
    }
}

/// The check of either format.
enum CheckMachine {
    Qed(Box<qed::Check>),
    Qcow2(Box<format::Check>),
}

impl CheckMachine {
    fn new(sim: &Sim, path: &str, len: u64, repair: Option<Repair>) -> Checked<CheckMachine> {
        match probe(sim, path) {
            Format::Qed => {
                let check = qed::Check::new(qed_file::header(sim, path)?, len, repair);
                Ok(CheckMachine::Qed(Box::new(check.on_device(sim.is_device(path)))))
            }
            Format::Qcow2 => {
                let header = qcow2_file::header(sim, path)?;
                let check = format::Check::new(header, len, repair);
                Ok(CheckMachine::Qcow2(Box::new(check.on_device(sim.is_device(path)))))
            }
            Format::Raw => fail(format!("{path}: nothing to check in a raw image")),
        }
    }

    fn machine(&mut self) -> &mut dyn Machine {
        match self {
            CheckMachine::Qed(check) => &mut **check,
            CheckMachine::Qcow2(check) => &mut **check,
        }
    }

    /// Runs to the end.
    fn run(&mut self, file: &mut dyn Store, admit: fn(&IoOp) -> Checked) -> Checked<Report> {
        let ended = |check: &mut CheckMachine| match check {
            CheckMachine::Qed(check) => check.poll_result(),
            CheckMachine::Qcow2(check) => check.poll_result(),
        };
        run(self, file, ended, admit)?.map_err(|error| Failure(format!("the check failed: {error}")))
    }
}

impl Machine for CheckMachine {
    fn poll_io(&mut self) -> Option<Io> {
        self.machine().poll_io()
    }

    fn encode(&mut self, id: IoId, buf: &mut [u8]) {
        self.machine().encode(id, buf);
    }

    fn handle_completion(&mut self, id: IoId, outcome: Outcome<'_>) {
        self.machine().handle_completion(id, outcome);
    }
}

/// What a check without repair may want.
fn reads(op: &IoOp) -> Checked {
    match op {
        IoOp::ReadTable { .. } => Ok(()),
        _ => fail("a check without repair writes"),
    }
}

/// What a repair may want, too.
fn repairs(op: &IoOp) -> Checked {
    match *op {
        // only a hostile image asks for so much
        IoOp::Grow { to: end, .. } | IoOp::SetLen { len: end } if end > LEN_MAX => {
            fail(format!("a repair makes the file {end} bytes long"))
        }
        IoOp::WriteTable { offset, .. } if offset > LEN_MAX => fail(format!("a repair writes at {offset}")),
        IoOp::ReadTable { .. } | IoOp::WriteTable { .. } | IoOp::Sync => Ok(()),
        IoOp::Grow { .. } | IoOp::SetLen { .. } => Ok(()),
        other => fail(format!("a repair wants {other:?}")),
    }
}

/// Checks a file as it is visible now, without repair.
pub fn check(sim: &Sim, path: &str) -> Checked<Report> {
    checked(sim, path, sim.file_len(path).unwrap_or(0)).map(|(report, _)| report)
}

/// Leaked clusters, those behind the end of the file included: a power cut may leave their counts and not the
/// file's length.
pub fn leaks(sim: &Sim, path: &str) -> Checked<u64> {
    let len = sim.file_len(path).unwrap_or(0);
    let len = if probe(sim, path) == Format::Qcow2 { len.max(qcow2_file::counted(sim, path)?) } else { len };
    checked(sim, path, len).map(|(report, _)| report.leaks)
}

/// A check of the first `len` bytes, and where it says that the image ends (QED: at the end of the file).
fn checked(sim: &Sim, path: &str, len: u64) -> Checked<(Report, u64)> {
    let mut check = CheckMachine::new(sim, path, len, None)?;
    let report = check.run(&mut Visible { sim, path }, reads)?;
    let end = match &check {
        CheckMachine::Qed(_) => sim.file_len(path).unwrap_or(0),
        CheckMachine::Qcow2(check) => check.image_end(),
    };
    Ok((report, end))
}

/// Bytes of the file that the image has use for.
pub fn used(sim: &Sim, path: &str) -> Checked<u64> {
    checked(sim, path, sim.file_len(path).unwrap_or(0)).map(|(_, end)| end)
}

/// A repaired copy of a file, and what the repair says that it left.
pub fn repaired(sim: &Sim, path: &str) -> Checked<(Vec<u8>, Report)> {
    let mut file = sim.file_bytes(path);
    let mut check = CheckMachine::new(sim, path, file.len() as u64, Some(Repair::All))?;
    let report = check.run(&mut file, repairs)?;
    Ok((file, report))
}

/// A check that finds no corruption.
pub fn sound(sim: &Sim, path: &str, when: &str) -> Checked<Report> {
    let report = check(sim, path)?;
    match report.is_sound() {
        true => Ok(report),
        false => fail(format!("{when}: {} corruptions: {:?}", report.corruptions, report.problems)),
    }
}

/// What a power cut left is sound, or (qcow2 only) says that its refcounts may be wrong and is made sound
/// by a repair.
pub fn survived(sim: &Sim, path: &str) -> Checked {
    let marked = is_marked(&sim.file_range(path, 0, 512));
    if probe(sim, path) != Format::Qcow2 || !marked {
        return sound(sim, path, "after a power cut, before any repair").map(drop);
    }
    let (_, report) = repaired(sim, path)?;
    match report.is_sound() && report.leaks == 0 {
        true => Ok(()),
        false => fail(format!("after a power cut the dirty bit is set, and a repair leaves {report:?}")),
    }
}
