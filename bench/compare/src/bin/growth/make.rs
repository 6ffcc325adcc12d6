//! The images of the points.
//!
//! Knows: which images a point reads, and where. Must never know: how they are read.

use crate::axis::{Axis, Format, Point};
use crate::task::{READ, Task};
use quod::{Buffer, OpenOptions};
use quod_tools::{CreateOptions, Session};
use std::fs;
use std::path::{Path, PathBuf};

/// Places that are read in an image that grows: with one table slice each all fit the cache.
const SPREAD: u64 = 4096;
/// Bytes of the images that do not grow.
const DENSE: u64 = 128 << 20;
/// What is read of each of many disks, and how large those are.
const PART: u64 = 2 << 20;
const MANY: u64 = 1 << 40;
const DEPTH: u32 = 64;
const PATTERN: u8 = 0x5a;

/// The folder; it goes with this.
pub struct Images {
    folder: PathBuf,
}

impl Images {
    pub fn new(folder: &Path) -> Result<Images, String> {
        fs::create_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        Ok(Images { folder: folder.to_path_buf() })
    }

    fn path(&self, name: &str, number: u64, format: Format) -> PathBuf {
        self.folder.join(format!("{name}-{number}.{}", format.name()))
    }

    /// What a point reads: images, the first of a chain alone, and where.
    fn of(&self, point: &Point) -> (Vec<PathBuf>, u64, u64) {
        let Point { axis, at, format } = *point;
        match axis {
            Axis::Size => (vec![self.path("size", at, format)], SPREAD, at / SPREAD),
            Axis::Depth => (vec![self.path("dense", 1, format)], DENSE / READ, READ),
            Axis::Disks => ((0..at).map(|n| self.path("many", n, format)).collect(), PART / READ, READ),
            Axis::Chain => (vec![self.path("dense", at, format)], DENSE / READ, READ),
        }
    }

    /// Makes the images of a point that are not there.
    pub fn prepare(&self, point: &Point) -> Result<(), String> {
        let Point { axis, at, format } = *point;
        let (images, places, step) = self.of(point);
        match axis {
            Axis::Chain => {
                for number in 1..=at {
                    let path = self.path("dense", number, format);
                    match number {
                        1 => make(&path, format, DENSE, places, step)?,
                        _ => overlay(&path, format, &self.path("dense", number - 1, format))?,
                    }
                }
                Ok(())
            }
            Axis::Size => make(&images[0], format, at, places, step),
            Axis::Depth => make(&images[0], format, DENSE, places, step),
            Axis::Disks => images.iter().try_for_each(|path| make(path, format, MANY, places, step)),
        }
    }

    /// What the process of a point is told.
    pub fn task(&self, point: &Point, count: u64) -> String {
        let (images, places, step) = self.of(point);
        let depth = if point.axis == Axis::Depth { point.at as u32 } else { DEPTH };
        let task = Task { images, format: point.format, places, step, depth, count };
        serde_json::json!(task).to_string()
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        // what is left there says enough
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn make(path: &Path, format: Format, size: u64, places: u64, step: u64) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let failed = |error: quod::Error| format!("{}: {error}", path.display());
    quod_tools::create(path, &CreateOptions::new(format.of_quod(), size)).map_err(failed)?;
    let open = OpenOptions::new().write(true).format(Some(format.of_quod()));
    let mut session = Session::open(path, open).map_err(failed)?;
    // neighbours in one write
    let run = if step == READ { places.min((1 << 20) / READ) } else { 1 };
    let mut buffer = Buffer::zeroed((run * READ) as usize);
    buffer.as_mut_slice().fill(PATTERN);
    for place in (0..places).step_by(run as usize) {
        session.write(place * step, buffer.as_slice()).map_err(failed)?;
    }
    session.flush().map_err(failed)?;
    session.close().map_err(failed)
}

fn overlay(path: &Path, format: Format, backing: &Path) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    let mut options = CreateOptions::new(format.of_quod(), DENSE);
    options.backing = Some((backing.display().to_string(), Some(format.of_quod())));
    quod_tools::create(path, &options).map_err(|error| format!("{}: {error}", path.display()))
}
