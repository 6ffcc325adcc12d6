//! `quod commit` against `qemu-img commit`: the same words and exit codes, and the same disks in overlay and
//! backing file, over formats and create options; what both leave is judged by qemu-img.

mod common;

use common::{bytes, make, must, prepare, qemu_img, quod, run, write};
use std::path::Path;

/// A chain base <- mid <- top: formats and options, one image each, and its disk's size.
type Chain = [(&'static str, &'static str, &'static str); 3];

const CHAINS: [Chain; 9] = [
    [("raw", "", "4M"), ("qcow2", "", "4M"), ("qcow2", "", "4M")],
    [("qcow2", "", "4M"), ("qcow2", "", "4M"), ("qcow2", "compat=0.10", "4M")],
    [
        ("qcow2", "cluster_size=512", "3M"),
        ("qcow2", "", "4M"),
        ("qcow2", "cluster_size=2M,extended_l2=on", "6M"),
    ],
    [("qcow2", "lazy_refcounts=on", "6M"), ("qed", "", "4M"), ("qed", "", "4M")],
    [("qed", "", "4M"), ("qcow2", "", "2M"), ("qcow2", "extended_l2=on", "4M")],
    [("raw", "", "4M"), ("qed", "cluster_size=4k", "4M"), ("qed", "cluster_size=4k,table_size=2", "4M")],
    [("qcow2", "refcount_bits=1", "4M"), ("qcow2", "", "4M"), ("qcow2", "refcount_bits=1", "4M")],
    [("qcow2", "compression_type=zstd", "4M"), ("qcow2", "", "4M"), ("qcow2", "lazy_refcounts=on", "4M")],
    [("raw", "", "3M"), ("qcow2", "", "4M"), ("qcow2", "cluster_size=4k", "5M")],
];

/// The chain with data, zeros and holes in each image.
fn chain(folder: &Path, chain: &Chain) {
    let mut below: Option<(&str, &str)> = None;
    for (name, (format, options, size)) in ["base", "mid", "top"].iter().zip(chain) {
        let mut args = vec![*format];
        if !options.is_empty() {
            args.extend(["-o", options]);
        }
        if let Some((name, format)) = below {
            args.extend(["-b", name, "-F", format]);
        }
        args.extend([*name, size]);
        make(folder, &args);
        below = Some((name, format));
    }
    write(folder, chain[0].0, "base", &["write -P 1 0 1M", "write -P 2 2M 300k"]);
    write(folder, chain[1].0, "mid", &["write -P 3 128k 64k", "write -P 4 1M 64k", "write -P 5 1900k 20k"]);
    let top = ["write -P 6 0 5k", "write -P 7 192k 64k", "write -z 512k 64k", "write -P 8 2100k 200k"];
    write(folder, chain[2].0, "top", &top);
    if chain[2].2 > "4M" {
        write(folder, chain[2].0, "top", &["write -P 9 4500k 64k"]);
    }
}

fn folders(make: impl Fn(&Path)) -> [tempfile::TempDir; 2] {
    [(), ()].map(|()| {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        folder
    })
}

/// Both say and leave the same.
fn same(args: &[&str], folders: &[tempfile::TempDir; 2], images: &[&str]) {
    let args = [&["commit"], args].concat();
    let [ours, theirs] = [&folders[0], &folders[1]].map(tempfile::TempDir::path);
    let answers = [quod(&args, ours), qemu_img(&args, theirs)];
    assert_eq!(answers[0], answers[1], "{args:?}");
    for image in images {
        let theirs = theirs.join(image).display().to_string();
        must("qemu-img", &["compare", image, &theirs], ours);
        let format = must("qemu-img", &["info", image], ours);
        if !format.contains("file format: raw") {
            must("qemu-img", &["check", image], ours);
        }
    }
}

#[test]
fn what_the_overlay_has_goes_to_its_backing_file_and_the_overlay_is_empty() {
    for shape in &CHAINS {
        let folders = folders(|folder| chain(folder, shape));
        let before = folders[0].path().join("before");
        must("qemu-img", &["convert", "-O", "raw", "top", before.to_str().unwrap()], folders[0].path());
        same(&["-q", "top"], &folders, &["top", "mid", "base"]);
        let ours = folders[0].path();
        must("qemu-img", &["compare", "top", "before"], ours);
        // nothing of the disk is in the overlay any more, and the file is as short as it can be
        let map = must("qemu-img", &["map", "--output", "json", "top"], ours);
        assert!(!map.contains("\"depth\": 0, \"present\": true"), "{shape:?}: {map}");
        let fresh = ["create", "-q", "-f", shape[2].0, "-o", shape[2].1, "fresh", shape[2].2];
        let fresh: Vec<&str> =
            fresh.into_iter().filter(|word| *word != "-o" || !shape[2].1.is_empty()).collect();
        let fresh: Vec<&str> = fresh.into_iter().filter(|word| !word.is_empty()).collect();
        prepare("qemu-img", &fresh, ours);
        let allocated = |name: &str| must("qemu-img", &["check", name], ours);
        let end = |text: String| text.lines().find(|line| line.starts_with("Image end")).map(String::from);
        if shape[2].0 == "qcow2" {
            assert_eq!(end(allocated("top")), end(allocated("fresh")), "{shape:?}");
            let end: u64 = end(allocated("top")).unwrap().rsplit(' ').next().unwrap().parse().unwrap();
            let len = bytes(ours, "top").len() as u64;
            let space = std::os::unix::fs::MetadataExt::blocks(&ours.join("top").metadata().unwrap()) * 512;
            // cut, or punched where the host was still at that when the image was closed
            assert!(len <= end || space <= end + (64 << 10), "{shape:?}: {len} with {space} > {end}");
        }
        // it can be used again
        write(ours, shape[2].0, "top", &["write -P 7 1234k 64k", "read -P 7 1234k 64k", "read -P 6 0 5k"]);
        must("qemu-img", &["check", "top"], ours);
    }
}

#[test]
fn the_overlay_stays_as_it_is_if_that_is_wanted() {
    for shape in &CHAINS {
        let folders = folders(|folder| chain(folder, shape));
        let ours = folders[0].path();
        let top = bytes(ours, "top");
        same(&["-d", "top"], &folders, &["top", "mid", "base"]);
        assert_eq!(bytes(ours, "top"), top, "{shape:?}");
    }
}

#[test]
fn an_image_further_down_gets_what_all_above_it_have() {
    for shape in &CHAINS {
        let folders = folders(|folder| chain(folder, shape));
        let ours = folders[0].path();
        must("qemu-img", &["convert", "-O", "raw", "top", "before"], ours);
        let top = bytes(ours, "top");
        same(&["-b", "base", "top"], &folders, &["top", "base"]);
        must("qemu-img", &["compare", "base", "before"], ours);
        assert_eq!(bytes(ours, "top"), top, "{shape:?}");
    }
}

#[test]
fn words_and_codes_are_the_same() {
    let folders = folders(|folder| chain(folder, &CHAINS[1]));
    make(folders[0].path(), &["raw", "lonely", "1M"]);
    make(folders[1].path(), &["raw", "lonely", "1M"]);
    for words in [
        "",
        "top mid",
        "nowhere",
        "base",
        "lonely",
        "-f raw lonely",
        "-b nowhere top",
        "-b top top",
        "-r x top",
        "-r -1 top",
        "-t bad top",
        "-f bad top",
        "-f qcow2 lonely",
        "--image-opts driver=bad,file.filename=top",
        "--image-opts -f qcow2 top",
        "-q -r 100M -t none top",
        "--image-opts driver=qcow2,file.filename=top",
        "-d mid",
    ] {
        let args: Vec<&str> = words.split_whitespace().collect();
        same(&args, &folders, &["top", "mid", "base"]);
    }
    let ours = folders[0].path();
    let progress = run(env!("CARGO_BIN_EXE_quod"), &["commit", "-p", "top"], ours, "");
    assert!(progress.stdout.ends_with("(100.00/100%)\r\nImage committed.\n"), "{progress:?}");
    let refused = quod(&["commit", "--object", "secret,id=x", "top"], ours);
    assert_eq!((refused.code, refused.stderr.contains("--object")), (Some(1), true), "{refused:?}");
}

/// Of a raw image that nobody called so a guest must not make another format.
#[test]
fn a_guessed_raw_backing_file_does_not_become_another_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path, &["raw", "base", "1M"]);
    make(path, &["qed", "-u", "-b", "base", "-F", "qed", "top", "1M"]);
    make(path, &["qcow2", "inner", "64k"]);
    prepare("qemu-img", &["rebase", "-u", "-b", "base", "-F", "qcow2", "top"], path);
    // QED names a format only if that is raw
    let header = bytes(path, "inner");
    std::fs::write(path.join("head"), &header[..512]).unwrap();
    make(path, &["qed", "plain", "1M"]);
    write(path, "qed", "plain", &["write -s head 0 512"]);
    prepare("qemu-img", &["rebase", "-u", "-b", "base", "-F", "qcow2", "plain"], path);
    let answer = quod(&["commit", "plain"], path);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(bytes(path, "base").iter().all(|byte| *byte == 0), "nothing of it came there");
}

#[test]
fn snapshots_keep_what_they_hold_unless_it_is_forced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    make(path, &["qcow2", "base", "1M"]);
    make(path, &["qcow2", "-b", "base", "-F", "qcow2", "top", "1M"]);
    write(path, "qcow2", "top", &["write -P 1 0 64k"]);
    prepare("qemu-img", &["snapshot", "-c", "s", "top"], path);
    write(path, "qcow2", "top", &["write -P 2 64k 64k"]);
    let before = ["top", "base"].map(|name| bytes(path, name));
    let refused = quod(&["commit", "top"], path);
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.starts_with("'top' has internal snapshots"), "{refused:?}");
    assert_eq!(["top", "base"].map(|name| bytes(path, name)), before);
    assert_eq!(quod(&["commit", "--force", "top"], path).code, Some(0));
    must("qemu-img", &["check", "top"], path);
    write(path, "qcow2", "base", &["read -P 1 0 64k", "read -P 2 64k 64k"]);
    let snapshot = ["convert", "-l", "s", "-O", "raw", "top", "s.raw"];
    prepare("qemu-img", &snapshot, path);
    assert!(bytes(path, "s.raw")[..65536].iter().all(|byte| *byte == 1), "what it has itself stays");
}

/// A backing file that cannot be written leaves the overlay untouched.
#[test]
fn a_full_disk_leaves_the_overlay_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let small = path.join("small");
    std::fs::create_dir(&small).unwrap();
    must("mount", &["-t", "tmpfs", "-o", "size=1M", "none", "small"], path);
    make(path, &["qcow2", "small/base", "4M"]);
    make(path, &["qcow2", "-b", "small/base", "-F", "qcow2", "top", "4M"]);
    write(path, "qcow2", "top", &["write -P 1 0 3M"]);
    let before = bytes(path, "top");
    let answer = quod(&["commit", "top"], path);
    let check = run("qemu-img", &["check", "small/base"], path, "");
    let disk = run("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 1 0 3M", "top"], path, "");
    must("umount", &["small"], path);
    assert_eq!(answer.code, Some(1), "{answer:?}");
    assert!(answer.stderr.starts_with("Block job failed: No space left on device\n"), "{answer:?}");
    assert!(answer.stderr.contains("'top' is unchanged"), "{answer:?}");
    assert_eq!(bytes(path, "top"), before);
    assert!(check.code == Some(0) || check.code == Some(3), "{check:?}");
    assert!(disk.code == Some(0) && !disk.stdout.contains("failed"), "{disk:?}");
}
