//! A random image: format, geometry, backing chain, and the settings of its sessions.
//!
//! Knows: which values are worth trying. Must never know: what is done with them.

use super::{ask, chance};
use crate::image::{self, Form, Shape};
use crate::payload::{self, SECTOR};
use crate::world::{Ask, Session, Subject, TOP, Tweak, World};
use crate::{Checked, fail};
use quod::{Format, Gate, OpenOptions, Policy};
use quod_backend::sim::{Chooser, Fifo, FileOptions, Sim};

/// Layers below the image at most.
const DEPTH: usize = 3;

/// Where a run works.
#[derive(Clone, Debug)]
pub struct Place {
    /// Raw or QED.
    pub raw: bool,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Guest offsets around which requests are made.
    spots: Vec<u64>,
    /// How far from them.
    reach: u64,
    /// Requests are multiples of sectors.
    aligned: bool,
    /// Opened with O_DIRECT.
    direct: bool,
    /// The disk may grow.
    pub grows: bool,
}

impl Place {
    /// A range near one of the spots.
    pub fn range(&self, chooser: &mut dyn Chooser, size: u64) -> (u64, u64) {
        let spot = self.spots[ask(chooser, self.spots.len())];
        let grain = if self.aligned || !chance(chooser, 3) { SECTOR } else { 1 };
        let low = spot.saturating_sub(self.reach);
        let high = (spot + self.reach).min(size);
        let start = low + grain * ask(chooser, ((high - low).div_ceil(grain) as usize).max(1)) as u64;
        let start = start.min(size - 1) / grain * grain;
        let longest = match ask(chooser, 6) {
            0..=2 => 4096,
            3 | 4 => 2 * self.cluster,
            _ => 5 * self.cluster,
        };
        let most = (size - start).min(longest) / grain;
        (start, grain * (1 + ask(chooser, (most as usize).max(1)) as u64))
    }

    /// Settings for one session.
    pub fn session(&self, chooser: &mut dyn Chooser, tweak: Tweak) -> Session {
        let gates = [Gate::Cluster, Gate::Table, Gate::NewTable, Gate::Image];
        let options = OpenOptions::new()
            .format(self.raw.then_some(Format::Raw))
            .direct(self.direct)
            .policy([Policy::Writeback, Policy::Writethrough][ask(chooser, 2)])
            .gate(gates[ask(chooser, 4)])
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
fn chain(chooser: &mut dyn Chooser, sim: &mut Sim, size: u64) -> Checked<Option<Below>> {
    let depth = ask(chooser, DEPTH + 1);
    let mut below: Option<Below> = None;
    for level in (0..depth).rev() {
        let name = format!("base{level}");
        // shorter than the image, equal, or longer
        let len = match ask(chooser, 3) {
            0 => size,
            1 => SECTOR * (1 + ask(chooser, (size / SECTOR) as usize) as u64),
            _ => size + SECTOR * ask(chooser, 64) as u64,
        };
        let raw = level + 1 == depth && ask(chooser, 2) == 0;
        let shown = below.as_ref().map(|below| below.content.as_slice()).unwrap_or_default();
        let mut content = overlay(len, shown);
        let mut format = Format::Raw;
        if raw {
            payload::fill(1_000_000 + level as u64, 0, &mut content);
            sim.insert_file(&name, &content, FileOptions::default());
        } else {
            let form = Form::Qed { cluster: 4096 << ask(chooser, 3), table: 1 << ask(chooser, 2) };
            format = form.format();
            let shape = Shape { form, size: len, backing: below.as_ref().map(Below::named) };
            write_layer(chooser, sim, &name, &shape, &mut content, level as u64)?;
        }
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

/// A world with a random image, closed, and where to work in it.
pub fn build(chooser: &mut dyn Chooser, tweak: Tweak) -> Checked<(World, Place)> {
    let raw = chance(chooser, 10);
    // very rarely clusters that are copied in several pieces
    let huge = chance(chooser, 50);
    let cluster = 4096u64 << if huge { 9 } else { [0, 1, 2, 4, 3][ask(chooser, 5)] };
    let table = 1u32 << [0, 1, 2, 4][ask(chooser, 4)];
    let span = cluster * cluster / 8 * u64::from(table);
    // small, or with a border between two L2 tables in it
    let border = !raw && span <= 2 << 20 && chance(chooser, 3);
    let most = if huge { 5 * cluster / 2 } else { 12 * cluster };
    let form = if raw { Form::Raw } else { Form::Qed { cluster: cluster as u32, table } };
    let extra = SECTOR * (1 + ask(chooser, (most / SECTOR) as usize) as u64);
    let size = if border { span + extra } else { extra };
    let align = [512, 4096][ask(chooser, 2)];
    let direct = ask(chooser, 2) == 1;
    // a raw image under O_DIRECT ends with a whole block
    let size = if raw { size.next_multiple_of(4096) } else { size };
    let mut sim = Sim::new();
    // the image comes first in the list of files
    sim.insert_sparse(TOP, 0, FileOptions::default());
    let below = if raw { None } else { chain(chooser, &mut sim, size)? };
    let options = FileOptions { offset_align: align, ..FileOptions::default() };
    if raw {
        sim.insert_sparse(TOP, size, options);
    } else {
        let shape = Shape { form, size, backing: below.as_ref().map(Below::named) };
        sim.insert_file(TOP, &image::create(&shape)?, options);
    }
    sim.set_capacity([256, 1, 3, 8][ask(chooser, 4)]);
    sim.set_crash_unit([512, 512, 4096][ask(chooser, 3)]);
    let spots = if border { vec![span, cluster, span] } else { vec![size / 2, 0, size] };
    let place = Place {
        raw,
        cluster,
        spots,
        reach: (cluster * [3, 1, 8][ask(chooser, 3)]).min(size),
        aligned: ask(chooser, 2) == 0,
        direct,
        grows: !raw,
    };
    let session = place.session(chooser, tweak);
    let backed = below.is_some();
    let shown = below.map(|below| below.content).unwrap_or_default();
    let content = overlay(size, &shown);
    let subject = Subject { form, backed, below: shown.len() as u64, snapshot: None };
    Ok((World::new(sim, content, session, subject), place))
}
