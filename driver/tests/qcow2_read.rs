//! qcow2 images of QEMU, read by us: the whole disk as `qemu-img convert` has it, unaligned reads in flight,
//! the map as `qemu-img map` has it; and images that lie.

#[path = "differential/ours.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod ours;
#[path = "differential/qcow2.rs"]
mod qcow2;
#[path = "differential/qemu.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod qemu;
#[path = "differential/random.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod random;

use ours::{Op, Ours};
use qcow2::{OPTIONS, cluster_of, create, expected, plain, prose, scribble};
use qemu::{arg, good};
use quod::{AllowAll, BackendKind, Config, Error, ErrorKind, Format, OpenOptions, PathClass};
use quod_tools::{self as tools, CreateOptions, Session};
use random::Random;
use std::path::{Path, PathBuf};

/// All that can be said of an image against QEMU, with a backend and a way of opening that follow from `n`.
fn same(image: &Path, format: &str, n: usize, story: &str) {
    let mut random = Random(n as u64);
    let backend = if n.is_multiple_of(2) { BackendKind::Uring } else { BackendKind::Threads };
    let direct = n / 2 % 2 == 1;
    let decompressors = [0, 4, 1][n % 3];
    let story = &format!("{story}: {backend:?} direct {direct} decompressors {decompressors}");
    let config = Config::default().backend(backend).decompressors(decompressors);
    let options = OpenOptions::new().open_gate(AllowAll).direct(direct);
    let mut ours =
        Ours::open(image, options, config, story).unwrap_or_else(|error| panic!("{story}: {error}"));
    let mut model = expected(image, format);
    ours.assert_holds(&model, "read");
    let size = model.len() as u64;
    let reads: Vec<Op> = (0..100)
        .map(|_| {
            let start = random.below(size);
            let len = 1 + random.below((size - start).min(100_000));
            Op::Read(start as usize..(start + len) as usize)
        })
        .collect();
    ours.wave(&reads, &mut model, &mut random);
    let (mine, theirs) = (plain(ours.map()), plain(qemu::map_as(format, image)));
    let differ = mine.iter().zip(&theirs).find(|(mine, theirs)| mine != theirs);
    assert!(mine == theirs, "{story}: map: {differ:?}, {} and {} runs", mine.len(), theirs.len());
    ours.close();
}

#[test]
fn scribbled_images_over_the_matrix() {
    let folder = tempfile::tempdir().unwrap();
    for (n, options) in OPTIONS.into_iter().enumerate() {
        let mut random = Random(n as u64 + 100);
        let size = (4 << 20) + (n as u64 % 3) * 4608;
        let size = if cluster_of(options) >= 1 << 20 { size + (8 << 20) } else { size };
        let image = folder.path().join(format!("{n}.qcow2"));
        create(&image, options, size, None);
        scribble(&image, options, size, &mut random);
        same(&image, "qcow2", n, options);
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn converted_images_are_compressed() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.raw");
    let mut bytes = prose(6 << 20, &mut Random(7));
    bytes[1 << 20..2 << 20].fill(0);
    bytes[3 << 20..(3 << 20) + 700_000].copy_from_slice(&Random(8).bytes(700_000));
    std::fs::write(&source, bytes).unwrap();
    for (n, options) in OPTIONS.into_iter().enumerate().filter(|(_, options)| !options.contains("prealloc")) {
        let image = folder.path().join("c.qcow2");
        let args = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, arg(&source), arg(&image)];
        good("qemu-img", &args);
        same(&image, "qcow2", n, options);
    }
}

#[test]
fn backing_files_of_every_kind() {
    let folder = tempfile::tempdir().unwrap();
    let mut n = 0;
    for (format, below) in ["raw", "qed", "qcow2"]
        .into_iter()
        .flat_map(|format| [1 << 20, 3_000_320, 8 << 20].map(|len| (format, len)))
    {
        for options in
            ["compat=0.10", "cluster_size=4k", "cluster_size=16k,extended_l2=on,compression_type=zstd"]
        {
            let mut random = Random(n);
            let base = folder.path().join(format!("base{n}"));
            let raw = folder.path().join("source.raw");
            std::fs::write(&raw, prose(below, &mut random)).unwrap();
            let mut args = vec!["convert", "-f", "raw", "-O", format];
            if format == "qcow2" {
                args.push("-c");
            }
            args.extend([arg(&raw), arg(&base)]);
            good("qemu-img", &args);
            let image = folder.path().join(format!("{n}.qcow2"));
            create(&image, options, 4 << 20, Some((arg(&base), format)));
            scribble(&image, options, 4 << 20, &mut random);
            same(&image, "qcow2", n as usize, &format!("{options} over {format} of {below}"));
            n += 1;
        }
    }
}

#[test]
fn a_compressed_image_below_a_qed_image_that_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (raw, base, top) =
        (folder.path().join("raw"), folder.path().join("base.qcow2"), folder.path().join("top.qed"));
    let mut model = prose(4 << 20, &mut Random(3));
    std::fs::write(&raw, &model).unwrap();
    for (n, kind) in ["zlib", "zstd"].into_iter().enumerate() {
        let kind = format!("compression_type={kind}");
        good("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &kind, arg(&raw), arg(&base)]);
        let backing = Some(("base.qcow2".to_string(), Some(Format::Qcow2)));
        let _ = std::fs::remove_file(&top);
        tools::create(&top, &CreateOptions { backing, ..CreateOptions::new(Format::Qed, 4 << 20) }).unwrap();
        let options = OpenOptions::new().write(true).open_gate(AllowAll);
        let mut session = Session::open(&top, options).unwrap();
        for at in [5, 70_000, 1 << 20, (2 << 20) - 100] {
            session.write(at, &[n as u8 + 1; 3000]).unwrap();
            model[at as usize..at as usize + 3000].fill(n as u8 + 1);
        }
        session.close().unwrap();
        assert!(expected(&top, "qed") == model, "{kind}");
        same(&top, "qed", n, &kind);
        std::fs::write(&raw, &model).unwrap();
    }
}

#[test]
fn sequential_reads_decompress_a_cluster_once() {
    let (_folder, image, model) = compressed("");
    let config = quod::Config::default().timing(true);
    let mut session = Session::with_config(&image, OpenOptions::new(), config).unwrap();
    let mut bytes = vec![0; 4096];
    for at in (0..model.len()).step_by(4096) {
        session.read(at as u64, &mut bytes).unwrap();
        assert!(bytes == model[at..at + 4096], "{at}");
    }
    let stats = session.stats().unwrap();
    assert_eq!(stats.path(PathClass::Compressed).len() as usize, model.len() / 4096);
    assert_eq!(stats.decompressions, 16);
    // all at once, three at a time of each cluster, share as well
    let mut ours = Ours::open(&image, OpenOptions::new(), Config::default(), "shared").unwrap();
    let mut model = model;
    let ops: Vec<Op> =
        (0..48).map(|n| Op::Read((n / 3) << 16..((n / 3) << 16) + 5000 * (n % 3 + 1))).collect();
    ours.wave(&ops, &mut model, &mut Random(1));
    assert_eq!(ours.driver.stats(ours.disk).unwrap().decompressions, 16);
    ours.close();
}

/// An image of 1 MiB in compressed clusters of 64 KiB, and its disk.
fn compressed(options: &str) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let (raw, image) = (folder.path().join("raw"), folder.path().join("image.qcow2"));
    let model = prose(1 << 20, &mut Random(5));
    std::fs::write(&raw, &model).unwrap();
    let mut args = vec!["convert", "-c", "-f", "raw", "-O", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([arg(&raw), arg(&image)]);
    good("qemu-img", &args);
    (folder, image, model)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The first L1 and L2 entry: where in the file, and what they say.
fn entries(bytes: &[u8]) -> [(usize, u64); 2] {
    let l1 = long(bytes, 40) as usize;
    let l2 = (long(bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    [(l1, long(bytes, l1)), (l2, long(bytes, l2))]
}

fn read_all(image: &Path) -> Result<Vec<u8>, Error> {
    let mut session = Session::open(image, OpenOptions::new().open_gate(AllowAll))?;
    let size = session.info().unwrap().virtual_size() as usize;
    let mut bytes = vec![0; size];
    session.read(0, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn bad_entries_are_named() {
    let (_folder, image, _) = compressed("");
    let good = std::fs::read(&image).unwrap();
    let [(l1, table), (l2, data)] = entries(&good);
    let cases = [
        (l1, table | 0x200, "L1"),
        (l1, table | 1, "L1"),
        (l1, table | 1 << 56, "L1"),
        (l1, 0x7000_0000_0000, "L1"),
        (l2, 0x8000_0000_0000_0200, "L2"),
        (l2, 0x00f0_0000_0000_0000, "L2"),
        (l2, data | 1 << 63, "L2"),
        (l2, 1 << 62 | 0x3f_ffff_ffff, "L2"),
    ];
    for (at, value, table) in cases {
        let mut bytes = good.clone();
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        std::fs::write(&image, &bytes).unwrap();
        match read_all(&image) {
            Err(Error::File { kind: ErrorKind::Corrupt(fault), .. }) => {
                let place = fault.prose().0;
                assert!(place.contains(table), "{value:#x}: {place}");
            }
            other => panic!("{value:#x}: {:?}", other.map(drop)),
        }
    }
}

#[test]
fn compressed_garbage_is_an_error_with_its_place() {
    for options in ["", "compression_type=zstd"] {
        let (_folder, image, model) = compressed(options);
        let good = std::fs::read(&image).unwrap();
        let [_, (_, entry)] = entries(&good);
        let host = (entry & ((1 << 54) - 1)) as usize;
        let mut garbage = good.clone();
        garbage[host..host + 600].fill(0xff);
        let mut short = good.clone();
        short.truncate(host + 100);
        for (bytes, what) in [(garbage, "garbage"), (short, "cut off")] {
            std::fs::write(&image, &bytes).unwrap();
            match read_all(&image) {
                Err(Error::File { kind: ErrorKind::Corrupt(fault), .. }) => {
                    let (place, value) = (fault.prose().0, fault.numbers().1);
                    assert!(place.contains("compressed") || what == "cut off", "{place} {value:#x}");
                }
                other => panic!("{what}: {:?}", other.map(drop)),
            }
        }
        // noise anywhere in the data: some answer, no hang, no panic; other clusters stay readable
        let mut random = Random(9);
        for _ in 0..30 {
            let mut bytes = good.clone();
            let at = host + random.below((bytes.len() - host) as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
            std::fs::write(&image, &bytes).unwrap();
            let mut session = Session::open(&image, OpenOptions::new()).unwrap();
            let mut cluster = vec![0; 64 << 10];
            let mut equal = 0;
            for (n, part) in model.chunks(64 << 10).enumerate() {
                if session.read((n as u64) << 16, &mut cluster).is_ok() && cluster == part {
                    equal += 1;
                }
            }
            assert!(equal >= 15, "{equal}");
        }
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    let (_folder, image, _) = compressed("");
    let good = std::fs::read(&image).unwrap();
    let cases: [(usize, &[u8], &str); 6] = [
        (32, &1u32.to_be_bytes(), "AES"),
        (32, &2u32.to_be_bytes(), "LUKS"),
        (32, &7u32.to_be_bytes(), "crypt"),
        (72, &(1u64 << 40).to_be_bytes(), "incompatible bits 0x10000000000"),
        (72, &4u64.to_be_bytes(), "data file"),
        (4, &9u32.to_be_bytes(), "version 9"),
    ];
    for (at, field, word) in cases {
        let mut bytes = good.clone();
        bytes[at..at + field.len()].copy_from_slice(field);
        std::fs::write(&image, &bytes).unwrap();
        match read_all(&image) {
            Err(Error::File { kind: ErrorKind::Unsupported(lack), .. }) => {
                assert!(lack.to_string().contains(word), "{lack}")
            }
            other => panic!("{word}: {:?}", other.map(drop)),
        }
    }
}
