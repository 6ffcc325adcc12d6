//! Files of formats that quod does not read: what is known of them without reading their tables.
//!
//! Knows: where a few headers have the size of the disk. Must never know: where the disk's bytes lie.
//! Invariant: a size that is told is one that QEMU tells as well; where there is doubt there is none.

use crate::host::Host;
use crate::info::disk_size;
use crate::luks::Luks;
use quod::Error;
use quod_states::{Foreign, probe};
use std::path::{Path, PathBuf};

/// Facts about a file of a format that quod does not read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ForeignInfo {
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub format: Foreign,
    /// Bytes of the guest disk, where the header says it plainly.
    pub virtual_size: Option<u64>,
    /// Length of the file, bytes.
    pub file_len: u64,
    /// It is a block device.
    pub is_device: bool,
    /// Bytes that it takes on the host.
    pub disk_size: u64,
    /// Its header, if it is a LUKS container.
    pub luks: Option<Luks>,
}

/// Looks at a file whose bytes say that it is of this format (which an
/// [`ErrorKind::Foreign`](quod::ErrorKind::Foreign) tells). `force_share`: without taking a lock.
///
/// # Errors
/// What the host says, and a LUKS container without a LUKS header.
pub fn foreign(path: impl AsRef<Path>, format: Foreign, force_share: bool) -> Result<ForeignInfo, Error> {
    let path = path.as_ref();
    let mut host = Host::open(path, false, !force_share)?;
    let head = host.head(4096)?;
    let tail = host.read(host.len().saturating_sub(probe::TAIL as u64), probe::TAIL)?;
    let luks = (format == Foreign::Luks).then(|| Luks::read(&mut host, 0)).transpose()?;
    Ok(ForeignInfo {
        path: path.to_path_buf(),
        format,
        virtual_size: match (format, &luks) {
            (_, Some(luks)) => host.len().checked_sub(luks.payload_offset),
            (Foreign::Vhdx, _) => vhdx(&mut host)?,
            _ => virtual_size(format, &head, &tail),
        },
        file_len: host.len(),
        is_device: host.is_device(),
        disk_size: disk_size(path)?,
        luks,
    })
}

fn virtual_size(format: Foreign, head: &[u8], tail: &[u8]) -> Option<u64> {
    let sectors = |count: u64| count.checked_mul(512);
    match format {
        Foreign::Vmdk if head.starts_with(b"KDMV") => sectors(le64(head, 12)?),
        Foreign::Vmdk if head.starts_with(b"COWD") => sectors(u64::from(le32(head, 12)?)),
        Foreign::Vmdk => extents(&String::from_utf8_lossy(head)),
        Foreign::Vdi => le64(head, 0x170)?.checked_next_multiple_of(512),
        Foreign::Vpc => vhd(if head.starts_with(b"conectix") { head } else { tail }),
        Foreign::Parallels if head.starts_with(b"WithoutFreeSpace") => sectors(u64::from(le32(head, 36)?)),
        Foreign::Parallels => sectors(le64(head, 36)?),
        Foreign::Qcow => be64(head, 24),
        Foreign::Dmg => sectors(be64(tail, 0x1ec)?),
        Foreign::Bochs => match le32(head, 64)? {
            0x1_0000 => le64(head, 84).map(|size| size & !511),
            0x2_0000 => le64(head, 88).map(|size| size & !511),
            _ => None,
        },
        Foreign::Cloop => u64::from(be32(head, 128)?).checked_mul(be32(head, 132)?.into()),
        _ => None,
    }
}

/// The extents of VMware's text: `RW 2048 FLAT "name" 0`, sizes in sectors.
fn extents(text: &str) -> Option<u64> {
    let extents = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let access = words.next()?;
        ["RW", "RDONLY", "NOACCESS"].contains(&access).then(|| words.next())?
    });
    let sizes = extents.map(|sectors| sectors.parse::<u64>().ok()?.checked_mul(512));
    sizes.reduce(|sum, size| sum?.checked_add(size?)).flatten()
}

/// The size is an item of the metadata, whose place is a region of the region table.
fn vhdx(host: &mut Host) -> Result<Option<u64>, Error> {
    const REGION_TABLE: u64 = 192 << 10;
    const METADATA: [u8; 16] = *b"\x06\xa2\x7c\x8b\x90\x47\x9a\x4b\xb8\xfe\x57\x5f\x05\x0f\x88\x6e";
    const DISK_SIZE: [u8; 16] = *b"\x24\x42\xa5\x2f\x1b\xcd\x76\x48\xb2\x11\x5d\xbe\xd8\x3b\xf4\xb8";
    let entry = |table: &[u8], first: usize, id: [u8; 16]| {
        let entries = table.get(first..).unwrap_or_default().as_chunks::<32>().0;
        entries.iter().find(|entry| entry.starts_with(&id)).copied()
    };
    let regions = host.read(REGION_TABLE, 4096)?;
    let region = entry(&regions, 16, METADATA).filter(|_| regions.starts_with(b"regi"));
    let Some(offset) = region.and_then(|entry| le64(&entry, 16)).filter(|at| *at < host.len()) else {
        return Ok(None);
    };
    let table = host.read(offset, 4096)?;
    let item = entry(&table, 32, DISK_SIZE).filter(|_| table.starts_with(b"metadata"));
    let Some(item) = item.and_then(|item| le32(&item, 16)) else { return Ok(None) };
    Ok(le64(&host.read(offset + u64::from(item), 8)?, 0))
}

/// Virtual PC counts cylinders, heads and sectors; programs that came later, and disks too large for that,
/// say the size itself.
fn vhd(footer: &[u8]) -> Option<u64> {
    const PLAIN: [&[u8]; 6] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"CTXS", b"wa\0\0"];
    let (creator, geometry) = (footer.get(28..32)?, footer.get(56..60)?);
    let [high, low, heads, sectors] = <[u8; 4]>::try_from(geometry).ok()?.map(u64::from);
    let counted = (high << 8 | low) * heads * sectors;
    let largest = counted == 65535 * 16 * 255;
    if largest || PLAIN.contains(&creator) { be64(footer, 48) } else { Some(counted * 512) }
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|eight| u64::from_le_bytes(*eight))
}

fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_be_bytes(*four))
}

fn be64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|eight| u64::from_be_bytes(*eight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_texts_and_footers() {
        let text = "# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"a\" 0\nRDONLY 10 ZERO\nrw=3\n";
        assert_eq!(extents(text), Some(2058 * 512));
        assert_eq!(extents("version=1\n"), None);
        assert_eq!(extents(&format!("RW {} FLAT\nRW 1 FLAT\n", u64::MAX / 512)), None);
        assert_eq!(extents("RW x FLAT\nRW 1 FLAT\n"), None);
        let mut footer = [0; 512];
        footer[48..60].copy_from_slice(&[0, 0, 0, 0, 0, 0x10, 0, 0, 0, 31, 4, 17]);
        assert_eq!(vhd(&footer), Some(31 * 4 * 17 * 512));
        footer[28..32].copy_from_slice(b"win ");
        assert_eq!(vhd(&footer), Some(1 << 20));
        footer[28] = 0;
        footer[56..60].copy_from_slice(&[0xff, 0xff, 16, 255]);
        assert_eq!(vhd(&footer), Some(1 << 20));
        for format in Foreign::ALL {
            assert_eq!(virtual_size(format, b"", b""), None, "{format:?}: nothing is there");
        }
    }
}
