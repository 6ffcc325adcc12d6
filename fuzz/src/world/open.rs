//! Opening the image, and opening it again after a close.
//!
//! Checks: without a fault it opens; it has the size that was promised; a repair leaves it sound.

use super::{Ask, Session, TOP, World};
use quod::{AllowAll, CompletionKind, DiskId, OpenOptions};
use quod_backend::sim::{Chooser, CrashPlan, Fifo};
use quod_bench::contract::exact::View;
use quod_bench::contract::{Checked, Failure, fail};

impl World {
    /// Opens the image for writing with the session's settings; operations complete in the chooser's order.
    /// An error is the driver's answer: only after a fault may it be one.
    pub fn open(&mut self, chooser: &mut dyn Chooser) -> Checked<bool> {
        let options = self.session.options.clone().write(true);
        match self.open_with(options, chooser)? {
            Some(disk) => {
                self.disk = Some(disk);
                self.opened(disk)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    pub(super) fn open_with(
        &mut self,
        options: OpenOptions,
        chooser: &mut dyn Chooser,
    ) -> Checked<Option<DiskId>> {
        let options = options.open_gate(AllowAll);
        let disk = self.driver.open(TOP, options).map_err(|error| Failure(format!("open: {error}")))?;
        for _ in 0..100_000 {
            self.pump()?;
            self.see_cut();
            if let Some(done) = self.driver.next_completion() {
                self.see_faults();
                if done.disk != disk || !matches!(done.kind, CompletionKind::Opened) {
                    return fail(format!("opening answered {done:?}"));
                }
                self.note(|| format!("opened: {:?}", done.result));
                return match done.result {
                    Ok(()) => Ok(Some(disk)),
                    Err(_) if self.faulted => Ok(None),
                    Err(error) => fail(format!("the image does not open: {error}")),
                };
            }
            if !self.driver.backend_mut().step(chooser) {
                break;
            }
        }
        fail("the opening does not end")
    }

    /// From now on what a power cut may find while an image is opened is kept.
    pub fn watch_opening(&mut self) {
        self.cuts = Some(Vec::new());
    }

    /// What was kept, each once.
    pub fn cuts(&mut self) -> Vec<CrashPlan> {
        self.cuts.take().unwrap_or_default()
    }

    fn see_cut(&mut self) {
        let Some(cuts) = &mut self.cuts else { return };
        let plan = self.driver.backend().sim().crash_plan();
        let known = |last: &CrashPlan| last.digest() == plan.digest();
        if !plan.candidates().is_empty() && !cuts.last().is_some_and(known) {
            cuts.push(plan);
        }
    }

    pub(super) fn opened(&mut self, disk: DiskId) -> Checked {
        let info = self.driver.disk_info(disk).cloned();
        let info = info.ok_or_else(|| Failure("an open disk without info".into()))?;
        if self.sizes.contains(&info.virtual_size()) {
            self.model.resize(info.virtual_size());
        }
        if info.virtual_size() != self.model.len() {
            return fail(format!(
                "the disk has {} bytes, it should have {}",
                info.virtual_size(),
                self.model.len()
            ));
        }
        if let Some(report) = &info.image().report {
            self.tally.repairs += 1;
            if !report.is_sound() && self.subject.checks() {
                return fail(format!("the repair left {report:?}"));
            }
            // nothing that quod writes leads there, whatever a power cut leaves; garbage taken for a table
            // does
            if report.dropped > 0 && !self.subject.dangling {
                return fail(format!("the repair dropped entries: {report:?}"));
            }
        }
        Ok(())
    }

    /// Opens again after a close, clean or not, without a power cut: nothing was lost but what a failed sync
    /// dropped. A flush then makes durable what was found.
    pub fn reopen(&mut self, session: Session) -> Checked {
        let failed = self.driver.backend().failed();
        self.tally.faults += failed - self.failed_before;
        let clean = !self.faulted;
        (self.session, self.failed_before, self.faulted, self.blind) = (session, failed, false, false);
        self.arm(None);
        if !self.open(&mut Fifo)? {
            return fail("the image does not open again");
        }
        let Some(disk) = self.disk else { return fail("nothing is open") };
        let now = self.model.tick();
        let content = self.read_whole(disk, if clean { View::Live(now) } else { View::Crash })?;
        self.snapshots_hold("after a close")?;
        self.count_leaks()?;
        if !self.ask(Ask::Flush)? {
            return fail("busy after opening");
        }
        self.drain(&mut Fifo)?;
        self.settle(&content);
        Ok(())
    }
}
