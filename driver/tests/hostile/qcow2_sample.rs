//! A sound qcow2 image of which every byte is known, and how it is spoiled.

use std::io::Write;

/// Where it has what, in clusters.
pub const REFTABLE: usize = 1;
pub const REFBLOCK: usize = 2;
pub const L1: usize = 3;
pub const L2A: usize = 4;
pub const L2B: usize = 5;
pub const DATA: usize = 6;
/// Two compressed guest clusters share it.
pub const PACKED: usize = 12;
/// The space of a cluster that reads as zeros.
pub const KEPT: usize = 13;
pub const END: usize = 14;
/// Behind that: a snapshot's table and L1 table, or a bitmap's directory, table and bits.
pub const SNAPSHOTS: usize = 14;
pub const SNAPSHOT_L1: usize = 15;
pub const DIRECTORY: usize = 14;
pub const BITMAP: usize = 15;

/// Guest clusters of the first L2 table: zeros without and with space, compressed ones.
pub const ZERO_PLAIN: usize = 5;
pub const ZERO_KEPT: usize = 6;
pub const SMALL: [usize; 2] = [8, 9];
pub const COPIED: u64 = 1 << 63;

/// What kind of image is spoiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Base {
    Plain,
    Version2,
    /// Subclusters.
    Extended,
    Zstd,
    /// With a snapshot that shares everything.
    Snapshot,
    /// With a persistent bitmap.
    Bitmap,
}

/// An image's bytes, and what can be said of them.
pub struct Sample {
    pub bytes: Vec<u8>,
    pub cluster: usize,
    /// Bytes of an L2 entry.
    step: usize,
    /// Where the next header extension goes.
    extension: usize,
    /// The spoiled image is of another disk than the sound one.
    pub other: bool,
    /// Guest clusters that hold something else now, or share their space.
    pub unknown: Vec<usize>,
    /// A cluster has two roles, and no count is right for both: how many corruptions there are says nothing.
    pub crossed: bool,
    /// The counts forget data: it may be lost when something is written, and nobody could know.
    pub uncounted: bool,
}

impl Sample {
    pub fn new(base: Base) -> Sample {
        let (cluster, step) = if base == Base::Extended { (16384, 16) } else { (4096, 8) };
        let mut sample = Sample {
            bytes: vec![0; END * cluster],
            cluster,
            step,
            extension: 112,
            other: false,
            unknown: Vec::new(),
            crossed: false,
            uncounted: false,
        };
        sample.header(base);
        sample.tables(base);
        match base {
            Base::Snapshot => sample.snapshot(),
            Base::Bitmap => sample.bitmap(),
            _ => {}
        }
        sample
    }

    fn header(&mut self, base: Base) {
        let (bits, size) = (self.cluster.trailing_zeros(), self.size() as u64);
        self.word(0, 0x5146_49fb).word(4, if base == Base::Version2 { 2 } else { 3 }).word(20, bits);
        let (l1, reftable) = (self.at(L1), self.at(REFTABLE));
        self.long(24, size).word(36, 2).long(40, l1).long(48, reftable).word(56, 1);
        if base == Base::Version2 {
            return;
        }
        self.word(96, 4).word(100, 112);
        match base {
            Base::Extended => self.long(72, 16),
            Base::Zstd => self.long(72, 8).put(104, &[1]),
            _ => self,
        };
    }

    fn tables(&mut self, base: Base) {
        self.long(self.at(REFTABLE) as usize, self.at(REFBLOCK));
        for n in 0..END {
            self.count(n, if n == PACKED { 2 } else { 1 });
        }
        for (index, table) in [L2A, L2B].into_iter().enumerate() {
            self.long(self.l1(index), COPIED | self.at(table));
        }
        for (n, guest) in self.filled().into_iter().enumerate() {
            let host = self.at(DATA + n);
            self.entry(guest, COPIED | host, 0xffff_ffff);
            let cluster = self.cluster;
            self.bytes[host as usize..][..cluster].fill(filling(n));
        }
        if base == Base::Version2 {
            self.count(KEPT, 0);
        } else {
            let zero = u64::from(base != Base::Extended);
            self.entry(ZERO_PLAIN, zero, 0xffff_ffff << 32);
            self.entry(ZERO_KEPT, COPIED | self.at(KEPT) | zero, 0xffff_ffff << 32);
        }
        let mut host = self.at(PACKED);
        for guest in SMALL {
            let bytes = compressed(&self.text(guest), base == Base::Zstd);
            self.put(host as usize, &bytes);
            self.entry(guest, self.small(host, bytes.len()), 0);
            host += bytes.len() as u64;
        }
        assert!(host <= self.at(PACKED + 1));
    }

    /// Everything is shared with it.
    fn snapshot(&mut self) {
        self.bytes.resize((END + 2) * self.cluster, 0);
        for guest in 0..2 * self.per() {
            let at = self.l2(guest);
            self.bytes[at] &= 0x7f;
        }
        for index in 0..2 {
            let at = self.l1(index);
            self.bytes[at] &= 0x7f;
        }
        let (table, l1) = (self.at(SNAPSHOTS) as usize, self.at(SNAPSHOT_L1) as usize);
        let active = self.l1(0)..self.l1(2);
        self.bytes.copy_within(active, l1);
        let size = self.size() as u64;
        self.long(table, l1 as u64).word(table + 8, 2).put(table + 12, &[0, 1, 0, 1]).word(table + 36, 16);
        self.long(table + 48, size).put(table + 56, b"1s");
        self.word(60, 1).long(64, table as u64);
        for n in L2A..END {
            self.count(n, if n == PACKED { 4 } else { 2 });
        }
        self.count(SNAPSHOTS, 1);
        self.count(SNAPSHOT_L1, 1);
    }

    fn bitmap(&mut self) {
        self.bytes.resize((END + 3) * self.cluster, 0);
        let (directory, table) = (self.at(DIRECTORY) as usize, self.at(BITMAP) as usize);
        let mut data = vec![0, 0, 0, 1, 0, 0, 0, 0];
        data.extend(32u64.to_be_bytes());
        data.extend((directory as u64).to_be_bytes());
        self.extend(0x2385_2875, &data).long(88, 1);
        self.long(directory, table as u64).word(directory + 8, 1).put(directory + 16, &[1, 16, 0, 1]);
        self.put(directory + 24, b"b");
        self.long(table, self.at(BITMAP + 1));
        for n in DIRECTORY..DIRECTORY + 3 {
            self.count(n, 1);
        }
    }

    /// The first byte of a cluster of the file.
    pub fn at(&self, cluster: usize) -> u64 {
        (cluster * self.cluster) as u64
    }

    /// Entries of an L2 table.
    pub fn per(&self) -> usize {
        self.cluster / self.step
    }

    pub fn size(&self) -> usize {
        2 * self.per() * self.cluster
    }

    /// Guest clusters that hold data, in the order of the data in the file.
    pub fn filled(&self) -> [usize; 6] {
        let per = self.per();
        [0, 1, 2, per - 1, per, 2 * per - 1]
    }

    /// Where an L1 entry stands.
    pub fn l1(&self, index: usize) -> usize {
        L1 * self.cluster + index * 8
    }

    /// Where an L2 entry stands.
    pub fn l2(&self, guest: usize) -> usize {
        (L2A + guest / self.per()) * self.cluster + guest % self.per() * self.step
    }

    /// An entry of a compressed cluster.
    pub fn small(&self, host: u64, len: usize) -> u64 {
        let more = (host + len as u64 - 1) / 512 - host / 512;
        1 << 62 | more << (62 - (self.cluster.trailing_zeros() - 8)) | host
    }

    pub fn word(&mut self, at: usize, value: u32) -> &mut Sample {
        self.put(at, &value.to_be_bytes())
    }

    pub fn long(&mut self, at: usize, value: u64) -> &mut Sample {
        self.put(at, &value.to_be_bytes())
    }

    pub fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Sample {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// The count of a cluster of the file.
    pub fn count(&mut self, cluster: usize, count: u16) -> &mut Sample {
        self.put(REFBLOCK * self.cluster + cluster * 2, &count.to_be_bytes())
    }

    /// An L2 entry; its second word where it has one.
    pub fn entry(&mut self, guest: usize, value: u64, bitmap: u64) -> &mut Sample {
        let at = self.l2(guest);
        self.long(at, value);
        if self.step == 16 { self.long(at + 8, bitmap) } else { self }
    }

    /// A header extension.
    pub fn extend(&mut self, kind: u32, data: &[u8]) -> &mut Sample {
        let at = self.extension;
        self.word(at, kind).word(at + 4, data.len() as u32).put(at + 8, data);
        self.extension += 8 + data.len().next_multiple_of(8);
        self
    }

    pub fn backing(&mut self, name: &[u8]) -> &mut Sample {
        self.other = true;
        self.long(8, 1024).word(16, name.len() as u32).put(1024, name)
    }

    /// What a compressed guest cluster holds.
    pub fn text(&self, guest: usize) -> Vec<u8> {
        (0..self.cluster).map(|at| (at / 64 * guest) as u8).collect()
    }

    /// The disk of the sound image.
    pub fn model(&self) -> Vec<u8> {
        let mut model = vec![0; self.size()];
        for (n, guest) in self.filled().into_iter().enumerate() {
            model[guest * self.cluster..][..self.cluster].fill(filling(n));
        }
        for guest in SMALL {
            model[guest * self.cluster..][..self.cluster].copy_from_slice(&self.text(guest));
        }
        model
    }
}

fn filling(number: usize) -> u8 {
    0x11 + number as u8
}

/// A cluster, compressed.
pub fn compressed(bytes: &[u8], zstd: bool) -> Vec<u8> {
    if zstd {
        return zstd::bulk::compress(bytes, 3).unwrap();
    }
    let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A hand-made bad image.
pub struct Image {
    pub name: String,
    pub about: String,
    pub base: Base,
    pub spoil: Box<dyn Fn(&mut Sample) + Send + Sync>,
}

/// Adds to a list.
pub fn add(
    list: &mut Vec<Image>,
    base: Base,
    name: &str,
    about: &str,
    spoil: impl Fn(&mut Sample) + Send + Sync + 'static,
) {
    list.push(Image { name: name.to_string(), about: about.to_string(), base, spoil: Box::new(spoil) });
}
