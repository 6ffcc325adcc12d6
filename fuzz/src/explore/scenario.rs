//! Small scenarios: an image, what stands in it, and two to four requests.
//!
//! Knows: offsets that make requests meet. Must never know: how they are driven.

mod cancel;
mod data_file;
mod edges;
mod qcow2;
mod rules;

use crate::image::{self, DATA, Form, Part, Shape};
use crate::world::{Ask, Session, Subject, TOP, Tweak, World};
use quod::{Format, OpenOptions, Policy};
use quod_backend::sim::{Fifo, FileOptions, Sim};
use quod_bench::contract::stream::{self as payload, SECTOR};
use quod_bench::contract::{Checked, fail};
use std::sync::Arc;

/// Bytes of a cluster of QED.
pub const CLUSTER: u64 = 4096;
/// QED's usual form.
const QED: Form = Form::Qed { cluster: CLUSTER as u32, table: 1 };
/// Guest bytes under one L2 table.
const SPAN: u64 = CLUSTER * CLUSTER / 8;
/// The number of the first write of the preparation.
const PREPARED: u64 = 3_000_000;
/// The payload of the first part.
const PARTS: u64 = 4_000_000;

/// See the module's header.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name in schedules.
    pub name: &'static str,
    form: Form,
    /// Bytes of the guest disk.
    size: u64,
    /// A raw backing file of this many bytes; with `middle` an empty layer between.
    backing: Option<u64>,
    middle: bool,
    /// What stands in the image.
    parts: Vec<Part>,
    /// Requests that ran and were made durable before.
    before: Vec<Ask>,
    /// Requests that ran before in the same session, one after the other.
    pub warm: Vec<Ask>,
    /// Requests, in this order.
    pub asks: Vec<Ask>,
    /// The first so many are made at once, the others at any moment.
    pub at_once: usize,
    /// Timers may run out at any moment.
    pub timers: bool,
    direct: bool,
    policy: Policy,
    cache: u64,
    /// Control blocks; and requests, if these are more than usual.
    acbs: u32,
    /// Of offsets and lengths under O_DIRECT.
    align: u32,
    /// Changes the file before anything else, and what leaks then.
    patch: Option<fn(&mut Vec<u8>)>,
    patch_leaks: u64,
    /// Offset and length of what must stay in the file as it is.
    kept: (u64, u64),
    /// Guest bytes whose pointer is bad.
    bad: (u64, u64),
    /// The power is cut within the very first opening, too.
    pub(super) cut_first: bool,
    pub(super) dangling: bool,
}

const fn write(offset: u64, len: u64) -> Ask {
    Ask::Write { offset, len, fua: false }
}

const fn zero(offset: u64, len: u64) -> Ask {
    Ask::Zero { offset, len, fua: false }
}

const fn read(offset: u64, len: u64) -> Ask {
    Ask::Read { offset, len }
}

impl Scenario {
    fn new(name: &'static str, at_once: usize, asks: &[Ask]) -> Scenario {
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
        }
    }

    fn backed(mut self, bytes: u64) -> Scenario {
        self.backing = Some(bytes);
        self
    }

    fn after(mut self, before: &[Ask]) -> Scenario {
        self.before = before.to_vec();
        self
    }

    fn warmed(mut self, asks: &[Ask]) -> Scenario {
        self.warm = asks.to_vec();
        self
    }

    fn with_timers(mut self) -> Scenario {
        self.timers = true;
        self
    }

    fn large(mut self) -> Scenario {
        self.size = SPAN + 4 * CLUSTER;
        self
    }

    fn direct(mut self) -> Scenario {
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
                | Ask::Zero { offset, len, .. }
                | Ask::Discard { offset, len } => Some(offset / SECTOR..(offset + len).div_ceil(SECTOR)),
                // as long as it is not cut off it may be gone
                Ask::Resize { len } if len < self.size => Some(len / SECTOR..self.size.div_ceil(SECTOR)),
                _ => None,
            })
            .flatten()
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        sectors
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
        let options = FileOptions { offset_align: self.align, ..FileOptions::default() };
        sim.insert_file(TOP, &start.bytes, options);
        if self.form.has_data_file() {
            sim.insert_sparse(DATA, self.size, options);
        }
        let subject = Subject {
            form: self.form,
            backed: self.backing.is_some(),
            below: 0,
            snapshots: start.snapshots,
            leaks: start.leaks + self.patch_leaks,
            bad: self.bad,
            dangling: self.dangling,
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

/// All, small ones first.
pub fn all() -> Vec<Scenario> {
    let fua = Ask::Write { offset: 512, len: 512, fua: true };
    let backed = 6 * CLUSTER;
    let mut list = vec![
        Scenario::new("two-writers-one-cluster", 2, &[write(0, 512), write(1024, 512), Ask::Flush]),
        Scenario::new("two-writers-one-cluster-backed", 2, &[write(0, 512), write(1024, 512), Ask::Flush])
            .backed(backed),
        Scenario::new("two-writers-one-table", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Flush]),
        Scenario::new("writer-and-reader", 2, &[write(512, 512), read(0, CLUSTER), Ask::Flush]),
        Scenario::new("two-new-tables", 2, &[write(0, 512), write(SPAN, 512), Ask::Flush]).large(),
        Scenario::new("writer-and-flush", 1, &[write(0, 1024), Ask::Flush]),
        Scenario::new("first-write-fua", 1, &[fua, write(0, 512)]),
        Scenario::new("two-flushes", 1, &[write(0, 512), Ask::Flush, write(512, 512), Ask::Flush]),
        Scenario::new("overlapping-in-place", 2, &[write(0, 1024), write(512, 1024), Ask::Flush])
            .after(&[write(0, CLUSTER)]),
        Scenario::new(
            "writer-and-discard",
            2,
            &[write(0, 512), Ask::Discard { offset: 0, len: CLUSTER }, Ask::Flush],
        )
        .after(&[write(0, CLUSTER)]),
        Scenario::new("zeroes-over-all-kinds", 1, &[zero(2048, 3 * CLUSTER), Ask::Flush])
            .backed(backed)
            .after(&[write(0, CLUSTER), zero(CLUSTER, CLUSTER)]),
        Scenario::new("zeroes-and-writer", 2, &[zero(0, 2 * CLUSTER), write(512, 512), Ask::Flush])
            .backed(backed),
        Scenario::new("write-over-zero-entry", 1, &[write(512, 512), Ask::Flush])
            .backed(backed)
            .after(&[zero(0, CLUSTER)]),
        Scenario::new("copy-beside-reader", 2, &[write(1024, 512), read(0, CLUSTER), Ask::Flush])
            .backed(backed),
        Scenario::new("short-backing", 2, &[write(512, 512), write(CLUSTER, 512), Ask::Flush])
            .backed(CLUSTER + 1024),
        Scenario::new("close-in-flight", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Close]),
        Scenario::new("quiesce-and-writer", 1, &[write(0, 512), Ask::Quiesce, write(CLUSTER, 512)]),
        Scenario::new("sector-writers", 3, &[write(10, 20), write(100, 50), write(120, 600), read(0, 1024)])
            .direct()
            .after(&[write(0, CLUSTER)]),
        Scenario::new("unaligned-new-cluster", 2, &[write(700, 100), write(900, 300), Ask::Flush]).direct(),
        Scenario::new("spans-two-clusters", 1, &[write(CLUSTER - 512, 1024), Ask::Flush]).backed(backed),
    ];
    let mut through = Scenario::new("writethrough", 2, &[write(0, 512), write(CLUSTER, 512), Ask::Flush]);
    through.policy = Policy::Writethrough;
    let mut pressure =
        Scenario::new("cache-pressure", 2, &[write(0, 512), write(SPAN, 512), read(0, 512)]).large();
    pressure.cache = 8192;
    let mut reads = Scenario::new("cache-pressure-reads", 2, &[read(0, 512), read(SPAN, 512)])
        .large()
        .after(&[write(0, 512), write(SPAN, 512)]);
    reads.cache = 8192;
    let timer = Scenario::new("need-check-timer", 1, &[write(0, 512), write(CLUSTER, 512)]).with_timers();
    let late = Scenario::new("timers-and-backing", 2, &[write(512, 512), write(CLUSTER, 512)])
        .backed(backed)
        .with_timers();
    let quiesces = [write(0, 512), Ask::Quiesce, write(CLUSTER, 512), Ask::Quiesce];
    let three = [write(0, 512), write(CLUSTER, 512), write(SPAN, 512), Ask::Flush];
    let three = Scenario::new("three-writers-two-tables", 3, &three).large();
    let two = Scenario::new("two-quiesces", 1, &quiesces);
    // with the write of the second failing: its table is linked, in space that only the growth has made
    let later = Scenario::new("second-table", 1, &[write(SPAN, 512), Ask::Flush])
        .large()
        .warmed(&[write(0, 512), Ask::Flush]);
    let mut chain =
        Scenario::new("chain-of-three", 2, &[write(512, 512), read(0, CLUSTER), Ask::Flush]).backed(backed);
    chain.middle = true;
    list.extend([through, pressure, reads, timer, late, chain, two, three, later]);
    list.extend(qcow2::all());
    list.extend(edges::all());
    list.extend(data_file::all());
    list.extend(rules::all());
    list.extend(cancel::all());
    list
}
