//! Overlapping allocations: all requests of a shape are submitted at once, and complete in orders that seeds
//! choose. Non-overlapping writes of one cluster must all be there, byte for byte, whatever happens first.
//!
//! Checks, each for images without and with a backing file, for clusters of 64 KiB and for subclusters,
//! buffered and direct:
//! * the middle of a cluster, then what is before and behind;
//! * sequential writes into the next cluster;
//! * writes with gaps between them;
//! * writes next to, and into, a compressed cluster;
//! * writes in reverse order;
//! * a larger write over smaller ones: each sector is one of theirs;
//! * pieces of sectors.

#[allow(dead_code, reason = "shared with other tests")]
mod simulated;

use quod::{AllowAll, Buffer, OpenOptions, Request};
use simulated::{World, device, judge_bytes, qcow2, qemu, writable};

const CLUSTER: u64 = 65536;
const SIZE: usize = 8 * CLUSTER as usize;

/// A kind of image.
#[derive(Clone, Copy, Debug)]
struct Variant {
    backing: bool,
    extended: bool,
    direct: bool,
}

fn variants() -> impl Iterator<Item = Variant> {
    (0..8).map(|n| Variant { backing: n & 1 != 0, extended: n & 2 != 0, direct: n & 4 != 0 })
}

fn base() -> Vec<u8> {
    (0..SIZE - 3000).map(|at| (at / 64) as u8 | 1).collect()
}

/// An image whose second cluster is compressed, made by QEMU.
fn compressed(variant: Variant) -> (Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk");
    let arg = path.to_str().unwrap();
    std::fs::write(folder.path().join("base"), base()).unwrap();
    let options = format!("extended_l2={}", if variant.extended { "on" } else { "off" });
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if variant.backing {
        args.extend(["-b", "base", "-F", "raw"]);
    }
    let size = SIZE.to_string();
    args.extend([arg, &size]);
    assert_eq!(qemu("qemu-img", &args), (0, String::new()));
    let (code, text) = qemu("qemu-io", &["-f", "qcow2", "-c", "write -c -P 7 64k 64k", arg]);
    assert_eq!(code, 0, "{text}");
    let mut model = model(variant);
    model[CLUSTER as usize..2 * CLUSTER as usize].fill(7);
    (std::fs::read(path).unwrap(), model)
}

fn model(variant: Variant) -> Vec<u8> {
    let mut model = if variant.backing { base() } else { Vec::new() };
    model.resize(SIZE, 0);
    model
}

fn fresh(variant: Variant) -> Vec<u8> {
    qcow2(SIZE as u64, |options| {
        options.qcow2.extended_l2 = variant.extended;
        options.backing = variant.backing.then(|| ("base".into(), Some(quod::Format::Raw)));
    })
}

/// Bytes of write `n`.
fn bytes(n: usize, len: u64) -> Vec<u8> {
    (0..len).map(|at| ((n as u64 * 37 + 11 + at / 16) as u8) | 1).collect()
}

/// Submits the writes at once, on images that start as `start` says, for several orders; what each byte may
/// be afterwards follows from the writes that cover it.
fn shape(writes: &[(u64, u64)], start: fn(Variant) -> (Vec<u8>, Vec<u8>)) {
    for variant in variants() {
        let (file, before) = start(variant);
        let (base, overlap) = (base(), overlaps(writes));
        for seed in 0..12 {
            let story = format!("{variant:?}, seed {seed}");
            let sim = device(&[("disk", &file), ("base", &base)]);
            let mut world = World::open(sim, writable().direct(variant.direct), seed);
            let requests = writes.iter().enumerate().map(|(n, &(offset, len))| {
                Request::write(offset, Buffer::from(&bytes(n, len)[..]), n as u64)
            });
            for done in world.together(requests.collect()) {
                assert_eq!(done.result, Ok(()), "{story}: write {}", done.user);
            }
            let read = world.read(0, SIZE);
            verify(&read, &before, writes, &story);
            world.one(Request::close(0));
            // a power cut after the close changes nothing
            let sim = world.driver.backend().crash_with(|_| 0);
            if seed == 0 {
                judge_bytes(&sim.file_bytes("disk"), &[("base", &base)], &read, &story);
            }
            let mut again = World::open(sim, OpenOptions::new().open_gate(AllowAll), seed);
            let closed = again.read(0, SIZE);
            assert!(closed == read, "{story}: other bytes after closing");
            if !overlap {
                let mut model = before.clone();
                for (n, &(offset, len)) in writes.iter().enumerate() {
                    model[offset as usize..][..len as usize].copy_from_slice(&bytes(n, len));
                }
                assert!(closed == model, "{story}");
            }
        }
    }
}

fn overlaps(writes: &[(u64, u64)]) -> bool {
    writes.iter().enumerate().any(|(n, a)| writes[..n].iter().any(|b| a.0 < b.0 + b.1 && b.0 < a.0 + a.1))
}

/// Each byte is that of one of the writes that cover it, whole sectors of one; or what was there before.
fn verify(read: &[u8], before: &[u8], writes: &[(u64, u64)], story: &str) {
    let writes: Vec<(usize, Vec<u8>)> =
        writes.iter().enumerate().map(|(n, &(offset, len))| (offset as usize, bytes(n, len))).collect();
    let mut cuts: Vec<usize> = (0..=SIZE).step_by(512).collect();
    cuts.extend(writes.iter().flat_map(|(offset, bytes)| [*offset, offset + bytes.len()]));
    cuts.sort_unstable();
    cuts.dedup();
    for pair in cuts.windows(2) {
        let (low, high) = (pair[0], pair[1]);
        let mut covering =
            writes.iter().filter(|(at, bytes)| *at <= low && high <= at + bytes.len()).peekable();
        if covering.peek().is_none() {
            assert!(read[low..high] == before[low..high], "{story}: byte {low:#x} changed");
            continue;
        }
        let found = covering.any(|(at, bytes)| bytes[low - at..high - at] == read[low..high]);
        assert!(found, "{story}: bytes at {low:#x} are nobody's");
    }
}

fn empty(variant: Variant) -> (Vec<u8>, Vec<u8>) {
    (fresh(variant), model(variant))
}

#[test]
fn the_middle_then_before_and_behind() {
    let half = CLUSTER / 2;
    shape(&[(half - 4096, 8192), (0, half - 4096), (half + 4096, half - 4096)], empty);
    shape(&[(half, 512), (half - 512, 512), (half + 512, 512), (0, 512), (CLUSTER - 512, 512)], empty);
}

#[test]
fn sequential_writes_into_the_next_cluster() {
    let writes: Vec<_> = (0..24).map(|n| (n * 12288, 12288)).collect();
    shape(&writes, empty);
    let writes: Vec<_> = (0..16).map(|n| (CLUSTER - 4096 + n * 512, 512)).collect();
    shape(&writes, empty);
}

#[test]
fn writes_with_gaps_between_them() {
    let writes: Vec<_> = (0..16).map(|n| (n * 9216 + 512, 4096)).collect();
    shape(&writes, empty);
    shape(&[(0, 512), (CLUSTER - 512, 1024), (3 * CLUSTER + 2048, 2048), (2 * CLUSTER, 512)], empty);
}

#[test]
fn writes_next_to_a_compressed_cluster() {
    shape(
        &[(CLUSTER - 4096, 8192), (CLUSTER + 8192, 4096), (2 * CLUSTER, 4096), (2 * CLUSTER - 4096, 4096)],
        compressed,
    );
    shape(&[(0, CLUSTER), (CLUSTER, CLUSTER), (2 * CLUSTER, CLUSTER)], compressed);
    shape(&[(CLUSTER - 512, CLUSTER + 1024), (0, CLUSTER - 512), (2 * CLUSTER + 512, 512)], compressed);
}

#[test]
fn writes_in_reverse_order() {
    let writes: Vec<_> = (0..24).rev().map(|n| (n * 8192, 8192)).collect();
    shape(&writes, empty);
    let writes: Vec<_> = (0..8).rev().map(|n| (n * 8192 + 4096, 1536)).collect();
    shape(&writes, compressed);
}

#[test]
fn a_larger_write_over_smaller_ones() {
    shape(&[(4096, 4096), (0, 2 * CLUSTER), (CLUSTER + 512, 512), (CLUSTER - 512, 1024)], empty);
    shape(&[(8192, 512), (8192, 1024), (4096, 8192), (0, CLUSTER)], empty);
    shape(&[(CLUSTER + 4096, 4096), (CLUSTER - 8192, CLUSTER), (CLUSTER, CLUSTER)], compressed);
}

/// Bytes, not sectors: requests that share a sector modify it one after the other.
#[test]
fn pieces_of_sectors() {
    let writes: Vec<_> = (0..30).map(|n| (CLUSTER - 2000 + n * 100, 100)).collect();
    shape(&writes, empty);
    shape(&[(CLUSTER - 1, 2), (CLUSTER + 1, 1), (CLUSTER - 300, 299), (2 * CLUSTER - 7, 14)], compressed);
}
