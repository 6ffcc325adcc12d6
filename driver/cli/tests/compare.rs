//! `quod compare` against `qemu-img compare`: the same words and exit codes on the same two images.

mod common;

use common::{make, prepare, qemu_img, quod, write};
use std::path::Path;

/// The answer of both, which is the same; the exit code.
fn same(args: &[&str], folder: &Path) -> i32 {
    let args = [&["compare"], args].concat();
    let (ours, theirs) = (quod(&args, folder), qemu_img(&args, folder));
    assert_eq!(ours, theirs, "{args:?}");
    ours.code.unwrap()
}

/// Each pair both ways.
fn pair(first: &str, second: &str, folder: &Path) -> i32 {
    let codes = [[first, second], [second, first]].map(|files| same(&files, folder));
    assert_eq!(codes[0], codes[1], "{first} {second}");
    codes[0]
}

const DATA: [&str; 3] = ["write -P 7 64k 3M", "write -P 8 3500k 1k", "write -z 1M 128k"];

/// The same disk in all shapes: raw, qed, qcow2 of several clusters, an overlay, compressed.
fn shapes(folder: &Path) -> Vec<&'static str> {
    make(folder, &["raw", "a.raw", "4M"]);
    make(folder, &["qed", "a.qed", "4M"]);
    make(folder, &["qcow2", "a.qcow2", "4M"]);
    make(folder, &["qcow2", "-o", "cluster_size=512", "small.qcow2", "4M"]);
    make(folder, &["qcow2", "-o", "cluster_size=2M,extended_l2=on", "large.qcow2", "4M"]);
    for (format, file) in [
        ("raw", "a.raw"),
        ("qed", "a.qed"),
        ("qcow2", "a.qcow2"),
        ("qcow2", "small.qcow2"),
        ("qcow2", "large.qcow2"),
    ] {
        write(folder, format, file, &DATA);
    }
    make(folder, &["qcow2", "base.qcow2", "2M"]);
    write(folder, "qcow2", "base.qcow2", &["write -P 7 64k 1984k"]);
    make(folder, &["qcow2", "-b", "base.qcow2", "-F", "qcow2", "top.qcow2", "4M"]);
    write(folder, "qcow2", "top.qcow2", &["write -P 7 2M 1M", "write -P 7 3M 64k", DATA[1], DATA[2]]);
    prepare("qemu-img", &["convert", "-c", "-O", "qcow2", "a.raw", "packed.qcow2"], folder);
    vec!["a.raw", "a.qed", "a.qcow2", "small.qcow2", "large.qcow2", "top.qcow2", "packed.qcow2"]
}

#[test]
fn one_disk_in_all_shapes_is_identical_and_a_byte_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let shapes = shapes(folder);
    for (index, first) in shapes.iter().enumerate() {
        for second in &shapes[index..] {
            assert_eq!(pair(first, second, folder), 0, "{first} {second}");
            same(&["-s", first, second], folder);
        }
    }
    // in data, in a zero range, behind the data, at the last byte
    for (at, name) in
        [(1_000_000, "data"), (1_100_001, "zeros"), (3_990_000, "nothing"), ((4 << 20) - 1, "end")]
    {
        std::fs::copy(folder.join("a.raw"), folder.join(name)).unwrap();
        write(folder, "raw", name, &[&format!("write -P 9 {at} 1")]);
        for shape in &shapes {
            assert_eq!(pair(name, shape, folder), 1, "{name} {shape}");
        }
        let told = quod(&["compare", name, "small.qcow2"], folder).stdout;
        assert_eq!(told, format!("Content mismatch at offset {}!\n", at / 512 * 512));
    }
}

#[test]
fn sizes_that_differ() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    std::fs::write(folder.join("odd"), [5; 70_001]).unwrap();
    std::fs::write(folder.join("even"), [&[5; 70_001][..], &[0; 143]].concat()).unwrap();
    std::fs::write(folder.join("nothing"), []).unwrap();
    make(folder, &["qcow2", "-b", "odd", "-F", "raw", "top.qcow2", "3M"]);
    make(folder, &["qed", "empty.qed", "5M"]);
    make(folder, &["qcow2", "data.qcow2", "5M"]);
    write(folder, "qcow2", "data.qcow2", &["write -P 5 0 70001", "write -z 1M 64k", "write -P 1 4M 64k"]);
    make(folder, &["qcow2", "zeros.qcow2", "5M"]);
    write(folder, "qcow2", "zeros.qcow2", &["write -P 5 0 70001", "write -P 0 4M 64k"]);
    let codes = [
        ("odd", "even", 0),
        ("odd", "top.qcow2", 0),
        ("odd", "nothing", 1),
        ("nothing", "empty.qed", 0),
        ("nothing", "nothing", 0),
        ("odd", "data.qcow2", 1),
        ("odd", "zeros.qcow2", 0),
        ("top.qcow2", "zeros.qcow2", 0),
        ("even", "empty.qed", 1),
    ];
    for (first, second, code) in codes {
        assert_eq!(pair(first, second, folder), code, "{first} {second}");
        // of a file that ends within a sector QEMU tells the end apart, strictly
        let strict = if (first, second) == ("odd", "even") { "-U" } else { "-s" };
        for option in [strict, "-q", "-U", "-Tnone", "-Tunsafe"] {
            same(&[option, first, second], folder);
        }
    }
    for files in [["nothing", "empty.qed"], ["odd", "data.qcow2"], ["empty.qed", "empty.qed"]] {
        same(&[&["-p"], &files[..]].concat(), folder);
        same(&[&["-p", "-q"], &files[..]].concat(), folder);
    }
}

#[test]
fn errors_have_their_words_and_codes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "r", "1M"]);
    make(folder, &["qcow2", "q", "1M"]);
    write(folder, "qcow2", "q", &["write -P 1 512k 64k"]);
    let cases = [
        ("", 1),
        ("r", 1),
        ("r q r", 1),
        ("r nowhere", 2),
        ("nowhere r", 2),
        ("-p nowhere r", 2),
        ("-f bad r q", 2),
        ("-F bad r q", 2),
        ("-f qcow2 r q", 2),
        ("-T bad r q", 2),
        ("-f raw -F qcow2 r q", 1),
        ("--a-format raw --b-format raw r q", 1),
        ("--image-opts driver=raw,file.filename=r driver=qcow2,file.filename=q", 1),
        ("--image-opts driver=qcow2,file.filename=q driver=qcow2,file.filename=q", 0),
        ("--image-opts -T none driver=qcow2,file.filename=q driver=qcow2,file.filename=q", 0),
        ("-s --image-opts driver=qcow2,file.filename=q driver=raw,file.filename=q", 1),
        ("-U --image-opts driver=raw,file.filename=r driver=qcow2,file.filename=q", 1),
        ("--image-opts -f qcow2 driver=qcow2,file.filename=q driver=qcow2,file.filename=q", 2),
        ("--image-opts -F qcow2 driver=qcow2,file.filename=q driver=qcow2,file.filename=q", 2),
        ("--image-opts driver=qcow2,file.filename=none driver=qcow2,file.filename=q", 2),
        ("--image-opts driver=qcow2,file.filename=q driver=bad,file.filename=q", 2),
    ];
    for (words, code) in cases {
        let args: Vec<&str> = words.split_whitespace().collect();
        assert_eq!(same(&args, folder), code, "{words}");
    }
    // an L2 entry that leads nowhere, behind data that is read first
    let mut bytes = std::fs::read(folder.join("q")).unwrap();
    let entry = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let table = (entry(&bytes, entry(&bytes, 40) as usize) & !(1 << 63)) as usize;
    let first = table + 8 * 8;
    bytes[first..first + 8].copy_from_slice(&(1u64 << 63 | 0x1_0001_0200).to_be_bytes());
    std::fs::write(folder.join("q"), &bytes).unwrap();
    let bad = quod(&["compare", "r", "q"], folder);
    assert_eq!((bad.code, bad.stdout.as_str()), (Some(3), ""), "{bad:?}");
    assert!(bad.stderr.starts_with("Sector allocation test failed for q: "), "{bad:?}");
    write(folder, "raw", "r", &["write -P 1 0 1k"]);
    assert_eq!(quod(&["compare", "r", "q"], folder).stdout, "Content mismatch at offset 0!\n");
    make(folder, &["qcow2", "-u", "-b", "nofile", "-F", "raw", "top", "1M"]);
    assert_eq!(same(&["r", "top"], folder), 2);
}
