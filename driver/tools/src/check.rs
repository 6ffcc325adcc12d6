//! Checks an image, and repairs it if asked.
//!
//! Knows: the format's check machine. Must never know: what it looks at.

use crate::host::{Host, unsupported};
use crate::info::read_qcow2;
use quod::{Error, Lack};
use quod_states::qcow2::header::{BITMAPS, RAW_DATA_FILE};
use quod_states::qcow2::{self, Purpose};
use quod_states::{Format, Report, qed};
use std::path::Path;

pub use quod_states::Repair;
pub use quod_states::qcow2::Finding;

/// Where a qcow2 header of version 3 has the feature bits that a writer clears unless it knows them.
const AUTOCLEAR_AT: usize = 88;

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// What is wrong, and where.
    pub what: quod_states::Error,
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
    /// The first 64 findings; the rest is only counted.
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
        let problem = |what| Problem { what, repaired };
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

/// Checks an image; with `repair`, repairs it. Walks all tables, and keeps a count a cluster of the file in
/// memory. Nothing is written without `repair`. `format` None: probed.
///
/// ```
/// use quod::Format;
/// use quod_tools::{Repair, check};
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 30))?;
/// # use std::os::unix::fs::FileExt;
/// // somebody has lost the data that the first entry of the table of tables leads to
/// let file = std::fs::File::options().write(true).open(&path)?;
/// file.write_all_at(&(1u64 << 63 | 77 << 16).to_be_bytes(), 3 << 16)?;
///
/// let found = check(&path, None, None)?;
/// assert!(!found.is_sound());
/// println!("{}", found.problems[0].what); // where, and why
/// let after = check(&path, None, Some(Repair::All))?;
/// assert!(after.is_sound() && after.corruptions_fixed > 0);
/// assert!(check(&path, None, None)?.is_sound());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// What is found is no error but the report. Errors are: an image whose header does not let it be walked, a
/// lock, a host that fails, and [`Lack::CheckRaw`](quod::Lack::CheckRaw), as raw images have nothing to
/// check.
pub fn check(
    path: impl AsRef<Path>,
    format: Option<Format>,
    repair: Option<Repair>,
) -> Result<CheckReport, Error> {
    check_with(path, format, repair, true)
}

/// As [`check`]; `lock` false: even if somebody else has the image open. What they change meanwhile may look
/// damaged, and a repair would damage it.
///
/// # Errors
/// As of [`check`].
pub fn check_with(
    path: impl AsRef<Path>,
    format: Option<Format>,
    repair: Option<Repair>,
    lock: bool,
) -> Result<CheckReport, Error> {
    Checker::open(path, format, repair, lock)?.run()
}

/// An image that is about to be checked: tells an image that cannot be opened from a check that fails.
pub struct Checker {
    host: Host,
    header: Start,
    repair: Option<Repair>,
}

/// Where a check starts from.
enum Start {
    Raw,
    Qed(qed::Header),
    Qcow2(Box<qcow2::Header>),
}

impl Checker {
    /// Opens an image and reads its header; see [`check_with`].
    ///
    /// # Errors
    /// What is the matter with its header, or with opening it.
    pub fn open(
        path: impl AsRef<Path>,
        format: Option<Format>,
        repair: Option<Repair>,
        lock: bool,
    ) -> Result<Checker, Error> {
        let path = path.as_ref();
        let mut host = Host::open(path, repair.is_some(), lock)?;
        let header = match format.map_or_else(|| host.probe(), Ok)? {
            Format::Raw => Start::Raw,
            Format::Qed => {
                let block = host.head(4096)?;
                let header = qed::Header::parse(&block, host.len());
                Start::Qed(header.map_err(|error| host.error(&error))?)
            }
            Format::Qcow2 => Start::Qcow2(Box::new(read_qcow2(&mut host, Purpose::Check)?)),
        };
        Ok(Checker { host, header, repair })
    }

    /// `stop` is asked between two operations; true ends the check with [`Error::Cancelled`], and a repair
    /// where it is, as if the process had been killed.
    pub fn until(mut self, stop: fn() -> bool) -> Checker {
        self.host.stop = stop;
        self
    }

    /// The image's format.
    pub const fn format(&self) -> Format {
        match self.header {
            Start::Raw => Format::Raw,
            Start::Qed(_) => Format::Qed,
            Start::Qcow2(_) => Format::Qcow2,
        }
    }

    /// Checks and repairs.
    ///
    /// # Errors
    /// [`Lack::CheckRaw`] for a raw image, [`Error::Cancelled`] after [`Checker::until`], what the host says.
    pub fn run(self) -> Result<CheckReport, Error> {
        self.run_with(&mut |_| {})
    }

    /// As [`Checker::run`]; `listener` is told what is found in a qcow2 image, as it is found.
    ///
    /// # Errors
    /// As of [`Checker::run`].
    pub fn run_with(mut self, listener: &mut dyn FnMut(Finding)) -> Result<CheckReport, Error> {
        match self.header {
            Start::Raw => Err(unsupported(self.host.path(), Lack::CheckRaw)),
            Start::Qed(header) => run(&mut self.host, header, self.repair).map(CheckReport::from),
            Start::Qcow2(header) => run_qcow2(&mut self.host, *header, self.repair, listener),
        }
    }
}

fn run_qcow2(
    host: &mut Host,
    mut header: qcow2::Header,
    repair: Option<Repair>,
    listener: &mut dyn FnMut(Finding),
) -> Result<CheckReport, Error> {
    let kept = BITMAPS | RAW_DATA_FILE;
    if repair.is_some() && header.stale_autoclear(kept) != 0 {
        // before anything else is written: what they stand for is not kept up here
        header.clear_autoclear(kept);
        let mut sector = host.head(512)?;
        if let Some(field) = sector.get_mut(AUTOCLEAR_AT..AUTOCLEAR_AT + 8) {
            field.copy_from_slice(&header.autoclear.to_be_bytes());
            host.write(0, &sector)?;
            host.sync()?;
        }
    }
    let mut check = qcow2::Check::new(header, host.len(), repair).on_device(host.is_device());
    let report = host.pump(&mut check, |check| {
        while let Some(finding) = check.poll_finding() {
            listener(finding);
        }
        check.poll_result()
    })?;
    let report = report.map_err(|error| host.error(&error))?;
    Ok(CheckReport { image_end_offset: check.image_end(), ..CheckReport::from(report) })
}

/// Runs the check of a QED image.
pub(crate) fn run(host: &mut Host, header: qed::Header, repair: Option<Repair>) -> Result<Report, Error> {
    let mut check = qed::Check::new(header, host.len(), repair).on_device(host.is_device());
    let result = host.pump(&mut check, qed::Check::poll_result)?;
    result.map_err(|error| host.error(&error))
}
