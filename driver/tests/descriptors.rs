//! Disks whose files are open already.
//!
//! Checks: on both backends a chain is opened from descriptors alone, under names that lead nowhere, and the
//! names are those of errors and of the disk's layers; what a descriptor may not do is refused; nothing else
//! is opened; the descriptors are closed with the disk.

use quod::{
    Allowed, BackendKind, Buffer, CompletionKind, Config, DiskId, Driver, Error, ErrorKind, FileOp, Format,
    Named, OpenGate, OpenOptions, Request,
};
use quod_tools::{self as tools, CreateOptions};
use std::fs::{File, OpenOptions as FileOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BACKENDS: [BackendKind; 2] = [BackendKind::Auto, BackendKind::Threads];

fn driver(kind: BackendKind) -> Driver {
    Driver::new(Config::default().backend(kind)).unwrap()
}

fn next(driver: &mut Driver) -> (CompletionKind, Result<(), Error>) {
    loop {
        driver.wait(None).unwrap();
        if let Some(done) = driver.next_completion() {
            return (done.kind, done.result);
        }
    }
}

fn open(driver: &mut Driver, fd: impl Into<OwnedFd>, options: OpenOptions) -> (DiskId, Result<(), Error>) {
    let disk = driver.open_fd(fd, "/nowhere/image", options).unwrap();
    (disk, next(driver).1)
}

fn run(driver: &mut Driver, disk: DiskId, request: Request) -> Option<Buffer> {
    driver.submit(disk, request).unwrap();
    let (kind, result) = next(driver);
    result.unwrap();
    kind.into_buffers().and_then(quod::Buffers::into_owned)
}

/// Gives what it has for every name.
struct Given(Vec<File>);

impl OpenGate for Given {
    fn allow(&mut self, _named: &Named<'_>) -> Option<PathBuf> {
        panic!("the driver asks for a file, not for a path")
    }

    fn give(&mut self, named: &Named<'_>) -> Option<Allowed> {
        assert_eq!(named.image, Path::new("/nowhere/image"));
        let name = Path::new("/nowhere/either").to_path_buf();
        self.0.pop().map(|file| Allowed::Fd { fd: file.into(), name })
    }
}

fn both(path: &Path) -> File {
    FileOptions::new().read(true).write(true).open(path).unwrap()
}

/// Files that this process has open by that path.
fn holders(path: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links.filter(|link| std::fs::read_link(link.path()).is_ok_and(|to| to == path)).count()
}

#[test]
fn a_chain_is_opened_from_descriptors_alone() {
    for kind in BACKENDS {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let (image, base) = (folder.join("image"), folder.join("base"));
        std::fs::write(&base, [5; 65536]).unwrap();
        let backing = Some(("base".to_string(), Some(Format::Raw)));
        tools::create(&image, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) })
            .unwrap();
        let mut driver = driver(kind);
        let options = OpenOptions::new().write(true).open_gate(Given(vec![File::open(&base).unwrap()]));
        let (disk, result) = open(&mut driver, both(&image), options);
        result.unwrap();
        let names: Vec<PathBuf> =
            driver.disk_info(disk).unwrap().layers().iter().map(|layer| layer.path.clone()).collect();
        assert_eq!(names, [Path::new("/nowhere/image"), Path::new("/nowhere/either")]);
        run(&mut driver, disk, Request::write(512, Buffer::from(&[7; 512][..]), 1));
        let read = run(&mut driver, disk, Request::read(0, Buffer::zeroed(1024), 2)).unwrap();
        assert!(read.as_slice()[..512] == [5; 512] && read.as_slice()[512..] == [7; 512]);
        assert_eq!((holders(&image), holders(&base)), (1, 1), "{kind:?}");
        // locks are those of any other opening
        let mut other = Driver::new(Config::default().backend(kind)).unwrap();
        let (_, result) = open(&mut other, both(&image), OpenOptions::new().write(true));
        assert!(matches!(result.unwrap_err().kind(), Some(ErrorKind::Locked(_))));
        run(&mut driver, disk, Request::close(3));
        drop((driver, other));
        assert_eq!((holders(&image), holders(&base)), (0, 0), "{kind:?}");
        let (_, result) = open(&mut self::driver(kind), both(&image), OpenOptions::new());
        assert!(matches!(result.unwrap_err().kind(), Some(ErrorKind::NotAllowed { .. })));
    }
}

#[test]
fn what_a_descriptor_may_not_do_is_refused() {
    for kind in BACKENDS {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, [1; 4096]).unwrap();
        let mut driver = driver(kind);
        let mut refused = |fd: OwnedFd, write| {
            let (_, result) = open(&mut driver, fd, OpenOptions::new().write(write));
            let error = result.unwrap_err();
            assert_eq!(error.path(), Some(Path::new("/nowhere/image")));
            match error.kind() {
                Some(ErrorKind::Io { op: FileOp::Open, errno }) => *errno,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(refused(File::open(&path).unwrap().into(), true), libc::EACCES);
        let only = FileOptions::new().write(true).open(&path).unwrap();
        assert_eq!(refused(only.into(), false), libc::EACCES);
        let end = FileOptions::new().read(true).append(true).open(&path).unwrap();
        assert_eq!(refused(end.into(), true), libc::EINVAL);
        let name = FileOptions::new().read(true).custom_flags(libc::O_PATH).open(&path).unwrap();
        assert_eq!(refused(name.into(), false), libc::EBADF);
        let (pipe, _other) = std::io::pipe().unwrap();
        assert!(refused(pipe.into(), false) != 0);
        assert_eq!(refused(File::open(folder.path()).unwrap().into(), false), libc::EISDIR);
        let given = both(&path);
        let number = given.as_raw_fd();
        assert_eq!(driver.open_fd(given, "", OpenOptions::new()), Err(Error::Misuse("an empty path")));
        // the number is nobody's, or somebody else's
        let link = std::fs::read_link(format!("/proc/self/fd/{number}"));
        assert!(link.map_or(true, |to| to != path.canonicalize().unwrap()), "it was closed");
    }
}

#[test]
fn o_direct_is_the_descriptor_s_or_the_option_s() {
    for (kind, asked) in BACKENDS.into_iter().flat_map(|kind| [(kind, false), (kind, true)]) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, [3; 65536]).unwrap();
        let flags = if asked { 0 } else { libc::O_DIRECT };
        let file = FileOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let Ok(file) = file else { return }; // a file system without it
        let mut driver = driver(kind);
        let options = OpenOptions::new().write(true).direct(asked).format(Some(Format::Raw));
        let (disk, result) = open(&mut driver, file, options);
        result.unwrap();
        run(&mut driver, disk, Request::write(100, Buffer::from(&[9; 1000][..]), 1));
        let read = run(&mut driver, disk, Request::read(99, Buffer::zeroed(1002), 2)).unwrap();
        assert!(read.as_slice()[0] == 3 && read.as_slice()[1..1001] == [9; 1000]);
        assert_eq!(read.as_slice()[1001], 3);
        run(&mut driver, disk, Request::close(3));
    }
}
