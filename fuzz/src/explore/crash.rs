//! The crash images of a state: which are looked at, and whether each keeps what was promised.
//!
//! Checks: before any repair the tables are sound; the image opens for writing, repairing or needing nothing,
//! and is sound then; every sector holds what the model allows; what nobody wrote is as it was. Of a state:
//! while the header in the file may say "clean", no table may be volatile (QE1, QE5).
//!
//! Knows: candidates and versions, the interned contents of sectors. Must never know: how a state was
//! reached.

use super::Explored;
use super::scenario::{Prepared, Scenario};
use crate::model::View;
use crate::payload::SECTOR;
use crate::probe::hash_words;
use crate::world::{Session, Subject, TOP, World};
use crate::{Checked, Failure, fail, image};
use quod::Format;
use quod_backend::sim::{Candidate, Choice, Chooser, CrashPlan, Seeded, Sim, Volatile};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

/// Of more unsynced sectors than this only a sample is alone in missing, or in being kept.
const MANY: usize = 512;

/// Of a recovered image: its size, and the touched sectors, each as the number of its content.
type Content = Rc<(u64, Vec<u32>)>;

/// Every image that was met.
pub struct Images {
    session: Session,
    subject: Subject,
    base: Arc<Vec<u8>>,
    touched: Vec<u64>,
    sizes: Vec<u64>,
    recovered: HashMap<u128, Content>,
    /// Disks with what was promised: their images were judged.
    cut: HashSet<u128>,
    judged: HashSet<u128>,
    contents: Vec<Vec<u8>>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl Images {
    /// For a scenario.
    pub fn new(scenario: &Scenario, prepared: &Prepared) -> Images {
        Images {
            session: scenario.session(crate::world::as_is),
            subject: prepared.subject.clone(),
            base: Arc::clone(&prepared.content),
            touched: scenario.touched(),
            sizes: scenario.sizes(),
            recovered: HashMap::new(),
            cut: HashSet::new(),
            judged: HashSet::new(),
            contents: Vec::new(),
            numbers: HashMap::new(),
        }
    }

    /// Judges the crash images of a state; `last`, behind its first number, is the one that a failure
    /// is about.
    pub fn judge(
        &mut self,
        world: &World,
        bound: usize,
        out: &mut Explored,
        last: &mut Option<Vec<u32>>,
    ) -> Checked {
        let plan = world.sim().crash_plan();
        let promises = world.promises();
        let promises = [promises as u64, (promises >> 64) as u64];
        // machines that differ over the same disk leave the same images
        if !self.cut.insert(hash_words(plan.digest(), promises)) {
            return Ok(());
        }
        header_rule(world.sim(), &plan)?;
        let lists = version_lists(world.sim(), &plan, bound);
        out.sampled += usize::from(lists.sampled);
        for versions in lists.all {
            out.images += 1;
            let image = build(&plan, &versions);
            let (digest, header) = (image.digest(), image.file_range(TOP, 0, 512));
            if !self.judged.insert(hash_words(digest, promises)) {
                continue;
            }
            if let Some(last) = last {
                last.truncate(1);
                last.extend(&versions);
            }
            let content = match self.recovered.get(&digest) {
                Some(content) => Rc::clone(content),
                None => {
                    out.recovered += 1;
                    let content = Rc::new(self.recover(image)?);
                    self.recovered.insert(digest, Rc::clone(&content));
                    content
                }
            };
            if !world.may_have_size(content.0) {
                return fail(format!("after a power cut the disk has {} bytes", content.0));
            }
            tidy_rule(world, &header)?;
            for (sector, number) in self.touched.iter().zip(&content.1) {
                judge_sector(world, *sector, &self.contents[*number as usize])?;
            }
        }
        Ok(())
    }

    fn recover(&mut self, image: Sim) -> Checked<(u64, Vec<u32>)> {
        let bytes = open_and_read(image, &self.session, &self.subject, self.base.len() as u64, &self.sizes)?;
        let mut numbers = Vec::with_capacity(self.touched.len());
        let mut at = 0;
        for &sector in &self.touched {
            let (start, end) = ((sector * SECTOR) as usize, ((sector + 1) * SECTOR) as usize);
            if end > bytes.len() {
                break;
            }
            untouched(&self.base, &bytes, at, start)?;
            let part = &bytes[start..end];
            let number = match self.numbers.get(part) {
                Some(number) => *number,
                None => {
                    let number = self.contents.len() as u32;
                    self.contents.push(part.to_vec());
                    self.numbers.insert(part.to_vec(), number);
                    number
                }
            };
            numbers.push(number);
            at = end;
        }
        untouched(&self.base, &bytes, at, bytes.len())?;
        Ok((bytes.len() as u64, numbers))
    }
}

/// Behind the disk's old end lie zeros.
fn untouched(base: &[u8], bytes: &[u8], start: usize, end: usize) -> Checked {
    let (old, new) = bytes[start..end].split_at(end.min(base.len()).saturating_sub(start));
    if base[start.min(base.len())..].starts_with(old) && new.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let was = |at: usize| base.get(at).copied().unwrap_or(0);
    let at = (start..end).find(|at| was(*at) != bytes[*at]).unwrap_or(start);
    fail(format!("byte {at:#x}, which nobody wrote, was {} and is {}", was(at), bytes[at]))
}

/// A sector behind the size that was promised holds zeros.
fn judge_sector(world: &World, sector: u64, bytes: &[u8]) -> Checked {
    if sector * SECTOR < world.model().len() {
        return world.model().check_sector(sector, bytes, View::Crash);
    }
    match bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => fail(format!("sector {sector:#x}, behind the end of the disk, is not zeros")),
    }
}

/// What the real driver makes of an image.
fn open_and_read(
    image: Sim,
    session: &Session,
    subject: &Subject,
    len: u64,
    sizes: &[u64],
) -> Checked<Vec<u8>> {
    let mut world = World::new(image, vec![0; len as usize], session.clone(), subject.clone());
    world.allow_sizes(sizes);
    world.open_survivor()
}

fn build(plan: &CrashPlan, versions: &[u32]) -> Sim {
    let mut next = versions.iter();
    // a schedule made by hand may be short, or ask for more versions than there are
    plan.build(|candidate| (next.next().copied().unwrap_or(0) as usize).min(candidate.versions - 1))
}

/// One image, for a replay.
pub fn judge_one(world: &World, scenario: &Scenario, versions: &[u32]) -> Checked {
    let plan = world.sim().crash_plan();
    header_rule(world.sim(), &plan)?;
    let image = build(&plan, versions);
    tidy_rule(world, &image.file_range(TOP, 0, 512))?;
    let (session, len) = (world.session(), world.model().len());
    let bytes = open_and_read(image, &session, world.subject(), len, &scenario.sizes())?;
    allowed(world, &bytes)
}

/// May the guest find this after a power cut?
pub fn allowed(world: &World, bytes: &[u8]) -> Checked {
    let (len, promised) = (bytes.len() as u64, world.model().len());
    if !world.may_have_size(len) {
        return fail(format!("after a power cut the disk has {len} bytes"));
    }
    let (shown, new) = bytes.split_at(len.min(promised) as usize);
    if new.iter().any(|byte| *byte != 0) {
        return fail("what lies behind the end of the disk is not zeros");
    }
    world.model().check_range(0, shown, View::Crash)
}

/// What an image is made of, for a person.
pub fn describe(world: &World, versions: &[u32]) -> String {
    let plan = world.sim().crash_plan();
    let parts: Vec<String> = plan
        .candidates()
        .iter()
        .zip(versions)
        .map(|(candidate, version)| {
            format!("{:?} version {version} of {}", candidate.what, candidate.versions)
        })
        .collect();
    format!("power cut: {}", parts.join(", "))
}

struct Lists {
    all: Vec<Vec<u32>>,
    sampled: bool,
}

/// Is this candidate metadata? A data file has none.
fn is_meta(candidate: &Candidate, tables: &[(u64, u64)]) -> bool {
    match candidate.what {
        Volatile::Unit { .. } if candidate.file != 0 => false,
        Volatile::Unit { offset, .. } => {
            offset == 0 || tables.iter().any(|(start, end)| *start <= offset && offset < *end)
        }
        Volatile::Length => true,
    }
}

fn version_lists(sim: &Sim, plan: &CrashPlan, bound: usize) -> Lists {
    let counts: Vec<u32> = plan.candidates().iter().map(|candidate| candidate.versions as u32).collect();
    let product = counts.iter().try_fold(1usize, |product, n| product.checked_mul(*n as usize));
    if product.is_some_and(|product| product <= bound) {
        let mut all = vec![vec![0; counts.len()]];
        for index in 0..all[0].len() {
            let more: Vec<Vec<u32>> = (1..counts[index])
                .flat_map(|version| {
                    all.iter().map(move |list| {
                        let mut list = list.clone();
                        list[index] = version;
                        list
                    })
                })
                .collect();
            all.extend(more);
        }
        return Lists { all, sampled: false };
    }
    let none = vec![0; counts.len()];
    let full: Vec<u32> = counts.iter().map(|n| n - 1).collect();
    let tables = image::tables(sim, TOP).unwrap_or_default();
    let meta: Vec<bool> = plan.candidates().iter().map(|candidate| is_meta(candidate, &tables)).collect();
    let stride = if counts.len() > MANY { counts.len() / 16 } else { 1 };
    let mut all = vec![none.clone(), full.clone()];
    for index in (0..counts.len()).filter(|index| meta[*index] || index % stride == 0) {
        for version in 0..counts[index] {
            for mut list in [none.clone(), full.clone()] {
                list[index] = version;
                all.push(list);
            }
        }
    }
    for keep in [true, false] {
        all.push(full.iter().zip(&meta).map(|(last, meta)| if *meta == keep { *last } else { 0 }).collect());
    }
    let mut random = Seeded::new(counts.len() as u64 ^ 0x51ed);
    while all.len() < bound {
        all.push(counts.iter().map(|n| random.choose(Choice::Survive, *n as usize) as u32).collect());
    }
    Lists { all, sampled: true }
}

/// QE5: what a quiesce or close left in order, a power cut leaves so.
fn tidy_rule(world: &World, header: &[u8]) -> Checked {
    match world.is_tidy() && image::is_marked(header) {
        true => fail("a power cut after a quiesce or close leaves the need-check or dirty bit set"),
        false => Ok(()),
    }
}

/// QED's QE1 and QE5: as long as a power cut may leave a header that says "clean", no table is volatile.
fn header_rule(sim: &Sim, plan: &CrashPlan) -> Checked {
    if image::probe(sim, TOP) != Format::Qed {
        return Ok(());
    }
    let mut says_clean = None;
    let mut volatile = Vec::new();
    let tables = image::tables(sim, TOP)?;
    for (index, candidate) in plan.candidates().iter().enumerate() {
        match candidate.what {
            Volatile::Unit { offset: 0, .. } if candidate.file == 0 => {
                let mut versions = (0..candidate.versions).map(|version| plan.unit(index, version));
                says_clean = Some(versions.any(|block| !image::is_marked(&block.unwrap_or_default())));
            }
            Volatile::Unit { offset, .. }
                if candidate.file == 0
                    && tables.iter().any(|(start, end)| *start <= offset && offset < *end) =>
            {
                volatile.push(offset);
            }
            _ => {}
        }
    }
    let settled = || !image::is_marked(&sim.file_range(TOP, 0, 512));
    if says_clean.unwrap_or_else(settled) && !volatile.is_empty() {
        return Err(Failure(format!(
            "a power cut may leave need-check clear while tables at {volatile:x?} are volatile"
        )));
    }
    Ok(())
}
