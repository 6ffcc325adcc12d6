//! Checks an image, and repairs it if asked.
//!
//! Knows: the format's check machine. Must never know: what it looks at.

use super::create::{read_header, unsupported};
use super::host::Host;
use crate::error::Error;
use quod_states::qcow2::{self, Purpose};
use quod_states::qed::{Check, Header};
use quod_states::{Format, Report};
use std::path::Path;

pub use quod_states::Repair;

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong, and where.
    pub what: String,
    /// Everything that was found was repaired.
    pub repaired: bool,
}

/// What a check found. The counts have qemu-img's names and meanings; they describe the image after repair.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CheckReport {
    /// Errors that endanger data.
    pub corruptions: u64,
    /// Clusters that nothing uses.
    pub leaks: u64,
    /// The check itself could not finish (read errors).
    pub check_errors: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Clusters in use.
    pub allocated_clusters: u64,
    /// Clusters of the guest disk.
    pub total_clusters: u64,
    /// Clusters that are not behind their predecessor in the file.
    pub fragmented_clusters: u64,
    /// Compressed clusters.
    pub compressed_clusters: u64,
    /// End of the last used cluster, bytes; 0 where the format's check does not tell (QED, as for QEMU).
    pub image_end_offset: u64,
    /// The first findings, in words; bounded.
    pub problems: Vec<Problem>,
}

impl CheckReport {
    /// Neither corruption nor unreadable tables; leaks are allowed.
    pub fn is_sound(&self) -> bool {
        self.corruptions == 0 && self.check_errors == 0
    }
}

impl From<Report> for CheckReport {
    fn from(report: Report) -> CheckReport {
        let repaired = report.is_sound();
        let problem = |error: quod_states::Error| Problem { what: error.to_string(), repaired };
        CheckReport {
            corruptions: report.corruptions,
            leaks: report.leaks,
            check_errors: report.check_errors,
            corruptions_fixed: report.corruptions_fixed,
            leaks_fixed: report.leaks_fixed,
            allocated_clusters: report.allocated_clusters,
            total_clusters: report.total_clusters,
            fragmented_clusters: report.fragmented_clusters,
            compressed_clusters: report.compressed_clusters,
            image_end_offset: 0,
            problems: report.problems.into_iter().map(problem).collect(),
        }
    }
}

/// Checks an image; with `repair`, repairs it.
pub fn check(
    path: impl AsRef<Path>,
    format: Option<Format>,
    repair: Option<Repair>,
) -> Result<CheckReport, Error> {
    check_with(path, format, repair, true)
}

/// As [`check`]; `lock` false: even if somebody else has the image open. What they change meanwhile may look
/// damaged.
pub fn check_with(
    path: impl AsRef<Path>,
    format: Option<Format>,
    repair: Option<Repair>,
    lock: bool,
) -> Result<CheckReport, Error> {
    let path = path.as_ref();
    let mut host = Host::open(path, repair.is_some(), lock)?;
    match format {
        Some(Format::Raw) => return Err(unsupported(path, "checking the format raw")),
        Some(Format::Qcow2) if repair.is_some() => return Err(unsupported(path, "repairing qcow2 images")),
        Some(Format::Qcow2) => return run_qcow2(&mut host),
        Some(Format::Qed) | None => {}
    }
    let (header, _) = read_header(&mut host)?;
    run(&mut host, header, repair).map(CheckReport::from)
}

/// Looks at a qcow2 image.
fn run_qcow2(host: &mut Host) -> Result<CheckReport, Error> {
    let start = host.read(0, 512)?;
    let len = qcow2::Header::region(&start);
    let mut region = host.read(0, len)?;
    region.resize(len, 0);
    let header = qcow2::Header::parse(&region, Purpose::Check)
        .map_err(|error| Error::from_core(host.path(), &error))?;
    let mut check = qcow2::Check::new(header, host.len(), None);
    let report = host.pump(&mut check, qcow2::Check::poll_result)?;
    let report = report.map_err(|error| Error::from_core(host.path(), &error))?;
    Ok(CheckReport { image_end_offset: check.image_end(), ..CheckReport::from(report) })
}

/// Runs the check of a QED image.
pub(super) fn run(host: &mut Host, header: Header, repair: Option<Repair>) -> Result<Report, Error> {
    let mut check = Check::new(header, host.len(), repair);
    let result = host.pump(&mut check, Check::poll_result)?;
    result.map_err(|error| Error::from_core(host.path(), &error))
}
