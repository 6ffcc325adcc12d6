//! What fuzzing starts from, made when it is needed: new images of every create option, images that hold
//! something, texts; and how they are changed.
//!
//! Knows: create options by qemu-img's names, where changes tell most. Must never know: what a target checks.
//! Invariant: an image of [`created`] is byte for byte what qemu-img makes of its options (a test compares).

use super::messages;
use crate::image::{self, Form, Part, Qcow2, Shape};
use crate::schedule::Schedule;
use crate::world::{Ask, Session, Subject, TOP, World};
use quod::{Format, OpenOptions};
use quod_backend::sim::{Choice, Chooser, Fifo, FileOptions, Seeded, Sim};
use quod_bench::contract::{Checked, Failure};
use quod_states::qcow2::{self, Compression, Preallocation};
use quod_states::qed;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Bytes of the guest disk of new images.
pub const SIZE: u64 = 1 << 20;
/// The backing file of those that have one; raw.
pub const BASE: &str = "base";
/// Images of the corpus are no longer.
const IMAGE_MAX: u64 = 512 << 10;

/// What inputs of a target look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Corpus {
    /// Answers of a chooser.
    Choices,
    /// Beginnings of images.
    Headers,
    /// Entries of tables.
    Entries,
    /// Images.
    Images,
    /// Schedules.
    Schedules,
    /// fio's iologs.
    Traces,
    /// Options of a client of NBD.
    Negotiations,
    /// Requests of one.
    Requests,
}

/// A new image.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its format.
    pub format: Format,
    /// What `qemu-img create -o` makes it of, besides [`SIZE`].
    pub options: String,
    /// It has the backing file [`BASE`].
    pub backed: bool,
    /// The file, or as much of its beginning as is useful.
    pub bytes: Vec<u8>,
    /// The file is longer.
    pub partial: bool,
}

fn qed(cluster_size: u32, table_size: u32, backed: bool) -> Checked<Created> {
    let form = Form::Qed { cluster: cluster_size, table: table_size };
    let options = format!("cluster_size={cluster_size},table_size={table_size}");
    let len = u64::from(cluster_size) * u64::from(1 + table_size);
    let (format, partial) = (Format::Qed, len > IMAGE_MAX);
    let backing = backed.then(|| (BASE.to_string(), Format::Raw));
    let bytes = match partial {
        false => image::create(&Shape { form, size: SIZE, backing })?,
        true => {
            let backing = backed.then_some(BASE.as_bytes());
            let options =
                qed::CreateOptions { size: SIZE, cluster_size, table_size, backing, backing_raw: true };
            let header = qed::Header::create(&options).map_err(|error| Failure(error.to_string()))?;
            [&header.encode()[..], backing.unwrap_or_default()].concat()
        }
    };
    Ok(Created { format, options, backed, bytes, partial })
}

fn qcow2(more: qcow2::CreateOptions<'static>) -> Checked<Created> {
    let on = |set| if set { "on" } else { "off" };
    let mut words = vec![
        format!("compat={}", if more.version == 2 { "0.10" } else { "1.1" }),
        format!("cluster_size={}", more.cluster_size),
        format!("refcount_bits={}", more.refcount_bits),
    ];
    if more.version > 2 {
        words.push(format!("lazy_refcounts={}", on(more.lazy_refcounts)));
        words.push(format!("extended_l2={}", on(more.extended_l2)));
    }
    if more.compression == Compression::Zstd {
        words.push("compression_type=zstd".into());
    }
    if let Some(name) = more.data_file {
        words.push(format!("data_file={}", String::from_utf8_lossy(name)));
        words.push(format!("data_file_raw={}", on(more.data_file_raw)));
    }
    words.push(String::from(match more.preallocation {
        Preallocation::Off => "preallocation=off",
        Preallocation::Metadata => "preallocation=metadata",
        Preallocation::Falloc => "preallocation=falloc",
        Preallocation::Full => "preallocation=full",
    }));
    let options = words.join(",");
    let created = qcow2::create(&more).map_err(|error| Failure(format!("{options}: {error}")))?;
    let len = created.len().max(created.data_range().map_or(0, |(at, len)| at + len));
    let mut bytes = vec![0; len.min(IMAGE_MAX) as usize];
    for (offset, piece) in
        created.pieces().filter(|(offset, _)| *offset < bytes.len() as u64).collect::<Vec<_>>()
    {
        let at = offset as usize;
        let len = piece.len().min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&piece[..len]);
    }
    let (format, backed, partial) = (Format::Qcow2, more.backing.is_some(), len > IMAGE_MAX);
    Ok(Created { format, options, backed, bytes, partial })
}

fn all_created() -> Checked<Vec<Created>> {
    let mut all = Vec::new();
    for bits in 12..=26 {
        for table in [1, 2, 4, 8, 16] {
            all.push(qed(1 << bits, table, bits % 2 == 0)?);
        }
    }
    let plain = qcow2::CreateOptions { size: SIZE, ..Default::default() };
    let with_backing =
        qcow2::CreateOptions { backing: Some(BASE.as_bytes()), backing_format: Some(b"raw"), ..plain };
    for bits in 9..=21 {
        let plain = qcow2::CreateOptions { cluster_size: 1 << bits, ..plain };
        all.push(qcow2(qcow2::CreateOptions { version: 2, ..plain })?);
        for order in 0..=6 {
            let refcount_bits = 1 << order;
            all.push(qcow2(qcow2::CreateOptions { refcount_bits, lazy_refcounts: order % 2 == 0, ..plain })?);
        }
        for preallocation in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
            all.push(qcow2(qcow2::CreateOptions { preallocation, ..plain })?);
        }
        if bits >= 14 {
            all.push(qcow2(qcow2::CreateOptions { extended_l2: true, ..plain })?);
            let preallocation = Preallocation::Metadata;
            all.push(qcow2(qcow2::CreateOptions { extended_l2: true, preallocation, ..plain })?);
        }
    }
    for version in [2, 3] {
        all.push(qcow2(qcow2::CreateOptions { version, ..with_backing })?);
        all.push(qcow2(qcow2::CreateOptions { version, cluster_size: 4096, ..with_backing })?);
    }
    all.push(qcow2(qcow2::CreateOptions { compression: Compression::Zstd, ..plain })?);
    for data_file_raw in [false, true] {
        all.push(qcow2(qcow2::CreateOptions { data_file: Some(b"data"), data_file_raw, ..plain })?);
    }
    Ok(all)
}

/// New images, one for each value of each create option and some combinations.
pub fn created() -> &'static [Created] {
    static MADE: OnceLock<Vec<Created>> = OnceLock::new();
    // fixed options: a test makes them all
    MADE.get_or_init(|| all_created().unwrap_or_else(|failure| panic!("the corpus: {failure}")))
}

/// Small images that hold something: data, zeros, compressed clusters, a snapshot, leaks.
fn filled() -> Checked<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    for (cluster, table) in [(4096, 1), (4096, 2), (8192, 4)] {
        let (form, size) = (Form::Qed { cluster, table }, 100_000 / 512 * 512);
        let mut sim = Sim::new();
        sim.insert_file(TOP, &image::create(&Shape { form, size, backing: None })?, FileOptions::default());
        let session = Session { options: OpenOptions::new().grow_step(0), requests: 4, trace: false };
        let mut world = World::new(sim, vec![0; size as usize], session, Subject::new(form));
        world.open(&mut Fifo)?;
        for (offset, len) in [(0, 9000), (40_000, 3000), (70_000, 512)] {
            world.ask(Ask::Write { offset, len, fua: false })?;
            world.drain(&mut Fifo)?;
        }
        world.close()?;
        all.push((format!("filled qed {cluster} {table}"), world.sim().file_bytes(TOP)));
    }
    let parts = [
        Part::Data { first: 0, count: 3 },
        Part::Compressed { first: 4, count: 3 },
        Part::Zero { first: 8, count: 1, keep: true },
        Part::Snapshot,
        Part::Data { first: 1, count: 1 },
    ];
    let wide = Qcow2 { refcount_bits: 64, ..Qcow2::new(1024) };
    let extended = Qcow2 { extended_l2: true, ..Qcow2::new(16384) };
    let old = Qcow2 { version: 2, ..Qcow2::new(4096) };
    for (qcow2, from) in [(Qcow2::new(4096), 0), (wide, 0), (extended, 0), (old, 3), (Qcow2::new(1024), 4)] {
        let shape = Shape { form: Form::Qcow2(qcow2), size: 12 * u64::from(qcow2.cluster), backing: None };
        let start = image::start(&shape, &parts[from..], &[], 77)?;
        all.push((format!("filled {qcow2:?} {from}"), start.bytes));
    }
    Ok(all)
}

fn images() -> &'static [(String, Vec<u8>)] {
    static MADE: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    MADE.get_or_init(|| {
        let filled = filled().unwrap_or_else(|failure| panic!("the corpus: {failure}"));
        let new = created().iter().filter(|made| !made.partial);
        // those that hold something are worth more
        let new = new.map(|made| (format!("{} {}", made.format.name(), made.options), made.bytes.clone()));
        let times = 1 + created().len() / filled.len() / 2;
        new.chain(std::iter::repeat_n(filled, times).flatten()).collect()
    })
}

const TRACES: [&str; 3] = [
    "fio version 2 iolog\nd add\nd open\n\
     d write 0 4096\nd wait 150 0\nd read 512 1024\nd sync 0 0\nd close\n",
    "fio version 3 iolog\n0 d add\n0 d open\n\
     12 d write 8192 512\n90 d trim 0 4096\n91 d datasync\n99 d close\n",
    "fio version 3 iolog\n5 a read 0 512\n3 b write 18446744073709551615 1\n",
];

fn schedules() -> Vec<Vec<u8>> {
    let numbers = |n: u32| (0..n).map(|i| i.wrapping_mul(2_654_435_761) >> 24).collect();
    let made = [("sim", 40, None), ("sim", 250, None), ("explore two-writers", 9, Some(vec![3, 1, 0]))];
    let schedule = |(run, n, crash): (&str, u32, _)| {
        let schedule = Schedule { run: run.into(), choices: numbers(n), crash, story: vec!["told".into()] };
        schedule.to_string().into_bytes()
    };
    made.map(schedule).to_vec()
}

impl Corpus {
    /// Everything to start from, once each.
    pub(super) fn all(self) -> Vec<(String, Vec<u8>)> {
        let list = |name: &str, items: Vec<Vec<u8>>| {
            let named = |(n, bytes)| (format!("{name} {n}"), bytes);
            items.into_iter().enumerate().map(named).collect()
        };
        match self {
            Corpus::Choices | Corpus::Entries | Corpus::Negotiations | Corpus::Requests => {
                let mut seeds = (0..32).map(Seeded::new).collect::<Vec<_>>();
                list("random", seeds.iter_mut().map(|seed| self.input(seed)).collect())
            }
            Corpus::Headers => {
                let head = |bytes: &[u8]| bytes[..bytes.len().min(4096)].to_vec();
                let name = |made: &Created| format!("{} {}", made.format.name(), made.options);
                created().iter().map(|made| (name(made), head(&made.bytes))).collect()
            }
            Corpus::Images => images().iter().cloned().collect::<BTreeMap<_, _>>().into_iter().collect(),
            Corpus::Schedules => list("schedule", schedules()),
            Corpus::Traces => list("trace", TRACES.map(|text| text.as_bytes().to_vec()).to_vec()),
        }
    }

    /// One of them, changed in some places; choices are made anew.
    pub(super) fn input(self, seed: &mut Seeded) -> Vec<u8> {
        let mut pick = |n: usize| seed.choose(Choice::Other, n.max(1));
        let mut bytes = match self {
            Corpus::Choices => {
                let len = [60, 400, 1500, 4000][pick(4)];
                return (0..pick(len)).map(|_| pick(256) as u8).collect();
            }
            Corpus::Entries => {
                let words = 2 + pick(12);
                let mut bytes = vec![pick(256) as u8, pick(256) as u8];
                for _ in 0..words {
                    // few bits are set in an entry
                    let word = (0..pick(6)).fold(0u64, |word, _| word | 1 << pick(64));
                    bytes.extend(word.to_be_bytes());
                }
                return bytes;
            }
            Corpus::Negotiations => messages::negotiations(&mut pick),
            Corpus::Requests => messages::requests(&mut pick),
            Corpus::Headers => {
                let made = &created()[pick(created().len())].bytes;
                made[..made.len().min(4096)].to_vec()
            }
            Corpus::Images => images()[pick(images().len())].1.clone(),
            Corpus::Schedules => {
                let all = schedules();
                all[pick(all.len())].clone()
            }
            Corpus::Traces => TRACES[pick(TRACES.len())].as_bytes().to_vec(),
        };
        for _ in 0..[1, 0, 2, 6][pick(4)] {
            change(&mut bytes, &mut pick);
        }
        bytes
    }
}

/// A place where a change tells something: in the header, in what is not zero, anywhere.
fn place(bytes: &[u8], pick: &mut dyn FnMut(usize) -> usize) -> usize {
    match pick(8) {
        0..=2 => pick(bytes.len().min(112)),
        7 => pick(bytes.len()),
        _ => {
            let from = pick(bytes.len());
            let after = bytes[from..].iter().position(|byte| *byte != 0);
            after.map_or(from, |after| from + after)
        }
    }
}

fn change(bytes: &mut Vec<u8>, pick: &mut dyn FnMut(usize) -> usize) {
    if bytes.is_empty() {
        return;
    }
    let at = place(bytes, pick);
    let long = at / 8 * 8;
    match pick(10) {
        0..=2 => bytes[at] ^= 1 << pick(8),
        3 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b' ', b'9', b'\n'][pick(8)],
        4 => bytes[at] = bytes[at].wrapping_add([1, 255][pick(2)]),
        // a word is another word of the same file
        5 | 6 if long + 8 <= bytes.len() => {
            let from = place(bytes, pick) / 8 * 8;
            if from + 8 <= bytes.len() {
                bytes.copy_within(from..from + 8, long);
            }
        }
        7 if long + 8 <= bytes.len() => {
            let word = (1u64 << pick(64)).wrapping_sub(pick(2) as u64);
            bytes[long..long + 8].copy_from_slice(&word.to_be_bytes());
        }
        8 => bytes.truncate(at),
        9 => bytes.insert(at, pick(256) as u8),
        _ => bytes[at] = pick(256) as u8,
    }
}
