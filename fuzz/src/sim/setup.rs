//! A random image: format, geometry, backing chain, and the settings of its sessions.
//!
//! Knows: which values are worth trying. Must never know: what is done with them.

use super::dice::{ask, chance};
use super::random;
use crate::explore::scenario::stale_files;
use crate::image::{self, DATA, Form, Part, Shape};
use crate::world::{Ask, Session, Subject, TOP, Tweak, World};
use quod::{AllocationGate, Format, OpenOptions, Policy};
use quod_backend::sim::{Chooser, Fifo, FileOptions, Sim};
use quod_bench::contract::payload::{self, SECTOR};
use quod_bench::contract::{Checked, fail};

/// Bytes that a device has behind its image, at most.
const DEVICE_MAX: u64 = 16 << 20;

/// Layers below the image at most.
const DEPTH: usize = 3;

/// Where a run works.
#[derive(Clone, Debug)]
pub struct Place {
    /// The image's format.
    form: Form,
    /// What it began with: only to be told.
    #[allow(dead_code, reason = "printed")]
    parts: Vec<Part>,
    /// Guest offsets around which requests are made.
    spots: Vec<u64>,
    /// How far from them.
    reach: u64,
    /// Requests are multiples of sectors.
    aligned: bool,
    /// Opened with O_DIRECT.
    direct: bool,
    /// The disk may grow,
    pub grows: bool,
    /// and become smaller.
    pub shrinks: bool,
}

impl Place {
    /// A range near one of the spots.
    pub fn range(&self, chooser: &mut dyn Chooser, size: u64) -> (u64, u64) {
        let spot = self.spots[ask(chooser, self.spots.len())].min(size);
        let grain = if self.aligned || !chance(chooser, 3) { SECTOR } else { 1 };
        let low = spot.saturating_sub(self.reach);
        let high = (spot + self.reach).min(size);
        let start = low + grain * ask(chooser, ((high - low).div_ceil(grain) as usize).max(1)) as u64;
        let start = start.min(size - 1) / grain * grain;
        let longest = match ask(chooser, 6) {
            0..=2 => 4096,
            3 | 4 => 2 * self.form.cluster(),
            _ => 5 * self.form.cluster(),
        };
        let most = (size - start).min(longest) / grain;
        (start, grain * (1 + ask(chooser, (most as usize).max(1)) as u64))
    }

    /// Bytes of a cluster.
    pub fn cluster(&self) -> u64 {
        self.form.cluster()
    }

    /// Settings for one session.
    pub fn session(&self, chooser: &mut dyn Chooser, tweak: Tweak) -> Session {
        let gates =
            [AllocationGate::Cluster, AllocationGate::Table, AllocationGate::NewTable, AllocationGate::Image];
        let options = OpenOptions::new()
            .format((self.form == Form::Raw).then_some(Format::Raw))
            .direct(self.direct)
            .policy([Policy::Writeback, Policy::Writethrough][ask(chooser, 2)])
            .allocation_gate(gates[ask(chooser, 4)])
            .cache_bytes([1 << 20, 8 << 10, 16 << 10, 32 << 10][ask(chooser, 4)])
            .grow_step([1 << 20, 0, 4096, 64 << 10][ask(chooser, 4)])
            .allocate_ahead(ask(chooser, 2) == 0)
            .acbs([32, 1, 2, 5, 12][ask(chooser, 5)]);
        Session { options: tweak(options), requests: [16, 1, 3, 32][ask(chooser, 4)], trace: true }
    }
}

/// The content of a layer with `own` over what shows from below.
fn overlay(size: u64, below: &[u8]) -> Vec<u8> {
    let mut content = vec![0; size as usize];
    let shown = below.len().min(content.len());
    content[..shown].copy_from_slice(&below[..shown]);
    content
}

/// The topmost backing file.
struct Below {
    name: String,
    format: Format,
    /// What its guest would see.
    content: Vec<u8>,
}

impl Below {
    fn named(&self) -> (String, Format) {
        (self.name.clone(), self.format)
    }
}

/// Puts backing files on the disk, lowest first.
fn chain(chooser: &mut dyn Chooser, sim: &mut Sim, depth: usize, size: u64) -> Checked<Option<Below>> {
    let mut below: Option<Below> = None;
    for level in (0..depth).rev() {
        let name = format!("base{level}");
        // shorter than the image, equal, or longer
        let len = match ask(chooser, 3) {
            0 => size,
            1 => SECTOR * (1 + ask(chooser, (size / SECTOR) as usize) as u64),
            _ => size + SECTOR * ask(chooser, 64) as u64,
        };
        let lowest = level + 1 == depth;
        let shown = below.as_ref().map(|below| below.content.as_slice()).unwrap_or_default();
        let mut content = overlay(len, shown);
        let backing = below.as_ref().map(Below::named);
        let format = match ask(chooser, 3) {
            0 if lowest => {
                payload::fill(1_000_000 + level as u64, 0, &mut content);
                sim.insert_file(&name, &content, FileOptions::default());
                Format::Raw
            }
            1 => {
                let qcow2 = random::qcow2(chooser, !lowest);
                let parts = random::parts(chooser, &qcow2, len, true);
                let shape = Shape { form: Form::Qcow2(qcow2), size: len, backing };
                let start = image::start(&shape, &parts, shown, 1_000_000 + 1000 * level as u64)?;
                sim.insert_file(&name, &start.bytes, FileOptions::default());
                content = start.content;
                Format::Qcow2
            }
            _ => {
                let form = Form::Qed { cluster: 4096 << ask(chooser, 3), table: 1 << ask(chooser, 2) };
                let shape = Shape { form, size: len, backing };
                write_layer(chooser, sim, &name, &shape, &mut content, level as u64)?;
                Format::Qed
            }
        };
        below = Some(Below { name, format, content });
    }
    Ok(below)
}

/// A QED layer with a few clusters of its own, written by the driver.
fn write_layer(
    chooser: &mut dyn Chooser,
    sim: &mut Sim,
    name: &str,
    shape: &Shape,
    content: &mut [u8],
    level: u64,
) -> Checked {
    sim.insert_file(TOP, &image::create(shape)?, FileOptions::default());
    let session = Session { options: OpenOptions::new(), requests: 4, trace: false };
    let mut world = World::new(sim.clone(), content.to_vec(), session, Subject::new(shape.form));
    world.number_from(2_000_000 + level * 1000);
    world.open(&mut Fifo)?;
    for _ in 0..1 + ask(chooser, 4) {
        let offset = SECTOR * ask(chooser, (shape.size / SECTOR) as usize) as u64;
        let len = (SECTOR * (1 + ask(chooser, 40) as u64)).min(shape.size - offset);
        let user = world.next_number();
        let zero = ask(chooser, 3) == 1;
        let range = offset as usize..(offset + len) as usize;
        if zero {
            content[range].fill(0);
            world.ask(Ask::Zero { offset, len, fua: false })?;
        } else {
            payload::fill(user, offset, &mut content[range]);
            world.ask(Ask::Write { offset, len, fua: false })?;
        }
        world.drain(&mut Fifo)?;
    }
    if !world.close()? {
        return fail("a backing layer does not close");
    }
    let bytes = world.sim().file_bytes(TOP);
    sim.insert_file(name, &bytes, FileOptions::default());
    Ok(())
}

/// The header has an autoclear bit that nobody knows.
fn mark(bytes: &mut [u8], form: Form) {
    match form {
        Form::Qed { .. } => bytes[32] |= 1,
        Form::Qcow2(qcow2) if qcow2.version == 3 => bytes[95] |= 0x20,
        Form::Qcow2(_) | Form::Raw => {}
    }
}

/// A world with a random image, closed, and where to work in it.
pub fn build(chooser: &mut dyn Chooser, tweak: Tweak) -> Checked<(World, Place)> {
    let format = match ask(chooser, 20) {
        0..=8 => Format::Qed,
        9..=17 => Format::Qcow2,
        _ => Format::Raw,
    };
    let depth = if format == Format::Raw { 0 } else { ask(chooser, DEPTH + 1) };
    let form = match format {
        Format::Raw => Form::Raw,
        Format::Qed => random::qed(chooser),
        Format::Qcow2 => Form::Qcow2(random::top(chooser, depth > 0)),
    };
    let (cluster, span) = (form.cluster(), form.span());
    // small, or with a border between two L2 tables in it, or with more tables than the cache has room for
    let border = span <= 2 << 20 && chance(chooser, 3);
    let tables = if !border && span <= 64 << 10 && chance(chooser, 2) { 12 + ask(chooser, 16) } else { 0 };
    let most = if cluster > 1 << 20 { 5 * cluster / 2 } else { 12 * cluster };
    let extra = SECTOR * (1 + ask(chooser, (most / SECTOR) as usize) as u64);
    let size = if border { span + extra } else { span * tables as u64 + extra };
    let direct = ask(chooser, 2) == 1;
    // a raw image under O_DIRECT ends with a whole block
    let size = if format == Format::Raw { size.next_multiple_of(4096) } else { size };
    // smaller clusters are not written around the page cache
    let blocks = if cluster < 4096 { [512; 2] } else { [512, 4096] };
    let options = FileOptions {
        offset_align: blocks[ask(chooser, 2)],
        holes: format != Format::Qcow2 || !chance(chooser, 8),
        // of the size, so that no other choice depends on it
        block_device: format != Format::Raw && !form.has_data_file() && (size / SECTOR) % 7 == 3,
        ..FileOptions::default()
    };
    let mut sim = Sim::new();
    // the image comes first in the list of files
    sim.insert_sparse(TOP, 0, FileOptions::default());
    let below = chain(chooser, &mut sim, depth, size)?;
    let (backed, name) = (below.is_some(), below.as_ref().map(Below::named));
    let shown = below.map(|below| below.content).unwrap_or_default();
    let parts = match &form {
        Form::Qcow2(qcow2) if !form.has_data_file() => random::parts(chooser, qcow2, size, false),
        _ => Vec::new(),
    };
    let start = image::start(&Shape { form, size, backing: name }, &parts, &shown, 4_000_000)?;
    let mut bytes = start.bytes;
    if (size / SECTOR).is_multiple_of(4) {
        mark(&mut bytes, form);
    }
    if options.block_device {
        // room for all of it, or not (a repair of late counts may need as much as they take)
        let late = matches!(form, Form::Qcow2(qcow2) if qcow2.lazy_refcounts);
        let more = if late || (size / SECTOR).is_multiple_of(2) { 3 * size + 40 * cluster } else { size / 2 };
        bytes.resize(bytes.len() + more.min(DEVICE_MAX) as usize, image::STALE);
    }
    sim.insert_file(TOP, &bytes, options);
    if form.has_data_file() {
        sim.insert_sparse(DATA, size, options);
    }
    let stale = stale_files(&sim);
    sim.set_capacity([256, 1, 3, 8][ask(chooser, 4)]);
    sim.set_crash_unit([512, 512, 4096][ask(chooser, 3)]);
    // QEMU does not change the size of old images with snapshots either
    let old = matches!(form, Form::Qcow2(qcow2) if qcow2.version == 2);
    let place = Place {
        form,
        spots: match tables {
            0 if border => vec![span, cluster, span],
            0 => vec![size / 2, 0, size],
            _ => (0..tables as u64).map(|table| table * span).collect(),
        },
        reach: (cluster * [3, 1, 8][ask(chooser, 3)]).min(size),
        aligned: ask(chooser, 2) == 0,
        direct,
        grows: format != Format::Raw && !form.has_data_file() && (!old || start.snapshots.is_empty()),
        // what an older table showed from below would come to light again
        shrinks: format == Format::Qcow2 && !form.has_data_file() && !backed && !old,
        parts,
    };
    let session = place.session(chooser, tweak);
    let below = shown.len() as u64;
    let subject = Subject {
        backed,
        below,
        stale,
        snapshots: start.snapshots,
        leaks: start.leaks,
        fills_up: options.block_device,
        ..Subject::new(form)
    };
    Ok((World::new(sim, start.content, session, subject), place))
}
