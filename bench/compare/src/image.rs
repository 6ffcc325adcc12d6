//! The images that works begin with: made once, and copied afresh for each run that writes.
//!
//! Knows: files, QEMU's tools that make them. Must never know: engines, what is done with an image.
//!
//! Invariant: a copy is one of bytes. A reflink would make the first write of each block another work.

use crate::setting::{Format, Start};
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use quod::OpenOptions;
use quod_tools::Session;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Guest bytes of a full image.
pub const FULL: u64 = 256 << 20;
/// Guest bytes of a small one, of which every cluster is read again and again.
const SMALL: u64 = 1 << 20;
const CLUSTER: u64 = 64 << 10;

/// The folder of images.
#[derive(Clone, Debug)]
pub struct Images {
    folder: PathBuf,
}

fn run(program: &str, words: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() { Ok(()) } else { Err(format!("{program} {}: {said}", words.join(" "))) }
}

fn text(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{}: the name is no UTF-8", path.display()))
}

impl Images {
    /// In a folder, which is made.
    pub fn new(folder: &Path) -> io::Result<Images> {
        fs::create_dir_all(folder)?;
        Ok(Images { folder: folder.to_path_buf() })
    }

    /// Removes all that was made.
    pub fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }

    fn path(&self, start: Start, format: Format) -> PathBuf {
        self.folder.join(format!("{}.{}", start.name(), format.name()))
    }

    /// The image that a run may read. It is made if it is not there yet.
    pub fn original(&self, start: Start, format: Format) -> Result<PathBuf, String> {
        let path = self.path(start, format);
        if !path.exists() {
            let made = self.make(start, format, &path);
            if made.is_err() {
                // whatever is there is no such image; the first failure is told
                let _ = fs::remove_file(&path);
            }
            made?;
        }
        Ok(path)
    }

    /// A copy of its own for a run that writes. One with nothing in it is made anew: a copy would not have
    /// what qemu-img tells the file system of its growth.
    pub fn fresh(&self, start: Start, format: Format) -> Result<PathBuf, String> {
        let path = self.folder.join(format!("run.{}", format.name()));
        let told = |error: io::Error| format!("{}: {error}", path.display());
        if path.exists() {
            fs::remove_file(&path).map_err(told)?;
        }
        match start {
            Start::Empty | Start::Wide | Start::Guest => {
                self.make(start, format, &path)?;
                File::open(&path).and_then(|made| made.sync_all()).map_err(told)?;
            }
            _ => copy(&self.original(start, format)?, &path).map_err(told)?,
        }
        Ok(path)
    }

    fn make(&self, start: Start, format: Format, path: &Path) -> Result<(), String> {
        let (name, format_name) = (text(path)?, format.name());
        let create = |words: &[&str], size: &[&str]| {
            run("qemu-img", &[&["create", "-q", "-f", format_name][..], words, &[name], size].concat())
        };
        match start {
            Start::Empty => create(&[], &["16G"]),
            // a MiB for each of these writes would fill devices
            Start::Wide if format == Format::Raw => create(&["-o", "extent_size_hint=0"], &["16G"]),
            Start::Wide => create(&[], &["16G"]),
            Start::Guest => create(&[], &["1G"]),
            Start::Cold => create(&["-o", "preallocation=metadata"], &["1T"]),
            Start::Overlay | Start::OverlayExtended => {
                let base = self.original(Start::Full, Format::Qcow2)?;
                let extended = if start == Start::Overlay { "off" } else { "on" };
                let option = format!("extended_l2={extended}");
                create(&["-o", &option, "-b", text(&base)?, "-F", "qcow2"], &[])
            }
            Start::Full if format == Format::Raw => fill(path, FULL, false),
            Start::Full => self.convert(FULL, false, &[], format_name, name),
            Start::Deflate => self.convert(FULL, true, &["-c"], format_name, name),
            Start::HotDeflate => self.convert(SMALL, true, &["-c"], format_name, name),
            Start::Zstd => {
                self.convert(FULL, true, &["-c", "-o", "compression_type=zstd"], format_name, name)
            }
            Start::HotZstd => {
                self.convert(SMALL, true, &["-c", "-o", "compression_type=zstd"], format_name, name)
            }
            Start::Fragmented => {
                create(&[], &[&FULL.to_string()])?;
                self.scatter(path)
            }
        }
    }

    fn convert(
        &self,
        len: u64,
        compressible: bool,
        words: &[&str],
        format: &str,
        to: &str,
    ) -> Result<(), String> {
        let from = self.folder.join("source.raw");
        fill(&from, len, compressible)?;
        let source = text(&from)?;
        let words = [&["convert", "-S", "0", "-f", "raw", "-O", format][..], words, &[source, to]].concat();
        let converted = run("qemu-img", &words);
        let removed = fs::remove_file(&from).map_err(|error| format!("{}: {error}", from.display()));
        converted.and(removed)
    }

    /// Writes all clusters of an image in an order in which no two neighbours meet.
    fn scatter(&self, path: &Path) -> Result<(), String> {
        let source = self.original(Start::Full, Format::Raw)?;
        let told = |error: io::Error| format!("{}: {error}", path.display());
        let source = File::open(source).map_err(told)?;
        let open = OpenOptions::new().write(true).format(Some(quod::Format::Qcow2));
        let mut session = Session::open(path, open).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; CLUSTER as usize];
        let clusters = FULL / CLUSTER;
        for index in 0..clusters {
            // odd, and there is a power of two of them: each comes once
            let at = index * 1579 % clusters * CLUSTER;
            source.read_exact_at(&mut bytes, at).map_err(told)?;
            session.write(at, &bytes).map_err(|error| error.to_string())?;
        }
        session.close().map_err(|error| error.to_string())
    }
}

/// A file of bytes that do not compress, or about 2:1.
fn fill(path: &Path, len: u64, compressible: bool) -> Result<(), String> {
    let filled = || -> io::Result<()> {
        let mut random = File::open("/dev/urandom")?;
        let mut file = File::create(path)?;
        let mut piece = vec![0; 1 << 20];
        for _ in 0..len / piece.len() as u64 {
            random.read_exact(&mut piece)?;
            if compressible {
                let (halves, _) = piece.as_chunks_mut::<2048>();
                halves.iter_mut().skip(1).step_by(2).for_each(|half| half.fill(0x51));
            }
            file.write_all(&piece)?;
        }
        file.sync_all()
    };
    filled().map_err(|error| format!("{}: {error}", path.display()))
}

/// Copies the bytes, leaves holes where there are holes, and waits until the copy is on the device.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let len = source.metadata()?.len();
    let target = File::create(to)?;
    target.set_len(len)?;
    let mut piece = vec![0; 1 << 20];
    let mut at = 0;
    while let Some((start, end)) = next_data(&source, at)? {
        at = start;
        while at < end {
            let part = (end - at).min(piece.len() as u64) as usize;
            source.read_exact_at(&mut piece[..part], at)?;
            target.write_all_at(&piece[..part], at)?;
            at += part as u64;
        }
    }
    target.sync_all()
}

/// The next piece of a file that is no hole.
fn next_data(file: &File, from: u64) -> io::Result<Option<(u64, u64)>> {
    let find = |from: u64, whence| lseek(file, from.cast_signed(), whence).map(i64::cast_unsigned);
    match find(from, Whence::SeekData) {
        Ok(start) => Ok(Some((start, find(start, Whence::SeekHole)?))),
        Err(Errno::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
