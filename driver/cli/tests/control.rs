//! The control socket and the metrics of what serves, and its sandbox.
//!
//! Checks:
//! * what is asked is answered, by whoever may ask, and nonsense is refused in words;
//! * under load a quiesced file is sound and equal to what is served, and clients go on after `resume`, after
//!   the time, or when a tied connection has gone;
//! * a new size is seen, and data are not given up by accident;
//! * `stop` is answered when the images are closed;
//! * clients that are silent, slow or hostile hold nobody, and do not fill memory;
//! * the threads of a server are confined, unless that is switched off;
//! * metrics are what Prometheus takes, by its own tool (promtool, which .ci/test installs).
//!
//! Knows: processes, files, JSON. Must never know: how a server does it.

mod common;

use common::server::Server;
use common::{documented, must, prepare, qemu_img, run, shell};
use quod_vhost_load::vhost::vhost_user::VhostUserFrontend;
use quod_vhost_load::vhost::vhost_user::message::VhostUserConfigFlags;
use quod_vhost_load::{Ask, Guest, Options};
use rustix::fs::{FallocateFlags, fallocate};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const URI: &str = "nbd+unix:///?socket=s";
/// Nobody waits longer for a reply.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server with its control socket at `c` and its metrics at `m`.
struct Served {
    server: Server,
    mounted: bool,
}

impl Served {
    fn start(folder: &Path, args: &[&str]) -> Served {
        let mounted = args[0] == "mount";
        let mut command = Command::new("env");
        command.args(["--default-signal", env!("CARGO_BIN_EXE_quod")]).args(args);
        command.args(["--control", "c", "--metrics", "./m"]).current_dir(folder);
        let (server, line) = Server::start(&mut command);
        assert!(line.starts_with("Serving at ") || line.contains(" is at "), "{line}");
        Served { server, mounted }
    }

    fn nbd(folder: &Path, args: &[&str]) -> Served {
        Served::start(folder, &[&["serve", "nbd", "-k", "s"], args].concat())
    }

    fn mount(folder: &Path, image: &str) -> Served {
        fs::write(folder.join("disk"), "").unwrap();
        Served::start(folder, &["mount", image, "disk"])
    }

    /// It ends by itself, in order.
    fn ends(mut self) {
        assert_eq!(self.server.wait(PATIENCE).code(), Some(0));
    }

    fn stop(self, folder: &Path) {
        assert_eq!(Asker::new(folder).ask("stop"), json!({ "return": {} }));
        self.ends();
        assert!(!folder.join("c").exists() && !folder.join("m").exists(), "the sockets are gone");
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.mounted && std::thread::panicking() {
            let _ = Command::new("umount").args(["-l", "disk"]).status();
        }
    }
}

/// A client of the control socket.
struct Asker {
    stream: BufReader<UnixStream>,
}

impl Asker {
    fn new(folder: &Path) -> Asker {
        let stream = UnixStream::connect(folder.join("c")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Asker { stream: BufReader::new(stream) }
    }

    fn send(&mut self, request: &Value) {
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).unwrap();
    }

    fn reply(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: '{line}'"))
    }

    fn ask(&mut self, command: &str) -> Value {
        self.send(&json!({ "execute": command }));
        self.reply()
    }

    fn ask_with(&mut self, command: &str, arguments: Value) -> Value {
        self.send(&json!({ "execute": command, "arguments": arguments }));
        self.reply()
    }
}

fn class(reply: &Value) -> &str {
    assert!(reply["error"]["desc"].as_str().is_some_and(|text| text.len() > 5), "{reply}");
    reply["error"]["class"].as_str().unwrap()
}

fn image(folder: &Path, format: &str, size: &str) {
    prepare("qemu-img", &["create", "-q", "-f", format, "d", size], folder);
}

/// Writes all over the disk until it is killed.
fn load(folder: &Path, args: &[&str]) -> Child {
    Command::new("fio")
        .args(["--name=load", "--rw=randwrite", "--bsrange=4k-100k", "--size=64M", "--iodepth=16"])
        // a thread: a process of its own would go on when this one is killed
        .args(["--thread", "--fsync=50", "--time_based", "--runtime=60", "--randrepeat=0"])
        .args(args)
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("fio must be installed")
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn written(asker: &mut Asker) -> u64 {
    asker.ask("stats")["return"]["images"][0]["bytes_written"].as_u64().unwrap()
}

/// Waits until clients have written something more.
fn goes_on(asker: &mut Asker) {
    let (before, until) = (written(asker), Instant::now() + PATIENCE);
    while written(asker) == before {
        assert!(Instant::now() < until, "clients are held");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until no client is there, and nothing of one is under way.
fn quiet(asker: &mut Asker) {
    let until = Instant::now() + PATIENCE;
    loop {
        let told = &asker.ask("stats")["return"];
        let busy = told["counts"]["clients"].as_u64().unwrap_or(0)
            + told["images"][0]["in_flight"].as_u64().unwrap();
        if busy == 0 {
            return;
        }
        assert!(Instant::now() < until, "{told}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn stats_tell_what_was_done() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    let served = Served::nbd(path, &["d"]);
    assert_eq!(fs::metadata(path.join("c")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(path.join("m")).unwrap().permissions().mode() & 0o777, 0o600);
    must("qemu-io", &["-f", "raw", "-c", "write 0 128k", "-c", "read 0 4k", "-c", "flush", URI], path);
    let mut asker = Asker::new(path);
    asker.send(&json!({ "execute": "stats", "id": ["x", 1] }));
    let reply = asker.reply();
    assert_eq!(reply["id"], json!(["x", 1]));
    let told = &reply["return"];
    assert_eq!((&told["protocol"], &told["counts"]["connections_total"]), (&json!("nbd"), &json!(1)));
    assert_eq!(told["pid"], json!(served.server.id()));
    let image = &told["images"][0];
    assert_eq!((&image["format"], &image["size"]), (&json!("qcow2"), &json!(8 << 20)));
    assert_eq!((&image["bytes_written"], &image["poisoned"]), (&json!(128 << 10), &Value::Null));
    assert!(image["bytes_read"].as_u64().unwrap() >= 4096, "{image}");
    assert_eq!(image["counters"]["allocations"], json!(2));
    assert!(image["requests"]["write"]["p99"].as_f64().unwrap() > 0.0, "{image}");
    served.stop(path);
}

#[test]
fn nonsense_is_refused_and_the_next_request_answered() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    let served = Served::nbd(path, &["--export", "second=d", "--read-only", "d"]);
    let mut asker = Asker::new(path);
    for (line, wanted) in [
        ("x", "Invalid"),
        ("", "Invalid"),
        ("{\"execute\": \"exec\"}", "CommandNotFound"),
        ("{\"execute\": \"stats\", \"arguments\": {\"a\": 1}}", "Invalid"),
        ("{\"execute\": \"quiesce\", \"arguments\": {\"image\": \"third\"}}", "DeviceNotFound"),
        ("{\"execute\": \"resize\", \"arguments\": {\"size\": 1048576}}", "DeviceNotFound"),
        ("{\"execute\": \"resume\"}", "NotQuiesced"),
        ("{\"execute\": \"resize\", \"arguments\": {\"image\": \"second\", \"size\": 512}}", "Invalid"),
        ("{\"execute\": \"resize\", \"arguments\": {\"image\": \"second\", \"size\": 16777216}}", "Failed"),
    ] {
        asker.stream.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        assert_eq!(class(&asker.reply()), wanted, "{line}");
    }
    assert!(asker.ask("stats")["return"].is_object());
    // several at once come one after the other; the last may lack its end
    let mut asker = Asker::new(path);
    let line = "{\"execute\": \"stats\", \"id\": 1}\n{\"execute\": \"resume\"}\n{\"execute\": \"stats\"}";
    asker.stream.get_mut().write_all(line.as_bytes()).unwrap();
    asker.stream.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(asker.reply()["id"], json!(1));
    assert_eq!(class(&asker.reply()), "NotQuiesced");
    assert!(asker.reply()["return"].is_object());
    assert_eq!(asker.stream.read(&mut [0; 1]).unwrap(), 0, "and then it ends");
    // a line that is too long ends the connection, after it was said
    let mut asker = Asker::new(path);
    let _ = asker.stream.get_mut().write_all(&[b'x'; 4096]);
    assert_eq!(class(&asker.reply()), "Invalid");
    assert_eq!(asker.stream.read(&mut [0; 1]).unwrap_or(0), 0);
    served.stop(path);
}

/// Copies of a file in use are sound, equal to what is served, and the load goes on afterwards.
#[test]
fn a_quiesced_file_is_a_backup() {
    for (format, door) in [("qcow2", "nbd"), ("qed", "nbd"), ("qcow2", "mount")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        image(path, format, "64M");
        let uri = format!("--uri={URI}");
        let (served, load) = match door {
            "nbd" => (Served::nbd(path, &["d"]), load(path, &["--ioengine=nbd", &uri])),
            _ => (
                Served::mount(path, "d"),
                load(path, &["--ioengine=libaio", "--direct=1", "--filename=disk", "--fallocate=none"]),
            ),
        };
        let mut asker = Asker::new(path);
        for round in 0..5 {
            goes_on(&mut asker);
            let reply = asker.ask("quiesce");
            assert!(reply["return"]["seconds_left"].as_f64().unwrap() > 50.0, "{reply}");
            assert_eq!(class(&asker.ask("quiesce")), "Busy");
            let before = written(&mut asker);
            fs::copy(path.join("d"), path.join("copy")).unwrap();
            let stats = asker.ask("stats");
            let told = &stats["return"]["images"][0];
            assert_eq!((&told["quiesced"], &told["in_flight"]), (&json!(true), &json!(0)));
            let checked = qemu_img(&["check", "-f", format, "copy"], path);
            assert_eq!(checked.code, Some(0), "{format}, round {round}: {checked:?}");
            assert_eq!(before, written(&mut asker), "nothing was written meanwhile");
            let same = fs::read(path.join("d")).unwrap() == fs::read(path.join("copy")).unwrap();
            assert!(same, "{format}, {door}: the file has changed");
            let reply = asker.ask("resume");
            assert!(reply["return"]["quiesced_seconds"].as_f64().is_some(), "{reply}");
            goes_on(&mut asker);
        }
        // the same disk, told by the server and by the copy, when what the load has sent has ended, too
        end(load);
        quiet(&mut asker);
        assert!(asker.ask("quiesce")["return"].is_object());
        fs::copy(path.join("d"), path.join("copy")).unwrap();
        assert!(asker.ask("resume")["return"].is_object());
        let disk = if door == "nbd" { URI } else { "disk" };
        must("qemu-img", &["compare", "-f", "raw", "-F", format, disk, "copy"], path);
        served.stop(path);
        let checked = qemu_img(&["check", "-f", format, "d"], path);
        assert_eq!(checked.code, Some(0), "{checked:?}");
    }
}

#[test]
fn clients_are_not_held_for_longer_than_was_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "64M");
    let served = Served::nbd(path, &["d"]);
    let uri = format!("--uri={URI}");
    let load = load(path, &["--ioengine=nbd", &uri]);
    let mut asker = Asker::new(path);
    goes_on(&mut asker);
    assert!(asker.ask_with("quiesce", json!({ "timeout": 1 }))["return"].is_object());
    goes_on(&mut asker);
    assert_eq!(class(&asker.ask("resume")), "NotQuiesced", "a copy that took longer is known by this");
    // a connection that it is tied to
    let mut other = Asker::new(path);
    assert!(other.ask_with("quiesce", json!({ "tied": true }))["return"].is_object());
    let before = written(&mut asker);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(written(&mut asker), before);
    drop(other);
    goes_on(&mut asker);
    // and one that is not
    let mut other = Asker::new(path);
    assert!(other.ask_with("quiesce", json!({ "image": "" }))["return"].is_object());
    drop(other);
    let before = written(&mut asker);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(written(&mut asker), before);
    // the end ends it, too
    served.stop(path);
    end(load);
    let checked = qemu_img(&["check", "-f", "qcow2", "d"], path);
    assert_eq!(checked.code, Some(0), "{checked:?}");
}

/// One image is quiesced, and the clients of the other are served.
#[test]
fn images_are_quiesced_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "64M");
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "e", "64M"], path);
    let served = Served::nbd(path, &["--export", "e=e", "d"]);
    let mut asker = Asker::new(path);
    assert!(asker.ask_with("quiesce", json!({ "image": "e" }))["return"].is_object());
    must("qemu-io", &["-f", "raw", "-c", "write 0 1M", "-c", "flush", URI], path);
    let mut held = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 1M", "nbd+unix:///e?socket=s"])
        .current_dir(path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(held.try_wait().unwrap(), None, "it waits");
    assert!(asker.ask("resume")["return"].is_object());
    assert_eq!(held.wait().unwrap().code(), Some(0));
    served.stop(path);
}

#[test]
fn a_new_size_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    let served = Served::nbd(path, &["d"]);
    let mut asker = Asker::new(path);
    let grown = asker.ask_with("resize", json!({ "size": 16 << 20 }));
    assert_eq!(grown, json!({ "return": { "size": 16 << 20 } }));
    assert_eq!(must("nbdinfo", &["--size", URI], path), "16777216\n");
    must("qemu-io", &["-f", "raw", "-c", "write 15M 64k", URI], path);
    assert_eq!(class(&asker.ask_with("resize", json!({ "size": 8 << 20 }))), "Invalid", "data would go");
    let shrunk = asker.ask_with("resize", json!({ "size": 8 << 20, "shrink": true }));
    assert_eq!(shrunk, json!({ "return": { "size": 8 << 20 } }));
    assert_eq!(class(&asker.ask_with("resize", json!({ "size": (8 << 20) + 100 }))), "Failed");
    assert_eq!(must("nbdinfo", &["--size", URI], path), "8388608\n");
    served.stop(path);
    assert_eq!(qemu_img(&["check", "-q", "d"], path).code, Some(0));

    let served = Served::mount(path, "d");
    let file = fs::File::options().read(true).write(true).open(path.join("disk")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 8 << 20);
    let mut asker = Asker::new(path);
    assert!(asker.ask_with("resize", json!({ "size": 16 << 20 }))["return"].is_object());
    assert_eq!(file.metadata().unwrap().len(), 16 << 20, "also by those that have it open");
    file.write_all_at(&[7; 4096], (16 << 20) - 4096).unwrap();
    let mut bytes = [0; 4096];
    file.read_exact_at(&mut bytes, (16 << 20) - 4096).unwrap();
    assert_eq!(bytes, [7; 4096]);
    drop(file);
    served.stop(path);
    let told = run("qemu-io", &["-c", "read -P 7 16773120 4k", "d"], path, "");
    assert!(told.code == Some(0) && !told.stdout.contains("failed"), "{told:?}");
}

/// A machine that runs is told, and asks; one that begins later asks anyway.
#[test]
fn a_new_size_is_told_to_a_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    let served = Served::start(path, &["serve", "vhost-user", "-k", "s", "d"]);
    let mut guest = Guest::connect(&path.join("s"), Options::default()).unwrap();
    let mut asker = Asker::new(path);
    for size in [16u64 << 20, 12 << 20] {
        let asked = json!({ "size": size, "shrink": true });
        assert_eq!(asker.ask_with("resize", asked), json!({ "return": { "size": size } }));
        assert!(guest.changes.as_mut().unwrap().wait(PATIENCE).unwrap(), "it is told");
        let told = guest.front.get_config(0, 57, VhostUserConfigFlags::empty(), &[0; 57]).unwrap().1;
        assert_eq!(told[..8], (size / 512).to_le_bytes());
        let last = size / 512 - 8;
        for (sector, status) in [(last, 0), (last + 8, 1)] {
            let data = guest.data();
            let head = guest.queues[0].request(Ask::Write, sector, &[(data, 4096)]).unwrap().unwrap();
            guest.queues[0].kick().unwrap();
            while guest.queues[0].ended().unwrap().is_none() {
                assert!(guest.wait(PATIENCE).unwrap());
            }
            assert_eq!(guest.queues[0].status(head), status, "sector {sector}");
        }
    }
    drop(guest);
    served.stop(path);
    assert_eq!(qemu_img(&["check", "-q", "d"], path).code, Some(0));
}

/// Silence, floods, slow readers: clients of the disk are served, and so is the next one who asks.
#[test]
fn hostile_clients_hold_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "64M");
    let served = Served::nbd(path, &["d"]);
    let connect = |name: &str| UnixStream::connect(path.join(name)).unwrap();
    // silent ones, more than there may be, on both sockets
    let silent: Vec<UnixStream> = (0..40).map(|n| connect(if n % 2 == 0 { "c" } else { "m" })).collect();
    // and such as ask for ever, and never read
    let floods: Vec<std::thread::JoinHandle<()>> = (0..4)
        .map(|n| {
            let mut stream = connect("c");
            stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let line: &[u8] = if n % 2 == 0 { b"{\"execute\": \"stats\"}\n" } else { b"\n\n\n\n\n\n" };
            std::thread::spawn(move || while stream.write_all(line).is_ok() {})
        })
        .collect();
    must("qemu-io", &["-f", "raw", "-c", "write 0 8M", "-c", "read 0 8M", "-c", "flush", URI], path);
    let status = fs::read_to_string(format!("/proc/{}/status", served.server.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 << 10, "{kib} KiB");
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    assert!(Asker::new(path).ask("stats")["return"].is_object());
    drop(silent);
    served.stop(path);
}

fn fetch(folder: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(folder.join("m")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_what_prometheus_takes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "a\"b", "8M"], path);
    let served = Served::nbd(path, &["--metrics", "127.0.0.1:0", "--export", "e\\=a\"b", "d"]);
    must("qemu-io", &["-f", "raw", "-c", "write 0 128k", "-c", "flush", URI], path);
    let whole = fetch(path, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    let (head, text) = whole.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4"), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", text.len())), "{head}");
    let image = "{export=\"\",image=\"d\"}";
    for line in [
        format!("quod_image_written_bytes_total{image} 131072"),
        format!("quod_image_size_bytes{image} 8388608"),
        "quod_image_size_bytes{export=\"e\\\\\",image=\"a\\\"b\"} 8388608".into(),
        "quod_connections_total 1".into(),
        "quod_image_request_duration_seconds_count{export=\"\",image=\"d\",kind=\"write\"} 1".into(),
    ] {
        assert!(text.lines().any(|found| found == line), "{line}: {text}");
    }
    let judged = run("promtool", &["check", "metrics"], path, text);
    assert_eq!((judged.code, judged.stderr.as_str()), (Some(0), ""), "{judged:?}");
    assert!(fetch(path, "GET /x HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 404 "));
    assert!(fetch(path, "POST /metrics HTTP/1.0\r\n\r\n").starts_with("HTTP/1.0 405 "));
    assert!(fetch(path, "\r\n\r\n").starts_with("HTTP/1.0 400 "));
    served.stop(path);
}

/// Something of each kind, so that all threads are there: discards are a worker's.
fn use_of(door: &str, folder: &Path) {
    match door {
        "nbd" => {
            let commands = ["-c", "write 0 1M", "-c", "flush", "-c", "discard 0 1M", "-c", "flush"];
            must("qemu-io", &[&["-f", "raw"], &commands[..], &[URI]].concat(), folder);
        }
        "mount" => {
            let file = fs::File::options().write(true).open(folder.join("disk")).unwrap();
            file.write_all_at(&[1; 1 << 20], 0).unwrap();
            file.sync_all().unwrap();
            fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
            file.sync_all().unwrap();
        }
        _ => {
            // what is under way is written down in memory that the server makes
            let mut guest = Guest::connect(&folder.join("s"), Options::default()).unwrap();
            let data = guest.data();
            for (ask, lens) in [(Ask::Write, &[4096][..]), (Ask::Flush, &[])] {
                let pieces: Vec<(u64, u32)> = lens.iter().map(|&len| (data, len)).collect();
                let head = guest.queues[0].request(ask, 0, &pieces).unwrap().unwrap();
                guest.queues[0].kick().unwrap();
                while guest.queues[0].ended().unwrap().is_none() {
                    assert!(guest.wait(PATIENCE).unwrap());
                }
                assert_eq!(guest.queues[0].status(head), 0);
            }
        }
    }
}

/// Every thread, those that work for the driver, too; whatever is served.
#[test]
fn a_server_is_confined() {
    let doors: [(&str, &[&str]); 3] = [
        ("nbd", &["serve", "nbd", "-k", "s", "d"]),
        ("mount", &["mount", "d", "disk"]),
        ("vhost-user", &["serve", "vhost-user", "-k", "s", "d"]),
    ];
    for (door, args) in doors {
        for (more, wanted) in [(&["--sandbox=require"][..], "2"), (&[], "2"), (&["--sandbox=off"], "0")] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path();
            image(path, "qcow2", "8M");
            fs::write(path.join("disk"), "").unwrap();
            let served = Served::start(path, &[args, more].concat());
            use_of(door, path);
            let tasks = fs::read_dir(format!("/proc/{}/task", served.server.id())).unwrap();
            let states: Vec<String> = tasks
                .map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap())
                .filter(|status| !status.contains("Name:\tiou-"))
                .collect();
            for status in &states {
                let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:")).unwrap();
                assert_eq!(mode.trim(), wanted, "{door}, {more:?}: {status}");
            }
            assert!(!states.is_empty());
            served.stop(path);
            assert_eq!(fs::metadata(path.join("disk")).unwrap().len(), 0, "it is unmounted");
            assert_eq!(qemu_img(&["check", "-q", "d"], path).code, Some(0));
        }
    }
}

/// `quod control` says the same as a client of the socket, for people and scripts.
#[test]
fn the_command_asks_and_tells() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "e", "8M"], path);
    let served = Served::nbd(path, &["--export", "e=e", "d"]);
    let ask = |args: &[&str]| run(env!("CARGO_BIN_EXE_quod"), &[&["control", "c"], args].concat(), path, "");
    let told = |args: &[&str]| -> Value {
        let answer = ask(args);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{args:?}: {answer:?}");
        serde_json::from_str(&answer.stdout).unwrap()
    };
    let refused = |args: &[&str], words: &str| {
        let answer = ask(args);
        assert!(answer.code == Some(1) && answer.stdout.is_empty(), "{args:?}: {answer:?}");
        assert!(answer.stderr.starts_with("quod: ") && answer.stderr.contains(words), "{args:?}: {answer:?}");
    };
    assert_eq!(told(&["stats"])["protocol"], "nbd");
    assert_eq!(told(&["resize", "--image", "e", "16M"]), json!({ "size": 16 << 20 }));
    refused(&["resize", "--image", "e", "8M"], "shrink");
    assert_eq!(told(&["resize", "--image", "e", "--shrink", "8M"]), json!({ "size": 8 << 20 }));
    refused(&["resize", "8M"], "image");
    refused(&["resize", "--image", "e", "x"], "'size'");
    refused(&["resume"], "quiesced");
    let left = told(&["quiesce", "--image", "", "--timeout", "5"])["seconds_left"].as_f64().unwrap();
    assert!((1.0..=5.0).contains(&left), "{left}");
    refused(&["quiesce", "--timeout", "3601"], "timeout: seconds, from 1 to 3600");
    assert!(told(&["resume", "--image", ""])["quiesced_seconds"].as_f64().is_some());
    let nobody = run(env!("CARGO_BIN_EXE_quod"), &["control", "missing", "stats"], path, "");
    assert_eq!(
        (nobody.code, nobody.stderr.as_str()),
        (Some(1), "quod: missing: No such file or directory\n")
    );
    let stopped = ask(&["stop"]);
    assert_eq!(stopped, common::Answer { code: Some(0), stdout: String::new(), stderr: String::new() });
    served.ends();
}

/// The backup of docs/serve.md, as it stands there.
#[test]
fn the_backup_of_the_documentation_is_one() {
    let blocks = documented("serve.md", "quod control");
    let [block] = &blocks[..] else { panic!("{blocks:?}") };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    prepare("qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"], path);
    let served = Served::nbd(path, &["disk.qcow2"]);
    let uri = format!("--uri={URI}");
    let load = load(path, &["--ioengine=nbd", &uri]);
    goes_on(&mut Asker::new(path));
    for line in block {
        let status = shell(line, path).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{line}");
    }
    end(load);
    let checked = qemu_img(&["check", "-q", "backup.qcow2"], path);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    served.stop(path);
}

#[test]
fn what_stands_in_the_way_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    image(path, "qcow2", "8M");
    let served = Served::nbd(path, &["d"]);
    let says = |args: &[&str], wanted: &str| {
        let told = run(env!("CARGO_BIN_EXE_quod"), args, path, "");
        assert!(told.code == Some(1) && told.stderr.contains(wanted), "{args:?}: {told:?}");
    };
    let other = ["serve", "nbd", "-k", "other", "d"];
    says(&[&other[..], &["--control", "c"]].concat(), "c: another server listens there already");
    says(&[&other[..], &["--control", "no/c"]].concat(), "cannot listen at no/c: No such file or directory");
    says(&[&other[..], &["--metrics", "no/c"]].concat(), "cannot listen at no/c: No such file or directory");
    // env(1) has become the server
    says(&other, &format!("d: locked by quod (process {})", served.server.id()));
    let told = Command::new(env!("CARGO_BIN_EXE_quod"))
        .args(other)
        .env("QUOD_LOG", "=x=")
        .current_dir(path)
        .output();
    let told = String::from_utf8(told.unwrap().stderr).unwrap();
    assert!(told.contains("QUOD_LOG: '=x=' is no filter"), "{told}");
    served.stop(path);
}
