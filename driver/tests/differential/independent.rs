//! A QED reader written from the format's description alone: nothing of the driver is used. It judges where
//! QEMU cannot: `table_size` 1 and geometries whose maximum size wraps there (traps Q1 and Q2).

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub struct Reader {
    file: File,
    pub cluster: u64,
    pub table: u64,
    pub header: u64,
    pub features: u64,
    pub autoclear: u64,
    pub l1: u64,
    pub size: u64,
    len: u64,
}

pub fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn word(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()).into()
}

impl Reader {
    pub fn open(path: &Path) -> Reader {
        let file = File::open(path).unwrap();
        let mut head = [0; 64];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!(&head[..4], b"QED\0");
        let cluster = word(&head, 4);
        Reader {
            len: file.metadata().unwrap().len(),
            file,
            cluster,
            table: word(&head, 8) * cluster,
            header: word(&head, 12) * cluster,
            features: long(&head, 16),
            autoclear: long(&head, 32),
            l1: long(&head, 40),
            size: long(&head, 48),
        }
    }

    pub fn need_check(&self) -> bool {
        self.features & 2 != 0
    }

    fn entry(&self, table: u64, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, table + index * 8).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// The L2 entry of a guest cluster; 0 without a table.
    pub fn lookup(&self, cluster: u64) -> u64 {
        let entries = self.table / 8;
        match self.entry(self.l1, cluster / entries) {
            0 => 0,
            table => self.entry(table, cluster % entries),
        }
    }

    /// Some cluster of the disk is allocated.
    pub fn allocated(&self) -> bool {
        (0..self.size.div_ceil(self.cluster)).any(|cluster| self.lookup(cluster) > 1)
    }

    /// The whole disk on top of `below`.
    pub fn disk(&self, below: &[u8]) -> Vec<u8> {
        let mut bytes = below.to_vec();
        bytes.resize(self.size as usize, 0);
        for (number, chunk) in bytes.chunks_mut(self.cluster as usize).enumerate() {
            match self.lookup(number as u64) {
                0 => {}
                1 => chunk.fill(0),
                host => self.file.read_exact_at(chunk, host).unwrap(),
            }
        }
        bytes
    }

    /// Panics unless every reference is aligned, inside the file, behind the header, and made once, and every
    /// cluster of the file is referred to.
    pub fn assert_clean(&self, story: &str) {
        let mut used = BTreeSet::new();
        let mut refer = |offset: u64, len: u64| {
            assert!(offset.is_multiple_of(self.cluster) && offset >= self.header, "{story}: {offset:#x}");
            assert!(offset + len <= self.len, "{story}: {offset:#x} lies beyond the end");
            for cluster in offset / self.cluster..(offset + len) / self.cluster {
                assert!(used.insert(cluster), "{story}: cluster {cluster} is used twice");
            }
        };
        refer(self.l1, self.table);
        let entries = self.table / 8;
        let clusters = self.size.div_ceil(self.cluster);
        for l1_index in 0..clusters.div_ceil(entries) {
            let table = self.entry(self.l1, l1_index);
            if table != 0 {
                refer(table, self.table);
                for index in 0..entries.min(clusters - l1_index * entries) {
                    let entry = self.entry(table, index);
                    if entry > 1 {
                        refer(entry, self.cluster);
                    }
                }
            }
        }
        let all = (self.len - self.header) / self.cluster;
        assert_eq!(used.len() as u64, all, "{story}: leaked clusters");
        assert!(self.len.is_multiple_of(self.cluster), "{story}: length {:#x}", self.len);
    }
}
