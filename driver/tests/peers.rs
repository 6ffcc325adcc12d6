//! States that other programs leave, each image built here by code, and what they trip over in images like
//! ours. docs/peers.md says which program does what.
//!
//! Checks, with `qemu-img` as the judge:
//! * deflate clusters that begin at any byte of a sector, and whose distances reach beyond 4 KiB; several
//!   zstd frames in one cluster; compressed clusters in extended L2 tables: read right, and written over;
//! * overlays longer than their backing file: zeros behind its end, in reads and in what a write copies;
//! * images of one L1 entry, of far more L1 entries than the disk needs, of a header of 104 bytes with its
//!   extensions directly behind, of a disk size that is no multiple of 512;
//! * a file that ends 512 bytes behind the begin of its L1 table: opened, written and closed.

#[path = "differential/qemu.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod qemu;

use flate2::{Compress, Compression, FlushCompress};
use qemu::{arg, good, run};
use quod::{AllowAll, Format, OpenOptions};
use quod_states::qcow2::{Header, Purpose};
use quod_tools::{self as tools, CreateOptions, Session};
use std::path::{Path, PathBuf};

const CLUSTER: usize = 65536;
/// Where the images have what, in clusters.
const REFTABLE: usize = 1;
const REFBLOCK: usize = 2;
const L1: usize = 3;
const L2: usize = 4;
const DATA: usize = 5;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

/// An image of version 3 with clusters of 64 KiB, 16 bits a refcount and a header of `header_len` bytes.
struct Built {
    bytes: Vec<u8>,
    /// Where the header's fields end and the extensions begin.
    header_len: usize,
}

impl Built {
    fn new(disk: u64, l1_size: u32, header_len: usize) -> Built {
        let mut built = Built { bytes: vec![0; DATA * CLUSTER], header_len };
        built.word(0, 0x5146_49fb).word(4, 3).word(20, 16).long(24, disk).word(36, l1_size);
        built.long(40, (L1 * CLUSTER) as u64).long(48, (REFTABLE * CLUSTER) as u64).word(56, 1);
        built.word(96, 4).word(100, header_len as u32);
        built.long(REFTABLE * CLUSTER, (REFBLOCK * CLUSTER) as u64);
        built
    }

    fn word(&mut self, at: usize, value: u32) -> &mut Built {
        self.put(at, &value.to_be_bytes())
    }

    fn long(&mut self, at: usize, value: u64) -> &mut Built {
        self.put(at, &value.to_be_bytes())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Built {
        let end = at + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end.next_multiple_of(CLUSTER), 0);
        }
        self.bytes[at..end].copy_from_slice(bytes);
        self
    }

    /// Sets a bit of the incompatible features; compression by zstd has its own field as well.
    fn feature(&mut self, bit: u32) -> &mut Built {
        assert!(self.header_len > 104, "compression_type is byte 104");
        let features = u64::from_be_bytes(self.bytes[72..80].try_into().unwrap());
        self.bytes[104] = u8::from(bit == 3);
        self.long(72, features | 1 << bit)
    }

    /// Compressed data at byte `at` of the file, of guest cluster `guest`; `step` bytes an L2 entry.
    fn packed(&mut self, guest: usize, at: usize, data: &[u8], step: usize) -> &mut Built {
        let sectors = (at + data.len() - 1) / 512 - at / 512;
        let entry = COMPRESSED | (sectors as u64) << 54 | at as u64;
        self.long(L1 * CLUSTER, COPIED | (L2 * CLUSTER) as u64);
        self.long(L2 * CLUSTER + guest * step, entry).put(at, data)
    }

    /// Counts what is used, clusters of compressed data by `uses`, and writes the file.
    fn write(&mut self, path: &Path, uses: &[u16]) {
        let used = if self.bytes.len() > DATA * CLUSTER { DATA } else { L2 };
        let counts: Vec<u16> = (0..used).map(|_| 1).chain(uses.iter().copied()).collect();
        for (n, count) in counts.into_iter().enumerate() {
            self.put(REFBLOCK * CLUSTER + 2 * n, &count.to_be_bytes());
        }
        std::fs::write(path, &self.bytes).unwrap();
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// Lines that repeat, so that they can be compressed, but nowhere in the same order.
fn prose(len: usize, seed: usize) -> Vec<u8> {
    let words = (0usize..).flat_map(|n| format!("{} of {}; ", (n * seed) % 997, n % 89).into_bytes());
    words.take(len).collect()
}

fn deflated(bytes: &[u8], window: u8) -> Vec<u8> {
    let mut encoder = Compress::new_with_window_bits(Compression::best(), false, window);
    let mut out = Vec::with_capacity(bytes.len() + 1024);
    encoder.compress_vec(bytes, &mut out, FlushCompress::Finish).unwrap();
    out
}

fn all(path: &Path) -> Vec<u8> {
    let mut session = Session::open(path, OpenOptions::new().open_gate(AllowAll)).unwrap();
    let mut bytes = vec![0xaa; session.info().unwrap().virtual_size() as usize];
    session.read(0, &mut bytes).unwrap();
    session.close().unwrap();
    bytes
}

/// Writes `bytes` at `offset` of the disk and of its model.
fn write(path: &Path, model: &mut [u8], offset: usize, bytes: &[u8]) {
    let mut session = Session::open(path, OpenOptions::new().write(true).open_gate(AllowAll)).unwrap();
    session.write(offset as u64, bytes).unwrap();
    session.close().unwrap();
    model[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// The disk is `model` for us and for QEMU, and nothing is wrong with the image.
fn same(path: &Path, model: &[u8], story: &str) {
    assert!(all(path) == model, "{story}: read");
    let raw = path.with_extension("judge");
    good("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", arg(path), arg(&raw)]);
    let theirs = std::fs::read(&raw).unwrap();
    let both = theirs.len().min(model.len());
    assert!(theirs[..both] == model[..both] && both + 512 > model.len(), "{story}: QEMU reads");
    let report = tools::check(path, None, None).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{story}: {report:?}");
    assert_eq!(run("qemu-img", &["check", "-q", "-f", "qcow2", arg(path)]).code, 0, "{story}: check");
}

#[test]
fn deflate_clusters_begin_at_any_byte() {
    let folder = Folder::new();
    for (n, first) in [1, 2, 7, 255, 509, 510, 511, 512, 513].into_iter().enumerate() {
        let path = folder.path(&format!("{n}.qcow2"));
        let mut built = Built::new(3 << 16, 1, 112);
        let (mut at, mut model) = (DATA * CLUSTER + first, Vec::new());
        for guest in 0..3 {
            let text = prose(CLUSTER, 7 + guest);
            let data = deflated(&text, 12);
            built.packed(guest, at, &data, 8);
            at += data.len();
            model.extend(text);
        }
        assert!(at < (DATA + 1) * CLUSTER, "all share one cluster: {at}");
        built.write(&path, &[3]);
        same(&path, &model, &format!("from byte {first} on"));
        write(&path, &mut model, CLUSTER + 300, &[5; 70_000]);
        same(&path, &model, &format!("from byte {first} on, written"));
    }
}

#[test]
fn deflate_reaches_as_far_back_as_it_likes() {
    let folder = Folder::new();
    let path = folder.path("far.qcow2");
    // twenty thousand bytes that do not repeat, and then they do
    let mut number = 1u32;
    let block = std::iter::repeat_with(|| {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        number.to_be_bytes()[0]
    });
    let block: Vec<u8> = block.take(20_000).collect();
    let mut model: Vec<u8> = block.iter().copied().cycle().take(CLUSTER).collect();
    let data = deflated(&model, 15);
    assert!(data.len() < 22_000, "it refers to what is 20000 bytes back: {}", data.len());
    Built::new(1 << 16, 1, 112).packed(0, DATA * CLUSTER + 3, &data, 8).write(&path, &[1]);
    same(&path, &model, "distances beyond 4 KiB");
    write(&path, &mut model, 100, &[1; 1000]);
    same(&path, &model, "distances beyond 4 KiB, written");
}

#[test]
fn zstd_clusters_of_several_frames() {
    let folder = Folder::new();
    let path = folder.path("frames.qcow2");
    let mut model = prose(CLUSTER, 11);
    let frames = [0..1, 1..30_000, 30_000..30_001, 30_001..CLUSTER];
    let data: Vec<u8> =
        frames.into_iter().flat_map(|range| zstd::encode_all(&model[range], 3).unwrap()).collect();
    let mut built = Built::new(1 << 16, 1, 112);
    built.feature(3).packed(0, DATA * CLUSTER + 3, &data, 8).write(&path, &[1]);
    same(&path, &model, "four frames");
    write(&path, &mut model, 29_000, &[1; 2000]);
    same(&path, &model, "four frames, written");
}

#[test]
fn compressed_clusters_in_extended_tables() {
    let folder = Folder::new();
    for zstd in [false, true] {
        let path = folder.path("extended.qcow2");
        let mut built = Built::new(6 << 16, 1, 112);
        built.feature(4);
        if zstd {
            built.feature(3);
        }
        // the first and the last of them and one in the middle: an entry is 16 bytes, its bitmap 0
        let (mut at, mut model) = (DATA * CLUSTER + 1, vec![0; 6 * CLUSTER]);
        for guest in [0, 3, 5] {
            let text = prose(CLUSTER, 13 + guest);
            let data = if zstd { zstd::encode_all(&text[..], 3).unwrap() } else { deflated(&text, 12) };
            built.packed(guest, at, &data, 16);
            at += data.len();
            model[guest * CLUSTER..][..CLUSTER].copy_from_slice(&text);
        }
        built.write(&path, &[3]);
        same(&path, &model, &format!("zstd {zstd}"));
        // one subcluster of it, and from it into a hole
        write(&path, &mut model, 2048, &[1; 2048]);
        write(&path, &mut model, 4 * CLUSTER - 100, &[2; 300]);
        same(&path, &model, &format!("zstd {zstd}, written"));
    }
}

#[test]
fn overlays_longer_than_what_is_below() {
    let folder = Folder::new();
    let below = prose(2 * CLUSTER + 1536, 17);
    for (format, name) in [(Format::Raw, "raw"), (Format::Qed, "qed"), (Format::Qcow2, "qcow2")] {
        let base = folder.path(&format!("base.{name}"));
        std::fs::write(folder.path("source"), &below).unwrap();
        good("qemu-img", &["convert", "-f", "raw", "-O", name, arg(&folder.path("source")), arg(&base)]);
        let path = folder.path(&format!("over-{name}.qcow2"));
        let backing = Some((format!("base.{name}"), Some(format)));
        let size = 8 << 16;
        tools::create(&path, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, size) }).unwrap();
        let mut model = below.clone();
        model.resize(size as usize, 0);
        same(&path, &model, &format!("over {name}"));
        // around the end of what is below, in its last cluster, and far behind it
        write(&path, &mut model, below.len() - 200, &[1; 400]);
        write(&path, &mut model, 3 * CLUSTER + 700, &[2; 512]);
        write(&path, &mut model, 6 * CLUSTER - 5, &[3; CLUSTER]);
        same(&path, &model, &format!("over {name}, written"));
    }
}

/// The header, field by field.
fn header(path: &Path) -> Header {
    Header::parse(&std::fs::read(path).unwrap(), Purpose::Look).unwrap()
}

#[test]
fn one_l1_entry_is_no_encryption() {
    let folder = Folder::new();
    let path = folder.path("one.qcow2");
    for size in [512, 1 << 20, 512 << 20] {
        tools::create(&path, &CreateOptions::new(Format::Qcow2, size)).unwrap();
        let header = header(&path);
        assert_eq!((header.l1_entries, header.size), (1, size));
        // version 1 has its cipher where later versions have the number of L1 entries
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((&bytes[32..36], &bytes[36..40]), (&[0; 4][..], &[0, 0, 0, 1][..]));
        let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
        session.write(size - 512, &[7; 512]).unwrap();
        session.close().unwrap();
        assert_eq!(run("qemu-img", &["check", "-q", arg(&path)]).code, 0, "{size}");
        std::fs::remove_file(&path).unwrap();
    }
}

/// As imago creates them: the L1 table fills its cluster, and the feature names follow 104 bytes of header.
#[test]
fn more_l1_entries_than_the_disk_needs_and_a_short_header() {
    let folder = Folder::new();
    let path = folder.path("large.qcow2");
    for size in [1 << 20, 1_000_001] {
        let mut built = Built::new(size, 8192, 104);
        built.word(104, 0x6803_f857).word(108, 48).put(112, &[0, 2]).put(114, b"external data file");
        built.put(4 * CLUSTER - 8, &[0; 8]);
        built.bytes.truncate(4 * CLUSTER);
        built.write(&path, &[]);
        let mut model = vec![0; size as usize / 512 * 512];
        same(&path, &model, &format!("{size}"));
        write(&path, &mut model, 65_000, &[1; 100_000]);
        let end = model.len() - 512;
        write(&path, &mut model, end, &[2; 512]);
        same(&path, &model, &format!("{size}, written"));
        let header = header(&path);
        assert_eq!((header.l1_entries, header.size), (8192, size), "as it was");
        std::fs::remove_file(&path).unwrap();
    }
}

/// As qcow2-rs creates them: no more of the L1 table is in the file than its first sector.
#[test]
fn a_file_that_ends_inside_the_cluster_of_its_l1_table() {
    let folder = Folder::new();
    let path = folder.path("cut.qcow2");
    for entries in [1, 2, 64] {
        let size = (entries as u64) << 29;
        let mut built = Built::new(size, entries, 112);
        built.bytes.truncate(L1 * CLUSTER + 512);
        built.write(&path, &[]);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), (L1 * CLUSTER + 512) as u64);
        let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
        session.flush().unwrap();
        session.write(4096, &[1; 100_000]).unwrap();
        session.write(size - 4096, &[2; 4096]).unwrap();
        session.flush().unwrap();
        session.write(size / 2, &[3; 512]).unwrap();
        session.close().unwrap();
        assert_eq!(run("qemu-img", &["check", "-q", arg(&path)]).code, 0, "{entries}");
        let mut session = Session::open(&path, OpenOptions::new()).unwrap();
        for (offset, byte, len) in [(4096, 1, 100_000), (size - 4096, 2, 4096), (size / 2, 3, 512)] {
            let mut bytes = vec![0; len];
            session.read(offset, &mut bytes).unwrap();
            assert_eq!(bytes, vec![byte; len], "{entries}: {offset}");
        }
        session.close().unwrap();
        // opened for writing and closed unwritten, it stays as it is
        built.write(&path, &[]);
        Session::open(&path, OpenOptions::new().write(true)).unwrap().close().unwrap();
        assert!(std::fs::read(&path).unwrap() == built.bytes, "{entries}: nothing was written");
    }
}
