//! A small writer of qcow2 images: one change after the other, each leaving a sound file.
//!
//! It makes what neither a new image nor the driver's own writes have: clusters that a snapshot shares,
//! compressed clusters, zero clusters that keep space, leaks. Space is always taken at the end of the file.
//!
//! Knows: the format. Must never know: how the driver allocates. Invariants: refcounts are exact, but for
//! [`Editor::leak`]; COPIED is set where the refcount is one; space without meaning holds [`STALE`], so that
//! whoever shows it is noticed.

use flate2::write::DeflateEncoder;
use quod_bench::contract::{Checked, Failure, fail};
use quod_states::qcow2::entry::{COPIED, OFFSET};
use quod_states::qcow2::header::Compression;
use quod_states::qcow2::refcount::BlockShape;
use quod_states::qcow2::snapshot::Snapshot;
use quod_states::qcow2::{Header, L2, Purpose, Shape, Sub, Subclusters};
use std::io::Write;

/// What lies in space that nothing should show.
pub(crate) const STALE: u8 = 0xdb;

fn deflated(content: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = DeflateEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(content)?;
    encoder.finish()
}

/// See the module's header.
pub struct Editor {
    bytes: Vec<u8>,
    header: Header,
    shape: Shape,
    counts: BlockShape,
    snapshots: Vec<Snapshot>,
    /// Of the table that lists them.
    snapshot_clusters: u64,
    /// Where the next compressed cluster may begin; 0: at a new cluster.
    packed: u64,
}

impl Editor {
    /// Of this file, which has no snapshots.
    pub fn new(bytes: Vec<u8>) -> Checked<Editor> {
        let header =
            Header::parse(&bytes, Purpose::Check).map_err(|error| Failure(format!("to edit: {error}")))?;
        let (shape, counts) = (header.shape(), header.refcounts());
        Ok(Editor { bytes, header, shape, counts, snapshots: Vec::new(), snapshot_clusters: 0, packed: 0 })
    }

    /// The file.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    fn cluster(&self) -> u64 {
        self.shape.cluster_size()
    }

    fn long(&self, at: u64) -> u64 {
        let bytes = self.bytes.get(at as usize..).and_then(|bytes| bytes.first_chunk());
        bytes.map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn put_long(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_be_bytes());
    }

    /// The refcount block that counts the cluster at `host`, if there is one.
    fn block(&self, host: u64) -> Checked<(u64, u64)> {
        let index = self.counts.table_index(host / self.cluster());
        if index * 8 >= u64::from(self.header.reftable_clusters) * self.cluster() {
            return fail("the refcount table is full");
        }
        let at = self.header.reftable_offset + index * 8;
        Ok((at, self.long(at)))
    }

    /// How often the cluster at `host` is in use.
    fn count(&self, host: u64) -> Checked<u64> {
        let (_, block) = self.block(host)?;
        let bytes = &self.bytes[block as usize..][..self.cluster() as usize];
        let index = self.counts.block_index(host / self.cluster());
        Ok(if block == 0 { 0 } else { self.counts.get(bytes, index) })
    }

    fn set_count(&mut self, host: u64, count: u64) -> Checked {
        if count > self.counts.max() {
            return fail(format!("a refcount of {count} does not fit"));
        }
        let (at, block) = self.block(host)?;
        if block == 0 {
            let new = self.space(1);
            self.bytes[new as usize..].fill(0);
            self.put_long(at, new);
            self.set_count(new, 1)?;
            return self.set_count(host, count);
        }
        let (cluster, index) = (self.cluster(), self.counts.block_index(host / self.cluster()));
        self.counts.set(&mut self.bytes[block as usize..][..cluster as usize], index, count);
        Ok(())
    }

    /// Space at the end of the file, not counted yet.
    fn space(&mut self, clusters: u64) -> u64 {
        let start = (self.bytes.len() as u64).next_multiple_of(self.cluster());
        self.bytes.resize(start as usize, 0);
        self.bytes.resize((start + clusters * self.cluster()) as usize, STALE);
        start
    }

    fn alloc(&mut self, clusters: u64) -> Checked<u64> {
        let start = self.space(clusters);
        for n in 0..clusters {
            self.set_count(start + n * self.cluster(), 1)?;
        }
        Ok(start)
    }

    /// Host clusters that an entry refers to.
    fn hosts(&self, entry: L2) -> Vec<u64> {
        match entry {
            L2::Unallocated | L2::ZeroPlain => Vec::new(),
            L2::ZeroAllocated { host, .. } | L2::Normal { host, .. } => vec![host],
            L2::Split { host, .. } => host.into_iter().collect(),
            L2::Compressed { host, len } => {
                let (first, last) = (host / self.cluster(), (host + u64::from(len) - 1) / self.cluster());
                (first..=last).map(|n| n * self.cluster()).collect()
            }
        }
    }

    fn entry_at(&self, at: u64) -> Checked<L2> {
        let bitmap = if self.shape.extended { self.long(at + 8) } else { 0 };
        self.shape.decode_l2(0, self.long(at), bitmap).map_err(|error| Failure(format!("to edit: {error}")))
    }

    /// Where the entry of a guest cluster stands; its table is made, or copied if it is shared.
    fn slot(&mut self, guest: u64) -> Checked<u64> {
        let entries = self.shape.l2_entries();
        let at = self.header.l1_offset + guest / entries * 8;
        if guest / entries >= u64::from(self.header.l1_entries) {
            return fail(format!("guest cluster {guest} lies behind the disk"));
        }
        let mut table = self.long(at) & OFFSET;
        if table == 0 || self.count(table)? > 1 {
            let (old, new) = (table, self.alloc(1)?);
            let content = match old {
                0 => vec![0; self.cluster() as usize],
                old => self.bytes[old as usize..][..self.cluster() as usize].to_vec(),
            };
            self.put(new, &content);
            if old != 0 {
                self.set_count(old, self.count(old)? - 1)?;
            }
            self.put_long(at, new | COPIED);
            table = new;
        }
        Ok(table + guest % entries * self.shape.l2_entry_bytes())
    }

    /// Replaces the entry of a guest cluster; what it referred to is given back.
    fn replace(&mut self, guest: u64, entry: L2) -> Checked {
        let at = self.slot(guest)?;
        for host in self.hosts(self.entry_at(at)?) {
            self.set_count(host, self.count(host)? - 1)?;
        }
        let (word, bitmap) = self.shape.encode_l2(entry);
        self.put_long(at, word);
        if self.shape.extended {
            self.put_long(at + 8, bitmap);
        }
        Ok(())
    }

    /// A guest cluster gets a cluster of its own with these bytes, zeros behind them.
    pub fn data(&mut self, guest: u64, bytes: &[u8]) -> Checked {
        let host = self.alloc(1)?;
        let mut content = bytes.to_vec();
        content.resize(self.cluster() as usize, 0);
        self.put(host, &content);
        let subclusters = Subclusters::ALL_ALLOCATED;
        let entry = match self.shape.extended {
            true => L2::Split { host: Some(host), copied: true, subclusters },
            false => L2::Normal { host, copied: true },
        };
        self.replace(guest, entry)
    }

    /// A guest cluster reads as zeros; `keep`: and has space, which holds something else.
    pub fn zero(&mut self, guest: u64, keep: bool) -> Checked {
        let host = if keep { Some(self.alloc(1)?) } else { None };
        let subclusters = Subclusters::ALL_ZERO;
        let entry = match (self.shape.extended, host) {
            (true, host) => L2::Split { host, copied: keep, subclusters },
            (false, Some(host)) => L2::ZeroAllocated { host, copied: true },
            (false, None) => L2::ZeroPlain,
        };
        self.replace(guest, entry)
    }

    /// The subclusters of `data` hold those of `bytes`, those of `zero` are zeros, the others show what lies
    /// below.
    pub fn subclusters(&mut self, guest: u64, data: u32, zero: u32, bytes: &[u8]) -> Checked {
        let (host, unit) = (self.alloc(1)?, self.cluster() / 32);
        for n in (0..32u64).filter(|n| data >> n & 1 != 0) {
            let part = bytes.get((n * unit) as usize..).unwrap_or_default();
            let mut part = part[..part.len().min(unit as usize)].to_vec();
            part.resize(unit as usize, 0);
            self.put(host + n * unit, &part);
        }
        let subclusters = Subclusters::default().with(data, Sub::Allocated).with(zero & !data, Sub::Zero);
        self.replace(guest, L2::Split { host: Some(host), copied: true, subclusters })
    }

    /// A guest cluster holds these bytes, compressed; it begins where the one before ended.
    pub fn compressed(&mut self, guest: u64, bytes: &[u8]) -> Checked {
        let mut content = bytes.to_vec();
        content.resize(self.cluster() as usize, 0);
        let packed = match self.header.compression {
            Compression::Zstd => zstd::bulk::compress(&content, 3),
            Compression::Deflate => deflated(&content),
        };
        let packed = packed.map_err(|error| Failure(format!("compress: {error}")))?;
        if packed.len() as u64 >= self.cluster() {
            return fail("the cluster does not shrink");
        }
        let (len, cluster) = (packed.len() as u64, self.cluster());
        let room = self.packed.next_multiple_of(cluster) - self.packed;
        // it may cross into the next cluster, if that can be had
        let crosses = len > room && self.packed + room == self.bytes.len() as u64;
        let counted = room > 0 && self.count(self.packed / cluster * cluster)? < self.counts.max();
        let follows = counted && (len <= room || crosses);
        let new = if follows && len <= room { 0 } else { self.alloc(1)? };
        let host = if follows { self.packed } else { new };
        if follows {
            let shared = host / cluster * cluster;
            self.set_count(shared, self.count(shared)? + 1)?;
        }
        self.put(host, &packed);
        self.packed = host + len;
        let Some(entry) = self.shape.encode_compressed(host, len as u32) else {
            return fail("no entry can name the compressed data");
        };
        let (host, len) = self.shape.compressed_range(entry);
        self.replace(guest, L2::Compressed { host, len })
    }

    /// A snapshot of the disk as it is now: everything is shared from now on.
    pub fn snapshot(&mut self) -> Checked {
        let (l1, entries) = (self.header.l1_offset, u64::from(self.header.l1_entries));
        for n in 0..entries {
            let table = self.long(l1 + n * 8) & OFFSET;
            if table == 0 {
                continue;
            }
            self.put_long(l1 + n * 8, table);
            self.set_count(table, self.count(table)? + 1)?;
            for index in 0..self.shape.l2_entries() {
                let at = table + index * self.shape.l2_entry_bytes();
                let entry = self.entry_at(at)?;
                for host in self.hosts(entry) {
                    self.set_count(host, self.count(host)? + 1)?;
                }
                if !matches!(entry, L2::Compressed { .. }) {
                    self.put_long(at, self.long(at) & !COPIED);
                }
            }
        }
        let copy = self.bytes[l1 as usize..][..entries as usize * 8].to_vec();
        let offset = self.alloc((entries * 8).div_ceil(self.cluster()))?;
        self.put(offset, &copy);
        self.add_snapshot(offset)
    }

    fn add_snapshot(&mut self, l1_offset: u64) -> Checked {
        let number = self.snapshots.len() + 1;
        let extra = [[0; 8], self.header.size.to_be_bytes()].concat();
        self.snapshots.push(Snapshot {
            l1_offset,
            l1_entries: self.header.l1_entries,
            date_sec: 1_283_299_200,
            date_nsec: 0,
            vm_clock_nsec: 0,
            vm_state_size_field: 0,
            extra,
            id: number.to_string().into_bytes(),
            name: format!("before-{number}").into_bytes(),
        });
        let mut table = Vec::new();
        self.snapshots.iter().for_each(|snapshot| snapshot.encode(&mut table));
        let clusters = (table.len() as u64).div_ceil(self.cluster());
        let (at, old) = (self.alloc(clusters)?, self.long(64));
        self.put(at, &table);
        if old != 0 {
            for n in 0..self.snapshot_clusters {
                self.set_count(old + n * self.cluster(), 0)?;
            }
        }
        self.snapshot_clusters = clusters;
        self.put(60, &(number as u32).to_be_bytes());
        self.put_long(64, at);
        Ok(())
    }

    /// Everything below the host cluster `end` is in use: what nothing refers to leaks.
    pub fn leak(&mut self, end: u64) -> Checked {
        for n in 0..end {
            if self.count(n * self.cluster())? == 0 {
                self.set_count(n * self.cluster(), 1)?;
            }
        }
        let len = (self.bytes.len() as u64).max(end * self.cluster());
        self.bytes.resize(len as usize, 0);
        Ok(())
    }
}
