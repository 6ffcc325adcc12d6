//! Where the bytes of a guest disk lie, over its whole chain, as `qemu-img map` has it.
//!
//! Knows: runs, which of them are one. Must never know: how a layer tells, how they are printed.
//!
//! Invariant: what was read before a bad entry is told before the error.

use crate::layers::{Ask, Layers, MapRun};
use crate::session::Session;
use quod::{Error, LayerInfo, OpenOptions, Request};
use quod_states::Extent;
use std::path::Path;

/// The `user` of what is asked for only so that the piece is there.
const AHEAD_USER: u64 = 1;

/// An open image with its backing chain, to be mapped: which layer each part of the disk comes from, and
/// where it lies there.
///
/// ```
/// use quod::{Format, OpenOptions};
/// use quod_tools::{Mapper, Session};
/// # use quod_tools::{CreateOptions, create};
/// # let folder = tempfile::tempdir()?;
/// # let path = folder.path().join("disk.qcow2");
/// # create(&path, &CreateOptions::new(Format::Qcow2, 1 << 20))?;
/// let mut session = Session::open(&path, OpenOptions::new().write(true))?;
/// session.write(128 << 10, b"something")?;
/// session.close()?;
/// let mut mapper = Mapper::open(&path, OpenOptions::new())?; // with a gate if it has backing files
/// let mut runs = Vec::new();
/// mapper.runs(0, u64::MAX, &mut |_, run| {
///     runs.push((run.start, run.length, run.data));
///     true
/// })?;
/// assert_eq!(runs, [(0, 128 << 10, false), (128 << 10, 64 << 10, true), (192 << 10, 832 << 10, false)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Mapper {
    session: Session,
    layers: Layers,
}

impl Mapper {
    /// Opens an image.
    ///
    /// # Errors
    /// As of [`Session::open`].
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Mapper, Error> {
        let session = Session::open(path, options)?;
        let layers = session.info().map(Layers::of).ok_or(Error::Closed)?;
        Ok(Mapper { session, layers })
    }

    /// The image and its backing files.
    pub fn layers(&self) -> impl Iterator<Item = &LayerInfo> {
        self.layers.infos()
    }

    /// The file that holds the guest bytes of a layer.
    pub fn data_path(&self, depth: usize) -> Option<&Path> {
        let info = self.layers().nth(depth)?;
        Some(info.data_file.as_ref().unwrap_or(&info.path))
    }

    /// Tells all runs of a range in order, joined; at least one, which is empty if the range is. `told`
    /// answers whether it wants more.
    ///
    /// # Errors
    /// The first entry that contradicts the format, or cannot be read; what came before was told.
    pub fn runs(
        &mut self,
        start: u64,
        length: u64,
        told: &mut dyn FnMut(&Mapper, &MapRun) -> bool,
    ) -> Result<(), Error> {
        let end = self.layers.size(0).min(start.saturating_add(length));
        let mut current = MapRun { start, ..MapRun::default() };
        let mut at = start;
        while at < end {
            let next = self.layers.run(&mut self.session, at, end - at);
            if let Ok(next) = &next
                && current.length > 0
                && current.joins(next)
            {
                current.length += next.length;
                at += next.length;
                continue;
            }
            if current.length > 0 && !told(self, &current) {
                return Ok(());
            }
            current = next?;
            at += current.length;
        }
        told(self, &current);
        Ok(())
    }
}

impl Ask for Session {
    fn map(&mut self, layer: usize, offset: u64, len: u64) -> Result<Extent, Error> {
        // what was read ahead
        drop(self.take_ended());
        Session::map(self, layer, offset, len)
    }

    fn ahead(&mut self, layer: usize, offset: u64) -> bool {
        self.submit(Request::map(layer, offset, 1, AHEAD_USER)).is_ok()
    }
}
