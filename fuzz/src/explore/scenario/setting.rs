//! One scenario: its image and its requests, and the disk on which they begin.
//!
//! Knows: image, payload, the requests before. Must never know: how the requests are driven.

use crate::image::{self, DATA, Form, Part, Shape};
use crate::world::{Ask, Kept, Session, Subject, TOP, Tweak, World};
use quod::{Format, OpenOptions, Policy};
use quod_backend::sim::{Fifo, FileOptions, Sim};
use quod_bench::contract::payload::{self, SECTOR};
use quod_bench::contract::{Checked, fail};
use std::sync::Arc;

/// Bytes of a cluster of QED.
pub const CLUSTER: u64 = 4096;
/// QED's usual form.
const QED: Form = Form::Qed { cluster: CLUSTER as u32, table: 1 };
/// Guest bytes under one L2 table.
pub(super) const SPAN: u64 = CLUSTER * CLUSTER / 8;
/// The number of the first write of the preparation.
const PREPARED: u64 = 3_000_000;
/// The payload of the first part.
const PARTS: u64 = 4_000_000;

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in schedules.
    pub name: &'static str,
    pub(super) form: Form,
    /// Bytes of the guest disk.
    pub(super) size: u64,
    /// A raw backing file of this many bytes; with `middle` an empty layer between.
    pub(super) backing: Option<u64>,
    pub(super) middle: bool,
    /// What stands in the image.
    pub(super) parts: Vec<Part>,
    /// Requests that ran and were made durable before.
    pub(super) before: Vec<Ask>,
    /// Requests that ran before in the same session, one after the other.
    pub warm: Vec<Ask>,
    /// Requests, in this order.
    pub asks: Vec<Ask>,
    /// The first so many are made at once, the others at any moment.
    pub at_once: usize,
    /// Timers may run out at any moment.
    pub timers: bool,
    pub(super) direct: bool,
    pub(super) policy: Policy,
    pub(super) cache: u64,
    /// Control blocks; and requests, if these are more than usual.
    pub(super) acbs: u32,
    /// Of offsets and lengths under O_DIRECT.
    pub(super) align: u32,
    /// Changes the file before anything else, and what leaks then.
    pub(super) patch: Option<fn(&mut Vec<u8>)>,
    pub(super) patch_leaks: u64,
    /// Offset and length of what must stay in the file as it is.
    pub(super) kept: (u64, u64),
    /// Guest bytes whose pointer is bad.
    pub(super) bad: (u64, u64),
    /// The power is cut within the very first opening, too.
    pub(crate) cut_first: bool,
    pub(super) dangling: bool,
    /// The image is on a block device, with so many bytes of old content behind it.
    pub(super) device: Option<u64>,
}

pub(super) const fn write(offset: u64, len: u64) -> Ask {
    Ask::Write { offset, len, fua: false }
}

pub(super) const fn zero(offset: u64, len: u64) -> Ask {
    Ask::Zero { offset, len, fua: false }
}

pub(super) const fn read(offset: u64, len: u64) -> Ask {
    Ask::Read { offset, len }
}

impl Scenario {
    pub(super) fn new(name: &'static str, at_once: usize, asks: &[Ask]) -> Scenario {
        Scenario {
            name,
            form: QED,
            size: 8 * CLUSTER,
            backing: None,
            middle: false,
            parts: Vec::new(),
            before: Vec::new(),
            warm: Vec::new(),
            asks: asks.to_vec(),
            at_once,
            timers: false,
            direct: false,
            policy: Policy::Writeback,
            cache: 1 << 20,
            acbs: 8,
            align: 512,
            patch: None,
            patch_leaks: 0,
            kept: (0, 0),
            bad: (0, 0),
            cut_first: false,
            dangling: false,
            device: None,
        }
    }

    pub(super) fn backed(mut self, bytes: u64) -> Scenario {
        self.backing = Some(bytes);
        self
    }

    pub(super) fn after(mut self, before: &[Ask]) -> Scenario {
        self.before = before.to_vec();
        self
    }

    pub(super) fn warmed(mut self, asks: &[Ask]) -> Scenario {
        self.warm = asks.to_vec();
        self
    }

    pub(super) fn with_timers(mut self) -> Scenario {
        self.timers = true;
        self
    }

    pub(super) fn large(mut self) -> Scenario {
        self.size = SPAN + 4 * CLUSTER;
        self
    }

    pub(super) fn direct(mut self) -> Scenario {
        self.direct = true;
        self
    }

    /// The image's format.
    pub fn format(&self) -> Format {
        self.form.format()
    }

    /// No pointer of the image is bad.
    pub fn is_sound(&self) -> bool {
        self.bad.0 == self.bad.1
    }

    /// As QEMU can open it: it refuses QED tables of one cluster, so they have two.
    pub fn for_qemu(mut self) -> Scenario {
        if let Form::Qed { table, .. } = &mut self.form {
            *table = 2;
        }
        self
    }

    /// Settings.
    pub fn session(&self, tweak: Tweak) -> Session {
        let options = OpenOptions::new()
            .direct(self.direct)
            .policy(self.policy)
            .cache_bytes(self.cache)
            .grow_step(0)
            .acbs(self.acbs);
        Session { options: tweak(options), requests: self.acbs.max(8), trace: true }
    }

    /// Sectors that the requests write to.
    pub fn touched(&self) -> Vec<u64> {
        let mut sectors: Vec<u64> = self
            .warm
            .iter()
            .chain(&self.asks)
            .filter_map(|ask| match *ask {
                Ask::Write { offset, len, .. }
                | Ask::Pack { offset, len, .. }
                | Ask::Zero { offset, len, .. }
                | Ask::Discard { offset, len } => Some(offset / SECTOR..(offset + len).div_ceil(SECTOR)),
                Ask::Empty => Some(0..self.size.div_ceil(SECTOR)),
                // as long as it is not cut off it may be gone
                Ask::Resize { len } if len < self.size => Some(len / SECTOR..self.size.div_ceil(SECTOR)),
                Ask::Apply { .. } => Some(0..self.size.div_ceil(SECTOR)),
                _ => None,
            })
            .flatten()
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors
    }

    /// The lists of snapshots that the requests lead to, one after the other; none if none is about them.
    fn lists(&self, kept: &Kept, content: &[u8]) -> Vec<Kept> {
        let (mut kept, mut content) = (kept.clone(), content.to_vec());
        let mut lists = vec![kept.clone()];
        // requests are numbered from 1 on
        for (id, ask) in (1..).zip(self.warm.iter().chain(&self.asks)) {
            match *ask {
                Ask::Write { offset, len, .. } => {
                    payload::fill(id, offset, &mut content[offset as usize..(offset + len) as usize]);
                }
                Ask::Zero { offset, len, .. } => content[offset as usize..(offset + len) as usize].fill(0),
                Ask::Keep => kept.push(content.as_slice().into()),
                Ask::Apply { index } => content.copy_from_slice(&kept[index]),
                Ask::Drop { index } => drop(kept.remove(index)),
                _ => {}
            }
            lists.push(kept.clone());
        }
        let about = self.warm.iter().chain(&self.asks).any(|ask| ask.is_snapshot());
        if about { lists } else { Vec::new() }
    }

    /// Sizes that the disk may have.
    pub fn sizes(&self) -> Vec<u64> {
        let asked = self.asks.iter().filter_map(|ask| match *ask {
            Ask::Resize { len } => Some(len),
            _ => None,
        });
        [self.size].into_iter().chain(asked).collect()
    }

    /// Makes the image and what it needs.
    pub fn prepare(&self) -> Checked<Prepared> {
        let mut sim = Sim::new();
        sim.insert_sparse(TOP, 0, FileOptions::default());
        let (mut name, mut below) = (None, Vec::new());
        if let Some(bytes) = self.backing {
            below = payload::bytes(PREPARED - 1, 0, bytes);
            sim.insert_file("base", &below, FileOptions::default());
            name = Some(("base".to_string(), Format::Raw));
        }
        let shape = |backing| Shape { form: self.form, size: self.size, backing };
        if self.middle {
            sim.insert_file("middle", &image::create(&shape(name))?, FileOptions::default());
            name = Some(("middle".to_string(), self.form.format()));
        }
        let mut start = image::start(&shape(name), &self.parts, &below, PARTS)?;
        if let Some(patch) = self.patch {
            patch(&mut start.bytes);
        }
        if let Some(more) = self.device {
            start.bytes.resize(start.bytes.len() + more as usize, image::STALE);
        }
        let block_device = self.device.is_some();
        let options = FileOptions { offset_align: self.align, block_device, ..FileOptions::default() };
        sim.insert_file(TOP, &start.bytes, options);
        if self.form.has_data_file() {
            sim.insert_sparse(DATA, self.size, options);
        }
        let lists = self.lists(&start.snapshots, &start.content);
        let mapped = self.warm.iter().chain(&self.asks).any(|ask| matches!(ask, Ask::Map { .. }));
        let alone = self.warm.is_empty() && self.asks.iter().all(|ask| ask.is_edit());
        let subject = Subject {
            tight: (mapped || !lists.is_empty()) && alone,
            lists,
            mapped,
            form: self.form,
            backed: self.backing.is_some(),
            below: 0,
            snapshots: start.snapshots,
            leaks: start.leaks + self.patch_leaks,
            bad: self.bad,
            dangling: self.dangling,
            fills_up: self.device.is_some(),
            stale: stale_files(&sim),
            kept: (self.kept.0, sim.file_range(TOP, self.kept.0, self.kept.1 as usize).into()),
        };
        let prepared = Prepared { sim, content: start.content.into(), subject };
        if self.before.is_empty() { Ok(prepared) } else { self.run_before(prepared) }
    }

    fn run_before(&self, mut prepared: Prepared) -> Checked<Prepared> {
        let mut world = prepared.world(self.session(crate::world::as_is));
        world.number_from(PREPARED);
        world.open(&mut Fifo)?;
        for (ask, id) in self.before.iter().zip(PREPARED..) {
            let content = Arc::make_mut(&mut prepared.content);
            match *ask {
                Ask::Write { offset, len, .. } => {
                    let range = offset as usize..(offset + len) as usize;
                    payload::fill(id, offset, &mut content[range]);
                }
                Ask::Zero { offset, len, .. } => {
                    content[offset as usize..(offset + len) as usize].fill(0);
                }
                _ => {}
            }
            world.ask(*ask)?;
            world.drain(&mut Fifo)?;
        }
        if !world.close()? {
            return fail("the preparation does not close");
        }
        // everything durable, the trimmed length too
        prepared.sim = world.sim().crash_plan().build(|candidate| candidate.versions - 1);
        Ok(prepared)
    }
}

/// What must not change while autoclear bits are set that are not kept up.
pub(crate) fn stale_files(sim: &Sim) -> Vec<(Vec<u8>, Arc<[u8]>)> {
    match image::autoclear(&sim.file_range(TOP, 0, 512)) {
        0 => Vec::new(),
        _ => sim.paths().map(|path| (path.to_vec(), sim.file_bytes(path).into())).collect(),
    }
}

/// A disk on which a scenario can begin.
#[derive(Clone, Debug)]
pub struct Prepared {
    sim: Sim,
    /// What the guest sees.
    pub content: Arc<Vec<u8>>,
    /// The image.
    pub subject: Subject,
}

impl Prepared {
    /// The image says that it has to be repaired before it is used.
    pub fn is_marked(&self) -> bool {
        image::is_marked(&self.sim.file_range(TOP, 0, 512))
    }

    /// The disk with the image, before anything has opened it.
    pub fn disk(&self) -> Sim {
        self.sim.clone()
    }

    /// A world, closed.
    pub fn world(&self, session: Session) -> World {
        World::new(self.sim.clone(), Arc::clone(&self.content), session, self.subject.clone())
    }
}
