//! What the tests of qcow2 share: the matrix of create options, and images that QEMU has scribbled on.

use super::ours;
use super::qemu::{self, Run, arg, good};
use super::random::Random;
use std::path::Path;

pub const OPTIONS: [&str; 20] = [
    "compat=0.10",
    "compat=0.10,cluster_size=512",
    "compat=0.10,cluster_size=2M",
    "compat=0.10,cluster_size=4k,preallocation=metadata",
    "compat=1.1",
    "cluster_size=512",
    "cluster_size=1k,refcount_bits=1",
    "cluster_size=4k,compression_type=zstd",
    "cluster_size=4k,refcount_bits=64,lazy_refcounts=on",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=16k,extended_l2=on,compression_type=zstd",
    "cluster_size=64k,extended_l2=on,preallocation=metadata",
    "cluster_size=2M,extended_l2=on,compression_type=zstd",
    "compression_type=zstd",
    "preallocation=metadata",
    "preallocation=falloc,cluster_size=32k",
    "cluster_size=256k,refcount_bits=8",
    "cluster_size=1M,compression_type=zstd,refcount_bits=2",
    "cluster_size=2M",
    "cluster_size=2M,compression_type=zstd,refcount_bits=32",
];

/// Words, numbers and noise: it shrinks, by half or so.
pub fn prose(len: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 64);
    while bytes.len() < len {
        match random.below(4) {
            0 => bytes.extend(random.bytes(40)),
            1 => bytes.extend(format!("block {} of {}, ", bytes.len(), random.below(1000)).bytes()),
            _ => bytes.extend_from_slice(
                &b"the quick brown fox jumps over the lazy dog"[random.below(20) as usize..],
            ),
        }
    }
    bytes.truncate(len);
    bytes
}

pub fn cluster_of(options: &str) -> u64 {
    let text = options.split(',').find_map(|option| option.strip_prefix("cluster_size=")).unwrap_or("64k");
    let (number, unit) = match text.strip_suffix(['k', 'M']) {
        Some(number) => (number, if text.ends_with('k') { 1 << 10 } else { 1 << 20 }),
        None => (text, 1),
    };
    number.parse::<u64>().unwrap() * unit
}

/// Data, zeros, discards and compressed clusters all over an image, and a snapshot between them.
pub fn scribble(image: &Path, options: &str, size: u64, random: &mut Random) {
    let cluster = cluster_of(options);
    for part in 0..2 {
        let mut commands = Vec::new();
        for _ in 0..20 {
            let start = random.below(size - 512) / 512 * 512;
            let len = (1 + random.below(300)) * 512;
            let len = len.min(size - start);
            let start_cluster = random.below(size / cluster) * cluster;
            let pattern = 1 + random.below(255);
            commands.push(match random.below(8) {
                0 => format!("write -z {start} {len}"),
                1 => format!("write -z -u {start_cluster} {cluster}"),
                2 => format!("discard {start_cluster} {cluster}"),
                3 | 4 => format!("write -c -P {pattern} {start_cluster} {cluster}"),
                _ => format!("write -P {pattern} {start} {len}"),
            });
        }
        let mut args = vec!["-f", "qcow2"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(arg(image));
        // what QEMU refuses (compressed over allocated) leaves the image as it is
        qemu::run("qemu-io", &args);
        // refcounts of one or two bits do not reach; compressed writes of 512 bytes make QEMU 10 mark its own
        // image corrupt
        let counts = !options.contains("refcount_bits=1") && !options.contains("refcount_bits=2");
        if part == 0 && counts && cluster > 512 {
            good("qemu-img", &["snapshot", "-c", "before", arg(image)]);
        }
    }
}

pub fn expected(image: &Path, format: &str) -> Vec<u8> {
    let raw = image.with_extension("expected.raw");
    good("qemu-img", &["convert", "-f", format, "-O", "raw", arg(image), arg(&raw)]);
    let bytes = std::fs::read(&raw).unwrap();
    std::fs::remove_file(raw).unwrap();
    bytes
}

/// A map without what QEMU adds to it: the holes of the file within allocated clusters, which it looks for
/// when the file takes less space on the host than its refcounts say (`data` and `zero` are both true there);
/// and the place that a cluster keeps for its unallocated subclusters.
pub fn plain(runs: Vec<Run>) -> Vec<Run> {
    let mut plain = Vec::new();
    for run in runs {
        let (zero, offset) = (run.zero && !run.data, run.offset.filter(|_| run.present));
        ours::push(&mut plain, Run { zero, offset, ..run });
    }
    plain
}

pub fn create(path: &Path, options: &str, size: u64, backing: Option<(&str, &str)>) {
    let size = size.to_string();
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if let Some((name, format)) = backing {
        args.extend(["-b", name, "-F", format]);
    }
    args.extend([arg(path), &size]);
    good("qemu-img", &args);
}
