//! Image files on the simulated disk: making them, and looking at them without the driver.
//!
//! Knows: headers and tables, through `quod-states`. Must never know: requests, the model.

mod edit;
mod qcow2;
mod start;

pub use edit::Editor;
pub use qcow2::{DATA, Data, Qcow2};
pub use start::{Part, Start, start};

use quod_backend::sim::Sim;
use quod_bench::contract::hash::{hash_bytes, hash_words};
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2 as format;
use quod_states::qed::{self, CreateOptions};
use quod_states::{Format, Io, IoOp, Machine, Outcome, Repair, Report, probe};

/// No file that is repaired here becomes longer.
const LEN_MAX: u64 = 256 << 20;

/// The format of an image, and what only that format has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// The guest's bytes and nothing else.
    Raw,
    /// QED.
    Qed {
        /// Bytes of a cluster.
        cluster: u32,
        /// Clusters of a table.
        table: u32,
    },
    /// qcow2.
    Qcow2(Qcow2),
}

/// What an image shall be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Its format.
    pub form: Form,
    /// Bytes of the guest disk.
    pub size: u64,
    /// Name of the backing file, and its format.
    pub backing: Option<(String, Format)>,
}

impl Form {
    /// Its name.
    pub const fn format(self) -> Format {
        match self {
            Form::Raw => Format::Raw,
            Form::Qed { .. } => Format::Qed,
            Form::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The guest's clusters lie in a file of their own.
    pub const fn has_data_file(self) -> bool {
        matches!(self, Form::Qcow2(Qcow2 { data: Data::File | Data::Raw, .. }))
    }

    /// Bytes of a cluster; of a raw image, a block.
    pub const fn cluster(self) -> u64 {
        match self {
            Form::Raw => 4096,
            Form::Qed { cluster, .. } => cluster as u64,
            Form::Qcow2(qcow2) => qcow2.cluster as u64,
        }
    }

    /// Guest bytes under one L2 table.
    pub const fn span(self) -> u64 {
        match self {
            Form::Raw => u64::MAX,
            Form::Qed { cluster, table } => cluster as u64 * (cluster as u64 * table as u64 / 8),
            Form::Qcow2(qcow2) => qcow2.cluster as u64 * (qcow2.cluster as u64 / qcow2.entry_bytes()),
        }
    }
}

/// A new image.
pub fn create(shape: &Shape) -> Checked<Vec<u8>> {
    match shape.form {
        Form::Raw if shape.backing.is_some() => fail("a raw image has no backing file"),
        Form::Raw => Ok(vec![0; shape.size as usize]),
        Form::Qed { cluster, table } => create_qed(shape, cluster, table),
        Form::Qcow2(options) => qcow2::create(shape, &options),
    }
}

fn create_qed(shape: &Shape, cluster_size: u32, table_size: u32) -> Checked<Vec<u8>> {
    let options = CreateOptions {
        size: shape.size,
        cluster_size,
        table_size,
        backing: shape.backing.as_ref().map(|(name, _)| name.as_bytes()),
        backing_raw: shape.backing.as_ref().is_some_and(|(_, format)| *format == Format::Raw),
    };
    let header = qed::Header::create(&options).map_err(|error| Failure(format!("{shape:?}: {error}")))?;
    let mut bytes = vec![0; cluster_size as usize * (1 + table_size as usize)];
    bytes[..64].copy_from_slice(&header.encode());
    if let Some((name, _)) = &shape.backing {
        bytes[64..64 + name.len()].copy_from_slice(name.as_bytes());
    }
    Ok(bytes)
}

/// What the first bytes of a file say that it is.
pub fn probe(sim: &Sim, path: &str) -> Format {
    probe::head(&sim.file_range(path, 0, 512)).unwrap_or(Format::Raw)
}

fn qed_header(sim: &Sim, path: &str) -> Checked<qed::Header> {
    let len = sim.file_len(path).unwrap_or(0);
    qed::Header::parse(&sim.file_range(path, 0, 512), len)
        .map_err(|error| Failure(format!("{path}: {error}")))
}

/// Bytes of a cluster of a QED image.
pub fn qed_cluster(sim: &Sim, path: &str) -> Checked<u64> {
    qed_header(sim, path).map(|header| u64::from(header.cluster_size))
}

/// Does what a machine names, and gives back what it read.
type Perform<'a> = &'a mut dyn FnMut(&mut dyn Machine, Io) -> Checked<Vec<u8>>;

/// The check of either format.
enum Check {
    Qed(Box<qed::Check>),
    Qcow2(Box<format::Check>),
}

impl Check {
    fn new(sim: &Sim, path: &str, len: u64, repair: Option<Repair>) -> Checked<Check> {
        match probe(sim, path) {
            Format::Qed => Ok(Check::Qed(Box::new(qed::Check::new(qed_header(sim, path)?, len, repair)))),
            Format::Qcow2 => {
                let header = qcow2::header(sim, path)?;
                Ok(Check::Qcow2(Box::new(format::Check::new(header, len, repair))))
            }
            Format::Raw => fail(format!("{path}: nothing to check in a raw image")),
        }
    }

    /// Runs to the end.
    fn run(&mut self, perform: Perform<'_>) -> Checked<Report> {
        loop {
            let result = match self {
                Check::Qed(check) => check.poll_result(),
                Check::Qcow2(check) => check.poll_result(),
            };
            if let Some(report) = result {
                return report.map_err(|error| Failure(format!("the check failed: {error}")));
            }
            let machine: &mut dyn Machine = match self {
                Check::Qed(check) => &mut **check,
                Check::Qcow2(check) => &mut **check,
            };
            let Some(io) = machine.poll_io() else {
                return fail("the check wants nothing and has not ended");
            };
            let bytes = perform(machine, io)?;
            let read = matches!(io.op, IoOp::ReadTable { .. });
            machine.handle_completion(io.id, if read { Outcome::Table(&bytes) } else { Outcome::Done });
        }
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
    let len = if probe(sim, path) == Format::Qcow2 { len.max(qcow2::counted(sim, path)?) } else { len };
    checked(sim, path, len).map(|(report, _)| report.leaks)
}

/// A check of the first `len` bytes, and where it says that the image ends (QED: at the end of the file).
fn checked(sim: &Sim, path: &str, len: u64) -> Checked<(Report, u64)> {
    let mut check = Check::new(sim, path, len, None)?;
    let report = check.run(&mut |_, io| match io.op {
        IoOp::ReadTable { offset, len } => Ok(sim.file_range(path, offset, len as usize)),
        _ => fail("a check without repair writes"),
    })?;
    let end = match &check {
        Check::Qed(_) => sim.file_len(path).unwrap_or(0),
        Check::Qcow2(check) => check.image_end(),
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
    let report =
        Check::new(sim, path, file.len() as u64, Some(Repair::All))?.run(&mut |machine, io| match io.op {
            // only a hostile image asks for so much
            IoOp::Grow { to: end, .. } | IoOp::SetLen { len: end } if end > LEN_MAX => {
                fail(format!("a repair makes the file {end} bytes long"))
            }
            IoOp::WriteTable { offset, .. } if offset > LEN_MAX => {
                fail(format!("a repair writes at {offset}"))
            }
            IoOp::ReadTable { offset, len } => {
                let mut bytes = file.get(offset as usize..).unwrap_or_default().to_vec();
                bytes.resize(len as usize, 0);
                Ok(bytes)
            }
            IoOp::WriteTable { offset, len } => {
                let (start, end) = (offset as usize, offset as usize + len as usize);
                file.resize(file.len().max(end), 0);
                machine.encode(io.id, &mut file[start..end]);
                Ok(Vec::new())
            }
            IoOp::Grow { to: len, .. } | IoOp::SetLen { len } => {
                file.resize(len as usize, 0);
                Ok(Vec::new())
            }
            IoOp::Sync => Ok(Vec::new()),
            other => fail(format!("a repair wants {other:?}")),
        })?;
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

/// Byte ranges of the file that hold metadata, as it is visible now; the header aside, which begins the file.
pub fn tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
    match probe(sim, path) {
        Format::Raw => Ok(Vec::new()),
        Format::Qed => qed_tables(sim, path),
        Format::Qcow2 => qcow2::tables(sim, path),
    }
}

fn qed_tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
    let header = qed_header(sim, path)?;
    let bytes = header.table_bytes();
    let l1 = sim.file_range(path, header.l1_table_offset, bytes as usize);
    let mut tables = vec![(header.l1_table_offset, header.l1_table_offset + bytes)];
    for entry in l1.as_chunks::<8>().0 {
        let entry = u64::from_le_bytes(*entry);
        if entry != 0 {
            tables.push((entry, entry + bytes));
        }
    }
    Ok(tables)
}

/// QE12: an image of QED that says it is clean has no space behind its data, but for so many clusters.
pub fn ends_with_data(sim: &Sim, path: &str, known: u64) -> Checked {
    if probe(sim, path) != Format::Qed || is_marked(&sim.file_range(path, 0, 512)) {
        return Ok(());
    }
    let cluster = u64::from(qed_header(sim, path)?.cluster_size);
    let (end, len) = (qed_end(sim, path)?, sim.file_len(path).unwrap_or(0));
    match len.saturating_sub(end).div_ceil(cluster) <= known {
        true => Ok(()),
        false => fail(format!("the bit is clear, the file has {len} bytes, its data ends at {end}")),
    }
}

/// First byte behind all that an image of QED refers to.
fn qed_end(sim: &Sim, path: &str) -> Checked<u64> {
    let cluster = u64::from(qed_header(sim, path)?.cluster_size);
    let tables = qed_tables(sim, path)?;
    let mut end = tables.iter().map(|(_, end)| *end).max().unwrap_or(0);
    for (start, behind) in tables.into_iter().skip(1) {
        let table = sim.file_range(path, start, (behind - start) as usize);
        let entries = table.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
        end = entries.filter(|entry| *entry > 1).map(|entry| entry + cluster).fold(end, u64::max);
    }
    Ok(end)
}

/// Is it a QED image that an opening for writing refuses though it says that it is clean (QE7)?
pub fn is_refused(sim: &Sim, path: &str) -> Checked<bool> {
    if probe(sim, path) != Format::Qed || is_marked(&sim.file_range(path, 0, 512)) {
        return Ok(false);
    }
    let (cluster, len) = (qed_header(sim, path)?.cluster_size, sim.file_len(path).unwrap_or(0));
    Ok(!len.is_multiple_of(cluster.into()) && !check(sim, path)?.is_sound())
}

/// What an opening of a QED image can depend on: all but the bytes that nothing refers to, which are the same
/// to it whatever they are. None: of this image everything.
pub fn essence(sim: &Sim, path: &str) -> Option<u128> {
    let len = sim.file_len(path)?;
    if probe(sim, path) != Format::Qed {
        return None;
    }
    let end = qed_end(sim, path).ok()?.min(len);
    Some(hash_words(hash_bytes(0, &sim.file_range(path, 0, end as usize)), [len, end]))
}

/// Does this first block of a file have the need-check bit (QED) or the dirty bit (qcow2) set?
pub fn is_marked(block: &[u8]) -> bool {
    match probe::head(block).unwrap_or(Format::Raw) {
        Format::Qed => block.get(16).is_some_and(|byte| byte & 2 != 0),
        Format::Qcow2 => block[7] == 3 && block.get(79).is_some_and(|byte| byte & 1 != 0),
        Format::Raw => false,
    }
}

/// Bits of this first block that a writer must clear which does not know them: the autoclear bits, but for
/// that of a raw data file.
pub fn autoclear(block: &[u8]) -> u64 {
    let long = |at: usize| block.get(at..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or_default();
    match probe::head(block).unwrap_or(Format::Raw) {
        Format::Qed => u64::from_le_bytes(long(32)),
        Format::Qcow2 if block[7] == 3 => u64::from_be_bytes(long(88)) & !2,
        Format::Qcow2 | Format::Raw => 0,
    }
}

/// The copy of an image in which the disk is that of a snapshot.
pub fn as_snapshot(sim: &Sim, path: &str, index: usize) -> Checked<Vec<u8>> {
    qcow2::as_snapshot(sim, path, index)
}
