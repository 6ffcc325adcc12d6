//! The crash images of a state: which are looked at, and whether each keeps what was promised.
//!
//! Checks: before any repair the tables are sound; the image opens for writing, repairing or needing nothing,
//! and is sound then; every sector holds what the model allows; what nobody wrote is as it was. Of a state:
//! while the header in the file may say "clean", no table may be volatile (QE1, QE5).
//!
//! Knows: candidates and versions, the interned contents of sectors. Must never know: how a state was
//! reached.

use super::cuts;
use super::explored::Explored;
use super::scenario::{Prepared, Scenario};
use crate::image;
use crate::world::{Session, Subject, TOP, World};
use quod::Format;
use quod_backend::sim::{CrashPlan, FileOptions, Sim, Volatile};
use quod_bench::contract::exact::View;
use quod_bench::contract::hash::hash_words;
use quod_bench::contract::payload::SECTOR;
use quod_bench::contract::{Checked, Failure, fail};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

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
    /// Images that a power cut in the scenario may leave.
    met: HashSet<u128>,
    /// What a power cut within an opening may find.
    within: HashSet<u128>,
    /// Images that differ, if at all, in bytes that nothing refers to: what a power cut within their openings
    /// may find differs in these alone, and is looked at once.
    essences: HashSet<u128>,
    judged: HashSet<u128>,
    contents: Vec<Vec<u8>>,
    numbers: HashMap<Vec<u8>, u32>,
}

impl Images {
    /// For a scenario.
    pub fn new(scenario: &Scenario, prepared: &Prepared, session: Session) -> Images {
        Images {
            session,
            subject: prepared.subject.clone(),
            base: Arc::clone(&prepared.content),
            touched: scenario.touched(),
            sizes: scenario.sizes(),
            recovered: HashMap::new(),
            cut: HashSet::new(),
            met: HashSet::new(),
            within: HashSet::new(),
            essences: HashSet::new(),
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
        world.killed()?;
        let plan = world.sim().crash_plan();
        let promises = world.promises();
        let promises = [promises as u64, (promises >> 64) as u64];
        // machines that differ over the same disk leave the same images
        if !self.cut.insert(hash_words(plan.digest(), promises)) {
            return Ok(());
        }
        header_rule(world.sim(), &plan)?;
        let lists = cuts::lists(world.sim(), &plan, bound);
        out.sampled += usize::from(lists.sampled);
        for versions in lists.all {
            out.images += 1;
            let image = cuts::build(&plan, &versions);
            if !self.judged.insert(hash_words(image.digest(), promises)) {
                continue;
            }
            if let Some(last) = last {
                last.truncate(1);
                last.extend(&versions);
            }
            self.judge_image(world, image, bound, out)?;
        }
        Ok(())
    }

    /// Judges one image.
    fn judge_image(&mut self, world: &World, image: Sim, bound: usize, out: &mut Explored) -> Checked {
        let header = image.file_range(TOP, 0, 512);
        let maps = world.subject().mapped.then(|| image::maps(&image, TOP));
        let content = self.recover(image, bound, out)?;
        if let Some(maps) = maps.transpose()?
            && !world.may_have_maps(&maps)
        {
            return fail(format!("after a power cut there are the bitmaps {maps:?}"));
        }
        let count = image::snapshots(&header);
        if !world.subject().lists.is_empty() && !world.may_have_snapshots(count) {
            return fail(format!("after a power cut there are {count} snapshots"));
        }
        if world.may_find().is_some_and(|found| self.is_found(found, &content.1)) {
            return Ok(());
        }
        if !world.may_have_size(content.0) {
            return fail(format!("after a power cut the disk has {} bytes", content.0));
        }
        tidy_rule(world, &header)?;
        for (sector, number) in self.touched.iter().zip(&content.1) {
            judge_sector(world, *sector, &self.contents[*number as usize])?;
        }
        Ok(())
    }

    /// All that was touched holds this.
    fn is_found(&self, found: &[u8], numbers: &[u32]) -> bool {
        self.touched.iter().zip(numbers).all(|(sector, number)| {
            let start = (*sector * SECTOR) as usize;
            found.get(start..start + SECTOR as usize) == Some(&self.contents[*number as usize][..])
        })
    }

    /// The first opening of the scenario's image, and the power cuts within it.
    pub fn judge_first(&mut self, prepared: &Prepared, bound: usize, out: &mut Explored) -> Checked {
        self.recover(prepared.disk(), bound, out).map(drop)
    }

    /// Opens an image and reads it; and whatever power cuts within that opening, and within the openings
    /// after those, may leave: each has to give the same.
    fn recover(&mut self, image: Sim, bound: usize, out: &mut Explored) -> Checked<Content> {
        out.recovered += usize::from(self.met.insert(image.digest()));
        let (content, plans) = self.open(image)?;
        let mut plans = plans.unwrap_or_default();
        while let Some(plan) = plans.pop() {
            if !self.within.insert(plan.digest()) {
                continue;
            }
            let all = plan.build(|candidate| candidate.versions - 1);
            for versions in cuts::lists(&all, &plan, bound).all {
                out.within += 1;
                let image = cuts::build(&plan, &versions);
                // what a check has put in order
                let cut = image::ends_with_data(&image, TOP, self.subject.leaks);
                let again = cut.and_then(|()| self.open(image)).and_then(|(found, more)| {
                    plans.extend(more.into_iter().flatten());
                    if found == content { Ok(()) } else { fail("the guest reads something else") }
                });
                again.map_err(|failure| {
                    Failure(format!("within an opening: {}: {failure}", cuts::describe(&plan, &versions)))
                })?;
            }
        }
        Ok(content)
    }

    /// Opens an image and reads it; with it comes what a power cut may find on the way, unless that is known.
    fn open(&mut self, image: Sim) -> Checked<(Content, Option<Vec<CrashPlan>>)> {
        let digest = image.digest();
        if let Some(content) = self.recovered.get(&digest) {
            return Ok((Rc::clone(content), None));
        }
        let image = self.repaired_if_refused(image)?;
        let known = image::essence(&image, TOP).is_some_and(|essence| !self.essences.insert(essence));
        let content = vec![0; self.base.len()];
        let mut world = World::new(image, content, self.session.clone(), self.subject.clone());
        world.allow_sizes(&self.sizes);
        world.watch_opening();
        let bytes = world.open_survivor()?;
        let content = Rc::new(self.content(&bytes)?);
        self.recovered.insert(digest, Rc::clone(&content));
        Ok((content, (!known).then(|| world.cuts())))
    }

    /// A QED image that says it is clean, is cut off within a cluster and has entries that lead beyond its
    /// end is refused until it is repaired (QE7). Only an image that begins with such an entry comes to have
    /// one.
    fn repaired_if_refused(&self, mut image: Sim) -> Checked<Sim> {
        let had_one = self.subject.bad.0 < self.subject.bad.1;
        if had_one && image::is_refused(&image, TOP)? {
            let (bytes, report) = image::repaired(&image, TOP)?;
            if !report.is_sound() {
                return fail(format!("the repair left {report:?}"));
            }
            image.insert_file(TOP, &bytes, FileOptions::default());
        }
        Ok(image)
    }

    fn content(&mut self, bytes: &[u8]) -> Checked<(u64, Vec<u32>)> {
        let mut numbers = Vec::with_capacity(self.touched.len());
        let mut at = 0;
        for &sector in &self.touched {
            let (start, end) = ((sector * SECTOR) as usize, ((sector + 1) * SECTOR) as usize);
            if end > bytes.len() {
                break;
            }
            untouched(&self.base, bytes, at, start)?;
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
        untouched(&self.base, bytes, at, bytes.len())?;
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

/// One image, for a replay.
pub fn judge_one(
    world: &World,
    scenario: &Scenario,
    prepared: &Prepared,
    versions: &[u32],
    bound: usize,
) -> Checked {
    world.killed()?;
    let plan = world.sim().crash_plan();
    header_rule(world.sim(), &plan)?;
    let mut images = Images::new(scenario, prepared, world.session());
    images.judge_image(world, cuts::build(&plan, versions), bound, &mut Explored::default())
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
