//! A block device for a test: a loop device over a file that is full of old bytes.
//!
//! Making one takes root, or sudo without a password; it is taken down when dropped.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a device holds before anything is written to it.
pub const OLD: u8 = 0xee;

pub struct LoopDevice {
    folder: tempfile::TempDir,
    path: PathBuf,
}

/// Runs a program as root; its output without the newline.
fn root(program: &str, arguments: &[&str]) -> String {
    // SAFETY: no arguments, cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut command = if is_root { Command::new(program) } else { Command::new("sudo") };
    if !is_root {
        command.args(["-n", program]);
    }
    let output = command.args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} (root is needed for loop devices): {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_string()
}

impl LoopDevice {
    /// Of `len` bytes in sectors of `sector` bytes, all of them [`OLD`].
    pub fn new(len: u64, sector: u32) -> LoopDevice {
        let folder = tempfile::Builder::new().prefix("quod-device-").tempdir_in("/var/tmp").unwrap();
        let file = folder.path().join("back");
        let mut back = File::create(&file).unwrap();
        let old = vec![OLD; 1 << 20];
        for at in (0..len).step_by(old.len()) {
            back.write_all(&old[..(len - at).min(old.len() as u64) as usize]).unwrap();
        }
        let sector = sector.to_string();
        let path = root("losetup", &["--find", "--show", "--sector-size", &sector, file.to_str().unwrap()]);
        let device = LoopDevice { folder, path: path.into() };
        // SAFETY: as above.
        let owner = unsafe { libc::geteuid() }.to_string();
        root("chown", &[&owner, device.name()]);
        device
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &str {
        self.path.to_str().unwrap()
    }

    /// The file behind it.
    pub fn back(&self) -> PathBuf {
        self.folder.path().join("back")
    }

    /// Makes it longer under whoever has it open; the new space holds [`OLD`] too.
    pub fn grow(&self, to: u64) {
        let mut back = File::options().append(true).open(self.back()).unwrap();
        let more = to - back.metadata().unwrap().len();
        back.write_all(&vec![OLD; more as usize]).unwrap();
        root("losetup", &["--set-capacity", self.name()]);
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        root("losetup", &["--detach", self.name()]);
    }
}
