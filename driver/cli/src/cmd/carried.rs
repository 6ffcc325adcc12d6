//! Persistent bitmaps that a conversion carries over, with the words of `qemu-img convert --bitmaps`.
//!
//! Knows: which bitmaps a source has, QEMU's words. Must never know: how a disk is copied.

use crate::out::program;
use crate::words::format;
use quod::fault::{BitmapLack, FormatLack};
use quod::{AllowAll, Error, ErrorKind, Format, Lack, OpenOptions};
use quod_tools::{Bitmap, Session};
use std::path::{Path, PathBuf};

/// The bitmaps of a source.
pub struct Carried {
    source: PathBuf,
    bitmaps: Vec<Bitmap>,
}

impl Carried {
    /// All that the source has; those that are inconsistent are skipped, or end the command.
    pub fn of(source: &Path, named: Option<Format>, target: Format, skip: bool) -> Result<Carried, String> {
        let facts = quod_tools::info(source, named, true).map_err(|error| error.to_string())?;
        let Some(own) = facts.qcow2.filter(|_| facts.info.version >= 3) else {
            return Err("Source lacks bitmap support".into());
        };
        if target != Format::Qcow2 {
            return Err(lacks(target));
        }
        let (bitmaps, broken): (Vec<Bitmap>, Vec<Bitmap>) =
            own.bitmaps.into_iter().partition(|bitmap| !bitmap.in_use());
        for bitmap in broken {
            let name = String::from_utf8_lossy(&bitmap.name);
            if !skip {
                return Err(format!(
                    "Cannot copy inconsistent bitmap '{name}'\n\
                     Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it"
                ));
            }
            complain!("{}: warning: Skipping inconsistent bitmap '{name}'", program());
        }
        Ok(Carried { source: source.to_path_buf(), bitmaps })
    }

    /// May the target, which is there, have some?
    pub fn check(&self, target: &Path) -> Result<(), String> {
        let facts = quod_tools::info(target, Some(Format::Qcow2), true).map_err(|error| error.to_string())?;
        if facts.info.version < 3 { Err(lacks(Format::Qcow2)) } else { Ok(()) }
    }

    /// They go into the target.
    pub fn copy(&self, target: &Path) -> Result<(), String> {
        if self.bitmaps.is_empty() {
            return Ok(());
        }
        let options = OpenOptions::new().write(true).format(Some(Format::Qcow2)).open_gate(AllowAll);
        let mut session = Session::open(target, options).map_err(|error| error.to_string())?;
        let copied = self.bitmaps.iter().try_for_each(|bitmap| {
            let name = String::from_utf8_lossy(&bitmap.name);
            quod_tools::copy_bitmap(&self.source, bitmap, &mut session)
                .map_err(|error| format!("Failed to create bitmap {name}: {}", why(&name, &error)))
        });
        let closed = session.close().map_err(|error| error.to_string());
        copied.and(closed)
    }
}

fn why(name: &str, error: &Error) -> String {
    match error.kind() {
        Some(ErrorKind::Unsupported(Lack::Format(FormatLack::Bitmap(BitmapLack::Exists)))) => {
            format!("Bitmap already exists: {name}")
        }
        _ => error.to_string(),
    }
}

fn lacks(format: Format) -> String {
    format!("Format driver '{}' does not support bitmaps", format::name(format))
}
