//! `quod mount`: tools that know nothing of images work on one, and QEMU is the judge of what they left.
//!
//! Checks:
//! * a file system is made and checked on the file; copies find its holes, and hold what QEMU
//!   reads in the image;
//! * many direct requests at once, and buffered ones of any alignment, are verified by fio, on every format;
//! * holes, zeros, and the search for them, over a chain;
//! * what is not the file's to change is refused;
//! * ends: a signal, an unmount, a client that stays, a kill at any moment, and the mount after it;
//! * what stands in the way is said in plain words.
//!
//! Knows: processes, files. Must never know: FUSE's messages. Needs e2fsprogs (of Debian's base) and fio,
//! which .ci/test installs.

mod common;

use common::{documented, prepare, qemu_img, run, shell};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;

fn command(args: &[&str], folder: &Path) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", env!("CARGO_BIN_EXE_quod"), "mount"]).args(args).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Takes whatever is mounted there away, also if its server has died.
fn unmount(place: &Path) -> bool {
    let by = |program: &str, flags: &[&str]| {
        let quiet = Command::new(program).args(flags).arg(place).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    };
    by("umount", &[]) || by("fusermount3", &["-u"])
}

/// An image that is mounted at the file `disk` of its folder.
struct Mounted {
    child: Child,
    place: PathBuf,
}

impl Mounted {
    fn new(args: &[&str], folder: &Path) -> Mounted {
        let place = folder.join("disk");
        File::options().create(true).append(true).open(&place).unwrap();
        let child = command(&[args, &["disk"]].concat(), folder).spawn().unwrap();
        let mut mounted = Mounted { child, place };
        let mut line = String::new();
        let stdout = mounted.child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        assert!(line.ends_with(" is at disk\n"), "{line:?}: {}", mounted.complaints());
        mounted
    }

    fn complaints(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn open(&self, write: bool) -> File {
        File::options().read(true).write(write).open(&self.place).unwrap()
    }

    /// Waits for the end of the command, which is in order and says nothing.
    fn ends(mut self) {
        let status = self.child.wait().unwrap();
        assert_eq!((status.code(), self.complaints()), (Some(0), String::new()), "{status:?}");
        assert_eq!(fs::metadata(&self.place).unwrap().len(), 0, "it is still mounted");
    }

    fn stop(self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.ends();
    }
}

impl Drop for Mounted {
    /// For a test that has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.child.kill();
            unmount(&self.place);
        }
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn create(folder: &Path, args: &[&str]) {
    prepare("qemu-img", &[&["create", "-q"], args].concat(), folder);
}

/// The image is sound; space may have leaked if it was not closed.
fn check(folder: &Path, image: &str, closed: bool) {
    let mut answer = qemu_img(&["check", "-q", image], folder);
    // one that was killed has its locks until the kernel has taken its ring down
    let patience = Instant::now() + Duration::from_secs(10);
    while answer.stderr.contains("lock") && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
        answer = qemu_img(&["check", "-q", image], folder);
    }
    let good: &[i32] = if closed { &[0] } else { &[0, 3] };
    assert!(answer.code.is_some_and(|code| good.contains(&code)), "{image}: {answer:?}");
}

#[test]
fn a_file_system_is_made_on_it_and_copied_with_its_holes() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "256M"]);
    let mounted = Mounted::new(&["image"], folder);
    assert_eq!(fs::metadata(&mounted.place).unwrap().len(), 256 * MIB);
    let tree = folder.join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), vec![5; 3 << 20]).unwrap();
    prepare("mkfs.ext4", &["-q", "-F", "-d", "tree", "disk"], folder);
    prepare("e2fsck", &["-f", "-n", "disk"], folder);
    prepare("cp", &["--sparse=auto", "disk", "copy"], folder);
    prepare("cmp", &["disk", "copy"], folder);
    let copy = fs::metadata(folder.join("copy")).unwrap();
    assert!(copy.len() == 256 * MIB && copy.blocks() * 512 < 64 * MIB, "{} blocks", copy.blocks());
    mounted.stop();
    let same = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "copy", "image"], folder);
    assert_eq!(same.code, Some(0), "{same:?}");
    prepare("e2fsck", &["-f", "-n", "copy"], folder);
    check(folder, "image", true);
}

/// The two commands of docs/serve.md, as they stand there; and the third one that ends it.
#[test]
fn the_commands_of_the_documentation_work() {
    let blocks = documented("serve.md", "touch");
    let [block] = &blocks[..] else { panic!("{blocks:?}") };
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "disk.qcow2", "64M"]);
    let mut shell = shell(&block.join("\n"), folder).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = BufReader::new(shell.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    assert_eq!(line, "disk.qcow2 is at disk\n");
    prepare("mkfs.ext4", &["-q", "-F", "disk"], folder);
    prepare("e2fsck", &["-f", "-n", "disk"], folder);
    assert!(unmount(&folder.join("disk")));
    // whoever has the stream has ended
    assert_eq!(told.read_line(&mut line).unwrap(), 0);
    shell.wait().unwrap();
    check(folder, "disk.qcow2", true);
}

#[test]
fn many_requests_at_once_are_verified() {
    for (format, options) in [("qcow2", &[][..]), ("qed", &["--direct"]), ("raw", &[])] {
        let folder = folder();
        let folder = folder.path();
        create(folder, &["-f", format, "image", "128M"]);
        let mounted = Mounted::new(&[&["-f", format], options, &["image"]].concat(), folder);
        let common =
            ["--filename=disk", "--verify=crc32c", "--verify_fatal=1", "--randrepeat=0", "--fallocate=none"];
        let direct = ["--name=direct", "--rw=randwrite", "--direct=1", "--ioengine=libaio", "--iodepth=64"];
        prepare("fio", &[&common[..], &direct, &["--bs=4k-512k", "--size=64M"]].concat(), folder);
        let buffered = ["--name=odd", "--rw=randwrite", "--bs=1-60k", "--bs_unaligned=1", "--fsync=50"];
        let place = ["--ioengine=psync", "--offset=64M", "--size=16M"];
        prepare("fio", &[&common[..], &buffered, &place].concat(), folder);
        prepare("cp", &["disk", "copy"], folder);
        mounted.stop();
        let same = qemu_img(&["compare", "-f", "raw", "-F", format, "copy", "image"], folder);
        assert_eq!(same.code, Some(0), "{format}: {same:?}");
        if format != "raw" {
            check(folder, "image", true);
        }
    }
}

/// Where data begin and end, as lseek(2) finds it.
fn runs(file: &File) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut at = 0;
    loop {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(error) => {
                assert_eq!(error, Errno::NXIO);
                return runs;
            }
        };
        at = seek(file, SeekFrom::Hole(data)).unwrap();
        assert!(at > data, "a hole where data are: {data}");
        runs.push((data >> 16, at >> 16));
    }
}

#[test]
fn holes_are_made_and_found_over_a_chain() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "base", "4M"]);
    prepare("qemu-io", &["-c", "write -P 1 1M 1M", "base"], folder);
    create(folder, &["-f", "qcow2", "-b", "base", "-F", "qcow2", "image", "8M"]);
    prepare("qemu-io", &["-c", "write -P 2 64k 64k", "-c", "write -z 1M 128k", "image"], folder);
    let mounted = Mounted::new(&["--allow-backing", ".", "image"], folder);
    let file = mounted.open(true);
    assert_eq!(runs(&file), [(1, 2), (18, 32)]);
    // the middle of what shows through, and zeros in what is the image's own
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 20 << 16, 2 << 16).unwrap();
    fallocate(&file, FallocateFlags::ZERO_RANGE, 65536 + 100, 1000).unwrap();
    file.write_all_at(&[3; 65536], 7 * MIB).unwrap();
    assert_eq!(runs(&file), [(1, 2), (18, 20), (22, 32), (112, 113)]);
    assert_eq!(seek(&file, SeekFrom::Data(8 * MIB)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(8 * MIB)), Err(Errno::NXIO));
    let mut bytes = vec![9; 4096];
    file.read_exact_at(&mut bytes, 65536).unwrap();
    let wanted: Vec<u8> = (0..4096).map(|at| if (100..1100).contains(&at) { 0 } else { 2 }).collect();
    assert_eq!(bytes, wanted);
    // beyond the end there is nothing to punch, and nothing to make
    fallocate(&file, punch, 9 * MIB, 1 << 16).unwrap();
    fallocate(&file, punch, 8 * MIB - 512, 1 << 16).unwrap();
    assert_eq!(fallocate(&file, FallocateFlags::ZERO_RANGE, 8 * MIB - 512, 1 << 16), Err(Errno::FBIG));
    assert_eq!(fallocate(&file, FallocateFlags::empty(), 0, 1 << 16), Err(Errno::OPNOTSUPP));
    drop(file);
    mounted.stop();
    let pattern =
        ["-c", "read -P 1 1152k 128k", "-c", "read -P 0 1280k 128k", "-c", "read -P 3 7M 64k", "image"];
    assert!(!run("qemu-io", &pattern, folder, "").stdout.contains("failed"));
    check(folder, "image", true);
}

#[test]
fn what_is_not_the_file_s_to_change_is_refused() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "4M"]);
    let mounted = Mounted::new(&["image"], folder);
    let file = mounted.open(true);
    let number = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(number(file.set_len(1)), Errno::PERM.raw_os_error());
    assert_eq!(number(file.set_len(5 * MIB)), Errno::PERM.raw_os_error());
    file.set_len(4 * MIB).unwrap();
    assert_eq!(number(fs::write(&mounted.place, b"x")), Errno::PERM.raw_os_error(), "a truncation");
    assert_eq!(number(file.set_permissions(fs::Permissions::from_mode(0o777))), Errno::PERM.raw_os_error());
    assert_eq!(number(file.write_all_at(b"x", 4 * MIB)), Errno::NOSPC.raw_os_error());
    // as much as there is room for
    assert_eq!(file.write_at(&[1; 8192], 4 * MIB - 4096).unwrap(), 4096);
    assert_eq!(file.read_at(&mut [0; 8192], 4 * MIB - 4096).unwrap(), 4096);
    assert_eq!(file.read_at(&mut [0; 1], 4 * MIB).unwrap(), 0);
    file.set_modified(std::time::SystemTime::now()).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mounted.stop();

    let mounted = Mounted::new(&["--read-only", "image"], folder);
    let read_only = File::options().write(true).open(&mounted.place).unwrap_err();
    assert_eq!(read_only.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
    let file = mounted.open(false);
    file.sync_all().unwrap();
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, 4 * MIB - 4096).unwrap();
    assert_eq!(bytes, [1; 4096]);
    drop(file);
    mounted.stop();
}

#[test]
fn an_unmount_ends_the_command_and_a_client_that_stays_does_not_hold_it() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "4M"]);
    let mounted = Mounted::new(&["image"], folder);
    mounted.open(true).write_all_at(&[7; 65536], 0).unwrap();
    assert!(unmount(&mounted.place));
    mounted.ends();

    let mounted = Mounted::new(&["image"], folder);
    let stays = mounted.open(true);
    stays.write_all_at(&[8; 65536], 65536).unwrap();
    let begun = Instant::now();
    mounted.stop();
    assert!(begun.elapsed() < Duration::from_secs(4), "it was waited for");
    let gone = stays.write_all_at(&[9; 65536], 65536).unwrap_err();
    assert_eq!(gone.raw_os_error(), Some(Errno::NOTCONN.raw_os_error()));
    check(folder, "image", true);
    let pattern = ["-c", "read -P 7 0 64k", "-c", "read -P 8 64k 64k", "image"];
    let answer = run("qemu-io", &pattern, folder, "");
    assert!(answer.code == Some(0) && !answer.stdout.contains("failed"), "{answer:?}");
}

#[test]
fn a_client_that_goes_on_asking_does_not_keep_it_from_its_end() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "64M"]);
    let mounted = Mounted::new(&["image"], folder);
    let file = mounted.open(true);
    let client = std::thread::spawn(move || {
        let bytes = vec![6; 1 << 20];
        (0..).find(|turn| file.write_all_at(&bytes, (turn % 64) << 20).is_err())
    });
    std::thread::sleep(Duration::from_millis(200));
    mounted.stop();
    assert!(client.join().unwrap().is_some());
    check(folder, "image", true);
}

/// What was synced is there whatever happens to the server, and the image opens again: a hundred times, at
/// moments that differ.
#[test]
fn a_kill_at_any_moment_leaves_what_was_synced() {
    const KILLS: u8 = 100;
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "64M"]);
    for round in 1..=KILLS {
        let mut mounted = Mounted::new(&["image"], folder);
        let file = mounted.open(true);
        let own = u64::from(round) << 16;
        file.write_all_at(&[round; 65536], own).unwrap();
        file.sync_all().unwrap();
        let noise = mounted.open(true);
        let client = std::thread::spawn(move || {
            let bytes = vec![0xee; 300_000];
            (0..)
                .find(|turn: &u64| noise.write_all_at(&bytes, 8 * MIB + turn * 777_777 % (50 * MIB)).is_err())
        });
        std::thread::sleep(Duration::from_millis(u64::from(round) * 37 % 101));
        mounted.child.kill().unwrap();
        mounted.child.wait().unwrap();
        assert!(client.join().unwrap().is_some());
        drop(file);
        if round == 1 {
            // the dead mount is in the way, and it is said how to take it away
            let told = command(&["image", "disk"], folder).output().unwrap();
            let text = String::from_utf8_lossy(&told.stderr);
            assert!(told.status.code() == Some(1) && text.contains("fusermount3 -u disk"), "{text}");
        }
        assert!(unmount(&mounted.place));
        check(folder, "image", false);
    }
    let mounted = Mounted::new(&["image"], folder);
    let file = mounted.open(false);
    for round in 1..=KILLS {
        let mut bytes = vec![0; 65536];
        file.read_exact_at(&mut bytes, u64::from(round) << 16).unwrap();
        assert!(bytes.iter().all(|&byte| byte == round), "{round}");
    }
    drop(file);
    mounted.stop();
    check(folder, "image", false);
}

#[test]
fn what_stands_in_the_way_is_said() {
    let folder = folder();
    let folder = folder.path();
    create(folder, &["-f", "qcow2", "image", "4M"]);
    create(folder, &["-f", "raw", "plain", "4M"]);
    create(folder, &["-f", "qcow2", "-b", "image", "-F", "qcow2", "overlay"]);
    fs::write(folder.join("disk"), "").unwrap();
    let says = |args: &[&str], wanted: &str| {
        let output = command(args, folder).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(wanted), "{args:?}: {text}");
    };
    says(&["image", "nowhere"], "nowhere: cannot be mounted there: No such file or directory");
    says(&["image", "."], ".: a disk is mounted over a regular file, which has to be there");
    says(&["missing", "disk"], "Could not open 'missing': No such file or directory");
    says(&["plain", "disk"], "plain: it has no signature of a format; name it (raw), or mount it read-only");
    says(&["overlay", "disk"], "Could not open 'overlay'");
    says(&["--allow-backing", "nowhere", "overlay", "disk"], "--allow-backing nowhere");
    says(&["-f", "vmdk", "image", "disk"], "vmdk");
    let mounted = Mounted::new(&["image"], folder);
    fs::write(folder.join("other"), "").unwrap();
    says(&["image", "other"], "lock");
    says(&["image", "other"], &format!("image: locked by quod (process {})", mounted.child.id()));
    mounted.stop();
    Mounted::new(&["--read-only", "plain"], folder).stop();
    Mounted::new(&["-f", "raw", "plain"], folder).stop();
}
