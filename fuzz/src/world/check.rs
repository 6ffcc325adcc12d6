//! What must hold: between two steps, when an image is closed, when it was read whole.
//!
//! Knows: the driver's layers as far as they can be asked. Must never know: why something holds.

use super::{Kept, Session, Subject, TOP, World};
use crate::image;
use crate::image::Form;
use quod::{Buffer, Buffers, DiskId, OpenOptions, Request};
use quod_backend::Backend;
use quod_backend::sim::{Fifo, FileOptions, Sim};
use quod_bench::contract::exact::View;
use quod_bench::contract::hash::{hash_bytes, hash_words};
use quod_bench::contract::{Checked, Failure, fail};
use std::sync::Arc;

/// Clusters that nothing uses at the end of a file that was closed, at most.
const TAIL: u64 = 16;
/// One read needs fewer operations than this.
const STEPS: usize = 100_000;
/// Bytes of one read when the disk is read whole.
const CHUNK: u64 = 256 << 10;

impl World {
    /// The machines' own invariants.
    pub(super) fn sweep(&self) -> Checked {
        let Some(disk) = self.disk else { return Ok(()) };
        for layer in 0..self.driver.layers(disk) {
            if let Some(image) = self.driver.image(disk, layer) {
                image.check_invariants().map_err(|what| {
                    Failure(format!("invariant of layer {layer}: {what}\n{}", image.describe()))
                })?;
            }
        }
        Ok(())
    }

    /// Which requests wait for what.
    pub fn describe(&self) -> String {
        let image = self.disk.and_then(|disk| self.driver.image(disk, 0));
        image.map_or_else(|| String::from("closed"), |image| image.describe())
    }

    /// The answer to close came.
    pub(super) fn closed(&mut self, submitted: u64, ok: bool) -> Checked {
        self.disk = None;
        if !self.tickets.is_empty() {
            return fail(format!("closed before {:?} ended", self.tickets));
        }
        if !ok {
            return Ok(());
        }
        self.model.flushed(submitted);
        if self.faulted {
            return Ok(());
        }
        self.tidy = true;
        self.tally.clean_closes += 1;
        self.keeps_bytes("after a clean close")?;
        self.snapshots_hold("after a clean close")?;
        if !self.subject.lists.is_empty() && image::snapshot_ids(self.sim(), TOP)?.len() != self.kept.len() {
            return fail(format!("a clean close leaves another list than one of {}", self.kept.len()));
        }
        if self.subject.mapped && image::maps(self.sim(), TOP)? != self.live_maps {
            return fail(format!("a clean close leaves other bitmaps than {:?}", self.live_maps));
        }
        if !self.subject.checks() {
            return Ok(());
        }
        image::sound(self.sim(), TOP, "after a clean close")?;
        let (leaks, before) = (image::leaks(self.sim(), TOP)?, self.leaks);
        if leaks > before {
            return fail(format!("a clean close leaves {leaks} leaks, {before} were there before"));
        }
        let (len, used) = (self.sim().file_len(TOP).unwrap_or(0), image::used(self.sim(), TOP)?);
        // what was freed last may still be there
        if len > used.max(self.opened_len) + TAIL * self.subject.form.cluster() {
            return fail(format!("a clean close leaves a file of {len} bytes, the image has use for {used}"));
        }
        if image::is_marked(&self.sim().file_range(TOP, 0, 512)) {
            return fail("a clean close leaves the need-check or dirty bit set");
        }
        Ok(())
    }

    /// QE12: a writer that is killed now, with nothing in flight, leaves a QED image that asks for a check,
    /// or has no space behind its data.
    pub fn killed(&self) -> Checked {
        let at_rest = self.tickets.is_empty() && self.driver.backend().in_flight() == 0;
        match at_rest && self.disk.is_some() && !self.faulted {
            true => image::ends_with_data(self.sim(), TOP, self.leaks),
            false => Ok(()),
        }
    }

    /// What nobody knows the meaning of is as it was, and bits that nobody keeps up are clear, unless nothing
    /// has changed at all.
    fn keeps_bytes(&self, when: &str) -> Checked {
        let (offset, bytes) = &self.subject.kept;
        if self.sim().file_range(TOP, *offset, bytes.len()) != **bytes {
            return fail(format!("{when}: bytes of the file at {offset:#x} have changed"));
        }
        let bits = image::autoclear(&self.sim().file_range(TOP, 0, 512));
        let stale = &self.subject.stale;
        let same = |(path, bytes): &(Vec<u8>, Arc<[u8]>)| self.sim().file_bytes(path) == **bytes;
        match bits == 0 || !stale.is_empty() && stale.iter().all(same) {
            true => Ok(()),
            false => fail(format!("{when}: something has changed, and the autoclear bits {bits:#x} are set")),
        }
    }

    /// Counts the leaks that the session starts with.
    pub(super) fn count_leaks(&mut self) -> Checked {
        if !self.subject.checks() {
            return Ok(());
        }
        self.opened_len = self.sim().file_len(TOP).unwrap_or(0);
        image::sound(self.sim(), TOP, "after opening")?;
        self.leaks = image::leaks(self.sim(), TOP)?;
        if let Form::Qed { cluster, .. } = self.subject.form {
            // a partial cluster at the end is no leak yet, and will be one when something is appended behind
            // it
            let len = self.sim().file_len(TOP).unwrap_or(0);
            self.leaks += u64::from(!len.is_multiple_of(cluster.into()));
        }
        Ok(())
    }

    /// Each snapshot, read by the driver as if it were the disk, holds what it held.
    pub(super) fn snapshots_hold(&self, when: &str) -> Checked {
        let (subject, mut last) = (&self.subject, Ok(()));
        if subject.lists.is_empty() {
            return self.list_holds(&subject.snapshots, when);
        }
        let count = image::snapshot_ids(self.sim(), TOP)?.len();
        for list in subject.lists.iter().filter(|list| list.len() == count) {
            last = self.list_holds(list, when);
            if last.is_ok() {
                return Ok(());
            }
        }
        last.and_then(|()| fail(format!("{when}: {count} snapshots, and nobody asked for so many")))
    }

    fn list_holds(&self, list: &Kept, when: &str) -> Checked {
        let snapshots = list.iter().enumerate();
        snapshots.into_iter().try_for_each(|(index, held)| self.snapshot_holds(index, held, when))
    }

    fn snapshot_holds(&self, index: usize, held: &[u8], when: &str) -> Checked {
        let mut sim = Sim::new();
        for path in self.sim().paths() {
            sim.insert_file(path, &self.sim().file_bytes(path), FileOptions::default());
        }
        sim.insert_file(TOP, &image::as_snapshot(self.sim(), TOP, index)?, FileOptions::default());
        let options = OpenOptions::new();
        let session = Session { options: options.clone(), requests: 4, trace: false };
        let mut world = World::new(sim, held.to_vec(), session, Subject::new(self.subject.form));
        let disk = world.open_with(options, &mut Fifo);
        let content = disk.and_then(|disk| match disk {
            Some(disk) => world.read_all(disk),
            None => fail("it does not open"),
        });
        let content = content.map_err(|failure| Failure(format!("{when}, snapshot {index}: {failure}")))?;
        match held.iter().zip(&content).position(|(a, b)| a != b) {
            None if held.len() == content.len() => Ok(()),
            at => fail(format!("{when}: snapshot {index} has changed at {at:x?}")),
        }
    }

    /// Reads the disk whole through the driver and judges it.
    pub(super) fn read_whole(&mut self, disk: DiskId, view: View) -> Checked<Vec<u8>> {
        let content = self.read_all(disk)?;
        self.model.check_range(0, &content, view)?;
        Ok(content)
    }

    fn read_all(&mut self, disk: DiskId) -> Checked<Vec<u8>> {
        let len = self.model.len();
        let mut content = Vec::with_capacity(len as usize);
        while (content.len() as u64) < len {
            let (offset, user) = (content.len() as u64, u64::MAX);
            let (bad, behind) = self.subject.bad;
            if offset == bad && bad < behind {
                // nothing was ever there
                content.resize(behind as usize, 0);
                continue;
            }
            let until = if offset < bad { bad } else { len };
            let request = Request::read(offset, Buffer::zeroed(CHUNK.min(until - offset) as usize), user);
            self.driver
                .submit(disk, request)
                .map_err(|rejected| Failure(format!("read: {}", rejected.reason)))?;
            let mut steps = 0;
            let done = loop {
                self.pump()?;
                if let Some(done) = self.driver.next_completion() {
                    break done;
                }
                steps += 1;
                if steps > STEPS || !self.driver.backend_mut().step(&mut Fifo) && !self.is_due() {
                    return fail("a read after opening does not end");
                }
            };
            done.result.map_err(|error| Failure(format!("read at {offset:#x}: {error}")))?;
            let buffer = done.kind.into_buffers().and_then(Buffers::into_owned);
            let buffer = buffer.ok_or_else(|| Failure("a read came back without its buffer".into()))?;
            content.extend_from_slice(buffer.as_slice());
        }
        Ok(content)
    }

    /// The disk at rest, with its image open: what does the guest see? Faults are over.
    pub fn read_now(&mut self) -> Checked {
        self.arm_quietly();
        let Some(disk) = self.disk else { return fail("nothing is open") };
        let now = self.model.tick();
        match self.blind {
            true => Ok(()),
            // dirty tables fill the cache of a poisoned image for ever: it may have no room to look anything
            // up
            false if self.is_poisoned() => match self.read_all(disk) {
                Ok(content) => self.model.check_range(0, &content, View::Live(now)),
                Err(_) => Ok(()),
            },
            false => self.read_whole(disk, View::Live(now)).map(drop),
        }
    }

    /// Opens the image for reading alone and looks at all of it.
    pub fn look(&mut self) -> Checked {
        let Some(disk) = self.open_with(self.session.options.clone().write(false), &mut Fifo)? else {
            return fail("the image does not open for reading");
        };
        self.opened(disk)?;
        let now = self.model.tick();
        self.read_whole(disk, View::Live(now))?;
        self.snapshots_hold("as it stands")
    }

    /// Opens what a power cut left for writing and reads it whole; nothing is promised about the content.
    pub fn open_survivor(&mut self) -> Checked<Vec<u8>> {
        if self.subject.checks() {
            self.keeps_bytes("after a power cut")?;
            image::survived(self.sim(), TOP)?;
        }
        if self.subject.tight && image::leaks(self.sim(), TOP)? > self.subject.leaks {
            return fail("a power cut leaves a leak");
        }
        self.snapshots_hold("after a power cut")?;
        if !self.open(&mut Fifo)? {
            return fail("the image does not open");
        }
        let Some(disk) = self.disk else { return fail("nothing is open") };
        let content = self.read_all(disk)?;
        if self.subject.checks() {
            image::sound(self.sim(), TOP, "after opening")?;
        }
        Ok(content)
    }

    /// Of everything that decides the future: machines, disk, promises.
    pub fn digest(&self) -> u128 {
        let mut words = vec![self.driver.next_timeout().map_or(0, |left| left.as_nanos() as u64 + 1)];
        let mut add = |digest: u128| words.extend([digest as u64, (digest >> 64) as u64]);
        add(self.driver.backend().digest());
        add(self.model.digest());
        if let Some(disk) = self.disk {
            for layer in 0..self.driver.layers(disk) {
                self.driver.image(disk, layer).into_iter().for_each(|image| add(image.digest()));
            }
        }
        for (user, ticket) in &self.tickets {
            words.push(*user);
            words.extend(self.model.ended_before(ticket.submitted));
        }
        words.extend([self.kept.len() as u64, self.next.is_some().into()]);
        words.extend([u64::from(self.faulted), u64::from(self.blind), self.disk.is_some().into()]);
        hash_words(5, words)
    }

    /// Of what the guest can see now: for runs that must repeat exactly.
    pub fn trace_digest(&self) -> u128 {
        hash_bytes(self.digest(), &self.next_user.to_le_bytes())
    }
}

impl World {
    /// Requests are numbered from here on.
    pub fn number_from(&mut self, number: u64) {
        self.next_user = number;
    }

    /// The number of the next request.
    pub fn next_number(&self) -> u64 {
        self.next_user
    }
}
