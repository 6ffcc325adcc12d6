//! Does fallocate do what it answers here? Seen, not believed: once a file system, on a file of its own.
//!
//! GlusterFS answers that a range was zeroed and leaves the old data there; whoever believes that gives a
//! guest what it had before. So on a file system that is not known bytes are written, zeroed and read back.
//!
//! Knows: what must be read back after each kind of fallocate. Must never know: the image, who asks.
//! Invariants: the image's file is not touched; the file that is tried on has no name any more when
//! anything is written to it, and is closed at the end; what cannot be tried is not believed.

use super::call::errno_of;
use super::file::{OpenFile, device_of, forget_pages, true_len};
use super::space::{PUNCH_MODE, ZERO_MODE, fallocate, unsupported};
use crate::buffer::Buffer;
use crate::op::{Errno, Proven};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes that are tried on.
const LEN: usize = 64 << 10;
const PATTERN: u8 = 0xa5;
/// Whole blocks, with others around them.
const BLOCKS: Range<u64> = 8 << 10..24 << 10;
/// Parts of blocks: asked for only where a file is not open with O_DIRECT.
const PARTS: Range<u64> = 41_472..45_568;
/// Names that were tried: two proofs at once do not meet.
static NAMES: AtomicU32 = AtomicU32::new(0);

/// What fallocate does on the file system of this file. An error: it could not be tried.
pub(crate) fn prove(file: &OpenFile) -> Result<Proven, Errno> {
    let proof = beside(file).map_err(|error| errno_of(&error))?;
    let punch_hole = makes_zeros(&proof, file.direct(), PUNCH_MODE)?;
    let zero_range = makes_zeros(&proof, file.direct(), ZERO_MODE)?;
    Ok(Proven { punch_hole, zero_range, allocate: makes_longer(&proof)? })
}

/// A new file without a name in the folder of this one.
fn beside(file: &OpenFile) -> io::Result<File> {
    let own = std::fs::read_link(format!("/proc/self/fd/{}", file.fd()))?;
    let folder = own.parent().map(Path::to_path_buf).unwrap_or_else(|| PathBuf::from("/"));
    let direct = if file.direct() { libc::O_DIRECT } else { 0 };
    let open = |path: &Path, flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(direct | flags).open(path)
    };
    let proof = match open(&folder, libc::O_TMPFILE) {
        Ok(proof) => proof,
        // most of FUSE, NFS
        Err(_) => {
            let number = NAMES.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!(".quod-{}-{number}", std::process::id()));
            let proof = open(&path, libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW)?;
            std::fs::remove_file(&path)?;
            proof
        }
    };
    // a folder that was moved, or mounted over, since the file was opened says nothing about it
    match device_of(file.fd()) == device_of(proof.as_raw_fd()) {
        true => Ok(proof),
        false => Err(io::Error::from_raw_os_error(libc::EXDEV)),
    }
}

/// Writes, makes zeros, and reads back: what the store has, not what the page cache remembers.
fn makes_zeros(proof: &File, direct: bool, mode: i32) -> Result<bool, Errno> {
    let mut memory = Buffer::zeroed(LEN);
    memory.as_mut_slice().fill(PATTERN);
    proof.write_all_at(memory.as_slice(), 0).map_err(|error| errno_of(&error))?;
    proof.sync_data().map_err(|error| errno_of(&error))?;
    let ranges = if direct { vec![BLOCKS] } else { vec![BLOCKS, PARTS] };
    for range in &ranges {
        match fallocate(proof.as_raw_fd(), mode, range.start, range.end - range.start) {
            Err(errno) if unsupported(errno) => return Ok(false),
            other => other?,
        }
    }
    proof.sync_data().map_err(|error| errno_of(&error))?;
    forget_pages(proof.as_raw_fd());
    memory.as_mut_slice().fill(1);
    proof.read_exact_at(memory.as_mut_slice(), 0).map_err(|error| errno_of(&error))?;
    let zero = |at: usize| ranges.iter().any(|range| range.contains(&(at as u64)));
    let right = |(at, byte): (usize, &u8)| *byte == if zero(at) { 0 } else { PATTERN };
    Ok(memory.as_slice().iter().enumerate().all(right))
}

/// Gives the file more space: it is longer, and holds zeros there.
fn makes_longer(proof: &File) -> Result<bool, Errno> {
    match fallocate(proof.as_raw_fd(), 0, LEN as u64, LEN as u64) {
        Err(errno) if unsupported(errno) => return Ok(false),
        other => other?,
    }
    proof.sync_data().map_err(|error| errno_of(&error))?;
    forget_pages(proof.as_raw_fd());
    let mut memory = Buffer::zeroed(LEN);
    memory.as_mut_slice().fill(1);
    let len = true_len(proof.as_raw_fd())?;
    // a file that is shorter than it seems ends the read early
    let read = proof.read_exact_at(memory.as_mut_slice(), LEN as u64);
    Ok(read.is_ok() && len == 2 * LEN as u64 && memory.as_slice().iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{OpenFlags, Store};
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    /// A file of 4 bytes in a folder of its own, opened.
    fn file(direct: bool) -> (tempfile::TempDir, OpenFile) {
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, b"data").unwrap();
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        (folder, OpenFile::open(&path, OpenFlags { write: true, direct, claim: false }).unwrap())
    }

    #[test]
    fn nothing_is_left_and_the_image_is_as_it_was() {
        for direct in [false, true] {
            let (folder, file) = file(direct);
            let proven = prove(&file).unwrap();
            if file.store() == Store::Known {
                assert_eq!(proven, Proven::ALL, "this is what being known means");
            }
            assert_eq!(std::fs::read(folder.path().join("image")).unwrap(), b"data");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        }
    }

    #[test]
    fn zeros_that_are_not_there_are_seen() {
        let (folder, file) = file(false);
        let proof = beside(&file).unwrap();
        // a mode that changes nothing stands for a file system that answers 0 and does nothing
        assert_eq!(makes_zeros(&proof, false, libc::FALLOC_FL_KEEP_SIZE), Ok(false));
        assert_eq!(makes_zeros(&proof, true, ZERO_MODE), Ok(true));
        drop(folder);
        assert!(prove(&file).is_err(), "a folder that is gone proves nothing");
    }
}
