//! `quod serve nbd` and the programs that others use: libnbd's, QEMU's, fio, nbdkit.

mod common;

use common::server::Server;
use common::{documented, must, prepare, qemu_img, run, shell};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const URI: &str = "nbd+unix:///?socket=s";

/// A server in a folder, which listens at the socket `s` there.
struct Served {
    server: Server,
}

impl Served {
    /// `args` behind `quod serve nbd -k s`.
    fn new(folder: &Path, args: &[&str]) -> Served {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quod"));
        command.args(["serve", "nbd", "-k", "s"]).args(args).current_dir(folder);
        let (server, line) = Server::start(&mut command);
        assert_eq!(line, "Serving at nbd+unix:///?socket=s\n");
        Served { server }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        self.server.signal(signal);
    }

    fn wait(mut self) -> ExitStatus {
        self.server.wait(Duration::from_secs(30))
    }

    /// In order.
    fn end(self, folder: &Path) {
        self.signal(rustix::process::Signal::TERM);
        assert_eq!(self.wait().code(), Some(0));
        assert!(!folder.join("s").exists(), "the socket is gone");
    }
}

fn qcow2(folder: &Path, name: &str, size: &str) {
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", name, size], folder);
}

/// Data and holes, the same for the same seed.
fn raw(folder: &Path, name: &str, size: usize, seed: usize) {
    let mut bytes = vec![0u8; size];
    let mut state = seed as u64 | 1;
    for block in bytes.chunks_mut(50_000) {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        if state >> 62 != 0 {
            for (n, byte) in block.iter_mut().enumerate() {
                *byte = (state >> (n % 50)) as u8;
            }
        }
    }
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn check(folder: &Path, image: &str) {
    must("qemu-img", &["check", "-q", image], folder);
}

/// The blocks of two commands of docs/serve.md, as they stand there.
#[test]
fn the_commands_of_the_documentation_work() {
    let blocks = documented("serve.md", "quod serve nbd");
    assert!(blocks.len() >= 2, "{blocks:?}");
    for block in blocks {
        let [first, second] = &block[..] else { panic!("{block:?}") };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        qcow2(path, "disk.qcow2", "8M");
        let (server, line) = Server::start(&mut shell(&format!("exec {first}"), path));
        assert_eq!(line, "Serving at nbd+unix:///?socket=disk.sock\n");
        let told = must("sh", &["-c", second], path);
        assert!(!told.contains("failed"), "{told}");
        Served { server }.end(path);
    }
}

/// A snapshot inside the image, by both kinds of names, beside the disk as it is.
#[test]
fn a_snapshot_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "8M");
    prepare("qemu-io", &["-c", "write -P 1 0 1M", "d"], path);
    prepare("qemu-img", &["snapshot", "-c", "old", "d"], path);
    prepare("qemu-io", &["-c", "write -P 2 0 1M", "d"], path);
    for name in ["old", "snapshot.name=old", "snapshot.id=1"] {
        let served = Served::new(path, &["-l", name, "d"]);
        let told = must("qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1M", URI], path);
        assert!(!told.contains("failed"), "{told}");
        assert!(must("nbdinfo", &[URI], path).contains("\tis_read_only: true"));
        served.end(path);
    }
    let told = run(env!("CARGO_BIN_EXE_quod"), &["serve", "nbd", "-k", "s", "-l", "new", "d"], path, "");
    assert!(told.code == Some(1) && told.stderr.contains("napshot"), "{told:?}");
    check(path, "d");
}

#[test]
fn nbdinfo_tells_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "1G");
    qcow2(path, "e", "3M");
    let served = Served::new(path, &["--export", "other=e", "d"]);
    let told = must("nbdinfo", &[URI], path);
    // structured packets, or extended ones, by what libnbd knows
    assert!(told.starts_with("protocol: newstyle-fixed without TLS, using "), "{told}");
    for line in [
        "\texport-size: 1073741824 (1G)",
        "\tdescription: d (qcow2)",
        "\t\tbase:allocation",
        "\t\tqemu:allocation-depth",
        "\t\tx-quod:kind",
        "\tis_read_only: false",
        "\tcan_fast_zero: true",
        "\tcan_multi_conn: true",
        "\tcan_df: true",
        "\tblock_size_minimum: 1",
        "\tblock_size_preferred: 65536",
        "\tblock_size_maximum: 33554432",
    ] {
        assert!(told.lines().any(|found| found == line), "{line}: {told}");
    }
    let list = must("nbdinfo", &["--list", URI], path);
    assert!(list.contains("export=\"\":") && list.contains("export=\"other\":"), "{list}");
    assert_eq!(must("nbdinfo", &["--size", "nbd+unix:///other?socket=s"], path), "3145728\n");
    let missing = run("nbdinfo", &["nbd+unix:///missing?socket=s"], path, "");
    assert!(missing.stderr.contains("no export of this name") || missing.code == Some(1), "{missing:?}");
    served.end(path);
}

/// Both ways, over several connections, and by QEMU with extended headers.
#[test]
fn copies_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "64M");
    raw(path, "in", 64 << 20, 1);
    let served = Served::new(path, &["d"]);
    must("nbdcopy", &["--connections=4", "in", URI], path);
    must("nbdcopy", &["--connections=4", URI, "out"], path);
    assert!(std::fs::read(path.join("in")).unwrap() == std::fs::read(path.join("out")).unwrap());
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", "in", URI], path);
    must("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", URI, "converted"], path);
    must("qemu-img", &["compare", "in", "converted"], path);
    raw(path, "in", 64 << 20, 2);
    must("qemu-img", &["convert", "-n", "-W", "-f", "raw", "-O", "raw", "in", URI], path);
    must("qemu-img", &["compare", "-f", "raw", "-F", "raw", "in", URI], path);
    served.end(path);
    check(path, "d");
    must("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", "in", "d"], path);
}

#[test]
fn qemu_io_writes_zeroes_and_discards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "64M");
    let served = Served::new(path, &["d"]);
    let commands = [
        "write -P 5 1000 100000",
        "read -P 5 1000 100000",
        "read -P 0 0 1000",
        "write -z 0 65536",
        "write -z -u 65536 35464",
        "read -P 0 0 101000",
        "write -P 7 20M 5M",
        "discard 20M 1M",
        "read -P 7 21M 4M",
        "flush",
        "writev -P 3 30M 512 1024 4096",
        "read -P 3 30M 5632",
    ];
    let args: Vec<&str> =
        ["-f", "raw"].into_iter().chain(commands.iter().flat_map(|line| ["-c", line])).collect();
    let told = must("qemu-io", &[&args[..], &[URI]].concat(), path);
    assert!(!told.contains("failed") && !told.contains("differ"), "{told}");
    served.end(path);
    check(path, "d");
    let told =
        must("qemu-io", &["-f", "qcow2", "-c", "read -P 7 21M 4M", "-c", "read -P 3 30M 5632", "d"], path);
    assert!(!told.contains("failed"), "{told}");
}

/// fio verifies what it has written, twice at once beside a copier.
#[test]
fn fio_verifies_over_several_connections() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "256M");
    let served = Served::new(path, &["d"]);
    let uri = format!("--uri={URI}");
    let job = |offset: &'static str, seed: &'static str| {
        let args = [
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randrw",
            "--bsrange=512-200k",
            "--size=48M",
            offset,
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_fatal=1",
            seed,
            "--end_fsync=1",
        ];
        Command::new("fio").args(args).current_dir(path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    };
    let jobs = [("--offset=0", "--randseed=1"), ("--offset=100M", "--randseed=2")];
    let jobs = jobs.map(|(offset, seed)| job(offset, seed).expect("fio must be installed"));
    must("nbdcopy", &[URI, "null:"], path);
    for job in jobs {
        let output = job.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && told.contains("err= 0"), "{told}");
    }
    served.end(path);
    check(path, "d");
}

/// nbdkit's client between, and the statuses that come through.
#[test]
fn nbdkit_passes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "16M");
    raw(path, "in", 16 << 20, 3);
    let served = Served::new(path, &["d"]);
    must(
        "nbdkit",
        &["-U", "-", "nbd", "socket=s", "--run", "nbdcopy in \"$uri\" && nbdcopy \"$uri\" out"],
        path,
    );
    assert!(std::fs::read(path.join("in")).unwrap() == std::fs::read(path.join("out")).unwrap());
    let map = |uri: &str| must("nbdinfo", &["--map", uri], path);
    let direct = map(URI);
    let through = must("nbdkit", &["-U", "-", "nbd", "socket=s", "--run", "nbdinfo --map \"$uri\""], path);
    assert_eq!(direct, through);
    assert!(direct.contains("hole,zero") && direct.contains("data"), "{direct}");
    served.end(path);
}

/// Kinds of clusters, over a chain; the chain must be allowed.
#[test]
fn chains_are_served_if_they_are_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    raw(path, "in", 1 << 20, 4);
    prepare("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "in", "base"], path);
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "d", "2M"], path);
    prepare("qemu-io", &["-f", "qcow2", "-c", "write -P 1 0 64k", "-c", "write -z 64k 64k", "d"], path);
    let refused = run(env!("CARGO_BIN_EXE_quod"), &["serve", "nbd", "-k", "s", "d"], path, "");
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("may not be opened"), "{refused:?}");
    std::fs::create_dir(path.join("other")).unwrap();
    let refused = run(
        env!("CARGO_BIN_EXE_quod"),
        &["serve", "nbd", "-k", "s", "--allow-backing", "other", "d"],
        path,
        "",
    );
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(!path.join("s").exists());
    let served = Served::new(path, &["--read-only", "--allow-backing", ".", "d"]);
    let kinds = must("nbdinfo", &["--map=x-quod:kind", URI], path);
    let numbers: Vec<Vec<&str>> = kinds.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(numbers[0][..3], ["0", "65536", "1"]);
    assert_eq!(numbers[1][..3], ["65536", "65536", "2"]);
    assert!(kinds.lines().any(|line| line.split_whitespace().nth(2) == Some("3")), "compressed: {kinds}");
    let depths = must("nbdinfo", &["--map=qemu:allocation-depth", URI], path);
    assert!(depths.contains("backing depth 2"), "{depths}");
    must("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", URI, "d"], path);
    let write = run("qemu-io", &["-f", "raw", "-c", "write 0 512", URI], path, "");
    assert!(format!("{write:?}").contains("read-only") || write.code != Some(0), "{write:?}");
    served.end(path);
}

/// A client that is killed in the middle is nobody's loss but its own.
#[test]
fn a_client_may_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "256M");
    raw(path, "in", 64 << 20, 5);
    let served = Served::new(path, &["d"]);
    for n in 0..10u64 {
        let (from, to) = if n % 2 == 0 { ("in", URI) } else { (URI, "null:") };
        let mut copy = Command::new("nbdcopy").args([from, to]).current_dir(path).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(3 + 4 * n));
        copy.kill().unwrap();
        copy.wait().unwrap();
    }
    must("nbdcopy", &["in", URI], path);
    served.end(path);
    check(path, "d");
    let differ = qemu_img(&["compare", "-f", "raw", "-F", "qcow2", "in", "d"], path);
    assert!(differ.code == Some(0), "{differ:?}");
}

/// A server that is killed under load leaves an image that opens, with all that was flushed, and a socket
/// that the next one replaces. Leaked clusters are the only damage. QUOD_KILLS: how often.
#[test]
fn a_server_may_be_killed_under_load() {
    let kills = std::env::var("QUOD_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20u64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "512M");
    for n in 0..kills {
        let served = Served::new(path, &["d"]);
        // what is flushed before: a pattern of this round's in a place of its own
        let place = 300 + n % 100;
        let write = format!("write -P {} {place}M 300k", 1 + n % 255);
        let told = must("qemu-io", &["-f", "raw", "-t", "writeback", "-c", &write, "-c", "flush", URI], path);
        assert!(!told.contains("failed"), "{told}");
        let uri = format!("--uri={URI}");
        let mut load = Command::new("fio")
            .args([
                "--name=load",
                "--ioengine=nbd",
                &uri,
                "--rw=randwrite",
                "--bsrange=4k-300k",
                "--size=256M",
            ])
            .args(["--iodepth=16", "--fsync=20", "--time_based", "--runtime=30", "--randrepeat=0"])
            .current_dir(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fio must be installed");
        let began = Instant::now();
        // until it has begun to write, and then for a while
        let before = std::fs::metadata(path.join("d")).unwrap().modified().unwrap();
        while std::fs::metadata(path.join("d")).unwrap().modified().unwrap() == before
            && began.elapsed() < Duration::from_secs(10)
        {
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(n * 13 % 150));
        served.signal(rustix::process::Signal::KILL);
        assert_eq!(served.wait().code(), None);
        load.kill().unwrap();
        load.wait().unwrap();
        assert!(path.join("s").exists(), "nobody removed it");
        let checked = qemu_img(&["check", "-f", "qcow2", "-U", "d"], path);
        assert!(matches!(checked.code, Some(0 | 3)), "round {n}: {checked:?}");
        let read = format!("read -P {} {place}M 300k", 1 + n % 255);
        let told = must("qemu-io", &["-r", "-U", "-f", "qcow2", "-c", &read, "d"], path);
        assert!(!told.contains("failed"), "round {n}: {told}");
    }
}

/// SIGTERM under load: what is under way is answered, the image is closed and clean.
#[test]
fn a_signal_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "512M");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let served = Served::new(path, &["d"]);
        let uri = format!("--uri={URI}");
        let mut load = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", &uri, "--rw=randwrite", "--bs=64k", "--size=256M"])
            .args(["--iodepth=16", "--time_based", "--runtime=30"])
            .current_dir(path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("fio must be installed");
        std::thread::sleep(Duration::from_millis(800));
        served.signal(signal);
        let asked = Instant::now();
        assert_eq!(served.wait().code(), Some(0));
        assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
        load.kill().unwrap();
        load.wait().unwrap();
        let leaks = qemu_img(&["check", "-f", "qcow2", "d"], path);
        assert_eq!(leaks.code, Some(0), "{leaks:?}");
    }
}

/// libnbd starts it as systemd would, and connects to the socket that it gives it.
#[test]
fn a_socket_may_be_given() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "5M");
    let quod = env!("CARGO_BIN_EXE_quod");
    assert_eq!(must("nbdinfo", &["--size", "--", "[", quod, "serve", "nbd", "d", "]"], path), "5242880\n");
}

#[test]
fn tcp_is_served_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "5M");
    let mut command = Command::new(env!("CARGO_BIN_EXE_quod"));
    command.args(["serve", "nbd", "--tcp", "127.0.0.1:0", "d"]).current_dir(path);
    let (server, line) = Server::start(&mut command);
    let served = Served { server };
    let uri = line.trim().strip_prefix("Serving at ").unwrap();
    assert_eq!(must("nbdinfo", &["--size", uri], path), "5242880\n");
    served.signal(rustix::process::Signal::TERM);
    assert_eq!(served.wait().code(), Some(0));
}

#[test]
fn what_is_wrong_is_said_plainly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    qcow2(path, "d", "5M");
    std::fs::write(path.join("raw"), [0; 4096]).unwrap();
    let says = |args: &[&str], text: &str| {
        let words: Vec<&str> = ["serve", "nbd"].iter().chain(args).copied().collect();
        let answer = run(env!("CARGO_BIN_EXE_quod"), &words, path, "");
        assert_eq!(answer.code, Some(1), "{answer:?}");
        assert!(answer.stderr.contains(text), "{args:?}: {answer:?}");
    };
    says(&["-k", "t"], "nothing to serve");
    says(&["d"], "nowhere to listen");
    says(&["-k", "t", "missing"], "Could not open 'missing': No such file or directory");
    says(&["-k", "t", "raw"], "name it (raw)");
    says(&["-k", "t", "-f", "vdx", "d"], "vdx");
    says(&["-k", "t", "--export", "d"], "NAME=IMAGE");
    says(&["-k", "no/such/folder", "d"], "cannot listen at no/such/folder: No such file or directory");
    says(
        &["-k", "t", "--allow-backing", "nowhere", "d"],
        "--allow-backing nowhere: No such file or directory",
    );
    assert!(!path.join("t").exists());
    let served = Served::new(path, &["d"]);
    says(&["-k", "s", "d"], "s: another server listens there already");
    says(&["-k", "t", "d"], "Is another process using the image [d]?");
    served.end(path);
    let living = UnixListener::bind(path.join("s")).unwrap();
    says(&["-k", "s", "d"], "another server listens there already");
    drop(living);
    let served = Served::new(path, &["-f", "raw", "raw"]);
    assert_eq!(must("nbdinfo", &["--size", URI], path), "4096\n");
    served.end(path);
}
