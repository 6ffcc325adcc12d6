//! `quod map`: where the guest's bytes lie, over the whole backing chain, as `qemu-img map` tells it.
//!
//! Knows: layers and their extents. Must never know: tables. What qemu-img adds for qcow2 is left
//! out: holes of the file within allocated clusters, and where unallocated subclusters would lie.

use crate::failure::{self, could_not_open};
use crate::format::{self, Output};
use crate::sizes::{self, SizeError};
use quod::tools::Session;
use quod::{AllowAll, Error, Format, LayerInfo, OpenOptions, Status};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

/// Show where the data of an image lies
#[derive(clap::Args)]
pub struct Args {
    /// Format of the image (default: probe)
    #[arg(short, long, value_name = "FMT")]
    format: Option<String>,
    /// Start at this guest offset
    #[arg(short, long, value_name = "OFFSET", allow_hyphen_values = true)]
    start_offset: Option<String>,
    /// Look at this many bytes at most
    #[arg(short = 'l', long, value_name = "LEN", allow_hyphen_values = true)]
    max_length: Option<String>,
    /// How to answer
    #[arg(long, value_enum, value_name = "OFMT", default_value_t)]
    output: Output,
    /// Look even if a writer has the image open
    #[arg(short = 'U', long)]
    force_share: bool,
    /// The image
    file: PathBuf,
}

/// A run of guest bytes of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Run {
    start: u64,
    length: u64,
    depth: usize,
    present: bool,
    zero: bool,
    data: bool,
    compressed: bool,
    offset: Option<u64>,
}

impl Run {
    /// The next run continues this one.
    fn joins(&self, next: &Run) -> bool {
        let kind =
            |run: &Run| (run.depth, run.present, run.zero, run.data, run.compressed, run.offset.is_some());
        kind(self) == kind(next) && self.offset.is_none_or(|offset| Some(offset + self.length) == next.offset)
    }

    /// The file holds its bytes as the guest sees them.
    fn is_plain(&self) -> bool {
        !self.data || self.offset.is_some()
    }

    fn json(&self) -> String {
        let offset = self.offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
        format!(
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \
             \"compressed\": {}{offset}}}",
            self.start, self.length, self.depth, self.present, self.zero, self.data, self.compressed
        )
    }

    fn human(&self, layers: &[LayerInfo]) -> Option<String> {
        let offset = self.offset.filter(|_| self.data && !self.zero)?;
        // as C's %#x, which leaves a zero without its 0x
        let hex = |value: u64| if value == 0 { "0".to_string() } else { format!("{value:#x}") };
        let (start, length, offset) = (hex(self.start), hex(self.length), hex(offset));
        Some(format!("{start:<16}{length:<16}{offset:<16}{}", layers.get(self.depth)?.path.display()))
    }
}

/// Runs the command.
pub fn run(args: Args) -> ExitCode {
    let format = match args.format.as_deref().map(format::parse).transpose() {
        Ok(format) => format,
        Err(text) => return failure::fail(format!("Could not open '{}': {text}", args.file.display())),
    };
    let start = size_argument(args.start_offset.as_deref(), "start offset");
    let length = size_argument(args.max_length.as_deref(), "max length");
    let (start, length) = match (start, length) {
        (Ok(start), Ok(length)) => (start.unwrap_or(0), length.unwrap_or(u64::MAX)),
        (Err(text), _) | (_, Err(text)) => return failure::fail(text),
    };
    let options =
        OpenOptions::new().format(format).lock(!args.force_share).tolerate_writers(true).backing(AllowAll);
    let mut chain = match Session::open(&args.file, options).and_then(Chain::new) {
        Ok(chain) => chain,
        Err(error) => return could_not_open(&args.file, &error),
    };
    let result = chain.runs(start, length);
    print(&args, &chain.layers, result.as_deref().unwrap_or_default(), result.is_ok());
    match result {
        Ok(runs) if args.output == Output::Human && !runs.iter().all(Run::is_plain) => {
            failure::fail("File contains external, encrypted or compressed clusters.")
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => failure::fail(format!("Failed to read image metadata: {error}")),
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

fn print(args: &Args, layers: &[LayerInfo], runs: &[Run], complete: bool) {
    match args.output {
        Output::Human => {
            sayln!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to");
            let plain = runs.iter().take_while(|run| run.is_plain());
            plain.filter_map(|run| run.human(layers)).for_each(|line| sayln!("{line}"));
        }
        Output::Json if complete => {
            let lines: Vec<String> = runs.iter().map(Run::json).collect();
            sayln!("[{}]", lines.join(",\n"));
        }
        Output::Json => {}
    }
}

/// An open image with its backing chain.
struct Chain {
    session: Session,
    layers: Vec<LayerInfo>,
    /// The files of raw layers, to find holes.
    files: Vec<Option<File>>,
}

impl Chain {
    fn new(session: Session) -> Result<Chain, Error> {
        let layers = session.info().map(|info| info.layers.clone()).ok_or(Error::Closed)?;
        let open = |layer: &LayerInfo| match layer.format {
            Format::Raw => File::open(&layer.path).ok(),
            _ => None,
        };
        let files = layers.iter().map(open).collect();
        Ok(Chain { session, layers, files })
    }

    fn size(&self, layer: usize) -> u64 {
        self.layers.get(layer).map_or(0, |layer| layer.info.virtual_size.next_multiple_of(512))
    }

    /// All runs of a range, joined; at least one, which is empty if the range is.
    fn runs(&mut self, start: u64, length: u64) -> Result<Vec<Run>, Error> {
        let end = self.size(0).min(start.saturating_add(length));
        let mut runs = Vec::new();
        let mut current = Run { start, ..Run::default() };
        let mut at = start;
        while at < end {
            let next = self.run(at, end - at)?;
            at += next.length;
            if current.length > 0 && current.joins(&next) {
                current.length += next.length;
                continue;
            }
            if current.length > 0 {
                runs.push(current);
            }
            current = next;
        }
        runs.push(current);
        Ok(runs)
    }

    /// The first run of a range: the first layer that has something to say about it.
    fn run(&mut self, start: u64, mut length: u64) -> Result<Run, Error> {
        let mut depth = 0;
        loop {
            if self.layers[depth].format == Format::Raw {
                return Ok(self.raw_run(depth, start, length));
            }
            let extent = self.session.map(depth, start, length)?;
            length = length.min(extent.len);
            assert!(length > 0, "an extent has bytes");
            let below = self.size(depth + 1);
            let base = Run { start, length, depth, ..Run::default() };
            match extent.status {
                Status::Data => {
                    return Ok(Run { present: true, data: true, offset: extent.host, ..base });
                }
                Status::Zero => return Ok(Run { present: true, zero: true, offset: extent.host, ..base }),
                Status::Compressed => return Ok(Run { present: true, data: true, compressed: true, ..base }),
                Status::Unallocated if start >= below => return Ok(Run { zero: true, ..base }),
                Status::Unallocated => length = length.min(below - start),
            }
            depth += 1;
        }
    }

    /// Data and holes of a raw file; all of it is data if the file system cannot tell.
    fn raw_run(&self, depth: usize, start: u64, length: u64) -> Run {
        let data =
            Run { start, length, depth, present: true, data: true, offset: Some(start), ..Run::default() };
        let Some(file) = self.files.get(depth).and_then(Option::as_ref) else { return data };
        let next_data = match rustix::fs::seek(file, SeekFrom::Data(start)) {
            Ok(next) => next,
            Err(rustix::io::Errno::NXIO) => u64::MAX,
            Err(_) => return data,
        };
        if next_data > start {
            return Run { length: length.min(next_data - start), zero: true, data: false, ..data };
        }
        match rustix::fs::seek(file, SeekFrom::Hole(start)) {
            Ok(hole) if hole > start => Run { length: length.min(hole - start), ..data },
            _ => data,
        }
    }
}
