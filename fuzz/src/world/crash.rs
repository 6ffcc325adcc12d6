//! The power is cut, and the image is opened again.
//!
//! Checks, for each image that a power cut may leave: the tables are sound before any repair (leaks may be
//! there), or say that they need one; each snapshot holds what it held; a repair leaves no leaks; opening
//! for reading alone gives what the contract allows, and writes nothing; opening for writing repairs or
//! needs nothing and gives the same bytes; afterwards the check finds no corruption.

use super::{TOP, World, driver};
use crate::image;
use quod::AllowAll;
use quod_backend::sim::{Choice, Chooser, Fifo, Sim, Volatile, pick};
use quod_bench::contract::exact::View;
use quod_bench::contract::{Checked, Failure, fail};

impl World {
    /// The power is cut now; what survives is the chooser's choice. Nothing is open afterwards.
    pub fn cut_power(&mut self, chooser: &mut dyn Chooser) -> Checked {
        let plan = self.sim().crash_plan();
        let mut versions = Vec::new();
        let crashed = plan.build(|candidate| {
            let what = match candidate.what {
                Volatile::Unit { .. } => Choice::Survive,
                Volatile::Length => Choice::Length,
            };
            let version = pick(chooser, what, candidate.versions);
            versions.push((candidate.what, version, candidate.versions));
            version
        });
        self.note(|| format!("power cut, (unit, version, of): {versions:?}"));
        self.tally.volatile += plan.candidates().len() as u64;
        self.tally.crashes += 1;
        self.replace(crashed);
        Ok(())
    }

    /// Another disk takes the present one's place; nothing is open.
    pub fn replace(&mut self, sim: Sim) {
        self.tally.faults += self.driver.backend().failed() - self.failed_before;
        self.driver = driver(sim, &self.session);
        self.disk = None;
        self.faulted = false;
        self.failed_before = 0;
        self.blind = false;
        self.drops = false;
        for ticket in std::mem::take(&mut self.tickets).into_values() {
            // it may have happened or not
            for index in ticket.writes.into_iter().flatten() {
                self.model.end(index, false, false);
            }
        }
    }

    /// Opens for writing, and the power is cut again after some operations of the opening (a repair, if there
    /// is one).
    pub fn cut_opening(&mut self, operations: usize, chooser: &mut dyn Chooser) -> Checked {
        let options = self.session.options.clone().write(true).open_gate(AllowAll);
        self.driver.open(TOP, options).map_err(|error| Failure(format!("open: {error}")))?;
        self.note(|| format!("{operations} operations of an opening"));
        for _ in 0..operations {
            self.pump()?;
            self.driver.backend_mut().step(chooser);
        }
        self.pump()?;
        self.cut_power(chooser)
    }

    /// Opens what a power cut left, and checks it in all ways; the image stays open for writing. `twice`: for
    /// reading alone too, first.
    pub fn recover(&mut self, twice: bool) -> Checked<Vec<u8>> {
        if self.subject.checks() {
            image::survived(self.sim(), TOP)?;
        }
        self.snapshots_hold("after a power cut")?;
        let mut first = None;
        if twice {
            let before = self.sim().digest();
            let options = self.session.options.clone().write(false).lock(false);
            let disk = self.open_with(options, &mut Fifo)?;
            let disk = disk.ok_or_else(|| Failure("the image does not open for reading".into()))?;
            self.opened(disk)?;
            first = Some(self.read_whole(disk, View::Crash)?);
            let fresh = self.sim().crash_plan().build(|_| 0);
            if before != fresh.digest() {
                return fail("opening for reading alone changed the file");
            }
            self.driver = driver(fresh, &self.session);
        }
        if !self.open(&mut Fifo)? {
            return fail("the image does not open after a power cut");
        }
        let Some(disk) = self.disk else { return fail("nothing is open") };
        let content = self.read_whole(disk, View::Crash)?;
        if first.is_some_and(|first| first != content) {
            return fail("opening for writing changed what the guest reads");
        }
        self.count_leaks()?;
        Ok(content)
    }

    /// After `recover`: what was read is what the guest has from now on.
    pub fn settle(&mut self, content: &[u8]) {
        self.model.settle(content);
        self.sizes.clear();
    }
}
