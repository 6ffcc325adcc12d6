//! virtio-blk as values: what a device offers, its config space, and what a request's header asks for.
//!
//! Knows: the layouts of the virtio specification, section 5.2. Must never know: descriptors, memory, disks.
//! Invariants: a request that is outside the disk, or longer than what was told, is refused here; nothing
//! panics, whatever the bytes say.

/// Bytes of a sector, the unit of all that virtio-blk counts.
pub const SECTOR: u64 = 512;
/// Bytes of a request's header.
pub const HEADER: usize = 16;
/// Bytes of a range of a discard or of zeroes.
pub const RANGE: usize = 16;
/// Bytes of the answer to "get id".
pub const ID: usize = 20;
/// Ranges in a discard or in zeroes, at most.
pub const RANGES_MAX: usize = 16;
/// Sectors in a range, at most: 2 GiB.
pub const RANGE_SECTORS_MAX: u32 = 4 << 20;
/// Pieces of memory in a request, as guests are told: 1 MiB of scattered pages.
pub const SEGMENTS_MAX: u32 = 254;
/// Bytes of the config space.
pub const CONFIG: usize = 60;
/// Where the switch of the write cache is in it.
pub const CONFIG_CACHE: usize = 32;

/// Feature bits, those of all devices among them.
pub mod feature {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const READ_ONLY: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_CACHE: u64 = 1 << 11;
    pub const QUEUES: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
    pub const INDIRECT: u64 = 1 << 28;
    pub const EVENT_INDEX: u64 = 1 << 29;
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
}

/// What a guest is told of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    pub sectors: u64,
    pub read_only: bool,
    /// Bytes that have space of their own, a power of two from 512 on.
    pub cluster: u32,
    pub queues: u16,
    pub id: [u8; ID],
}

impl Facts {
    /// What the device can do.
    pub fn features(&self) -> u64 {
        use feature::{
            BLK_SIZE, CONFIG_CACHE, DISCARD, EVENT_INDEX, FLUSH, INDIRECT, PROTOCOL, QUEUES, READ_ONLY,
            SEG_MAX, TOPOLOGY, VERSION_1, WRITE_ZEROES,
        };
        let common = INDIRECT | EVENT_INDEX | PROTOCOL | VERSION_1;
        let disk = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_CACHE | QUEUES;
        let kind = if self.read_only { READ_ONLY } else { DISCARD | WRITE_ZEROES };
        common | disk | kind
    }

    /// The config space. `cached`: the write cache is on.
    pub fn config(&self, cached: bool) -> [u8; CONFIG] {
        let mut space = [0; CONFIG];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        let block = SECTOR as u32;
        let cluster = self.cluster.max(block);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &block.to_le_bytes());
        // as powers of two, in blocks: smaller writes than 4 KiB are a read and a write of the host's
        let physical = cluster.min(4096) / block;
        put(24, &[physical.ilog2() as u8]);
        put(26, &(physical as u16).to_le_bytes());
        put(28, &(cluster / block).to_le_bytes());
        put(CONFIG_CACHE, &[u8::from(cached)]);
        put(34, &self.queues.to_le_bytes());
        if !self.read_only {
            put(36, &RANGE_SECTORS_MAX.to_le_bytes());
            put(40, &(RANGES_MAX as u32).to_le_bytes());
            put(44, &(cluster / block).to_le_bytes());
            put(48, &RANGE_SECTORS_MAX.to_le_bytes());
            put(52, &(RANGES_MAX as u32).to_le_bytes());
            put(56, &[1]);
        }
        space
    }
}

/// How a request ended, as guests are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    Ok = 0,
    Error = 1,
    Unsupported = 2,
}

/// What a header asks for. Offsets are bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// As much as there is memory for.
    Read {
        offset: u64,
    },
    /// As much as there is.
    Write {
        offset: u64,
    },
    Flush,
    /// Ranges that are not needed any more.
    Discard,
    /// Ranges that read as zeros.
    WriteZeroes,
    Id,
}

/// Part of the disk that a discard or zeroes are about, bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub offset: u64,
    pub len: u64,
    /// Of zeroes: space may be given back.
    pub unmap: bool,
}

fn u32_at(bytes: &[u8; 16], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

/// The first byte of a range of sectors that lies on the disk.
fn offset(facts: &Facts, sector: u64, sectors: u64) -> Result<u64, Status> {
    let end = sector.checked_add(sectors).ok_or(Status::Error)?;
    if end > facts.sectors { Err(Status::Error) } else { Ok(sector * SECTOR) }
}

/// What a header asks for. `out`: bytes behind it that the guest gives; `into`: bytes that it takes, without
/// that of the status.
pub fn plan(header: &[u8; HEADER], out: u64, into: u64, facts: &Facts) -> Result<Plan, Status> {
    let sector = u64_at(header, 8);
    let whole = |len: u64| if len.is_multiple_of(SECTOR) { Ok(len / SECTOR) } else { Err(Status::Error) };
    let ranges = |plan: Plan| {
        let len = RANGE as u64;
        let most = len * RANGES_MAX as u64;
        let wrong = facts.read_only || out == 0 || !out.is_multiple_of(len) || out > most;
        if wrong { Err(Status::Error) } else { Ok(plan) }
    };
    match u32_at(header, 0) {
        0 => Ok(Plan::Read { offset: offset(facts, sector, whole(into)?)? }),
        1 if facts.read_only => Err(Status::Error),
        1 => Ok(Plan::Write { offset: offset(facts, sector, whole(out)?)? }),
        4 => Ok(Plan::Flush),
        8 => Ok(Plan::Id),
        11 => ranges(Plan::Discard),
        13 => ranges(Plan::WriteZeroes),
        _ => Err(Status::Unsupported),
    }
}

/// One range of a discard or of zeroes.
pub fn range(bytes: &[u8; RANGE], zeroes: bool, facts: &Facts) -> Result<Range, Status> {
    let (sectors, flags) = (u32_at(bytes, 8), u32_at(bytes, 12));
    // unmap is the one flag, of zeroes alone
    if flags & !u32::from(zeroes) != 0 {
        return Err(Status::Unsupported);
    }
    if sectors > RANGE_SECTORS_MAX {
        return Err(Status::Error);
    }
    let offset = offset(facts, u64_at(bytes, 0), sectors.into())?;
    Ok(Range { offset, len: u64::from(sectors) * SECTOR, unmap: flags & 1 != 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts { sectors: 1000, read_only: false, cluster: 65536, queues: 3, id: [7; ID] };

    fn header(kind: u32, sector: u64) -> [u8; HEADER] {
        let mut bytes = [0xee; HEADER];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    fn range_of(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE] {
        let mut bytes = [0; RANGE];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    #[test]
    fn the_config_space_says_what_the_specification_puts_there() {
        let space = FACTS.config(true);
        let word = |at: usize| u32::from_le_bytes(space[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8), word(12)), (1000, 0, 0, SEGMENTS_MAX));
        assert_eq!((word(20), space[24], space[25]), (512, 3, 0));
        assert_eq!((space[26], space[27], word(28)), (8, 0, 128));
        assert_eq!((space[32], space[33], space[34], space[35]), (1, 0, 3, 0));
        assert_eq!((word(36), word(40), word(44)), (RANGE_SECTORS_MAX, 16, 128));
        assert_eq!((word(48), word(52), word(56)), (RANGE_SECTORS_MAX, 16, 1));
        assert_eq!(FACTS.config(false)[CONFIG_CACHE], 0);
        let small = Facts { cluster: 512, read_only: true, ..FACTS }.config(true);
        assert_eq!((small[24], small[26], small[28]), (0, 1, 1));
        assert_eq!(small[36..], [0; 24]);
    }

    #[test]
    fn a_disk_that_is_only_read_offers_no_change() {
        let read_only = Facts { read_only: true, ..FACTS };
        assert_eq!(read_only.features() & (feature::DISCARD | feature::WRITE_ZEROES), 0);
        assert_ne!(read_only.features() & feature::READ_ONLY, 0);
        assert_eq!(FACTS.features() & feature::READ_ONLY, 0);
        for kind in [1, 11, 13] {
            assert_eq!(plan(&header(kind, 0), 16 * 512, 0, &read_only), Err(Status::Error));
        }
    }

    #[test]
    fn requests_lie_on_the_disk_and_are_whole_sectors() {
        assert_eq!(plan(&header(0, 999), 0, 512, &FACTS), Ok(Plan::Read { offset: 999 * 512 }));
        assert_eq!(plan(&header(0, 1000), 0, 0, &FACTS), Ok(Plan::Read { offset: 512_000 }));
        assert_eq!(plan(&header(1, 0), 512_000, 0, &FACTS), Ok(Plan::Write { offset: 0 }));
        for (kind, sector, out, into) in [
            (0, 1000, 0, 512),
            (0, 0, 0, 513),
            (1, 999, 1024, 0),
            (1, u64::MAX, 512, 0),
            (0, u64::MAX / 512, 0, 1 << 32),
            (1, 0, 1, 0),
        ] {
            assert_eq!(plan(&header(kind, sector), out, into, &FACTS), Err(Status::Error), "{sector}");
        }
        assert_eq!(plan(&header(4, u64::MAX), 0, 0, &FACTS), Ok(Plan::Flush));
        for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 16, u32::MAX] {
            assert_eq!(plan(&header(kind, 0), 0, 0, &FACTS), Err(Status::Unsupported), "{kind}");
        }
    }

    #[test]
    fn ranges_are_counted_and_checked_one_by_one() {
        for (out, right) in [(16, true), (256, true), (0, false), (17, false), (272, false)] {
            assert_eq!(plan(&header(11, 0), out, 0, &FACTS).is_ok(), right, "{out}");
            assert_eq!(plan(&header(13, 0), out, 0, &FACTS).is_ok(), right, "{out}");
        }
        let whole = Range { offset: 0, len: 512_000, unmap: false };
        assert_eq!(range(&range_of(0, 1000, 0), false, &FACTS), Ok(whole));
        assert_eq!(range(&range_of(0, 1000, 1), true, &FACTS), Ok(Range { unmap: true, ..whole }));
        assert_eq!(range(&range_of(0, 1000, 1), false, &FACTS), Err(Status::Unsupported));
        assert_eq!(range(&range_of(0, 1000, 2), true, &FACTS), Err(Status::Unsupported));
        assert_eq!(range(&range_of(1, 1000, 0), true, &FACTS), Err(Status::Error));
        assert_eq!(range(&range_of(u64::MAX, 1, 0), true, &FACTS), Err(Status::Error));
        let large = Facts { sectors: u64::MAX >> 9, ..FACTS };
        assert!(range(&range_of(5, RANGE_SECTORS_MAX, 0), true, &large).is_ok());
        assert_eq!(range(&range_of(5, RANGE_SECTORS_MAX + 1, 0), true, &large), Err(Status::Error));
    }
}
