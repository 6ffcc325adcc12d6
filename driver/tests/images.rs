//! Real files: QED images, their backing chains, the gate, the tools.

#[path = "differential/random.rs"]
#[allow(dead_code, reason = "shared with the differential tests")]
mod random;

use quod::{
    AllowAll, Config, Error, ErrorKind, FileOp, FileRole, Foreign, Format, Lack, Lock, Named, OpenOptions,
    Policy, SameDirectory, Status,
};
use quod_tools::{self as tools, CreateOptions, Repair, Session};
use random::Random;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn qed(&self, name: &str, size: u64, backing: Option<(&str, Option<Format>)>) -> PathBuf {
        let options = CreateOptions {
            cluster_size: Some(4096),
            table_size: Some(1),
            backing: backing.map(|(name, format)| (name.to_string(), format)),
            ..CreateOptions::new(Format::Qed, size)
        };
        tools::create(self.path(name), &options).unwrap();
        self.path(name)
    }
}

fn pattern(seed: u32, len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at ^ seed).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect()
}

fn writable() -> OpenOptions {
    OpenOptions::new().write(true).open_gate(AllowAll)
}

fn failure(path: &Path, options: OpenOptions) -> Error {
    match Session::open(path, options) {
        Ok(_) => panic!("{} opened", path.display()),
        Err(error) => error,
    }
}

fn sound(path: &Path) {
    let report = tools::check(path, None, None).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{report:?}");
}

fn scribble(session: &mut Session, model: &mut [u8], seed: u64, steps: usize) {
    let mut random = Random(seed);
    let size = model.len() as u64;
    for step in 0..steps {
        let offset = random.below(size - 1);
        let len = 1 + random.below((size - offset).min(20_000));
        let range = offset as usize..(offset + len) as usize;
        match random.below(8) {
            0 => {
                session.write_zeroes(offset, len, step % 2 == 0).unwrap();
                model[range].fill(0);
            }
            1 => session.flush().unwrap(),
            2 | 3 => {
                let mut bytes = vec![0xaa; len as usize];
                session.read(offset, &mut bytes).unwrap();
                assert!(bytes == model[range], "seed {seed} step {step} read {offset}+{len}");
            }
            _ => {
                let bytes = pattern(step as u32, len as usize);
                session.write(offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
        }
    }
    let mut all = vec![0; model.len()];
    session.read(0, &mut all).unwrap();
    assert!(all == model, "seed {seed}: final read");
}

/// Somebody else holds a lock.
fn locked(path: &Path, lock: Lock) -> Error {
    Error::of(path, FileRole::Image, ErrorKind::Locked(lock))
}

#[test]
fn a_chain_of_three_holds_what_was_written_buffered_and_direct() {
    for seed in 1..7 {
        let folder = Folder::new();
        let base = pattern(9, 300_000);
        std::fs::write(folder.path("base.raw"), &base).unwrap();
        folder.qed("middle.qed", 500_224, Some(("base.raw", Some(Format::Raw))));
        let top = folder.qed("top.qed", 700_416, Some(("middle.qed", None)));
        let mut model = vec![0; 700_416];
        model[..300_000].copy_from_slice(&base);
        let policy = if seed % 3 == 0 { Policy::Writethrough } else { Policy::Writeback };
        let options = || writable().direct(seed % 2 == 0).policy(policy);
        {
            let mut middle = Session::open(folder.path("middle.qed"), options()).unwrap();
            let mut half = model[..500_224].to_vec();
            scribble(&mut middle, &mut half, seed + 100, 60);
            model[..500_224].copy_from_slice(&half);
            middle.close().unwrap();
        }
        let middle_bytes = std::fs::read(folder.path("middle.qed")).unwrap();
        let mut session = Session::open(&top, options()).unwrap();
        assert_eq!(session.info().unwrap().layers().len(), 3);
        scribble(&mut session, &mut model, seed, 150);
        session.close().unwrap();
        sound(&top);
        let mut again = Session::open(&top, OpenOptions::new().open_gate(SameDirectory)).unwrap();
        let mut all = vec![0; model.len()];
        again.read(0, &mut all).unwrap();
        assert!(all == model, "seed {seed}: after reopening");
        assert!(
            middle_bytes == std::fs::read(folder.path("middle.qed")).unwrap(),
            "a backing file was changed"
        );
    }
}

#[test]
fn the_gate_keeps_backing_files_closed_by_default() {
    let folder = Folder::new();
    std::fs::write(folder.path("base.raw"), [1; 4096]).unwrap();
    let top = folder.qed("top.qed", 65536, Some(("base.raw", None)));
    let error = failure(&top, OpenOptions::new());
    assert_eq!(error, Error::of(&top, FileRole::Image, ErrorKind::NotAllowed { name: "base.raw".into() }));
    assert!(error.to_string().contains("top.qed") && error.to_string().contains("base.raw"));
    assert_eq!(
        Session::open(&top, OpenOptions::new().no_backing(true)).unwrap().info().unwrap().layers().len(),
        1
    );
    let elsewhere = folder.path("base.raw");
    let gate = move |named: &Named<'_>| (named.name == b"base.raw").then(|| elsewhere.clone());
    assert_eq!(
        Session::open(&top, OpenOptions::new().open_gate_fn(gate)).unwrap().info().unwrap().layers().len(),
        2
    );
    let protocol = folder.qed("nbd.qed", 65536, Some(("nbd:localhost:10809", None)));
    let error = failure(&protocol, writable());
    let Some(ErrorKind::Unsupported(Lack::Protocol { name, .. })) = error.kind() else { panic!("{error:?}") };
    assert!(name.contains("nbd:localhost"), "{name}");
    let prefixed = folder.qed("file.qed", 65536, Some(("file:base.raw", Some(Format::Raw))));
    // QEMU looks for it in the working directory, and no other file is taken for it
    let error = failure(&prefixed, writable());
    assert_eq!(
        error,
        Error::of(
            Path::new("base.raw"),
            FileRole::Backing(1),
            ErrorKind::Io { op: FileOp::Open, errno: libc::ENOENT }
        )
    );
    let error = failure(&prefixed, OpenOptions::new().open_gate(SameDirectory));
    let (name, here) = ("file:base.raw".to_string(), PathBuf::from("base.raw"));
    assert_eq!(
        error,
        Error::of(
            &prefixed,
            FileRole::Image,
            ErrorKind::Ambiguous { name, here, beside: folder.path("base.raw") }
        )
    );
}

#[test]
fn loops_and_long_chains_are_errors_that_name_the_file() {
    let folder = Folder::new();
    let a = folder.qed("a.qed", 65536, Some(("b.qed", None)));
    folder.qed("b.qed", 65536, Some(("a.qed", None)));
    let error = failure(&a, writable());
    let repeated = folder.path("a.qed");
    assert_eq!(
        error,
        Error::of(&folder.path("b.qed"), FileRole::Backing(1), ErrorKind::BackingLoop { repeated })
    );
    folder.qed("0.qed", 65536, None);
    for layer in 1..5 {
        folder.qed(&format!("{layer}.qed"), 65536, Some((&format!("{}.qed", layer - 1), None)));
    }
    let top = folder.path("4.qed");
    assert_eq!(Session::open(&top, writable().max_depth(5)).unwrap().info().unwrap().layers().len(), 5);
    let error = failure(&top, writable().max_depth(4));
    assert_eq!(
        error,
        Error::of(&folder.path("1.qed"), FileRole::Backing(3), ErrorKind::TooDeep { limit: 4 })
    );
}

#[test]
fn a_missing_backing_file_is_named_and_nothing_stays_locked() {
    let folder = Folder::new();
    let top = folder.qed("top.qed", 65536, Some(("gone.raw", None)));
    let error = failure(&top, writable());
    assert!(error.path().is_some_and(|path| path.ends_with("gone.raw")), "{error:?}");
    assert!(matches!(error.kind(), Some(ErrorKind::Io { errno: libc::ENOENT, .. })), "{error:?}");
    std::fs::write(folder.path("gone.raw"), [1; 4096]).unwrap();
    Session::open(&top, writable()).unwrap().close().unwrap();
}

#[test]
fn writers_lock_each_other_out() {
    let folder = Folder::new();
    let path = folder.qed("a.qed", 65536, None);
    let writer = Session::open(&path, writable()).unwrap();
    assert_eq!(failure(&path, writable()), locked(&path, Lock::Write));
    assert!(matches!(tools::info(&path, None, false), Err(Error::File { kind: ErrorKind::Locked(_), .. })));
    tools::info(&path, None, true).unwrap();
    Session::open(&path, OpenOptions::new().lock(false)).unwrap();
    writer.close().unwrap();
    let reader = Session::open(&path, OpenOptions::new()).unwrap();
    let other = Session::open(&path, OpenOptions::new()).unwrap();
    drop((reader, other));
    Session::open(&path, writable()).unwrap();
}

/// A program that was killed holds its locks a little longer; nobody has to wait in a loop of his own.
#[test]
fn an_opening_waits_for_a_lock_a_little_and_holds_nobody() {
    let folder = Folder::new();
    let path = folder.qed("a.qed", 65536, None);
    let leave = |after: u64| {
        let mut writer = Session::open(&path, writable()).unwrap();
        writer.write(0, &[1]).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(after));
            drop(writer);
        })
    };
    for backend in [quod::BackendKind::Auto, quod::BackendKind::Threads] {
        let config = Config::default().backend(backend).timing(true);
        let other = leave(60);
        let mut session = Session::with_config(&path, writable(), config).unwrap();
        assert!(session.driver().hold().max() < Duration::from_millis(50));
        session.close().unwrap();
        other.join().unwrap();
    }
    let other = leave(60);
    tools::check(&path, None, Some(Repair::All)).unwrap();
    other.join().unwrap();
    let began = Instant::now();
    let writer = Session::open(&path, writable()).unwrap();
    assert!(matches!(failure(&path, writable()), Error::File { kind: ErrorKind::Locked(Lock::Write), .. }));
    assert!(matches!(
        tools::info(&path, None, false),
        Err(Error::File { kind: ErrorKind::Locked(Lock::Read), .. })
    ));
    assert!(began.elapsed() >= Duration::from_millis(400));
    writer.close().unwrap();
}

#[test]
fn a_raw_image_that_somebody_writes_is_read_by_those_who_say_so() {
    let folder = Folder::new();
    let path = folder.path("a.raw");
    std::fs::write(&path, [7; 4096]).unwrap();
    let raw = Some(Format::Raw);
    let tolerant = || OpenOptions::new().tolerate_writers(true);
    let writer = Session::open(&path, OpenOptions::new().write(true).format(raw)).unwrap();
    for format in [None, raw] {
        assert_eq!(tools::info(&path, format, false).unwrap().info.virtual_size, 4096);
        let mut reader = Session::open(&path, tolerant().format(format)).unwrap();
        reader.read(0, &mut [0; 512]).unwrap();
        reader.close().unwrap();
        let error = failure(&path, OpenOptions::new().format(format));
        assert_eq!(error, locked(&path, Lock::Read));
        assert!(matches!(
            failure(&path, tolerant().format(format).write(true)),
            Error::File { kind: ErrorKind::Locked(_), .. }
        ));
    }
    writer.close().unwrap();
    // and whoever only looks at one keeps nobody from writing it
    let reader = Session::open(&path, tolerant().format(raw)).unwrap();
    Session::open(&path, OpenOptions::new().write(true).format(raw)).unwrap().close().unwrap();
    reader.close().unwrap();
    // other formats are no matter of taste
    let path = folder.qed("a.qed", 65536, None);
    let writer = Session::open(&path, writable()).unwrap();
    assert_eq!(failure(&path, tolerant()), locked(&path, Lock::Read));
    let error = failure(&path, tolerant().format(Some(Format::Qed)));
    assert_eq!(error, locked(&path, Lock::Read));
    writer.close().unwrap();
}

/// A ring belongs to one thread; the kernel says "File exists" to the others.
#[test]
fn another_thread_is_told_that_the_driver_is_not_its_own() {
    let folder = Folder::new();
    let path = folder.qed("a.qed", 65536, None);
    let mut session = Session::open(&path, writable()).unwrap();
    let ring = session.driver().backend_name() == "io_uring";
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| session.write(0, &[1; 512])).join().unwrap());
    if ring {
        let error = elsewhere.unwrap_err();
        assert_eq!(error, Error::WrongThread);
        assert!(error.to_string().contains("belongs to the thread"), "{error}");
        // what it submitted is done when the right thread comes
        session.driver().wait(None).unwrap();
        let done = std::iter::repeat_with(|| {
            session.driver().wait(None).unwrap();
            session.driver().next_completion()
        });
        done.flatten().next().unwrap().result.unwrap();
    }
    let mut bytes = [0; 512];
    session.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [1; 512]);
    session.close().unwrap();
}

#[test]
fn a_file_system_without_o_direct_is_named() {
    let path = Path::new("/proc/version");
    let error = failure(path, OpenOptions::new().direct(true).lock(false));
    assert_eq!(error.errno(), libc::EINVAL);
    assert!(error.to_string().contains("O_DIRECT"), "{error}");
}

#[test]
fn tools_describe_check_and_rename() {
    let folder = Folder::new();
    let base = folder.qed("base.qed", 1 << 20, None);
    let top = folder.qed("top.qed", 1 << 20, Some(("base.qed", None)));
    let info = tools::info(&top, None, false).unwrap();
    assert_eq!((info.info.format, info.info.virtual_size), (Format::Qed, 1 << 20));
    assert!(info.info.table_size == 1 && info.qcow2.is_none());
    assert_eq!(info.backing_path, Some(base.clone()));
    assert_eq!(tools::probe(&top), Ok(Format::Qed));
    let mut session = Session::open(&base, writable()).unwrap();
    session.write(5000, b"from the base").unwrap();
    session.close().unwrap();
    tools::set_backing(&top, None).unwrap();
    assert_eq!(tools::info(&top, None, false).unwrap().info.backing, None);
    tools::set_backing(&top, Some(("./base.qed", None))).unwrap();
    let mut session = Session::open(&top, writable()).unwrap();
    let mut bytes = [0; 13];
    session.read(5000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"from the base");
    session.write(0, &[1]).unwrap();
    let extent = session.map(0, 0, 1 << 20).unwrap();
    assert_eq!((extent.status, extent.len), (Status::Data, 4096));
    assert_eq!(session.map(1, 4096, 4096).unwrap().status, Status::Data);
    session.close().unwrap();
    let report = tools::check(&top, None, Some(Repair::All)).unwrap();
    assert_eq!((report.allocated_clusters, report.total_clusters), (1, 256));
    sound(&base);
}

/// What has the signature of another format is no raw disk, buffered or direct, at the top or below, until
/// somebody calls it raw.
#[test]
fn foreign_formats_are_refused_by_name() {
    let folder = Folder::new();
    let top = folder.qed("top.qed", 1 << 20, Some(("base", None)));
    let named = folder.qed("named.qed", 1 << 20, Some(("base", Some(Format::Raw))));
    let (base, koly) = (folder.path("base"), b"koly\0\0\0\x04\0\0\x02\0");
    for (at, bytes, format) in [(0, &b"vhdxfile"[..], Foreign::Vhdx), (70_000 - 512, koly, Foreign::Dmg)] {
        let mut file = pattern(1, 70_000);
        file[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&base, &file).unwrap();
        let as_a = |role| Error::of(&base, role, ErrorKind::Foreign(format));
        for options in [OpenOptions::new(), writable(), OpenOptions::new().direct(true)] {
            assert_eq!(failure(&base, options), as_a(FileRole::Image));
        }
        for options in [OpenOptions::new().open_gate(AllowAll), writable()] {
            assert_eq!(failure(&top, options), as_a(FileRole::Backing(1)));
        }
        let refused = as_a(FileRole::Image);
        assert_eq!(tools::probe(&base), Err(refused.clone()));
        assert_eq!(tools::info(&base, None, false), Err(refused.clone()));
        assert_eq!(tools::check(&base, None, None), Err(refused));
        let facts = tools::foreign(&base, format, false).unwrap();
        assert_eq!((facts.format, facts.file_len), (format, 70_000));
        let raw = OpenOptions::new().format(Some(Format::Raw));
        for mut session in [Session::open(&base, raw), Session::open(&named, writable())].map(Result::unwrap)
        {
            let mut bytes = vec![0; 65_536];
            session.read(0, &mut bytes).unwrap();
            assert!(bytes == file[..65_536]);
        }
        assert!(std::fs::read(&base).unwrap() == file);
    }
}

#[test]
fn a_session_on_workers_moves_the_same_bytes() {
    let folder = Folder::new();
    let path = folder.qed("a.qed", 1 << 20, None);
    let config = Config::default().backend(quod::BackendKind::Threads).timing(true);
    let mut model = vec![0; 1 << 20];
    let mut session = Session::with_config(&path, writable(), config).unwrap();
    scribble(&mut session, &mut model, 77, 100);
    let stats = session.stats().unwrap();
    assert!(stats.counters.allocations > 0 && stats.bytes_written > 0 && stats.errors == 0);
    assert!(session.driver().hold().histogram().len() > 100);
    session.resize(2 << 20).unwrap();
    assert_eq!(session.info().unwrap().virtual_size(), 2 << 20);
    session.quiesce().unwrap();
    session.close().unwrap();
    sound(&path);
}

#[test]
fn a_driver_dropped_in_the_middle_waits_for_its_buffers_and_corrupts_nothing() {
    for backend in [quod::BackendKind::Auto, quod::BackendKind::Threads] {
        let folder = Folder::new();
        let path = folder.qed("a.qed", 8 << 20, None);
        for round in 0..10u64 {
            let mut driver = quod::Driver::new(Config::default().backend(backend)).unwrap();
            let disk = driver.open(&path, writable().direct(true)).unwrap();
            while driver.next_completion().is_none() {
                driver.wait(None).unwrap();
            }
            for number in 0..32u64 {
                let offset = (round * 32 + number) * 9001 % (7 << 20);
                let request = match number % 2 {
                    0 => quod::Request::write(offset, quod::Buffer::zeroed(20_000), number),
                    _ => quod::Request::read(offset, quod::Buffer::zeroed(20_000), number),
                };
                driver.submit(disk, request).map_err(|rejected| rejected.reason).unwrap();
            }
            driver.turn().unwrap();
            drop(driver);
        }
        let report = tools::check(&path, None, Some(Repair::All)).unwrap();
        assert!(report.is_sound(), "{report:?}");
    }
}
