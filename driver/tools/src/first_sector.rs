//! The first sector of a disk whose format nobody named and that was taken for raw.
//!
//! A guest that writes the header of another format there would choose, at the next open, what its disk is
//! and which files of the host it is backed by. QEMU's raw driver refuses such writes; so does this.
//!
//! Knows: what a write makes of the sector. Must never know: how a write is done.
//! Invariant: `bytes` is the sector after all admitted writes, in the order in which they were admitted.

use quod::{Error, FileOp, FileRole, Request, RequestKind};
use quod_states::{Format, probe};
use std::path::{Path, PathBuf};

const SECTOR: usize = probe::HEAD;

/// See the module's header. [`Session`](crate::Session) has one where it is needed; whoever opens images that
/// others name with a [`Driver`](quod::Driver) of his own, without a format, shows it every request.
#[derive(Clone, Debug)]
pub struct FirstSector {
    path: PathBuf,
    bytes: [u8; SECTOR],
}

impl FirstSector {
    /// `bytes`: how the disk begins now. Fewer than a sector: the rest is zeros.
    pub fn new(path: &Path, bytes: &[u8]) -> FirstSector {
        let mut sector = [0; SECTOR];
        let len = bytes.len().min(SECTOR);
        sector[..len].copy_from_slice(&bytes[..len]);
        FirstSector { path: path.to_path_buf(), bytes: sector }
    }

    /// May this request be submitted? Looks at those that reach the first 512 bytes, and takes their bytes
    /// for written from then on.
    ///
    /// # Errors
    /// [`FileOp::WriteHeader`] with EPERM: it would make another format of the disk. Do not submit it.
    pub fn admit(&mut self, request: &Request) -> Result<(), Error> {
        // a discard may leave what was there: then nothing changes, and that was admitted before
        let (offset, len, source) = match &request.kind {
            RequestKind::Write { offset, buffers, .. } => (*offset, buffers.len(), Some(buffers)),
            RequestKind::WriteZeroes { offset, len, .. } | RequestKind::Discard { offset, len } => {
                (*offset, *len, None)
            }
            _ => return Ok(()),
        };
        if offset >= SECTOR as u64 {
            return Ok(());
        }
        let from = offset as usize;
        let len = len.min((SECTOR - from) as u64) as usize;
        let mut after = self.bytes;
        let range = &mut after[from..from + len];
        match source {
            Some(buffers) => drop(buffers.copy_to(range)),
            None => range.fill(0),
        }
        if probe::head(&after) != Ok(Format::Raw) {
            return Err(Error::io(&self.path, FileRole::Image, FileOp::WriteHeader, libc::EPERM));
        }
        self.bytes = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quod_backend::Buffer;

    fn write(sector: &mut FirstSector, offset: u64, bytes: &[u8]) -> Result<(), i32> {
        sector.admit(&Request::write(offset, Buffer::from(bytes), 0)).map_err(|error| error.errno())
    }

    #[test]
    fn headers_are_refused_even_in_pieces() {
        let mut sector = FirstSector::new(Path::new("x"), b"something");
        assert_eq!(write(&mut sector, 0, b"QFI\xfb\0\0\0\x03"), Err(libc::EPERM));
        assert_eq!(write(&mut sector, 512, b"QFI\xfb"), Ok(()));
        assert_eq!(write(&mut sector, 0, b"QE"), Ok(()));
        assert_eq!(write(&mut sector, 2, b"D"), Ok(()));
        // QED and a zero
        let zero = sector.admit(&Request::write_zeroes(3, 1, 0));
        assert_eq!(zero.map_err(|error| error.errno()), Err(libc::EPERM));
        assert_eq!(write(&mut sector, 0, &[0xeb; 4096]), Ok(()));
        let parts = vec![Buffer::from(&b"LU"[..]), Buffer::from(&b"KS\xba\xbe\0\x01"[..])];
        assert!(sector.admit(&Request::write(0, parts, 0)).is_err());
        assert_eq!(write(&mut sector, 0x42, &[0xda, 0xbe]), Ok(()));
        assert_eq!(write(&mut sector, 0x40, &[0x7f, 0x10]), Err(libc::EPERM));
        assert_eq!(write(&mut sector, 511, b"x"), Ok(()));
        // text counts as well
        assert_eq!(write(&mut sector, 0, b"# Disk DescriptorFil"), Ok(()));
        assert_eq!(write(&mut sector, 20, b"e"), Err(libc::EPERM));
        assert_eq!(write(&mut sector, 20, b"\nversion=1"), Ok(()));
        assert_eq!(write(&mut sector, 30, b"\n"), Err(libc::EPERM));
        assert!(sector.admit(&Request::read(0, Buffer::zeroed(512), 0)).is_ok());
        assert!(sector.admit(&Request::discard(0, u64::MAX, 0)).is_ok());
    }
}
