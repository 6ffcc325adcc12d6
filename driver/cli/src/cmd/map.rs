//! `quod map`: where the guest's bytes lie, over the whole backing chain, as `qemu-img map` tells it.
//!
//! Knows: runs, and how they are printed. Must never know: layers' extents, tables.

use super::common::Asked;
use crate::out;
use crate::out::fail;
use crate::words::format::Output;
use crate::words::open::TABLES_ONCE;
use crate::words::sizes;
use crate::words::sizes::SizeError;
use quod::{AllowAll, Error, OpenOptions};
use quod_tools::{MapRun, Mapper};
use std::path::Path;
use std::process::ExitCode;

/// Show where the data of an image lies
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    asked: Asked,
    /// Start at this guest offset
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    start_offset: Option<String>,
    /// Look at this many bytes at most
    #[arg(short = 'l', long, value_name = "LEN", allow_hyphen_values = true)]
    max_length: Option<String>,
}

/// Runs the command.
pub fn run(mut args: Args) -> ExitCode {
    let format = match args.asked.format() {
        Ok(format) => format,
        Err(code) => return code,
    };
    let start = size_argument(args.start_offset.as_deref(), "start offset");
    let length = size_argument(args.max_length.as_deref(), "max length");
    let (start, length) = match (start, length) {
        (Ok(start), Ok(length)) => (start.unwrap_or(0), length.unwrap_or(u64::MAX)),
        (Err(text), _) | (_, Err(text)) => return fail(text),
    };
    let options = OpenOptions::new()
        .format(format)
        .lock(!args.asked.force_share)
        .tolerate_writers(true)
        .cache_bytes(TABLES_ONCE)
        .open_gate(AllowAll);
    let mut mapper = match Mapper::open(&args.asked.file, options) {
        Ok(mapper) => mapper,
        Err(error) => return args.asked.not_opened(&error),
    };
    let result = match args.asked.output {
        Output::Human => print_human(&mut mapper, start, length),
        Output::Json => print_json(&mut mapper, start, length),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => fail("File contains external, encrypted or compressed clusters."),
        Err(error) => fail(format!("Failed to read image metadata: {error}")),
    }
}

fn size_argument(text: Option<&str>, what: &str) -> Result<Option<u64>, String> {
    text.map(|text| match sizes::parse(text) {
        Ok(value) => Ok(value),
        Err(SizeError::NotANumber) => Err(format!("Invalid {what} specified: '{text}'.")),
        Err(SizeError::OutOfRange) => {
            Err(format!("Invalid {what} specified. Must be between 0 and {}.", i64::MAX))
        }
    })
    .transpose()
}

/// Where data lies; false: some of it is not in a file as the guest sees it, and nothing is said from there
/// on.
fn print_human(mapper: &mut Mapper, start: u64, length: u64) -> Result<bool, Error> {
    sayln!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
    // as C's %#x, which leaves a zero without its 0x
    let hex = |value: u64| if value == 0 { "0".to_string() } else { format!("{value:#x}") };
    let mut plain = true;
    mapper.runs(start, length, &mut |mapper, run| {
        match run.offset {
            None if run.data => plain = false,
            Some(offset) if run.data && !run.zero => {
                let path = mapper.data_path(run.depth).unwrap_or(Path::new("")).display();
                let (start, length, offset) = (hex(run.start), hex(run.length), hex(offset));
                sayln!("{start:<16}{length:<16}{offset:<16}{path}");
            }
            _ => {}
        }
        plain && !out::has_failed()
    })?;
    Ok(plain)
}

fn print_json(mapper: &mut Mapper, start: u64, length: u64) -> Result<bool, Error> {
    let mut lead = "[";
    let result = mapper.runs(start, length, &mut |_, run| {
        say!("{lead}{}", json(run));
        lead = ",\n";
        !out::has_failed()
    });
    // a list that an error cut short stays open, so that no program takes it for all
    sayln!("{}", if result.is_ok() { "]" } else { "" });
    result.map(|()| true)
}

fn json(run: &MapRun) -> String {
    let offset = run.offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
    format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
         \"compressed\": {}{offset}}}",
        run.start, run.length, run.depth, run.present, run.zero, run.data, run.compressed
    )
}
