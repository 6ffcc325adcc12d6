//! What a disk may look like after the power was cut now.
//!
//! Knows: versions of crash units and lengths. Must never know: what the bytes mean.
//!
//! Rules: each crash unit (512 or 4096 bytes, aligned) independently holds its durable content, or its
//! content after any one completed but not durable operation, or after any one operation in flight over what
//! is visible (so operations in flight tear at units). The length is the durable one or any that was asked
//! for since, chosen apart; bytes between content and length are zero. (A shrink in flight changes the length
//! only; a completed one also leaves zeros as a version of what it cut off, since the file may grow over them
//! again.) Equal versions count once, so a candidate always makes a difference.

use super::chooser::{Choice, Chooser, pick};
use super::digest::Digest;
use super::file::{Entry, File};
use super::store::{CHUNK, Change, Content, Store};
use super::{Action, Sim};
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::ops::Range;

/// What can come out one way or another.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Volatile {
    /// Bytes `offset .. offset + len` of the file.
    Unit {
        /// First byte.
        offset: u64,
        /// The crash unit.
        len: u32,
    },
    /// The file's length.
    Length,
}

/// A unit or length that is not settled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Candidate {
    /// Which file, in order of insertion ([`Sim::paths`]).
    pub file: usize,
    /// What of it.
    pub what: Volatile,
    /// How many versions there are, at least 2; 0 is the durable one, then in order of completion, then those
    /// in flight.
    pub versions: usize,
}

enum Versions {
    /// The chunk that holds the unit, in each version.
    Unit(SmallVec<[Content; 2]>),
    Length(SmallVec<[u64; 4]>),
}

/// All possible states after a power cut now. Builds any of them; cheap to build many.
pub struct CrashPlan {
    base: Sim,
    candidates: Vec<Candidate>,
    versions: Vec<Versions>,
}

fn unit_bytes(content: &Content, unit: &Range<usize>) -> Option<Vec<u8>> {
    // all zero is as good as absent
    content
        .as_ref()
        .map(|c| &c.bytes()[unit.clone()])
        .filter(|b| b.iter().any(|&x| x != 0))
        .map(<[u8]>::to_vec)
}

fn same(a: &Content, b: &Content, unit: &Range<usize>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => a.bytes()[unit.clone()] == b.bytes()[unit.clone()],
        (Some(a), None) | (None, Some(a)) => a.bytes()[unit.clone()].iter().all(|&x| x == 0),
        (None, None) => true,
    }
}

/// Collects the versions of one file.
struct Collector<'a> {
    unit: usize,
    durable: &'a Store,
    /// Chunks that the log changed so far.
    current: BTreeMap<u64, Content>,
    units: BTreeMap<u64, SmallVec<[Content; 2]>>,
}

impl Collector<'_> {
    fn content(&self, chunk: u64) -> Content {
        self.current.get(&chunk).cloned().unwrap_or_else(|| self.durable.get(chunk))
    }

    fn present(&self, range: Range<u64>) -> Vec<u64> {
        let mut numbers = self.durable.present(range.clone());
        if !range.is_empty() {
            numbers.extend(self.current.range(range).map(|(&number, _)| number));
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Adds what `change` makes of what is current; `completed` makes that current.
    fn add(&mut self, change: &Change, completed: bool) {
        for (chunk, range) in change.touched(|range| self.present(range)) {
            let after = change.over(chunk, &self.content(chunk));
            for unit in range.start / self.unit..range.end.div_ceil(self.unit) {
                let bytes = unit * self.unit..(unit + 1) * self.unit;
                let offset = chunk * CHUNK as u64 + bytes.start as u64;
                let durable = self.durable;
                let versions =
                    self.units.entry(offset).or_insert_with(|| SmallVec::from_iter([durable.get(chunk)]));
                if !versions.iter().any(|version| same(version, &after, &bytes)) {
                    versions.push(after.clone());
                }
            }
            if completed {
                self.current.insert(chunk, after);
            }
        }
    }
}

/// The durable length first, then those that were asked for.
fn lengths<'a>(file: &File, in_flight: impl Iterator<Item = &'a Entry>) -> SmallVec<[u64; 4]> {
    let mut lengths = SmallVec::from_iter([file.durable_len]);
    let mut add = |len| {
        if !lengths.contains(&len) {
            lengths.push(len);
        }
    };
    let mut len = file.durable_len;
    for entry in &file.log {
        len = entry.len_after(len);
        add(len);
    }
    debug_assert_eq!(len, file.len);
    for entry in in_flight {
        add(entry.len_after(file.len));
    }
    lengths
}

impl CrashPlan {
    pub(super) fn new(sim: &Sim) -> CrashPlan {
        let mut plan = CrashPlan { base: sim.settled(), candidates: Vec::new(), versions: Vec::new() };
        for (number, file) in sim.files.iter().enumerate() {
            let mut collector = Collector {
                unit: sim.crash_unit,
                durable: &file.durable,
                current: BTreeMap::new(),
                units: BTreeMap::new(),
            };
            for entry in &file.log {
                collector.add(&entry.change, true);
            }
            let in_flight = || {
                sim.pending[..sim.submitted].iter().filter_map(move |pending| match &pending.action {
                    Action::Change { file, entry } if *file == number => Some(entry),
                    _ => None,
                })
            };
            for entry in in_flight() {
                collector.add(&entry.change, false);
            }
            for (offset, versions) in collector.units.into_iter().filter(|(_, v)| v.len() > 1) {
                let what = Volatile::Unit { offset, len: sim.crash_unit as u32 };
                plan.candidates.push(Candidate { file: number, what, versions: versions.len() });
                plan.versions.push(Versions::Unit(versions));
            }
            let lengths = lengths(file, in_flight());
            if lengths.len() > 1 {
                plan.candidates.push(Candidate {
                    file: number,
                    what: Volatile::Length,
                    versions: lengths.len(),
                });
                plan.versions.push(Versions::Length(lengths));
            }
        }
        plan
    }

    /// What is not settled; the order is stable.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// What a unit holds in one version; `None` for zeros.
    ///
    /// # Panics
    /// If the candidate is a length, or an index is out of range.
    pub fn unit(&self, candidate: usize, version: usize) -> Option<Vec<u8>> {
        let (Volatile::Unit { offset, len }, Versions::Unit(versions)) =
            (self.candidates[candidate].what, &self.versions[candidate])
        else {
            panic!("not a unit")
        };
        let start = (offset % CHUNK as u64) as usize;
        unit_bytes(&versions[version], &(start..start + len as usize))
    }

    /// Equal for plans that build the same disks, in the same order.
    pub fn digest(&self) -> u128 {
        let mut digest = Digest::new();
        digest.wide(self.base.digest());
        for (candidate, versions) in self.candidates.iter().zip(&self.versions) {
            digest.word(candidate.file as u64).word(candidate.versions as u64);
            match (candidate.what, versions) {
                (Volatile::Unit { offset, len }, Versions::Unit(versions)) => {
                    digest.word(offset);
                    let start = (offset % CHUNK as u64) as usize;
                    for version in versions {
                        let bytes = unit_bytes(version, &(start..start + len as usize));
                        digest.bytes(&bytes.unwrap_or_default());
                    }
                }
                (_, Versions::Length(lengths)) => {
                    lengths.iter().fold(&mut digest, |digest, len| digest.word(!len));
                }
                (Volatile::Length, Versions::Unit(_)) => unreachable!("made together in `new`"),
            }
        }
        digest.finish()
    }

    /// The disk on which every candidate came out as `choose` says (a version, or for [`Volatile::Length`] a
    /// length, by index).
    ///
    /// # Panics
    /// If an index is out of range.
    pub fn build(&self, mut choose: impl FnMut(&Candidate) -> usize) -> Sim {
        let mut sim = self.base.clone();
        for (candidate, versions) in self.candidates.iter().zip(&self.versions) {
            let version = choose(candidate);
            assert!(version < candidate.versions, "{candidate:?} has no version {version}");
            if version == 0 {
                continue;
            }
            let file = &mut sim.files[candidate.file];
            match (candidate.what, versions) {
                (Volatile::Unit { offset, len }, Versions::Unit(versions)) => {
                    set_unit(&mut file.durable, offset, len as usize, &versions[version]);
                }
                (_, Versions::Length(lengths)) => file.durable_len = lengths[version],
                (Volatile::Length, Versions::Unit(_)) => unreachable!("made together in `new`"),
            }
        }
        for file in &mut sim.files {
            let len = file.durable_len;
            file.durable.apply(&Change::Zero(len..u64::MAX));
            file.visible = file.durable.clone();
            file.len = len;
        }
        sim
    }
}

fn set_unit(store: &mut Store, offset: u64, len: usize, version: &Content) {
    let (chunk, start) = (offset / CHUNK as u64, (offset % CHUNK as u64) as usize);
    let content = store.get(chunk);
    let mut bytes = content.as_ref().map_or([0; CHUNK], |c| *c.bytes());
    match version {
        Some(version) => bytes[start..start + len].copy_from_slice(&version.bytes()[start..start + len]),
        None => bytes[start..start + len].fill(0),
    }
    store.set(chunk, Store::from_bytes(&bytes).get(0));
}

impl Sim {
    /// Everything that a power cut now leaves open.
    pub fn crash_plan(&self) -> CrashPlan {
        CrashPlan::new(self)
    }

    /// The units and lengths that are not settled. (Builders of many images: [`Sim::crash_plan`].)
    pub fn crash_candidates(&self) -> Vec<Candidate> {
        self.crash_plan().candidates
    }

    /// The disk after a power cut now, every candidate as chosen. See [`CrashPlan::build`].
    pub fn crash_with(&self, choose: impl FnMut(&Candidate) -> usize) -> Sim {
        self.crash_plan().build(choose)
    }

    /// One possible disk after a power cut now.
    pub fn crash(&self, chooser: &mut dyn Chooser) -> Sim {
        self.crash_with(|candidate| {
            let what = match candidate.what {
                Volatile::Unit { .. } => Choice::Survive,
                Volatile::Length => Choice::Length,
            };
            pick(chooser, what, candidate.versions)
        })
    }
}
