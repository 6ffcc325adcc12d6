//! A guest's memory as its front end shares it: mapped, found by both kinds of addresses, lent to the driver.
//!
//! Knows: mappings, the driver's registration of memory. Must never know: rings, requests.
//!
//! Invariants: a range that is not wholly mapped is never lent; memory that is registered with the driver is
//! taken back before it is unmapped. A front end that makes its file shorter afterwards kills the server
//! (SIGBUS), and the image is as after a power cut: there is no other way to share memory.

use crate::chain::{Broken, Piece};
use quod::{Driver, MemoryId, RawBuffers, Segment};
use std::fs::File;
use std::io;
use std::sync::Arc;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Regions, at most.
pub const REGIONS_MAX: usize = 64;

/// A guest's memory.
pub type Guest = GuestMemoryMmap<()>;

/// Where a region is, for the guest and for its front end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub guest: u64,
    pub len: u64,
    /// In the front end's own address space, which rings are told in.
    pub user: u64,
    /// In the file.
    pub offset: u64,
}

/// Memory that is mapped.
#[derive(Clone, Debug)]
pub struct Region {
    place: Place,
    mapped: Arc<GuestRegionMmap<()>>,
    /// Names the mapping for ever.
    number: u64,
}

fn wrong(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}

impl Region {
    /// Maps it.
    pub fn new(place: Place, file: File, number: u64) -> io::Result<Region> {
        let end = place.offset.checked_add(place.len).ok_or_else(|| wrong("it is too long"))?;
        let found = file.metadata()?;
        if found.is_file() && found.len() < end {
            return Err(wrong("the file is shorter than the memory"));
        }
        let len = usize::try_from(place.len).map_err(|_| wrong("it is too long"))?;
        let mapped = MmapRegion::from_file(FileOffset::new(file, place.offset), len);
        let mapped = mapped.map_err(io::Error::other)?;
        let mapped = GuestRegionMmap::new(mapped, GuestAddress(place.guest));
        let mapped = Arc::new(mapped.ok_or_else(|| wrong("it is too long"))?);
        Ok(Region { place, mapped, number })
    }
}

/// All of it, as the front end has said.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    regions: Vec<Region>,
    guest: Guest,
}

impl Memory {
    /// # Errors
    /// Regions overlap, or are too many.
    pub fn new(regions: Vec<Region>) -> io::Result<Memory> {
        if regions.len() > REGIONS_MAX {
            return Err(wrong("there are too many regions"));
        }
        let mut sorted = regions;
        sorted.sort_by_key(|region| region.place.guest);
        let mapped = sorted.iter().map(|region| Arc::clone(&region.mapped)).collect();
        let guest = match sorted.is_empty() {
            true => Guest::default(),
            false => Guest::from_arc_regions(mapped).map_err(io::Error::other)?,
        };
        Ok(Memory { regions: sorted, guest })
    }

    /// With one more.
    pub fn with(&self, region: Region) -> io::Result<Memory> {
        Memory::new(self.regions.iter().cloned().chain([region]).collect())
    }

    /// Without that which is there.
    pub fn without(&self, place: Place) -> io::Result<Memory> {
        let same = |region: &Region| {
            let Place { guest, len, user, .. } = region.place;
            (guest, len, user) == (place.guest, place.len, place.user)
        };
        let rest: Vec<Region> = self.regions.iter().filter(|region| !same(region)).cloned().collect();
        if rest.len() == self.regions.len() {
            return Err(wrong("there is no such region"));
        }
        Memory::new(rest)
    }

    /// As rings and chains are read.
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// The guest's address for an address of the front end's own.
    pub fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        let inside = |place: &Place| user >= place.user && user - place.user < place.len;
        let place = self.regions.iter().map(|region| region.place).find(inside)?;
        Some(GuestAddress(place.guest + (user - place.user)))
    }

    /// Adds where a piece is mapped to a scatter list: in one region, or in several that follow each other.
    fn lend(&self, piece: Piece, list: &mut Vec<Segment>) -> Result<(), Broken> {
        let broken = Broken::Address(piece.address.0);
        let (mut at, mut left) = (piece.address.0, u64::from(piece.len));
        while left > 0 {
            let behind = self.regions.partition_point(|region| region.place.guest <= at);
            let region = behind.checked_sub(1).map(|n| &self.regions[n]).ok_or(broken)?;
            let within = at - region.place.guest;
            if within >= region.place.len {
                return Err(broken);
            }
            let len = left.min(region.place.len - within);
            // SAFETY: the region is mapped, for as long as the server keeps its memory: until nothing of it
            // is under way any more. The guest may change the bytes meanwhile, which is allowed.
            list.push(unsafe { Segment::new(region.mapped.as_ptr().add(within as usize), len as usize) });
            left -= len;
            // the end of a region is no overflow, and where nothing is left nobody looks
            at = at.wrapping_add(len);
        }
        Ok(())
    }

    /// Where pieces are, for a request of the driver. `list` is used again and again.
    pub fn buffers(&self, pieces: &[Piece], list: &mut Vec<Segment>) -> Result<RawBuffers, Broken> {
        list.clear();
        pieces.iter().try_for_each(|&piece| self.lend(piece, list))?;
        // SAFETY: as above; our own side touches no byte of it before the completion, and the driver is
        // dropped before the memory is.
        Ok(unsafe { RawBuffers::new(list.iter().copied()) })
    }
}

/// What is registered with the driver.
#[derive(Debug, Default)]
pub struct Registered {
    held: Vec<(Region, MemoryId)>,
}

impl Registered {
    /// Registers what is new, takes back what is gone. No request is under way.
    ///
    /// # Errors
    /// Why something is not registered, which is an order of magnitude of speed, and no more.
    pub fn set(&mut self, driver: &mut Driver, memory: &Memory) -> Result<(), quod::Error> {
        let stays = |number: u64| memory.regions.iter().any(|region| region.number == number);
        let mut gone = Vec::new();
        self.held.retain(|(region, id)| stays(region.number) || (gone.push(*id), false).1);
        for id in gone {
            driver.unregister_memory(id)?;
        }
        for region in &memory.regions {
            if self.held.iter().any(|(held, _)| held.number == region.number) {
                continue;
            }
            let len = region.place.len as usize;
            // SAFETY: the mapping stays as long as `held` has it. That nobody gives pages of it up (a
            // balloon) was said by whoever has switched the registration on.
            let id = unsafe { driver.register_memory(Segment::new(region.mapped.as_ptr(), len)) }?;
            self.held.push((region.clone(), id));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(guest: u64, len: u64, user: u64, number: u64) -> Region {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        Region::new(Place { guest, len, user, offset: 0 }, file, number).unwrap()
    }

    fn memory() -> Memory {
        let regions =
            vec![region(0x10_0000, 0x4000, 0x7000_0000, 1), region(0x10_4000, 0x4000, 0x9000_0000, 2)];
        Memory::new(regions).unwrap()
    }

    #[test]
    fn a_piece_may_lie_over_a_seam_and_not_over_an_end() {
        let memory = memory();
        let mut list = Vec::new();
        let piece = |at: u64, len: u32| [Piece { address: GuestAddress(at), len }];
        let buffers = memory.buffers(&piece(0x10_3000, 0x2000), &mut list).unwrap();
        let lens: Vec<usize> = buffers.segments().iter().map(|segment| segment.len()).collect();
        assert_eq!(lens, [0x1000, 0x1000]);
        assert!(memory.buffers(&piece(0x10_0000, 0x8000), &mut list).is_ok());
        for (at, len) in
            [(0x10_0000, 0x8001), (0xf_ffff, 2), (0, 1), (0x10_8000, 1), (u64::MAX, 1), (0x10_7fff, u32::MAX)]
        {
            assert!(memory.buffers(&piece(at, len), &mut list).is_err(), "{at:#x}");
        }
    }

    #[test]
    fn addresses_of_the_front_end_are_found() {
        let memory = memory();
        assert_eq!(memory.guest_address(0x9000_0010), Some(GuestAddress(0x10_4010)));
        assert_eq!(memory.guest_address(0x7000_3fff), Some(GuestAddress(0x10_3fff)));
        assert_eq!(memory.guest_address(0x7000_4000), None);
        assert_eq!(memory.guest_address(0), None);
    }

    #[test]
    fn memory_comes_and_goes() {
        let memory = memory();
        assert!(memory.with(region(0x10_7fff, 0x4000, 0, 3)).is_err(), "it overlaps");
        let more = memory.with(region(0x20_0000, 0x4000, 0, 3)).unwrap();
        let place = Place { guest: 0x20_0000, len: 0x4000, user: 0, offset: 7 };
        assert_eq!(more.without(place).unwrap().regions.len(), 2);
        assert!(more.without(Place { user: 1, ..place }).is_err());
    }

    #[test]
    fn a_file_that_is_too_short_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x3000).unwrap();
        let place = Place { guest: 0, len: 0x2000, user: 0, offset: 0x2000 };
        assert!(Region::new(place, file.try_clone().unwrap(), 1).is_err());
        assert!(Region::new(Place { offset: u64::MAX, ..place }, file.try_clone().unwrap(), 1).is_err());
        assert!(Region::new(Place { offset: 0x1000, ..place }, file, 1).is_ok());
    }
}
