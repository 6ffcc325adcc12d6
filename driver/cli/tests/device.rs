//! Images on block devices, beside QEMU's tools on the same device: loop devices full of old bytes. Needs
//! root.

#[path = "../../../backend/tests/common/device.rs"]
mod block;
mod common;

use block::LoopDevice;
use common::{Answer, qemu_img, qemu_io, quod, quod_io};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// A number of its own for each seed, the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// Commands that write, zero and discard within `size`, aligned to `unit`.
fn changes(dice: &mut Dice, count: u64, size: u64, unit: u64) -> String {
    let mut script = String::new();
    for n in 0..count {
        let longest = if dice.below(4) == 0 { 3 << 18 } else { 3 << 13 };
        let len = unit * (1 + dice.below(longest / unit));
        let offset = unit * dice.below((size - len) / unit);
        script += &match dice.below(8) {
            0 => format!("write -q -z {offset} {len}\n"),
            1 => format!("discard -q {offset} {len}\n"),
            _ => format!("write -q -P {} {offset} {len}\n", 1 + n % 250),
        };
        if dice.below(9) == 0 {
            script += "flush\n";
        }
    }
    script
}

/// All patterns were there, and nothing failed.
fn says_nothing(answer: &Answer) -> bool {
    answer.stdout.replace("qemu-io> ", "").is_empty() && answer.stderr.is_empty()
}

/// Both read the same, and both say that it is sound.
fn alike(device: &LoopDevice, format: &str, folder: &Path, what: &str) {
    let name = device.name();
    let check = qemu_img(&["check", "-f", format, name], folder);
    // QED's check counts all that the device has behind the data as leaks
    assert!(matches!(check.code, Some(0)) || format == "qed" && check.code == Some(3), "{what}: {check:?}");
    let own = quod(&["check", "-f", format, name], folder);
    assert_eq!(own.code, Some(0), "{what}: {own:?}");
    assert!(own.stdout.contains("No errors were found"), "{what}: {own:?}");
    let raw = folder.join("raw");
    let convert = qemu_img(&["convert", "-f", format, "-O", "raw", name, "raw"], folder);
    assert_eq!(convert.code, Some(0), "{what}: {convert:?}");
    let size = std::fs::metadata(&raw).unwrap().len();
    // as quod reads it: pattern by pattern would not see bytes that nobody wrote
    let read =
        quod_io(&["-r", "-f", format, "-c", &format!("read -v 0 {}", size.min(2 * MIB)), name], folder, "");
    let theirs =
        qemu_io(&["-r", "-f", "raw", "-c", &format!("read -v 0 {}", size.min(2 * MIB)), "raw"], folder, "");
    assert!(read.stdout == theirs.stdout, "{what}: quod and QEMU read different bytes");
}

#[test]
fn qemu_and_quod_write_in_turns() {
    for (seed, (format, options, sector)) in [
        ("qcow2", "cluster_size=64k", 512),
        ("qcow2", "cluster_size=64k,extended_l2=on", 4096),
        ("qcow2", "cluster_size=4k,lazy_refcounts=on", 4096),
        ("qcow2", "cluster_size=512", 512),
        ("qed", "cluster_size=64k", 512),
        ("qed", "cluster_size=4k,table_size=2", 4096),
    ]
    .into_iter()
    .enumerate()
    {
        let device = LoopDevice::new(16 * MIB, sector);
        let folder = tempfile::tempdir().unwrap();
        let (folder, name) = (folder.path(), device.name());
        let made = quod(&["create", "-q", "-f", format, "-o", options, name, "2M"], folder);
        assert_eq!((made.code, made.stderr.as_str()), (Some(0), ""), "{format} {options}");
        let mut dice = Dice(seed as u64 + 1);
        for turn in 0..4 {
            let script = changes(&mut dice, 40, 2 * MIB, if turn % 2 == 0 { 512 } else { 4096 });
            // past the page cache where clusters are no smaller than sectors
            let cache = if turn == 1 && !options.contains("=512") { "none" } else { "writeback" };
            // QEMU's QED only grows at the end of the file, which a device has not
            let theirs = turn == 2 && format == "qcow2";
            let args = ["-f", format, "-t", cache, "-d", "unmap", name];
            let done = if theirs { qemu_io(&args, folder, &script) } else { quod_io(&args, folder, &script) };
            assert!(
                !done.stdout.contains("failed") && done.stderr.is_empty(),
                "{format} {options}: {done:?}"
            );
            alike(&device, format, folder, &format!("{format} {options} turn {turn}"));
        }
    }
}

#[test]
fn a_full_device_keeps_what_was_answered_and_goes_on_when_it_has_grown() {
    for format in ["qcow2", "qed"] {
        let device = LoopDevice::new(16 * MIB, 512);
        let folder = tempfile::tempdir().unwrap();
        let (folder, name) = (folder.path(), device.name());
        assert_eq!(quod(&["create", "-q", "-f", format, name, "1G"], folder).code, Some(0));
        let mut script: String = (0..14).map(|n| format!("write -q -P {} {n}M 1M\n", n + 1)).collect();
        script += "write -q -P 99 100M 4M\nflush\nwrite -q -P 98 200M 64k\n";
        let answer = quod_io(&["-f", format, name], folder, &script);
        let said = answer.stdout.clone() + &answer.stderr;
        assert_eq!(said.matches("No space left on device").count(), 2, "{format}: {answer:?}");
        alike(&device, format, folder, format);
        let reads: String = (0..14).map(|n| format!("read -q -P {} {n}M 1M\n", n + 1)).collect();
        let kept = quod_io(&["-f", format, name], folder, &reads);
        assert!(says_nothing(&kept), "{format}: {kept:?}");
        device.grow(24 * MIB);
        let more = "write -q -P 97 300M 1000\nread -q -P 0 314573800 60k\nread -q -P 97 300M 1000\n";
        let on = quod_io(&["-f", format, name], folder, more);
        assert!(says_nothing(&on), "{format}: {on:?}");
        alike(&device, format, folder, format);
    }
}

#[test]
fn what_is_told_of_a_device_is_what_qemu_tells() {
    let device = LoopDevice::new(32 * MIB, 512);
    let folder = tempfile::tempdir().unwrap();
    let (folder, name) = (folder.path(), device.name());
    for format in ["qcow2", "qed", "raw"] {
        assert_eq!(quod(&["create", "-q", "-f", format, name, "30M"], folder).code, Some(0));
        quod_io(&["-f", format, name], folder, "write -q -P 5 100k 300k\n");
        for args in
            [&["info", "-f"][..], &["info", "--output", "json", "-f"], &["map", "--output", "json", "-f"]]
        {
            let args: Vec<&str> = args.iter().copied().chain([format, name]).collect();
            let (ours, theirs) = (quod(&args, folder), qemu_img(&args, folder));
            assert_eq!((ours.code, &ours.stdout), (theirs.code, &theirs.stdout), "{args:?}");
        }
    }
    // its size is not ours to set
    for size in ["16M", "64M"] {
        let args = ["resize", "--shrink", "-f", "raw", name, size];
        let (ours, theirs) = (quod(&args, folder), qemu_img(&args, folder));
        assert_eq!((ours.code, ours.stderr), (theirs.code, theirs.stderr), "{size}");
    }
    assert_eq!(quod(&["resize", "-f", "raw", name, "32M"], folder).code, Some(0));
    assert_eq!(quod(&["create", "-q", "-f", "qcow2", name, "30M"], folder).code, Some(0));
    assert_eq!(quod(&["resize", name, "300M"], folder).code, Some(0));
    alike(&device, "qcow2", folder, "resized");
}

/// QEMU writes of an L1 table the entries alone: behind them lies what the device had.
#[test]
fn an_l1_table_that_grows_takes_no_old_bytes_for_entries() {
    let device = LoopDevice::new(32 * MIB, 512);
    let folder = tempfile::tempdir().unwrap();
    let (folder, name) = (folder.path(), device.name());
    assert_eq!(qemu_img(&["create", "-q", "-f", "qcow2", name, "1G"], folder).code, Some(0));
    for size in ["2G", "40G", "9T"] {
        let resized = quod(&["resize", name, size], folder);
        assert_eq!(resized.code, Some(0), "{resized:?}");
        let script = "write -q -P 3 900M 64k\nread -q -P 0 1900M 64k\nread -q -P 3 900M 64k\n";
        let done = quod_io(&["-f", "qcow2", name], folder, script);
        assert!(says_nothing(&done), "{size}: {done:?}");
        alike(&device, "qcow2", folder, size);
    }
}

#[test]
fn what_does_not_fit_is_refused_and_the_device_stays() {
    let device = LoopDevice::new(MIB, 512);
    let folder = tempfile::tempdir().unwrap();
    let (folder, name) = (folder.path(), device.name());
    for args in [
        &["create", "-q", "-f", "qcow2", "-o", "preallocation=full", name, "2M"][..],
        &["create", "-q", "-f", "qcow2", "-o", "cluster_size=1M", name, "2M"],
        &["create", "-q", "-f", "qed", "-o", "cluster_size=1M", name, "2M"],
        &["create", "-q", "-f", "raw", name, "2M"],
    ] {
        let refused = quod(args, folder);
        assert_eq!(refused.code, Some(1), "{args:?}");
        assert!(refused.stderr.contains("the device has 1048576 bytes, and the image takes"), "{refused:?}");
        assert!(device.path().exists());
    }
    for mode in ["metadata", "falloc", "full"] {
        let option = format!("preallocation={mode}");
        assert_eq!(quod(&["create", "-q", "-f", "qcow2", "-o", &option, name, "256k"], folder).code, Some(0));
        let zeros = quod_io(&["-r", "-f", "qcow2", "-c", "read -q -P 0 0 256k", name], folder, "");
        assert!(says_nothing(&zeros), "{mode}: nothing old shows: {zeros:?}");
        assert_eq!(qemu_img(&["check", "-q", name], folder).code, Some(0), "{mode}");
    }
}

/// Whoever writes to it has claimed it: no second node, and no mkfs, gets around that.
#[test]
fn a_device_that_is_written_is_claimed() {
    let device = LoopDevice::new(8 * MIB, 512);
    let folder = tempfile::tempdir().unwrap();
    let (folder, name) = (folder.path(), device.name());
    assert_eq!(quod(&["create", "-q", "-f", "qcow2", name, "30M"], folder).code, Some(0));
    let claim =
        std::os::unix::fs::OpenOptionsExt::custom_flags(std::fs::File::options().read(true), libc::O_EXCL)
            .open(device.path())
            .unwrap();
    let refused = quod_io(&["-f", "qcow2", "-c", "write 0 64k", name], folder, "");
    assert!(refused.stderr.contains("Device or resource busy"), "{refused:?}");
    let reads = quod_io(&["-r", "-f", "qcow2", "-c", "read -q -P 0 0 64k", name], folder, "");
    assert!(says_nothing(&reads), "{reads:?}");
    drop(claim);
    let writes = quod_io(&["-f", "qcow2", "-c", "write -q 0 64k", name], folder, "");
    assert!(says_nothing(&writes), "{writes:?}");
}
