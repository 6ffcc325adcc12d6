//! New qcow2 images are those of qemu-img, byte for byte.
//!
//! Checks: file length and every byte, over versions, cluster sizes, refcount widths, extended L2, lazy
//! refcounts, compression types, backing and data files, preallocation, sizes at and around the steps of the
//! tables; and that what qemu-img refuses is refused. qemu-img must be installed.

use quod_states::qcow2::{Compression, CreateOptions, Preallocation, create};
use quod_states_tests::files::Folder;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const MODES: [(Preallocation, &str); 4] = [
    (Preallocation::Off, "off"),
    (Preallocation::Metadata, "metadata"),
    (Preallocation::Falloc, "falloc"),
    (Preallocation::Full, "full"),
];

fn text(name: Option<&[u8]>) -> Option<&str> {
    name.map(|name| std::str::from_utf8(name).expect("names in tests are UTF-8"))
}

/// Runs qemu-img in `dir`: does it accept the options?
fn qemu(dir: &Path, options: &CreateOptions) -> bool {
    let mut list = format!(
        "compat={},cluster_size={},refcount_bits={},lazy_refcounts={},extended_l2={},preallocation={}",
        if options.version == 2 { "0.10" } else { "1.1" },
        options.cluster_size,
        options.refcount_bits,
        if options.lazy_refcounts { "on" } else { "off" },
        if options.extended_l2 { "on" } else { "off" },
        MODES.iter().find(|(mode, _)| *mode == options.preallocation).expect("a mode").1,
    );
    if options.compression == Compression::Zstd {
        list += ",compression_type=zstd";
    }
    for (key, name) in [
        ("data_file", options.data_file),
        ("backing_file", options.backing),
        ("backing_fmt", options.backing_format),
    ] {
        list += &text(name).map_or(String::new(), |name| format!(",{key}={name}"));
    }
    if options.data_file_raw {
        list += ",data_file_raw=on";
    }
    let size = options.size.to_string();
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-u", "-f", "qcow2", "-o", &list, "theirs", &size])
        .current_dir(dir)
        .output()
        .expect("qemu-img must be installed");
    output.status.success()
}

fn compare(ours: &File, theirs: &mut File, what: &str) {
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    loop {
        let len = theirs.read(&mut b).expect("read");
        if len == 0 {
            return;
        }
        ours.read_exact_at(&mut a[..len], at).expect("as long as theirs");
        if a[..len] != b[..len] {
            let n = (0..len).find(|n| a[*n] != b[*n]).expect("they differ");
            let from = n & !7;
            panic!(
                "{what}: byte {:#x}: ours {:02x?}, theirs {:02x?}",
                at + n as u64,
                &a[from..from + 8],
                &b[from..from + 8]
            );
        }
        at += len as u64;
    }
}

fn check(options: &CreateOptions) {
    let dir = Folder::create();
    let accepted = qemu(dir.path(), options);
    let created = create(options);
    assert_eq!(created.is_ok(), accepted, "{options:?}: {:?}", created.err());
    let Ok(created) = created else { return };
    let ours = File::options().read(true).write(true).create_new(true).open(dir.path().join("ours"));
    let ours = ours.expect("a file");
    ours.set_len(created.len()).expect("its length");
    for (offset, bytes) in created.pieces() {
        ours.write_all_at(&bytes, offset).expect("a piece");
    }
    let what = format!("{options:?}");
    let mut theirs = File::open(dir.path().join("theirs")).expect("theirs");
    let len = theirs.metadata().expect("theirs").len();
    assert_eq!(ours.metadata().expect("ours").len(), len, "length: {what}");
    if len <= 64 << 20 {
        compare(&ours, &mut theirs, &what);
    }
    // of large files only what is not a hole
    for (offset, bytes) in created.pieces().filter(|_| len > 64 << 20) {
        let mut same = vec![0; bytes.len()];
        theirs.read_exact_at(&mut same, offset).expect("a piece of theirs");
        assert!(bytes == same, "{what}: the piece at {offset:#x}");
    }
    if let Some(data) = options.data_file {
        let data = dir.path().join(text(Some(data)).expect("a name"));
        assert_eq!(created.data_file_len(), Some(data.metadata().expect("a data file").len()), "{what}");
    }
}

/// Sizes around one cluster, one L2 table, and more.
fn sizes(options: &CreateOptions) -> Vec<u64> {
    let cluster = u64::from(options.cluster_size);
    let table = cluster * cluster / if options.extended_l2 { 16 } else { 8 };
    let mut sizes = vec![0, 1, 512, cluster, cluster + 1, 10 * cluster + 512];
    if options.preallocation == Preallocation::Off || table <= 4 << 20 {
        sizes.extend([table, table + 1, 3 * table - 512]);
    }
    sizes
}

#[test]
fn versions_and_clusters() {
    for version in [2, 3] {
        for bits in [9, 12, 16, 21] {
            for (preallocation, _) in MODES {
                let options = CreateOptions {
                    version,
                    cluster_size: 1 << bits,
                    preallocation,
                    lazy_refcounts: version == 3 && bits % 2 == 0,
                    ..CreateOptions::default()
                };
                if preallocation == Preallocation::Full && bits > 12 || version == 2 && bits % 2 == 0 {
                    continue;
                }
                for size in sizes(&options) {
                    check(&CreateOptions { size, ..options });
                }
            }
        }
    }
}

#[test]
fn refcount_widths() {
    for order in 0..=6 {
        for bits in [9, 12, 16] {
            for (preallocation, _) in &MODES[..3] {
                let options = CreateOptions {
                    refcount_bits: 1 << order,
                    cluster_size: 1 << bits,
                    preallocation: *preallocation,
                    ..CreateOptions::default()
                };
                // many refcount blocks, and a refcount table that has to grow
                let many = [65, 4097, 40_000].map(|n| n << bits.min(10));
                for size in many {
                    check(&CreateOptions { size, ..options });
                }
            }
        }
    }
}

#[test]
fn large_disks() {
    for (bits, size) in [(9, 8 << 30), (9, (128 << 30) + 512), (12, 1 << 40)] {
        check(&CreateOptions { cluster_size: 1 << bits, size, ..CreateOptions::default() });
    }
    for size in [1 << 50, 2 << 50, (2 << 50) + 512] {
        check(&CreateOptions { size, ..CreateOptions::default() });
    }
    let preallocation = Preallocation::Metadata;
    check(&CreateOptions { size: 3 << 30, preallocation, ..CreateOptions::default() });
    check(&CreateOptions { size: 5 << 30, preallocation, refcount_bits: 64, ..CreateOptions::default() });
    check(&CreateOptions { size: 9 << 30, preallocation, cluster_size: 2 << 20, ..CreateOptions::default() });
    check(&CreateOptions { size: 20 << 20, preallocation, cluster_size: 512, ..CreateOptions::default() });
    let preallocation = Preallocation::Falloc;
    check(&CreateOptions { size: 520 << 20, preallocation, ..CreateOptions::default() });
}

#[test]
fn extended_entries_and_compression() {
    for bits in [12, 14, 16, 21] {
        for (preallocation, _) in MODES {
            for compression in [Compression::Deflate, Compression::Zstd] {
                if compression == Compression::Zstd && preallocation != Preallocation::Off {
                    continue;
                }
                let options = CreateOptions {
                    extended_l2: true,
                    compression,
                    cluster_size: 1 << bits,
                    preallocation,
                    ..CreateOptions::default()
                };
                for size in [0, 1 << bits, (5 << bits) + 512] {
                    check(&CreateOptions { size, ..options });
                }
            }
        }
    }
}

#[test]
fn backing_and_data_files() {
    let long = [b'n'; 300];
    for bits in [9, 12, 16] {
        let base = CreateOptions { size: 5 << 20, cluster_size: 1 << bits, ..CreateOptions::default() };
        for backing in [&b"base"[..], b"a/long/name of a file", &long] {
            for format in [b"raw" as &[u8], b"qcow2"] {
                let options = CreateOptions { backing: Some(backing), backing_format: Some(format), ..base };
                check(&options);
                check(&CreateOptions { version: 2, ..options });
                check(&CreateOptions { preallocation: Preallocation::Metadata, ..options });
                if bits == 16 {
                    let preallocation = Preallocation::Metadata;
                    check(&CreateOptions { preallocation, extended_l2: true, ..options });
                }
            }
        }
        for (preallocation, _) in MODES {
            for data_file_raw in [false, true] {
                let data_file = Some(&b"data.raw"[..]);
                check(&CreateOptions { data_file, data_file_raw, preallocation, ..base });
                check(&CreateOptions {
                    data_file,
                    data_file_raw,
                    preallocation,
                    size: (70 << 16) + 512,
                    ..base
                });
            }
        }
        check(&CreateOptions { version: 2, data_file: Some(b"data.raw"), ..base });
        check(&CreateOptions { data_file_raw: true, ..base });
    }
}
