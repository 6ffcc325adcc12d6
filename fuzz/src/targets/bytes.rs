//! Targets about hostile bytes: headers, entries of tables, whole files.
//!
//! Checks: any bytes are read or refused, without a panic and in a bounded number of steps; what was read and
//! written again is the same; an image that opens keeps its invariants and answers every request; one that is
//! open for reading alone is not written.
//!
//! Knows: how to call readers and writers, and the driver. Must never know: which bytes are valid.

use crate::image;
use crate::probe::Probe;
use crate::world::TOP;
use quod::{
    AllowAll, Buffer, CompletionKind, Config, DiskId, DiskInfo, Driver, OpenOptions, Refusal, Request,
};
use quod_backend::sim::{Fifo, FileOptions, Sim};
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2::snapshot::{Parsed, Snapshot};
use quod_states::qcow2::{self, Purpose, Shape, bitmap, refcount::BlockShape};
use quod_states::qed;

/// Completions in a row in which nothing is answered.
const PATIENCE: usize = 100_000;
/// The file that is checked after writing is no larger.
const CHECK_MAX: u64 = 64 << 20;

/// The beginning of a file, as QED's header and as qcow2's.
pub(super) fn header(input: &[u8]) -> Checked {
    qed_header(input)?;
    let region = qcow2::Header::region(&input[..input.len().min(512)]);
    let mut block = input.to_vec();
    block.resize(region.max(512), 0);
    for purpose in [Purpose::Read, Purpose::Write, Purpose::Check] {
        if let Ok(header) = qcow2::Header::parse(&block, purpose) {
            qcow2_header(&block, header, purpose)?;
        }
    }
    Ok(())
}

fn qed_header(input: &[u8]) -> Checked {
    let block = &input[..input.len().min(4096)];
    for len in [input.len() as u64, i64::MAX as u64] {
        let Ok(mut header) = qed::Header::parse(block, len) else { continue };
        let mut written = vec![0xdb; block.len()];
        header.encode_block(&mut written);
        if written != block {
            return fail("QED: what was read is not what is written");
        }
        let geometry = header.geometry();
        if header.image_size > header.size_max() || header.table_bytes() == 0 {
            return fail(format!("QED: {header:?} with {geometry:?}"));
        }
        if header.set_backing(Some(b"another"), true).is_ok() {
            header.encode_block(&mut written);
            let again = qed::Header::parse(&written, len)
                .map_err(|error| Failure(format!("QED with another backing file: {error}")))?;
            if again.backing_name() != Some((64, 7)) || !again.backing_raw() {
                return fail(format!("QED with another backing file: {again:?}"));
            }
        }
    }
    Ok(())
}

fn qcow2_header(block: &[u8], mut header: qcow2::Header, purpose: Purpose) -> Checked {
    let written = header.encode();
    if block.get(..written.len()).is_some_and(|block| block != written) {
        let at = block.iter().zip(&written).position(|(a, b)| a != b);
        return fail(format!("qcow2, {purpose:?}: what was read is not what is written, at {at:?}"));
    }
    let (shape, layout) = (header.shape(), header.refcounts());
    if header.guest_size() > header.size || shape.l1_entries(header.size) > header.l1_entries.into() {
        return fail(format!("qcow2: {header:?} with {shape:?} and {layout:?}"));
    }
    header.clear_autoclear(qcow2::header::RAW_DATA_FILE);
    header.set_corrupt(true);
    if header.version == 3 {
        header.set_dirty(true);
    }
    if header.set_backing(Some(b"another"), Some(b"raw")).is_ok() {
        let mut written = header.encode();
        written.resize(qcow2::Header::region(&written).max(written.len()).max(512), 0);
        let again = qcow2::Header::parse(&written, Purpose::Check)
            .map_err(|error| Failure(format!("qcow2 with another backing file: {error}")))?;
        if again.backing() != Some(b"another") || again.backing_format() != Some(b"raw") {
            return fail(format!("qcow2 with another backing file: {again:?}"));
        }
        if again.is_dirty() != (header.version == 3) || again.extensions() != header.extensions() {
            return fail(format!("qcow2 with another backing file: {again:?}, it was {header:?}"));
        }
    }
    Ok(())
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, value: T, again: T) -> Checked {
    match value == again {
        true => Ok(()),
        false => fail(format!("{what}: {value:?} was written and read as {again:?}")),
    }
}

/// Entries of qcow2's tables. The first two bytes say what kind of image they are in.
pub(super) fn entries(input: &[u8]) -> Checked {
    let Some(([bits, flags], rest)) = input.split_first_chunk() else { return Ok(()) };
    let shape = Shape {
        version: if flags & 1 == 0 { 3 } else { 2 },
        cluster_bits: 9 + u32::from(bits % 13),
        extended: flags & 7 == 2 && bits % 13 >= 5,
        data_file: flags & 7 == 4,
    };
    let (words, _) = rest.as_chunks::<8>();
    for [a, b] in words.iter().zip(words.iter().skip(1)).map(|(a, b)| [a, b].map(|w| u64::from_be_bytes(*w)))
    {
        if let Ok(entry) = shape.decode_l1(0, a) {
            let again = shape.decode_l1(0, entry.encode());
            same("L1", Some(entry), again.ok())?;
        }
        if let Ok(entry) = shape.decode_l2(0, a, if shape.extended { b } else { 0 }) {
            let (word, bitmap) = shape.encode_l2(entry);
            same("L2", Some(entry), shape.decode_l2(0, word, bitmap).ok())?;
        }
        let _ = shape.decode_reftable(0, a);
        let _ = bitmap::decode_piece(0, a, shape);
        let layout = BlockShape { cluster_bits: shape.cluster_bits, order: u32::from(flags >> 3) % 7 };
        let (mut block, index) = (vec![0; 1 << shape.cluster_bits], layout.block_index(a));
        layout.set(&mut block, index, b & layout.max());
        same("refcount", b & layout.max(), layout.get(&block, index))?;
    }
    for trim in [false, true] {
        if let Ok(Parsed::Entry(snapshot, _)) = Snapshot::parse(rest, 0, trim) {
            let mut table = Vec::new();
            snapshot.encode(&mut table);
            match Snapshot::parse(&table, 0, false) {
                Ok(Parsed::Entry(again, len)) if len == table.len() => same("snapshot", snapshot, again)?,
                other => return fail(format!("snapshot: {snapshot:?} was written and read as {other:?}")),
            }
        }
    }
    let _ = bitmap::Extension::parse(rest, shape.cluster_size());
    let _ = bitmap::parse_directory(rest, u32::from(*bits), shape, 1 << 40);
    Ok(())
}

/// A driver with one file.
struct Bench {
    driver: Driver<Probe>,
    disk: DiskId,
}

impl Bench {
    /// None: it does not open.
    fn open(input: &[u8], write: bool) -> Checked<Option<Bench>> {
        let mut sim = Sim::new();
        sim.insert_file(TOP, input, FileOptions::default());
        let mut driver = Driver::with_backend(Probe::new(sim), Config::default().requests(4))
            .map_err(|error| Failure(format!("set up: {error}")))?;
        let options = OpenOptions::new().write(write).cache_bytes(64 << 10).grow_step(0).open_gate(AllowAll);
        let disk = driver.open(TOP, options).map_err(|error| Failure(format!("open: {error}")))?;
        let mut bench = Bench { driver, disk };
        let (kind, ok) = bench.answer()?;
        match kind {
            CompletionKind::Opened => Ok(ok.then_some(bench)),
            other => fail(format!("opening answered {other:?}")),
        }
    }

    /// Waits for the next answer.
    fn answer(&mut self) -> Checked<(CompletionKind, bool)> {
        for _ in 0..PATIENCE {
            self.driver.turn().map_err(|error| Failure(format!("turn: {error}")))?;
            if let Some(done) = self.driver.next_completion() {
                return Ok((done.kind, done.result.is_ok()));
            }
            if !self.driver.backend_mut().step(&mut Fifo) {
                let Some(left) = self.driver.next_timeout() else {
                    return fail("nothing is left to wait for");
                };
                self.driver.backend_mut().sim_mut().advance(left);
            }
        }
        fail("no answer comes")
    }

    /// A request that may fail, but must be answered.
    fn ask(&mut self, request: Request) -> Checked {
        match self.driver.submit(self.disk, request) {
            Ok(()) => self.answer().map(drop)?,
            Err(rejected) if rejected.reason == Refusal::Busy => return fail("busy at rest"),
            Err(_) => {}
        }
        for layer in 0..self.driver.layers(self.disk) {
            let sound = self.driver.image(self.disk, layer).map_or(Ok(()), |image| image.check_invariants());
            sound.map_err(|what| Failure(format!("invariant: {what}")))?;
        }
        Ok(())
    }

    fn sim(&self) -> &Sim {
        self.driver.backend().sim()
    }
}

/// A whole file: opened for reading alone and for writing, and used.
pub(super) fn open(input: &[u8]) -> Checked {
    for write in [false, true] {
        let Some(mut bench) = Bench::open(input, write)? else { continue };
        let size = bench.driver.disk_info(bench.disk).map_or(0, DiskInfo::virtual_size);
        let place = |at: u64| (at.min(size) / 512 * 512, (size - at.min(size) / 512 * 512).min(5000));
        let mut places = [0, 4096, 70_000, size / 2, size.saturating_sub(3000)].map(place).to_vec();
        places.retain(|(_, len)| *len > 0);
        for (offset, len) in &places {
            bench.ask(Request::map(0, *offset, *len, 1))?;
            bench.ask(Request::read(*offset, Buffer::zeroed(*len as usize), 1))?;
        }
        if !write {
            if bench.sim().file_len(TOP) != Some(input.len() as u64) || bench.sim().file_bytes(TOP) != input {
                return fail("open for reading alone, and written");
            }
            continue;
        }
        for (index, (offset, len)) in places.iter().enumerate() {
            let len = (*len).min(700);
            bench.ask(match index % 3 {
                0 => Request::write(*offset, Buffer::zeroed(len as usize), 1),
                1 => Request::discard(*offset, len, 1),
                _ => Request::write_zeroes(*offset, len, 1).may_unmap(),
            })?;
        }
        bench.ask(Request::flush(1))?;
        bench.ask(Request::close(1))?;
        if bench.sim().file_len(TOP).is_some_and(|len| len <= CHECK_MAX) {
            // hostile images are not sound: only that it ends matters
            let _ = image::check(bench.sim(), TOP);
        }
    }
    Ok(())
}
