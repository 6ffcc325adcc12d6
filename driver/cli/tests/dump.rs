//! `quod dump` and `quod restore`, with qemu-img as the judge of what comes back.
//!
//! Checks: images of QEMU's, over create options and with all that may be in them, are told as sound; what
//! was spoiled of their metadata is told where it is, and comes back; words and exit codes.

mod common;

use common::{bytes, make, must, prepare, quod, run, write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A number that stands in a text behind these words.
fn after(text: &str, words: &str) -> u64 {
    let rest = text.split_once(words).unwrap_or_else(|| panic!("{words} in {text}")).1;
    let number = rest.split_whitespace().next().unwrap().trim_start_matches("0x");
    u64::from_str_radix(number, 16).unwrap()
}

fn spoil(folder: &Path, file: &str, at: u64, bytes: &[u8]) {
    let file = std::fs::File::options().write(true).open(folder.join(file)).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn what_was_spoiled_comes_back_and_qemu_finds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["raw", "base.raw", "16M"]);
    for options in [
        "compat=1.1",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "refcount_bits=1",
        "refcount_bits=64",
        "extended_l2=on",
        "preallocation=metadata",
        "lazy_refcounts=on,compression_type=zstd",
        "data_file=data.raw",
        "backing_file=base.raw,backing_fmt=raw",
    ] {
        let (rich, own) = (!options.contains("refcount_bits=1"), !options.contains("data_file"));
        let _ = std::fs::remove_file(folder.join("a"));
        make(folder, &["qcow2", "-o", options, "a", "16M"]);
        write(folder, "qcow2", "a", &["write -P 1 0 1M", "write -P 2 9M 100k", "write -z 12M 1M"]);
        if rich && own {
            prepare("qemu-img", &["snapshot", "-c", "before", "a"], folder);
            write(folder, "qcow2", "a", &["write -P 3 128k 64k"]);
        }
        if rich && !options.contains("0.10") {
            prepare("qemu-img", &["bitmap", "--add", "a", "bits"], folder);
            write(folder, "qcow2", "a", &["write -P 4 2M 64k"]);
        }
        let disk = || must("qemu-img", &["map", "--output=json", "-f", "qcow2", "a"], folder);
        let (sound, map) = (bytes(folder, "a"), disk());
        let answer = quod(&["dump", "a"], folder);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{options}");
        let text = answer.stdout;
        assert!(text.contains("# nothing that is told contradicts itself\nend\n"), "{options}: {text}");
        std::fs::write(folder.join("text"), &text).unwrap();
        // the header's first sector, an L1 entry, an L2 table, refcounts
        let l1 = after(&text, "\nl1 active at ");
        let l2 = after(&text, "\nl2 active 0 at ");
        let counts = after(&text, "\nrefcount_block 0 at ");
        for spoils in
            [&[(0, 100)][..], &[(l1, 8)], &[(l2, 512), (counts, 100)], &[(0, 72), (l1, 8), (counts, 9)]]
        {
            for (at, len) in spoils {
                spoil(folder, "a", *at, &vec![0x5a; *len]);
            }
            let told = quod(&["dump", "-f", "qcow2", "a"], folder);
            assert!(told.code == Some(0) && told.stdout.contains("# ! "), "{options}: {}", told.stdout);
            let done = quod(&["restore", "a", "text"], folder);
            assert_eq!(done.code, Some(0), "{options}: {done:?}");
            assert!(done.stdout.starts_with("Wrote "), "{done:?}");
            assert!(bytes(folder, "a") == sound, "{options}");
            assert_eq!(quod(&["dump", "a"], folder).stdout, text);
        }
        prepare("qemu-img", &["check", "-q", "-f", "qcow2", "a"], folder);
        assert_eq!(disk(), map, "{options}");
    }
}

#[test]
fn damage_is_told_where_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["qcow2", "a", "16M"]);
    write(folder, "qcow2", "a", &["write 0 1M"]);
    let sound = quod(&["dump", "a"], folder).stdout;
    let (l2, block) = (after(&sound, "\nl2 active 0 at "), after(&sound, "\nrefcount_block 0 at "));
    let entry = |n: u64, value: u64| spoil(folder, "a", l2 + 8 * n, &value.to_be_bytes());
    entry(3, 1 << 63 | 0x7fff_0000_0000);
    entry(4, 1 << 63 | 0x5_0200);
    entry(5, 1 << 63 | 1 << 60 | 0x5_0000);
    entry(6, 1 << 63);
    entry(7, 1 << 63 | l2);
    entry(8, 1 << 63 | 0x1_0000);
    entry(9, 0x5_0000);
    // the count of the cluster of entry 10
    let host = 0x5_0000 + 10 * 0x1_0000;
    spoil(folder, "a", block + 2 * (host >> 16), &[0, 0]);
    let text = quod(&["dump", "a"], folder).stdout;
    for line in [
        "  3 0x80007fff00000000  # ! data, copied: leads beyond the end of the file",
        "  4 0x8000000000050200  # ! the data does not begin at a cluster",
        "  5 0x9000000000050000  # ! reserved bits are set",
        "  7 0x8000000000040000  # ! data, copied: overlaps an L2 table",
        "  8 0x8000000000010000  # ! data, copied: overlaps the refcount table",
        "  9 0x0000000000050000  # ! data: its refcount is 1",
        "  10 0x80000000000f0000  # ! data, copied: its refcount is 0",
        "# 7 things are wrong",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    spoil(folder, "a", 20, &[0xff]);
    let text = quod(&["dump", "a"], folder).stdout;
    assert!(text.contains("cluster_bits 0xff000010  # ! 4278190096: must be 9 to 21\n"), "{text}");
    assert!(text.contains("# ! how large a cluster is is not known: no table is told\n"), "{text}");
}

#[test]
fn words_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, &["qed", "q", "16M"]);
    make(folder, &["qcow2", "other", "16M"]);
    make(folder, &["raw", "r", "16M"]);
    let raw = quod(&["dump", "r"], folder);
    assert_eq!((raw.code, raw.stderr.as_str()), (Some(1), "This image format has no metadata\n"));
    let none = quod(&["dump", "none"], folder);
    assert!(none.code == Some(1) && none.stderr.ends_with("'none': No such file or directory\n"), "{none:?}");
    write(folder, "qed", "q", &["write 0 64k"]);
    let text = quod(&["dump", "q"], folder).stdout;
    std::fs::write(folder.join("text"), &text).unwrap();
    let same = quod(&["restore", "q", "text"], folder);
    assert_eq!((same.code, same.stdout.as_str()), (Some(0), "The image says all that the text says.\n"));
    spoil(folder, "q", 0x10000, &[9; 8]);
    let dry = quod(&["restore", "-n", "q", "text"], folder);
    assert_eq!(dry.stdout, "0x10000: 8 bytes\nWould write 8 bytes in 1 place.\n");
    // from standard input
    let done = run(env!("CARGO_BIN_EXE_quod"), &["restore", "-q", "q"], folder, &text);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""), "{done:?}");
    assert_eq!(quod(&["dump", "q"], folder).stdout, text);
    prepare("qemu-img", &["check", "-q", "q"], folder);
    let other = quod(&["restore", "other", "text"], folder);
    assert_eq!(other.code, Some(1));
    assert!(
        other.stderr.starts_with("the text is of a file of ") && other.stderr.contains("--force"),
        "{other:?}"
    );
    std::fs::write(folder.join("half"), &text[..text.len() - 4]).unwrap();
    let half = quod(&["restore", "q", "half"], folder);
    let words = "the text ends without its last line, 'end'; nothing was written\n";
    assert!(half.code == Some(1) && half.stderr.ends_with(words), "{half:?}");
    let none = quod(&["restore", "q", "none"], folder);
    assert_eq!(none.stderr, "Could not open 'none': No such file or directory\n");
}
