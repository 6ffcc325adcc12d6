//! The parts of the work on snapshots: which follow which, and what each does.
//!
//! Knows: which tables there are. Must never know: how an I/O is named or answered (`mod.rs`).
//!
//! Invariant: a part that is stopped goes on where it was: what it has done it does not do again.

use super::ask::Task;
use super::list::Plan;
use super::stop::Stop;
use super::walk::Ground;
use super::{CHUNK, Edit, Edited, Part, Region};
use crate::base::span::Span;
use crate::error::Error;
use crate::fault::{BitmapLack, Lack};
use crate::qcow2::snapshot::Snapshot;
use crate::qcow2::{L1, Shape};
use crate::space::counts::{OpenedMetadata, Refcounted};
use crate::space::owners::Owners;
use alloc::vec::Vec;

/// Bytes of a refcount table at most.
const TABLE_MAX: u64 = 8 << 20;
/// Entries of an L1 table whose owners are known, as after an opening.
const OWNERS_MAX: usize = 128 << 10;

impl Edit {
    /// Works on a part until it is done.
    pub(super) fn go_on(&mut self, part: Part, counted: &Refcounted) -> Result<(), Stop> {
        debug_assert!(!self.parts.is_empty(), "this is the first of them");
        match part {
            Part::Durable if self.skips.0 => Ok(()),
            Part::HeaderDurable if self.skips.1 => Ok(()),
            Part::Settle | Part::Durable | Part::HeaderDurable if self.at == 1 => Ok(()),
            Part::Settle | Part::Durable | Part::HeaderDurable => Err(Stop::Sync),
            Part::List => self.read_list(),
            Part::Directory | Part::Keep | Part::Map | Part::Bits | Part::PlaceBits | Part::PlaceMap => {
                self.go_on_with_bitmap(part, counted)
            }
            Part::Blocks => self.place_blocks(counted),
            Part::Load(offset, entries) => self.load(offset, entries),
            Part::Add | Part::Remove | Part::Flag => {
                let mut ground = Ground {
                    shape: self.shape,
                    counts: &mut self.counts,
                    places: &mut self.places,
                    counted,
                    end: self.end,
                };
                match part {
                    Part::Add => self.walk.count(true, &mut ground),
                    Part::Remove => self.walk.count(false, &mut ground),
                    _ => {
                        self.walk.flag(&mut ground)?;
                        self.keep_l1();
                        Ok(())
                    }
                }
            }
            Part::PlaceL1 if !self.new_l1 => Ok(()),
            Part::PlaceL1 => self.place(Region::L1, self.active.len() as u64 * 8, counted),
            Part::PlaceList => {
                self.bytes = match self.ask {
                    Task::Snapshot(_) => self.list.encode(),
                    Task::Bitmap(_) | Task::Store(_) => {
                        let map = self.placed(Region::Map).map(|(host, _)| host);
                        self.maps.place_table(map)
                    }
                };
                self.place(Region::List, self.bytes.len() as u64, counted)
            }
            Part::PlaceTable => {
                let bytes = self.table_bytes()?;
                self.place(Region::Table, bytes, counted)
            }
            Part::Forget => self.forget(),
            Part::Flush => self.flush(),
            Part::Write => self.write(),
            Part::Header if self.at == 1 => Ok(()),
            Part::Header if self.header_sent => Err(Stop::Header),
            Part::Header => {
                self.change_header()?;
                Err(Stop::Header)
            }
        }
    }

    /// The list, and with it what there is to do.
    fn read_list(&mut self) -> Result<(), Stop> {
        debug_assert!(self.parts.len() == 1, "nothing is planned yet");
        if let Some((offset, len)) = self.list.next(&self.header).map_err(Stop::Bad)? {
            return Err(Stop::ReadPiece { offset, len });
        }
        let Task::Snapshot(ask) = &self.ask else {
            self.parts.push_back(Part::Directory);
            return Ok(());
        };
        let plan = self.list.change(ask, &self.header).map_err(Stop::Bad)?;
        let active = Part::Load(self.header.l1_offset, self.header.l1_entries);
        let load = |of: &Snapshot| Part::Load(of.l1_offset, of.l1_entries);
        self.parts.push_back(Part::Blocks);
        match &plan {
            Plan::Create => self.parts.extend([active, Part::Add, active, Part::Flag]),
            Plan::Apply(of) => {
                // in this order no count has to be higher in between than it is before or after
                let count = [active, Part::Remove, load(of), Part::Add];
                self.parts.extend(count.into_iter().chain([load(of), Part::Flag]));
            }
            Plan::Delete(of) => self.parts.extend([load(of), Part::Remove, active, Part::Flag]),
        }
        self.parts.push_back(Part::PlaceL1);
        if !matches!(plan, Plan::Apply(_)) {
            self.parts.push_back(Part::PlaceList);
        }
        self.plan_end();
        debug_assert!(self.plan.is_none(), "there is one plan");
        self.plan = Some(plan);
        Ok(())
    }

    /// What follows when all but the refcount table has its place.
    pub(super) fn plan_end(&mut self) {
        self.parts.extend([Part::PlaceTable, Part::Forget, Part::Flush, Part::Write]);
        self.parts.extend([Part::Durable, Part::Header, Part::HeaderDurable]);
        debug_assert!(!self.header_sent, "the header comes last");
    }

    fn place_blocks(&mut self, counted: &Refcounted) -> Result<(), Stop> {
        // blocks that counting the new ones takes come behind these, with places of their own
        debug_assert!(self.plan.is_some() || self.maps.table.is_some(), "it is known what comes");
        while self.at < self.counts.len() {
            if self.counts.old_block(self.at) != 0 && self.counts.new_block(self.at) == 0 {
                self.places.take_block(self.at, &mut self.counts, counted)?;
            }
            self.at += 1;
        }
        self.places.count_rest(&mut self.counts)
    }

    /// An L1 table, for the walk that comes next.
    fn load(&mut self, offset: u64, entries: u32) -> Result<(), Stop> {
        let (bytes, done) = (u64::from(entries) * 8, self.loading.len() as u64 * 8);
        if done < bytes {
            return Err(Stop::ReadPiece { offset: offset + done, len: (bytes - done).min(CHUNK) });
        }
        debug_assert_eq!(done, bytes, "no more is read");
        let words = core::mem::take(&mut self.loading);
        self.walk.restart(words);
        Ok(())
    }

    /// What was walked over becomes the disk's.
    fn keep_l1(&mut self) {
        let before = self.walk.l1.len();
        self.active = core::mem::take(&mut self.walk.l1);
        let moves = !matches!(self.plan, Some(Plan::Delete(_)));
        self.new_l1 = moves || self.walk.differs();
        if matches!(self.plan, Some(Plan::Apply(_))) {
            // it never gets shorter, as for QEMU
            self.active.resize(before.max(self.header.l1_entries as usize), 0);
        }
        debug_assert!(self.active.len() >= before, "nothing of it is lost");
    }

    /// Bytes of the new refcount table, with room for the blocks that its own place may take.
    fn table_bytes(&mut self) -> Result<u64, Stop> {
        let (cluster, entries) = (self.cluster(), self.counts.shape().block_entries());
        if self.table_clusters == 0 {
            let blocks = self.counts.end();
            let room = |clusters: u64| ((blocks + 2 + clusters.div_ceil(entries)) * 8).div_ceil(cluster);
            let mut clusters = u64::from(self.header.reftable_clusters).max(room(1));
            while room(clusters) > clusters {
                clusters = room(clusters);
            }
            self.table_clusters = clusters;
        }
        debug_assert!(self.table_clusters > 0, "a table is not empty");
        match self.table_clusters * cluster > TABLE_MAX.max(cluster) {
            true => Err(Stop::Bad(Error::NoSpace)),
            false => Ok(self.table_clusters * cluster),
        }
    }

    /// So many bytes get a place, if they are any.
    pub(super) fn place(&mut self, region: Region, bytes: u64, counted: &Refcounted) -> Result<(), Stop> {
        debug_assert!(self.placed(region).is_none(), "it has one place");
        let clusters = bytes.div_ceil(self.cluster());
        if clusters > 0 {
            let first = self.places.take(clusters, &mut self.counts, counted)?;
            debug_assert!(first > 0, "the header is in use");
            self.placed.push((region, first << self.shape.cluster_bits, clusters));
        }
        Ok(())
    }

    /// Where the new one lies, and its clusters.
    pub(super) fn placed(&self, region: Region) -> Option<(u64, u64)> {
        let found = self.placed.iter().find(|(kind, _, _)| *kind == region);
        debug_assert!(self.placed.len() <= 4, "each has one place");
        found.map(|(_, host, clusters)| (*host, *clusters))
    }

    /// What only the old header leads to has a reference less.
    fn forget(&mut self) -> Result<(), Stop> {
        let cluster = self.cluster();
        if self.old.is_empty() {
            let header = &self.header;
            let table = u64::from(header.reftable_clusters) * cluster;
            self.old.push(Span::at(header.reftable_offset, table));
            let blocks = (0..self.counts.len()).map(|index| self.counts.old_block(index));
            self.old.extend(blocks.filter(|block| *block != 0).map(|block| Span::at(block, cluster)));
            let l1 = |offset, entries: u32| Span::at(offset, u64::from(entries) * 8);
            if self.is_bitmap() {
                self.old.extend(self.maps.dropped(&self.header));
            }
            match &self.plan {
                Some(Plan::Delete(of)) => self.old.push(l1(of.l1_offset, of.l1_entries)),
                Some(Plan::Create | Plan::Apply(_)) | None => {}
            }
            if self.new_l1 && !matches!(self.plan, Some(Plan::Create)) {
                self.old.push(l1(header.l1_offset, header.l1_entries));
            }
            if !matches!(self.plan, Some(Plan::Apply(_)) | None) {
                self.old.push(Span::at(header.snapshots_offset, self.list.len()));
            }
            self.old.retain(|span| !span.is_empty());
            self.old.reverse();
        }
        debug_assert!(cluster > 0, "limits of the format");
        while let Some(span) = self.old.last() {
            let clusters = span.len().div_ceil(cluster);
            while self.at < clusters {
                self.counts.remove(span.start / cluster + self.at)?;
                self.at += 1;
            }
            self.old.pop();
            self.at = 0;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Stop> {
        debug_assert!(self.old.is_empty(), "all counts are what they shall be");
        while self.at < self.counts.len() {
            self.counts.flush(self.at)?;
            self.at += 1;
        }
        Ok(())
    }

    /// The piece of what was placed that is written next: of which region, from which byte on, how long.
    fn piece(&self) -> Option<(Region, u64, u64, u64)> {
        let cluster = self.cluster();
        let mut pieces = self.at;
        for (region, host, clusters) in &self.placed {
            let bytes = clusters * cluster;
            let count = bytes.div_ceil(CHUNK);
            if pieces < count {
                let at = pieces * CHUNK;
                return Some((*region, *host, at, (bytes - at).min(CHUNK)));
            }
            pieces -= count;
        }
        debug_assert!(pieces == 0, "each piece is written once");
        None
    }

    fn write(&mut self) -> Result<(), Stop> {
        debug_assert!(self.placed(Region::Table).is_some(), "all of it has a place");
        match self.piece() {
            Some((_, host, at, len)) => Err(Stop::WritePiece { offset: host + at, len }),
            None => Ok(()),
        }
    }

    pub(super) fn encode_piece(&self, buf: &mut [u8]) {
        let Some((region, _, at, len)) = self.piece() else { return };
        debug_assert_eq!(len, buf.len() as u64, "the piece that was named");
        buf.fill(0);
        let words = |words: &[u64], buf: &mut [u8]| {
            let rest = words.get((at / 8) as usize..).unwrap_or_default();
            for (bytes, word) in buf.chunks_exact_mut(8).zip(rest) {
                bytes.copy_from_slice(&word.to_be_bytes());
            }
        };
        match region {
            Region::L1 => words(&self.active, buf),
            Region::Table => words(self.counts.table(), buf),
            Region::Map => words(self.maps.words(), buf),
            Region::Bits => self.maps.encode_bits(at, self.shape, buf),
            Region::List => {
                let rest = self.bytes.get(at as usize..).unwrap_or_default();
                let count = rest.len().min(buf.len());
                buf[..count].copy_from_slice(&rest[..count]);
            }
        }
    }

    pub(super) fn is_bitmap(&self) -> bool {
        debug_assert!(self.maps.table.is_none() || self.plan.is_none(), "one or the other");
        matches!(self.ask, Task::Bitmap(_) | Task::Store(_))
    }

    /// The header leads to all that is new; as long as it is not one sector alone, in several steps.
    fn change_header(&mut self) -> Result<(), Stop> {
        let old = self.header.clone();
        if let Some((host, clusters)) = self.placed(Region::Table) {
            (self.header.reftable_offset, self.header.reftable_clusters) = (host, clusters as u32);
        }
        debug_assert!(self.counts.end() * 8 <= self.table_clusters * self.cluster(), "each has an entry");
        if self.new_l1 {
            self.header.l1_entries = self.active.len() as u32;
            // one without entries is nowhere
            self.header.l1_offset = self.placed(Region::L1).map_or(0, |(host, _)| host);
        }
        let list = self.placed(Region::List).map_or(0, |(host, _)| host);
        match &self.plan {
            Some(Plan::Apply(of)) => self.header.size = of.disk_size().unwrap_or(self.header.size),
            Some(Plan::Create | Plan::Delete(_)) => {
                self.header.snapshots = self.list.entries.len() as u32;
                self.header.snapshots_offset = list;
            }
            None => {
                let bitmaps = self.maps.extension(list, self.bytes.len() as u64);
                let full = |_| Stop::Bad(Error::Unsupported(Lack::Bitmap(BitmapLack::HeaderFull)));
                self.header.set_bitmaps(bitmaps).map_err(full)?;
                self.blocks = old.steps_to(&mut self.header).map_err(full)?.into();
                if self.skips.2 {
                    self.blocks.drain(..self.blocks.len() - 1);
                }
            }
        }
        if self.blocks.is_empty() {
            self.blocks.push_back(self.header.encode());
        }
        for _ in 1..self.blocks.len() {
            self.parts.extend([Part::Header, Part::HeaderDurable]);
        }
        debug_assert!(!self.blocks.is_empty(), "a header is written");
        Ok(())
    }

    /// What the owner has to know of the new image.
    pub(super) fn edited(&mut self) -> Edited {
        debug_assert!(self.header_sent, "the header leads there");
        let header = self.header.clone();
        let entries = (self.table_clusters * self.cluster() / 8) as usize;
        let mut reftable = self.counts.table().to_vec();
        // what is longer has no blocks there
        reftable.resize(entries, 0);
        let list = match self.plan {
            // of bitmaps, which are no snapshots
            Some(Plan::Apply(_)) | None => self.list.len(),
            Some(Plan::Create | Plan::Delete(_)) => self.bytes.len() as u64,
        };
        let mut snapshots: Vec<Span> = self
            .list
            .entries
            .iter()
            .map(|entry| Span::at(entry.l1_offset, u64::from(entry.l1_entries) * 8))
            .collect();
        snapshots.push(Span::at(header.snapshots_offset, list));
        let mut metadata = OpenedMetadata { reftable, snapshots, ..OpenedMetadata::default() };
        if self.active.len() <= OWNERS_MAX {
            let (owners, twice) = owners(self.shape, &self.active);
            (metadata.l2, metadata.twice) = (owners, twice);
        }
        let freed = self.counts.take_freed();
        let directory = self.is_bitmap().then(|| core::mem::take(&mut self.bytes));
        Edited { header, metadata, end: self.reached().1, file_len: self.file_len, freed, directory }
    }
}

/// Where L2 tables lie, and which entries lead there; the first that leads to one that is another's.
fn owners(shape: Shape, l1: &[u64]) -> (Owners, Option<(u64, u64)>) {
    let (mut owners, mut twice) = (Owners::default(), None);
    for (index, word) in (0..).zip(l1) {
        if let Ok(L1::Table { host, copied }) = shape.decode_l1(index, *word)
            && !owners.add(host, index, copied)
            && twice.is_none()
        {
            twice = Some((index, host));
        }
    }
    debug_assert!(twice.is_none_or(|(_, host)| host > 0), "offset 0 is no table");
    (owners, twice)
}
