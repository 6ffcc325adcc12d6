//! What a valid header says and how it is changed and written.
//!
//! Knows: the header's layout. Must never know: when a change is durable; that is the writer's business.
//!
//! Invariants:
//! * the fields that change while an image is used lie at fixed places, so that a change is a write of few
//!   bytes: size 8 at 24, L1 table 12 at 36, refcount table 12 at 48, snapshots 12 at 60, feature bits 8 each
//!   at 72, 80 and 88;
//! * the block never gets shorter, so that a new layout covers the old one with zeros.

use super::*;
use crate::base::span::Span;
use crate::fault::NewFault;

impl Header {
    /// Bytes of a cluster.
    pub const fn cluster_size(&self) -> u64 {
        debug_assert!(self.cluster_bits >= 9 && self.cluster_bits <= 21, "limits of the format");
        1 << self.cluster_bits
    }

    /// Bytes of the guest disk: whole sectors, as QEMU counts them.
    pub const fn guest_size(&self) -> u64 {
        self.size & !511
    }

    /// Does the L1 table lie in a file of `len` bytes, or at least where it could lie behind a full disk? As
    /// far as that it may lie behind the file's end, and is zeros there: some programs leave images so.
    pub fn l1_is_in_reach(&self, len: u64) -> bool {
        let end = self.l1_offset.saturating_add(u64::from(self.l1_entries) * 8);
        end <= len.max(self.guest_size()).saturating_add(L1_REACH)
    }

    /// Where the directory of bitmaps lies, of stale ones, too.
    pub(crate) fn bitmap_directory(&self) -> Option<Span> {
        let data = self.extension(Extension::BITMAPS)?;
        let all = bitmap::Extension::parse(data, self.cluster_size()).ok()?;
        Some(Span::at(all.directory_offset, all.directory_size))
    }

    /// How entries are to be read.
    pub const fn shape(&self) -> Shape {
        debug_assert!(self.version == 2 || self.version == 3, "others were refused");
        Shape {
            version: self.version,
            cluster_bits: self.cluster_bits,
            extended: self.incompatible & incompatible::EXTENDED_L2 != 0,
            data_file: self.has_data_file(),
        }
    }

    /// How refcounts are to be read.
    pub const fn refcounts(&self) -> BlockShape {
        debug_assert!(self.refcount_order <= 6, "limits of the format");
        BlockShape { cluster_bits: self.cluster_bits, order: self.refcount_order }
    }

    /// The dirty bit: refcounts may be wrong.
    pub const fn is_dirty(&self) -> bool {
        debug_assert!(self.version == 3 || self.incompatible == 0, "version 2 has no feature bits");
        self.incompatible & incompatible::DIRTY != 0
    }

    /// The corrupt bit.
    pub const fn is_corrupt(&self) -> bool {
        debug_assert!(self.version == 3 || self.incompatible == 0, "version 2 has no feature bits");
        self.incompatible & incompatible::CORRUPT != 0
    }

    /// Refcounts may be postponed.
    pub const fn lazy_refcounts(&self) -> bool {
        debug_assert!(self.version == 3 || self.compatible == 0, "version 2 has no feature bits");
        self.compatible & LAZY_REFCOUNTS != 0
    }

    /// Guest data lies in another file.
    pub const fn has_data_file(&self) -> bool {
        debug_assert!(self.version == 3 || self.incompatible == 0, "version 2 has no feature bits");
        self.incompatible & incompatible::DATA_FILE != 0
    }

    /// The data file alone is a valid raw image.
    pub const fn data_file_raw(&self) -> bool {
        debug_assert!(self.version == 3 || self.autoclear == 0, "version 2 has no feature bits");
        self.autoclear & RAW_DATA_FILE != 0
    }

    pub(super) fn extension(&self, kind: u32) -> Option<&[u8]> {
        self.extensions.iter().rfind(|extension| extension.kind == kind).map(|extension| &extension.data[..])
    }

    /// The data file's name as the image gives it.
    pub fn data_file(&self) -> Option<&[u8]> {
        self.extension(Extension::DATA_FILE).filter(|_| self.has_data_file())
    }

    /// The backing file's name. A name of no bytes is no backing file, as for QEMU.
    pub fn backing(&self) -> Option<&[u8]> {
        let name = self.backing.as_deref();
        debug_assert!(name.is_none_or(|name| name.len() <= NAME_MAX), "a longer one was refused");
        name.filter(|name| !name.is_empty())
    }

    /// The backing file's format.
    pub fn backing_format(&self) -> Option<&[u8]> {
        let format = self.extension(Extension::BACKING_FORMAT);
        debug_assert!(format.is_none_or(|name| name.len() < 16), "a longer name was refused");
        format
    }

    /// All extensions as they stand in the image.
    pub fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// Where the persistent bitmaps lie. None also when a writer that did not know them has let them go
    /// stale.
    pub const fn bitmaps(&self) -> Option<bitmap::Extension> {
        debug_assert!(
            self.bitmaps.is_none() || self.autoclear & BITMAPS != 0,
            "stale ones are told of by none"
        );
        self.bitmaps
    }

    /// Autoclear bits that a writer must clear before its first write, when it keeps those of `keep`.
    pub const fn stale_autoclear(&self, keep: u64) -> u64 {
        debug_assert!(self.version == 3 || self.autoclear == 0, "version 2 has no feature bits");
        self.autoclear & !(KNOWN_AUTOCLEAR & keep)
    }

    /// Leaves only the autoclear bits of `keep`.
    pub fn clear_autoclear(&mut self, keep: u64) {
        self.autoclear &= KNOWN_AUTOCLEAR & keep;
        if self.autoclear & BITMAPS == 0 {
            self.bitmaps = None;
        }
        debug_assert_eq!(self.stale_autoclear(keep), 0);
    }

    /// The dirty bit, which only version 3 has.
    pub fn set_dirty(&mut self, set: bool) {
        debug_assert!(!set || self.version == 3);
        self.set_incompatible(incompatible::DIRTY, set);
    }

    /// The corrupt bit, which only version 3 has.
    pub fn set_corrupt(&mut self, set: bool) {
        self.set_incompatible(incompatible::CORRUPT, set);
    }

    fn set_incompatible(&mut self, bit: u64, set: bool) {
        debug_assert!(bit.is_power_of_two(), "one at a time");
        debug_assert!(bit & incompatible::KNOWN != 0, "what it means is known");
        if self.version == 3 {
            self.incompatible = if set { self.incompatible | bit } else { self.incompatible & !bit };
        }
    }

    /// Bytes of the block that holds the header.
    pub fn block_len(&self) -> u32 {
        debug_assert!(!self.block.is_empty());
        self.block.len() as u32
    }

    /// The header's block with the fields as they are now. What `buf` has beyond it is left alone.
    pub fn encode_block(&self, buf: &mut [u8]) {
        debug_assert!(!self.block.is_empty(), "the header was read, or laid out");
        let len = buf.len().min(self.block.len());
        if let (Some(to), Some(from)) = (buf.get_mut(..len), self.block.get(..len)) {
            to.copy_from_slice(from);
            self.put_fields(to);
        }
    }

    /// The header's block.
    pub fn encode(&self) -> Vec<u8> {
        debug_assert!(!self.block.is_empty(), "the header was read, or laid out");
        let mut block = self.block.clone();
        self.put_fields(&mut block);
        block
    }

    fn put_fields(&self, block: &mut [u8]) {
        debug_assert!(block.len() >= LENGTHS[usize::from(self.version == 3)]);
        be::put_u64(block, 24, self.size);
        be::put_u32(block, 36, self.l1_entries);
        be::put_u64(block, 40, self.l1_offset);
        be::put_u64(block, 48, self.reftable_offset);
        be::put_u32(block, 56, self.reftable_clusters);
        be::put_u32(block, 60, self.snapshots);
        be::put_u64(block, 64, self.snapshots_offset);
        if self.version == 3 {
            be::put_u64(block, 72, self.incompatible);
            be::put_u64(block, 80, self.compatible);
            be::put_u64(block, 88, self.autoclear);
        }
    }

    /// Names another backing file, or none, and lays the block out as QEMU does.
    ///
    /// # Errors
    /// [`Error::Misuse`] beside a raw data file, [`Error::Corrupt`] for names that the header has no room
    /// for.
    pub fn set_backing(&mut self, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<(), Error> {
        if name.is_some() && self.data_file_raw() {
            return Err(Error::Misuse("a backing file and a raw data file exclude each other"));
        }
        let len = name.map_or(0, <[u8]>::len);
        if len > NAME_MAX {
            return Err(Error::Corrupt(Fault::New { value: len as u64, why: NewFault::BackingTooLong }));
        }
        let len = format.map_or(0, <[u8]>::len);
        if len > 15 {
            return Err(Error::Corrupt(Fault::New { value: len as u64, why: NewFault::BackingFormat }));
        }
        debug_assert!(len <= 15, "a longer name of a format was refused");
        let mut next = self.clone();
        next.extensions.retain(|extension| extension.kind != Extension::BACKING_FORMAT);
        if let Some(format) = format {
            next.extensions.insert(0, Extension { kind: Extension::BACKING_FORMAT, data: format.to_vec() });
        }
        next.backing = name.map(<[u8]>::to_vec);
        next.lay_out()?;
        debug_assert!(next.backing_format() == format, "it is read as it was written");
        *self = next;
        Ok(())
    }

    /// The same, so that a power cut leaves the old name or the new one, as long as the extensions do not
    /// move: the block behind its first 512 bytes is written, durably, before those are. A new name is put
    /// where the old one is not; without a name only the fields change.
    ///
    /// # Errors
    /// As of [`Header::set_backing`].
    pub fn move_backing(&mut self, name: Option<&[u8]>, format: Option<&[u8]>) -> Result<(), Error> {
        let old = self.backing.as_ref().map(|name| Span::at(self.backing_offset, name.len() as u64));
        let Some(name) = name else {
            (self.backing, self.backing_offset) = (None, 0);
            be::put_u64(&mut self.block, 8, 0);
            be::put_u32(&mut self.block, 16, 0);
            debug_assert!(self.backing().is_none(), "nothing is named");
            return Ok(());
        };
        self.set_backing(Some(name), format)?;
        let new = Span::at(self.backing_offset, name.len() as u64);
        let Some(old) = old.filter(|old| old.start < new.end && new.start < old.end) else { return Ok(()) };
        let end = old.end.next_multiple_of(8) + new.len();
        debug_assert!(new.end <= self.block.len() as u64, "it was laid out");
        if end > self.cluster_size() {
            // there is no other place
            return Ok(());
        }
        let (from, to) = (new.start as usize, (end - new.len()) as usize);
        let len = (end as usize).next_multiple_of(self.cluster_size().min(4096) as usize);
        self.block.resize(len.max(self.block.len()), 0);
        if let Some(place) = self.block.get_mut(from..from + name.len()) {
            place.fill(0);
        }
        be::put(&mut self.block, to, name);
        be::put_u64(&mut self.block, 8, to as u64);
        self.backing_offset = to as u64;
        debug_assert_eq!(self.block.get(to..to + name.len()), Some(name), "it is where the field leads");
        Ok(())
    }

    /// Where the persistent bitmaps lie from now on, all of them valid; the block is laid out anew. Other
    /// autoclear bits that are not kept up go.
    ///
    /// # Errors
    /// [`Error::Misuse`] of version 2, [`Error::NoSpace`] where the header has no room.
    pub fn set_bitmaps(&mut self, bitmaps: Option<bitmap::Extension>) -> Result<(), Error> {
        if self.version < 3 {
            return Err(Error::Misuse("version 2 has no persistent bitmaps"));
        }
        let mut next = self.clone();
        next.clear_autoclear(RAW_DATA_FILE);
        next.extensions.retain(|extension| extension.kind != Extension::BITMAPS);
        if let Some(bitmaps) = &bitmaps {
            let data = bitmaps.encode().to_vec();
            next.extensions.push(Extension { kind: Extension::BITMAPS, data });
            next.autoclear |= BITMAPS;
        }
        next.bitmaps = bitmaps;
        next.lay_out()?;
        debug_assert!(
            next.extension(Extension::BITMAPS).is_some() == bitmaps.is_some(),
            "what is told is there"
        );
        *self = next;
        Ok(())
    }

    /// Another version of the format: 2 or 3; the block is laid out anew.
    ///
    /// # Errors
    /// [`Error::Misuse`] for what version 2 has not, [`Error::NoSpace`] where the header has no room.
    pub fn set_version(&mut self, version: u32) -> Result<(), Error> {
        debug_assert!(matches!(version, 2 | 3), "there are no others");
        let bitmaps = self.extension(Extension::BITMAPS).is_some();
        if version == 2 && (self.incompatible != 0 || self.refcount_order != 4 || bitmaps) {
            return Err(Error::Misuse("version 2 has none of the features that the image uses"));
        }
        let mut next = self.clone();
        next.version = version;
        if version == 2 {
            (next.compatible, next.autoclear) = (0, 0);
            next.extensions.retain(|extension| extension.kind != Extension::FEATURE_NAMES);
        }
        // fields that no version knows go
        next.header_length = LENGTHS[usize::from(version == 3)] as u32;
        next.lay_out()?;
        debug_assert_eq!(be::u32_at(&next.block, 4), version, "it is in the block");
        *self = next;
        Ok(())
    }

    /// May refcounts be postponed? Only version 3 can.
    pub fn set_lazy_refcounts(&mut self, lazy: bool) {
        debug_assert!(!lazy || self.version == 3, "version 2 has no feature bits");
        self.compatible =
            if lazy { self.compatible | LAZY_REFCOUNTS } else { self.compatible & !LAZY_REFCOUNTS };
    }

    /// The block in QEMU's layout: fields, unknown fields, extensions in QEMU's order, the backing file's
    /// name.
    pub(super) fn lay_out(&mut self) -> Result<(), Error> {
        let known = LENGTHS[usize::from(self.version == 3)];
        let unknown = self.block.get(known..self.header_length as usize).unwrap_or(&[]);
        debug_assert!(known + unknown.len() <= self.cluster_size() as usize, "the fields fit a cluster");
        self.header_length = (known + unknown.len()) as u32;
        let mut block = self.fixed(known);
        block.extend(unknown);
        let own =
            [Extension::BACKING_FORMAT, Extension::DATA_FILE, Extension::FEATURE_NAMES, Extension::BITMAPS];
        let names = (self.version == 3 && self.cluster_size() > 4096).then(extensions::feature_names);
        let mut list = Vec::new();
        for kind in own {
            let keep = match kind {
                Extension::FEATURE_NAMES => names.clone(),
                Extension::DATA_FILE if !self.has_data_file() => None,
                Extension::BITMAPS if self.bitmaps.is_none() => None,
                _ => self.extensions.iter().rfind(|extension| extension.kind == kind).cloned(),
            };
            list.extend(keep);
        }
        list.extend(self.extensions.iter().filter(|extension| !own.contains(&extension.kind)).cloned());
        for extension in &list {
            extensions::push(&mut block, extension.kind, &extension.data);
        }
        extensions::push(&mut block, Extension::END, &[]);
        self.extensions = list;
        self.backing_offset = 0;
        if let Some(name) = &self.backing {
            self.backing_offset = block.len() as u64;
            block.extend(name);
        }
        if block.len() as u64 > self.cluster_size() {
            return Err(Error::NoSpace);
        }
        be::put_u64(&mut block, 8, self.backing_offset);
        be::put_u32(&mut block, 16, self.backing.as_ref().map_or(0, |name| name.len() as u32));
        let len = block.len().next_multiple_of(self.cluster_size().min(4096) as usize).max(self.block.len());
        block.resize(len, 0);
        debug_assert!(block.len() >= self.header_length as usize && block.len() >= self.block.len());
        self.block = block;
        let list = || extensions::parse(&self.block, self.header_length as usize, self.extensions_end());
        debug_assert!(list().as_ref() == Ok(&self.extensions), "they are read as they were written");
        Ok(())
    }

    /// The fields that never change, in a block of `len` bytes.
    fn fixed(&self, len: usize) -> Vec<u8> {
        debug_assert!(len >= LENGTHS[usize::from(self.version == 3)]);
        let mut block = alloc::vec![0; len];
        be::put_u32(&mut block, 0, MAGIC);
        be::put_u32(&mut block, 4, self.version);
        be::put_u32(&mut block, 20, self.cluster_bits);
        if self.version == 3 {
            be::put_u32(&mut block, 96, self.refcount_order);
            be::put_u32(&mut block, 100, self.header_length);
            be::put(&mut block, 104, &[u8::from(self.compression == Compression::Zstd)]);
        }
        self.put_fields(&mut block);
        block
    }

    /// The header of a new, empty image: no tables yet but a refcount table at the second cluster.
    pub(crate) fn new(
        version: u32,
        cluster_bits: u32,
        refcount_order: u32,
        features: [u64; 3],
        data_file: Option<&[u8]>,
    ) -> Result<Header, Error> {
        debug_assert!((9..=21).contains(&cluster_bits) && refcount_order <= 6, "limits of the format");
        debug_assert!(matches!(version, 2 | 3));
        let [incompatible, compatible, autoclear] = features;
        let zstd = incompatible & incompatible::COMPRESSION != 0;
        let data_file = data_file.map(|name| Extension { kind: Extension::DATA_FILE, data: name.to_vec() });
        let mut header = Header {
            version,
            cluster_bits,
            size: 0,
            l1_entries: 0,
            l1_offset: 0,
            reftable_offset: 1 << cluster_bits,
            reftable_clusters: 1,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible,
            compatible,
            autoclear,
            refcount_order,
            compression: if zstd { Compression::Zstd } else { Compression::Deflate },
            encryption: None,
            header_length: 0,
            backing_offset: 0,
            backing: None,
            extensions: data_file.into_iter().collect(),
            bitmaps: None,
            block: Vec::new(),
        };
        debug_assert!(
            header.reftable_offset.is_multiple_of(header.cluster_size()),
            "a table begins a cluster"
        );
        header.lay_out()?;
        Ok(header)
    }
}
