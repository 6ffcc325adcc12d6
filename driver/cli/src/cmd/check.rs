//! `quod check`: is the image consistent? As `qemu-img check` answers.
//!
//! Knows: exit codes and texts. Must never know: how a check is made.

use super::common::{Asked, LAST};
use crate::interrupt;
use crate::out::fail;
use crate::words::format::Output;
use crate::words::{failure, format, json};
use quod::{Error, ErrorKind, Format, describe};
use quod_tools::{CheckReport, Checker, Repair};
use serde_json::{Map, Value};
use std::process::ExitCode;

mod finding;

/// Exit code: data is or may be damaged.
const CORRUPT: u8 = 2;
/// Exit code: clusters are wasted, nothing worse.
const LEAKS: u8 = 3;
/// Exit code: the format has no check.
const NO_CHECK: u8 = 63;

/// Check an image for consistency
///
/// Exit codes: 0 clean, 1 the check failed, 2 corrupt, 3 leaks only, 63 the format has no check
#[derive(clap::Args)]
#[command(mut_arg("force_share", |arg| arg.help("Check even if a writer has the image open")))]
pub struct Args {
    #[command(flatten)]
    asked: Asked,
    /// Repair what was found: leaks, or all
    #[arg(short, long, value_name = "WHAT")]
    repair: Option<String>,
    /// Print errors only
    #[arg(short, long, display_order = LAST)]
    quiet: bool,
}

/// Runs the command.
pub fn run(mut args: Args) -> ExitCode {
    let format = match args.asked.format() {
        Ok(format) => format,
        Err(code) => return code,
    };
    let repair = match args.repair.as_deref() {
        None => None,
        Some("leaks") => Some(Repair::Leaks),
        Some("all") => Some(Repair::All),
        Some(other) => {
            return fail(format!("--repair (-r) expects 'leaks' or 'all' not '{other}'"));
        }
    };
    if args.asked.force_share && repair.is_some() {
        return args.asked.cannot_open("force-share=on can only be used with read-only images");
    }
    if repair.is_some() {
        interrupt::watch();
    }
    let open = |repair| {
        let checker = Checker::open(&args.asked.file, format, repair, !args.asked.force_share);
        checker.map(|checker| checker.until(interrupt::asked))
    };
    let checker = match open(repair) {
        Ok(checker) => checker,
        Err(error) => return args.asked.not_opened(&error),
    };
    let format = checker.format();
    if format == Format::Raw {
        if !args.asked.says_format() && repair.is_some() {
            failure::warn_about_probing(&args.asked.file);
        }
        fail("This image format does not support checks");
        return ExitCode::from(NO_CHECK);
    }
    let mut tell = |found| complain!("{}", finding::line(&found));
    let report =
        checker.run_with(&mut tell).and_then(|first| match (first.corruptions_fixed, first.leaks_fixed) {
            // the check of qcow2 looks again by itself
            (corruptions_fixed, leaks_fixed)
                if format == Format::Qed && corruptions_fixed + leaks_fixed > 0 =>
            {
                let second = open(None)?.run()?;
                Ok(CheckReport { corruptions_fixed, leaks_fixed, ..second })
            }
            _ => Ok(first),
        });
    match report {
        Ok(report) => answer(&args, format, &report),
        Err(Error::Cancelled) => {
            fail("interrupted: the repair is not finished; nothing is lost, but check the image again")
        }
        Err(error) => fail(format!("Check failed: {}", describe(why(&error)))),
    }
}

/// QEMU's error number for a check that could not be made.
fn why(error: &Error) -> i32 {
    match error.kind() {
        Some(ErrorKind::Device { errno, .. }) => *errno,
        Some(ErrorKind::NoSpace) => libc::ENOSPC,
        Some(ErrorKind::Unsupported(_)) => libc::EFBIG,
        _ => libc::EIO,
    }
}

fn answer(args: &Args, format: Format, report: &CheckReport) -> ExitCode {
    if !args.quiet {
        match args.asked.output {
            Output::Human => say!("{}", human(report)),
            Output::Json => sayln!("{}", json::pretty(&object(args, format, report))),
        }
    }
    match (report.corruptions, report.leaks, report.check_errors) {
        (_, _, 1..) => fail("Check failed"),
        (1.., _, _) => ExitCode::from(CORRUPT),
        (0, 1.., _) => ExitCode::from(LEAKS),
        (0, 0, 0) => ExitCode::SUCCESS,
    }
}

fn human(report: &CheckReport) -> String {
    let mut text = String::new();
    if report.corruptions_fixed > 0 || report.leaks_fixed > 0 {
        text += &format!(
            "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    \
             {} corruptions\n\nDouble checking the fixed image now...\n",
            report.leaks_fixed, report.corruptions_fixed
        );
    }
    if report.corruptions + report.leaks + report.check_errors == 0 {
        text += "No errors were found on the image.\n";
    }
    if report.corruptions > 0 {
        text += &format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes \
             to the image may corrupt it.\n",
            report.corruptions
        );
    }
    if report.leaks > 0 {
        text += &format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but \
             no harm to data.\n",
            report.leaks
        );
    }
    if report.check_errors > 0 {
        text += &format!("\n{} internal errors have occurred during the check.\n", report.check_errors);
    }
    if report.total_clusters > 0 && report.allocated_clusters > 0 {
        let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
        text += &format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters),
        );
    }
    if report.image_end_offset > 0 {
        text += &format!("Image end offset: {}\n", report.image_end_offset);
    }
    text
}

/// Fields in the order in which qemu-img happens to print them; counts of zero are left out where it does.
fn object(args: &Args, format: Format, report: &CheckReport) -> Value {
    let mut fields = Map::new();
    let mut add = |name: &str, value: u64, always: bool| {
        if always || value > 0 {
            fields.insert(name.to_string(), value.into());
        }
    };
    add("image-end-offset", report.image_end_offset, false);
    add("compressed-clusters", report.compressed_clusters, false);
    add("total-clusters", report.total_clusters, false);
    add("corruptions", report.corruptions, false);
    add("corruptions-fixed", report.corruptions_fixed, false);
    add("check-errors", report.check_errors, true);
    add("leaks", report.leaks, false);
    add("leaks-fixed", report.leaks_fixed, false);
    add("allocated-clusters", report.allocated_clusters, false);
    fields.insert("filename".into(), args.asked.file.display().to_string().into());
    fields.insert("format".into(), format::name(format).into());
    if report.fragmented_clusters > 0 {
        fields.insert("fragmented-clusters".into(), report.fragmented_clusters.into());
    }
    Value::Object(fields)
}
