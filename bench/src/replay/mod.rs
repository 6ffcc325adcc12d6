//! Plays a trace on an image and proves that every byte came out right.
//!
//! Requests that overlap, at least one of them changing the range, keep the order of the trace: the later one
//! waits, and those behind it wait too. All others run together, up to the depth. A `sync` is a flush:
//! submitted in its turn, it waits for nobody and nobody waits for it. With times (`real`, or a factor) the
//! loop is open: an operation is due when the trace says so, however the earlier ones fare, and its lateness
//! is recorded apart.
//!
//! Then: every touched block is read back, the image closed, checked, reopened read-only, and compared whole.
//!
//! Knows: the driver's public face, the model, the trace. Must never know: image formats, terminals.

mod error;
mod observer;
mod options;
mod player;
mod pool;
mod scan;
mod tally;

pub use error::ReplayError;
pub use observer::Observer;
pub use options::{Options, Speed, TRANSFER_MAX};

use crate::contract::blocks::{DISK_MAX, Model};
use crate::contract::payload::BLOCK;
use crate::contract::verdict::Verdict;
use crate::measure::timeline::Timeline;
use crate::report::{Hold, ReplayReport, Verification};
use crate::trace::{self, Choice, Source, Summary};
use quod::{Config, Format, OpenOptions};
use quod_tools::{self as tools, Session};
use std::path::Path;

/// Largest disk that is compared whole; of a larger one only what was touched.
pub const COMPARE_WHOLE_MAX: u64 = 16 << 30;

const REPLAY: &str = "replay";
const READ_BACK: &str = "read back";
const COMPARE: &str = "compare";

/// The size of a fresh disk for a trace: its furthest extent, rounded up to whole MiB.
pub fn disk_size(summary: &Summary) -> Result<u64, ReplayError> {
    if summary.max_extent > DISK_MAX {
        return Err(ReplayError::Size(format!(
            "the trace reaches to byte {}; the limit is {DISK_MAX}",
            summary.max_extent
        )));
    }
    Ok(summary.max_extent.max(1).next_multiple_of(1 << 20))
}

/// Reads a trace once and tells what it amounts to, or why it cannot be played.
pub fn examine(source: &Source, choice: &Choice) -> Result<Summary, ReplayError> {
    let summary = trace::summarise(source, choice, TRANSFER_MAX)?;
    disk_size(&summary).map(|_| summary)
}

/// Plays `source` (already [`examine`]d) on the image at `path`.
pub fn run(
    path: &Path,
    source: &Source,
    summary: &Summary,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<ReplayReport, ReplayError> {
    let timeline = options.timeline.as_deref().map(create_timeline).transpose()?;
    let follow = options.follow || timeline.is_some();
    let mut session = open(path, options, true, follow)?;
    let (format, size) = match session.info() {
        Some(info) => (info.format(), info.virtual_size()),
        None => return Err(quod::Error::Closed.into()),
    };
    check_size(summary, size)?;
    session.info().into_iter().for_each(|disk| observer.opened(disk));
    let mut model = Model::new(size, options.seed, options.initial);
    observer.phase(REPLAY, summary.operations);
    let played = player::play(&mut session, &mut model, source, summary, options, timeline, observer)?;
    let mut report = played.report;
    report.backend = session.driver().backend_name().to_owned();
    report.hold = Hold::of(session.driver().hold());
    report.counters = session.stats().map(|stats| stats.counters.into()).unwrap_or_default();
    report.notes = summary.notes();
    describe(&mut report, path, source, options, format, size);
    let mut verdict = played.verdict;
    report.verification.blocks_verified_during = verdict.verified;
    if !played.interrupted {
        report.interrupted =
            verify(path, session, &model, options, &mut report.verification, &mut verdict, observer)?;
    } else {
        session.close()?;
        report.interrupted = Some(REPLAY);
    }
    settle(&mut report.verification, &verdict);
    Ok(report)
}

/// Reads back, closes, checks, compares. Tells the phase that was not ended.
fn verify(
    path: &Path,
    mut session: Session,
    model: &Model,
    options: &Options,
    verification: &mut Verification,
    verdict: &mut Verdict,
    observer: &mut dyn Observer,
) -> Result<Option<&'static str>, ReplayError> {
    let (format, size) = session.info().map_or((Format::Raw, 0), |info| (info.format(), info.virtual_size()));
    observer.phase(READ_BACK, model.blocks());
    let back = scan::touched(&mut session, model, options.depth, observer)?;
    session.close()?;
    let Some(back) = back else { return Ok(Some(READ_BACK)) };
    verification.blocks_read_back = back.verified;
    verdict.add(back);

    check(path, format, verification)?;
    observer.phase(COMPARE, model.blocks());
    let mut session = open(path, options, false, false)?;
    verification.compared_touched_only = size > COMPARE_WHOLE_MAX;
    let compared = if verification.compared_touched_only {
        scan::touched(&mut session, model, options.depth, observer)?
    } else {
        scan::whole(&mut session, model, options.depth, observer)?
    };
    session.close()?;
    let Some(compared) = compared else { return Ok(Some(COMPARE)) };
    verification.bytes_compared = compared.verified * BLOCK as u64;
    verification.blocks_unknown = compared.unknown;
    verdict.add(compared);
    Ok(None)
}

fn create_timeline(path: &Path) -> Result<Timeline, ReplayError> {
    Timeline::create(path).map_err(|error| ReplayError::Timeline(path.to_path_buf(), error))
}

fn open(path: &Path, options: &Options, write: bool, trace: bool) -> Result<Session, quod::Error> {
    // one request more than the depth: flushes and the like never find the house full
    let requests = options.depth.saturating_add(1);
    let queue_depth = Config::default().queue_depth.max(options.depth);
    let config = Config::default().backend(options.backend).queue_depth(queue_depth).requests(requests);
    let config = config.timing(true).trace(trace).worker_cpus(options.worker_cpus);
    let open = OpenOptions::new().write(write).direct(options.direct).format(options.format);
    let open = open.allocation_gate(options.gate).policy(options.policy).open_gate(quod::AllowAll);
    Session::with_config(path, open, config)
}

fn check_size(summary: &Summary, size: u64) -> Result<(), ReplayError> {
    if summary.max_extent > size {
        let extent = summary.max_extent;
        return Err(ReplayError::Size(format!(
            "the trace reaches to byte {extent}, the image has only {size}"
        )));
    }
    if size > DISK_MAX {
        return Err(ReplayError::Size(format!("the image has {size} bytes; a replay models {DISK_MAX}")));
    }
    Ok(())
}

fn describe(
    report: &mut ReplayReport,
    path: &Path,
    source: &Source,
    options: &Options,
    format: Format,
    size: u64,
) {
    report.trace = source.name();
    report.image = path.display().to_string();
    report.format = crate::options::format_name(format).to_owned();
    report.disk_size = size;
    report.direct = options.direct;
    report.gate = crate::options::gate_name(options.gate).to_owned();
    report.policy = format!("{:?}", options.policy).to_lowercase();
    report.speed = options.speed.to_string();
    report.depth = options.depth;
    report.seed = options.seed;
}

fn check(path: &Path, format: Format, verification: &mut Verification) -> Result<(), ReplayError> {
    if format == Format::Raw {
        return Ok(());
    }
    let found = tools::check(path, Some(format), None)?;
    verification.corruptions = Some(found.corruptions);
    verification.leaks = found.leaks;
    verification.check_errors = found.check_errors;
    verification.check_problems =
        found.problems.into_iter().take(16).map(|problem| problem.what.to_string()).collect();
    Ok(())
}

fn settle(verification: &mut Verification, verdict: &Verdict) {
    verification.blocks_wrong = verdict.wrong;
    verification.mismatches = verdict.mismatches.iter().map(ToString::to_string).collect();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fresh_disk_covers_the_trace() {
        let size = |max_extent| disk_size(&Summary { max_extent, ..Summary::default() }).ok();
        assert_eq!(size(0), Some(1 << 20));
        assert_eq!(size(1 << 20), Some(1 << 20));
        assert_eq!(size((1 << 20) + 512), Some(2 << 20));
        assert_eq!(size(DISK_MAX + 512), None);
    }
}
