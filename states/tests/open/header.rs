//! qemu-img refuses the headers that we refuse, and no others.
//!
//! Checks: headers of both versions with one to three changed bytes, from a fixed seed; after a change of
//! the backing file the header is that of `qemu-img rebase`. qemu-img must be installed.

use quod_states::Error;
use quod_states::qcow2::{Header, Purpose};
use quod_states_tests::files::Folder;
use std::path::Path;
use std::process::Command;

fn qemu(dir: &Path, args: &[&str]) -> bool {
    let output = Command::new("qemu-img").args(args).current_dir(dir).output();
    output.expect("qemu-img must be installed").status.success()
}

fn image(options: &str) -> Vec<u8> {
    let dir = Folder::create();
    let options = format!("backing_file=base,backing_fmt=raw,{options}");
    assert!(qemu(dir.path(), &["create", "-q", "-u", "-f", "qcow2", "-o", &options, "image", "64M"]));
    std::fs::read(dir.path().join("image")).expect("the image")
}

#[test]
fn the_same_headers_are_refused() {
    let dir = Folder::create();
    let images =
        ["compat=1.1", "compat=0.10", "extended_l2=on,compression_type=zstd", "cluster_size=512"].map(image);
    let mut seed = 7u64;
    let mut below = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % n
    };
    let (mut wrong, mut refused) = (Vec::new(), 0);
    for round in 0..400 {
        let mut file = images[round % 4].clone();
        let mut name = format!("round {round}");
        for _ in 0..=below(3) {
            // not the encryption method: we refuse more; not the number of snapshots: their table is looked
            // at elsewhere
            let at = [below(32), 36 + below(24), 64 + below(60), 112 + below(100)][below(4)];
            file[at] = [0, 1, 2, 0xff, file[at] ^ 1 << below(8)][below(5)];
            name += &format!(", byte {at} = {:#x}", file[at]);
        }
        std::fs::write(dir.path().join("image"), &file).expect("a file");
        let theirs = qemu(dir.path(), &["info", "-U", "-f", "qcow2", "image"]);
        file.resize(file.len().max(2 << 20), 0);
        let ours = Header::parse(&file, Purpose::Read);
        refused += usize::from(!theirs);
        if theirs != ours.is_ok() {
            wrong.push(format!("{name}: qemu-img {theirs}, ours {:?}", ours.err()));
        }
    }
    assert!((80..320).contains(&refused), "both kinds are met: {refused} refused");
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn another_backing_file() {
    let formats = [Some("raw"), Some("qcow2")];
    for options in ["compat=1.1", "compat=0.10", "cluster_size=512", "cluster_size=4k,lazy_refcounts=on"] {
        for (name, format) in
            [("other", formats[0]), ("a/much/longer/name of a file", formats[1]), ("", None)]
        {
            let dir = Folder::create();
            let mut file = image(options);
            std::fs::write(dir.path().join("image"), &file).expect("a file");
            let mut args = vec!["rebase", "-u", "-f", "qcow2", "-b", name];
            if let Some(format) = format {
                args.extend(["-F", format]);
            }
            args.push("image");
            assert!(qemu(dir.path(), &args), "{args:?}");
            let mut header = Header::parse(&file, Purpose::Write).expect("a valid header");
            let backing = (!name.is_empty()).then_some(name.as_bytes());
            assert_eq!(header.set_backing(backing, format.map(str::as_bytes)), Ok::<(), Error>(()));
            header.encode_block(&mut file);
            let theirs = std::fs::read(dir.path().join("image")).expect("the image");
            let different = file.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs);
            assert_eq!((different, file.len()), (None, theirs.len()), "{options}, {name}");
        }
    }
}
