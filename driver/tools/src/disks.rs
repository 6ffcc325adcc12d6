//! One driver with several disks, for work that reads one and writes another: blocking where a table is asked
//! for, with everything else in flight meanwhile.
//!
//! Knows: the driver, whose completion is whose. Must never know: what is copied or compared.
//! Invariant: every completion is answered by `next` or `run`, once, but for tables that were read ahead.

use crate::layers::{Ask, Layers, MapRun};
use quod::{Completion, Config, DiskId, Driver, Error, LayerInfo, OpenOptions, Refusal, Request};
use quod_states::{Extent, Format};
use std::collections::VecDeque;
use std::path::Path;

/// The `user` of a request that is waited for.
const WAITED: u64 = u64::MAX;
/// The `user` of a table's piece that shall be there when it is asked for.
const AHEAD: u64 = u64::MAX - 1;

/// A driver, and what ended while something else was waited for.
pub(crate) struct Disks {
    driver: Driver,
    ended: VecDeque<Completion>,
}

impl Disks {
    /// No disk yet.
    pub(crate) fn new(config: Config) -> Result<Disks, Error> {
        Ok(Disks { driver: Driver::new(config)?, ended: VecDeque::new() })
    }

    /// Opens an image.
    pub(crate) fn open(&mut self, path: &Path, options: OpenOptions) -> Result<DiskId, Error> {
        let disk = self.driver.open(path, options.user(WAITED))?;
        self.wait_for(disk)?;
        Ok(disk)
    }

    /// Submits a request; `user` is not one of the last two numbers. Waits while no slot is free.
    pub(crate) fn submit(&mut self, disk: DiskId, mut request: Request) -> Result<(), Error> {
        loop {
            match self.driver.submit(disk, request) {
                Ok(()) => return Ok(()),
                Err(rejected) if rejected.reason == Refusal::Busy => request = rejected.request,
                Err(rejected) => return Err(rejected.into()),
            }
            let done = self.arrival()?;
            self.ended.push_back(done);
        }
    }

    /// The next request that ends.
    ///
    /// # Errors
    /// Those of the driver; [`Error::Closed`] if nothing is left that could end.
    pub(crate) fn next(&mut self) -> Result<Completion, Error> {
        match self.ended.pop_front() {
            Some(done) => Ok(done),
            None => self.arrival(),
        }
    }

    /// Runs a request to its end.
    pub(crate) fn run(&mut self, disk: DiskId, mut request: Request) -> Result<Completion, Error> {
        request.user = WAITED;
        self.submit(disk, request)?;
        self.wait_for(disk)
    }

    /// Closes a disk; all else of it has ended.
    pub(crate) fn close(&mut self, disk: DiskId) -> Result<(), Error> {
        self.run(disk, Request::close(WAITED)).map(drop)
    }

    /// The layers of a disk, to be asked where its bytes lie.
    pub(crate) fn layers(&self, disk: DiskId) -> Result<Layers, Error> {
        self.driver.disk_info(disk).map(Layers::of).ok_or(Error::Closed)
    }

    /// Bytes of a disk.
    pub(crate) fn size(&self, disk: DiskId) -> u64 {
        self.driver.disk_info(disk).map_or(0, quod::DiskInfo::virtual_size)
    }

    /// Its format.
    pub(crate) fn format(&self, disk: DiskId) -> Option<Format> {
        self.driver.disk_info(disk).map(quod::DiskInfo::format)
    }

    /// Bytes of a cluster of its image.
    pub(crate) fn cluster_size(&self, disk: DiskId) -> u64 {
        self.driver.disk_info(disk).map_or(0, |info| info.image().info.cluster_size.into())
    }

    /// Bytes of the disk that its backing file is; 0 if it has none.
    pub(crate) fn backing_size(&self, disk: DiskId) -> u64 {
        let layers = self.driver.disk_info(disk).map_or(&[][..], quod::DiskInfo::layers);
        layers.get(1).map_or(0, |layer| layer.info.virtual_size)
    }

    fn wait_for(&mut self, disk: DiskId) -> Result<Completion, Error> {
        loop {
            let done = self.arrival()?;
            if (done.disk, done.user) != (disk, WAITED) {
                self.ended.push_back(done);
                continue;
            }
            return match &done.result {
                Ok(()) => Ok(done),
                Err(error) => Err(error.clone()),
            };
        }
    }

    /// What the driver ends next.
    fn arrival(&mut self) -> Result<Completion, Error> {
        loop {
            match self.driver.next_completion() {
                Some(done) if done.user == AHEAD => {}
                Some(done) => return Ok(done),
                None if self.driver.idle() => return Err(Error::Closed),
                None => self.driver.wait(None)?,
            }
        }
    }
}

/// A disk, to be asked.
struct Asked<'a>(&'a mut Disks, DiskId);

impl Ask for Asked<'_> {
    fn map(&mut self, layer: usize, offset: u64, len: u64) -> Result<Extent, Error> {
        let done = self.0.run(self.1, Request::map(layer, offset, len, WAITED))?;
        done.kind.extent().ok_or(Error::Misuse("map gave no extent"))
    }

    fn ahead(&mut self, layer: usize, offset: u64) -> bool {
        self.0.driver.submit(self.1, Request::map(layer, offset, 1, AHEAD)).is_ok()
    }
}

/// A walk over a disk from its beginning to its end: which run a byte is in.
pub(crate) struct Walk {
    disk: DiskId,
    layers: Layers,
    run: MapRun,
}

impl Walk {
    pub(crate) fn new(disks: &Disks, disk: DiskId) -> Result<Walk, Error> {
        Ok(Walk { disk, layers: disks.layers(disk)?, run: MapRun::default() })
    }

    /// Bytes of the disk, in whole sectors.
    pub(crate) fn size(&self) -> u64 {
        self.layers.size(0)
    }

    /// The image, and its backing files.
    pub(crate) fn layers(&self) -> impl Iterator<Item = &LayerInfo> {
        self.layers.infos()
    }

    /// The run that this byte is in, which is inside the disk.
    ///
    /// # Errors
    /// A table that cannot be read, or says what it must not.
    pub(crate) fn at(&mut self, disks: &mut Disks, at: u64) -> Result<&MapRun, Error> {
        if at < self.run.start || at - self.run.start >= self.run.length {
            let left = self.size() - at;
            self.run = self.layers.run(&mut Asked(disks, self.disk), at, left)?;
        }
        Ok(&self.run)
    }
}
