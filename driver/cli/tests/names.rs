//! `quod` called by the name of the program that it stands in for.

mod common;

use common::{make, run};
use std::os::unix::fs::symlink;
use std::path::Path;

/// The same words to both, called by the same name.
fn both(args: &[&str], folder: &Path) -> [common::Answer; 2] {
    let ours = folder.join("bin/qemu-img");
    [run(ours.to_str().unwrap(), args, folder, ""), run("qemu-img", args, folder, "")]
}

#[test]
fn qemu_img_is_what_it_says_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    std::fs::create_dir(path.join("bin")).unwrap();
    symlink(env!("CARGO_BIN_EXE_quod"), path.join("bin/qemu-img")).unwrap();
    make(path, &["qcow2", "i", "1M"]);
    // a disk that no L1 table could map: the phrase alone, without the field
    let mut bytes = std::fs::read(path.join("i")).unwrap();
    bytes[24..32].copy_from_slice(&(1u64 << 60).to_be_bytes());
    std::fs::write(path.join("broken"), bytes).unwrap();
    for words in [
        "",
        "nothing",
        "info nowhere",
        "info broken",
        "check broken",
        "map broken",
        "info i",
        "check i",
        "commit i",
        "commit --bad i",
        "rebase i --worse",
        "resize -q i 2M",
        "resize i",
        "dd if=i",
        "amend -o foo=1 i",
    ] {
        let args: Vec<&str> = words.split_whitespace().collect();
        let [ours, theirs] = both(&args, path);
        assert_eq!((ours.code, &ours.stdout), (theirs.code, &theirs.stdout), "{words}: {ours:?}");
        // a hint about help stands where qemu-img has one, or not
        let first = |answer: &common::Answer| answer.stderr.lines().next().unwrap_or_default().to_string();
        let name = path.join("bin/qemu-img").display().to_string();
        assert_eq!(first(&ours).replace(&name, "qemu-img"), first(&theirs), "{words}");
    }
    let [ours, theirs] = both(&["--version"], path);
    let version = |answer: &common::Answer| answer.stdout.split(" (").next().unwrap().to_string();
    assert!(version(&ours).starts_with("qemu-img version 10."), "{ours:?}");
    assert!(version(&theirs).starts_with("qemu-img version "), "{theirs:?}");
    let [ours, _] = both(&["--help"], path);
    assert!(ours.code == Some(0) && ours.stdout.contains("Usage: qemu-img"), "{ours:?}");
    for command in ["commit", "convert", "rebase", "compare", "info"] {
        assert!(ours.stdout.contains(&format!("  {command} ")), "{command}");
    }
}
