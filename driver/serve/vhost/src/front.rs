//! What the front end has said: features, memory, rings, as a value that messages change.
//!
//! Knows: the messages of vhost-user, by the crate `vhost`. Must never know: the loop, requests, the driver.
//!
//! Invariants: messages that change a ring, or memory, come when nothing of it is under way (the connection
//! sees to that); a ring runs if all of it was said, and not otherwise; what is wrong changes nothing.

use crate::blk::{self, Facts, feature};
use crate::inflight::Inflight;
use crate::memory::{Memory, Place, REGIONS_MAX, Region};
use crate::ring::{SIZE_MAX, Start};
use rustix::fs::OFlags;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

/// Bytes of the config space that may be asked for, from its beginning.
const CONFIG_MAX: u32 = 256;

/// One ring, as far as it was said.
#[derive(Clone, Debug, Default)]
struct Said {
    size: u16,
    /// Descriptors, used, available, in the front end's own addresses.
    addresses: Option<[u64; 3]>,
    base: u16,
    kick: Option<Arc<File>>,
    call: Option<Arc<File>>,
    err: Option<Arc<File>>,
    enabled: bool,
}

/// See the module's header.
#[derive(Debug)]
pub struct Front {
    facts: Facts,
    features: u64,
    pub memory: Memory,
    /// Regions that were ever mapped.
    mapped: u64,
    rings: Vec<Said>,
    inflight: Option<Inflight>,
    /// The guest's switch.
    cached: bool,
}

fn told(error: io::Error) -> Error {
    Error::ReqHandlerError(error)
}

fn refused<T>(what: &'static str) -> Result<T> {
    Err(Error::InvalidOperation(what))
}

impl Front {
    pub fn new(facts: Facts) -> Front {
        let rings = vec![Said::default(); facts.queues.into()];
        Front {
            facts,
            features: 0,
            memory: Memory::default(),
            mapped: 0,
            rings,
            inflight: None,
            cached: true,
        }
    }

    /// The disk has another size, which whoever asks is told.
    pub fn resized(&mut self, sectors: u64) {
        self.facts.sectors = sectors;
    }

    fn ring(&mut self, index: u32) -> Result<&mut Said> {
        self.rings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// Writes are durable when the guest is told of their end: it has switched the cache off, or knows of
    /// none.
    pub fn writes_through(&self) -> bool {
        !self.cached || !self.has(feature::FLUSH | feature::CONFIG_CACHE)
    }

    /// How the ring begins, if it runs.
    pub fn start(&self, index: usize) -> Option<std::result::Result<Start, &'static str>> {
        let said = self.rings.get(index)?;
        let (kick, addresses) = (said.kick.as_ref()?, said.addresses?);
        // "if PROTOCOL_FEATURES has not been negotiated, the ring starts directly in the enabled state"
        if said.size == 0 || !said.enabled && self.has(feature::PROTOCOL) {
            return None;
        }
        let [Some(table), Some(used), Some(available)] =
            addresses.map(|address| self.memory.guest_address(address))
        else {
            return Some(Err("an address outside the memory"));
        };
        let record = self.inflight.as_ref().map(|inflight| inflight.queue(index, said.size));
        if matches!(record, Some(None)) {
            return Some(Err("a queue that the memory for what is under way has no room for"));
        }
        Some(Ok(Start {
            size: said.size,
            table,
            available,
            used,
            base: said.base,
            event_index: self.has(feature::EVENT_INDEX),
            kick: Arc::clone(kick),
            record: record.flatten(),
        }))
    }

    /// A ring does not run any more; it would go on there.
    pub fn stopped(&mut self, index: usize, base: u16) {
        if let Some(said) = self.rings.get_mut(index) {
            said.base = base;
        }
    }

    /// What tells the guest.
    pub fn call(&self, index: usize) -> Option<Arc<File>> {
        self.rings.get(index)?.call.clone()
    }

    /// What tells the front end that a ring is broken.
    pub fn err(&self, index: usize) -> Option<Arc<File>> {
        self.rings.get(index)?.err.clone()
    }

    fn place(&self, region: &VhostUserMemoryRegion) -> Place {
        Place {
            guest: region.guest_phys_addr,
            len: region.memory_size,
            user: region.user_addr,
            offset: region.mmap_offset,
        }
    }

    fn map(&mut self, place: Place, file: File) -> Result<Region> {
        self.mapped += 1;
        Region::new(place, file, self.mapped).map_err(told)
    }
}

/// A descriptor that nobody waits for: a write to it must not block.
fn told_by(file: Option<File>) -> Result<Option<Arc<File>>> {
    let Some(file) = file else { return Ok(None) };
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| told(error.into()))?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|error| told(error.into()))?;
    Ok(Some(Arc::new(file)))
}

fn single(region: &VhostUserSingleMemoryRegion) -> Place {
    Place {
        guest: region.guest_phys_addr,
        len: region.memory_size,
        user: region.user_addr,
        offset: region.mmap_offset,
    }
}

impl VhostUserBackendReqHandlerMut for Front {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        // deprecated, and done in different ways: all rings stop, and nothing else is forgotten
        self.rings.iter_mut().for_each(|ring| ring.enabled = false);
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.rings.iter_mut().for_each(|ring| *ring = Said::default());
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.facts.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.facts.features() != 0 {
            return Err(Error::FeatureMismatch);
        }
        self.features = features;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        let mut mapped = Vec::with_capacity(regions.len());
        for (region, file) in regions.iter().zip(files) {
            mapped.push(self.map(self.place(region), file)?);
        }
        self.memory = Memory::new(mapped).map_err(told)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= SIZE_MAX);
        self.ring(index)?.size = size.ok_or(Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.ring(index)?.addresses = Some([descriptor, used, available]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index)?.base = base as u16;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        // it stops with this, until it is kicked again
        ring.kick = None;
        Ok(VhostUserVringState::new(index, ring.base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        // without one the ring would have to be looked at again and again
        let fd = fd.ok_or(Error::InvalidParam)?;
        self.ring(index.into())?.kick = Some(Arc::new(fd));
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.call = told_by(fd)?;
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into())?.err = told_by(fd)?;
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        // never STATUS: the crate ends the connection on its messages
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    }

    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.facts.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.enabled = enable;
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).filter(|end| *end <= CONFIG_MAX).ok_or(Error::InvalidParam)?;
        let space = self.facts.config(self.cached);
        Ok((offset..end).map(|at| space.get(at as usize).copied().unwrap_or_default()).collect())
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        // the one field that a guest may set
        match (offset as usize, bytes) {
            (blk::CONFIG_CACHE, [on]) => self.cached = *on != 0,
            _ => return Err(Error::InvalidParam),
        }
        Ok(())
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (asked.num_queues, asked.queue_size);
        if queues == 0 || queues > self.facts.queues || size == 0 || size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let (file, len) = Inflight::create(queues, size).map_err(told)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, told_of: &VhostUserInflight, file: File) -> Result<()> {
        let VhostUserInflight { mmap_size, mmap_offset, num_queues, queue_size } = *told_of;
        if num_queues > self.facts.queues || queue_size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let inflight = Inflight::open(file, mmap_offset, mmap_size, num_queues, queue_size);
        self.inflight = Some(inflight.map_err(told)?);
        Ok(())
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(REGIONS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>> {
        let region = self.map(single(region), file)?;
        self.memory = self.memory.with(region).map_err(told)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.memory = self.memory.without(single(region)).map_err(told)?;
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        refused("a disk has no screen")
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        refused("shared objects")
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        refused("the transfer of a device's state")
    }

    fn check_device_state(&mut self) -> Result<()> {
        refused("the transfer of a device's state")
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        refused("shared memory")
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        refused("a log of changed memory")
    }
}
