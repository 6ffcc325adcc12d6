//! qcow2 images whose guest data is in a file of its own: who may open it, what is opened, locked and closed.

#[path = "differential/qemu.rs"]
#[allow(dead_code, reason = "shared with the tests of QED")]
mod qemu;

use qemu::{arg, good};
use quod::{
    AllowAll, Config, Driver, Error, ErrorKind, FileRole, Lack, Lock, Named, OpenOptions, Role, SameDirectory,
};
use quod_backend::FileId;
use quod_backend::sim::{FileOptions, OpKind, Seeded, Sim};
use quod_tools::Session;
use std::path::{Path, PathBuf};

const SIZE: u64 = 4 << 20;

/// A folder with "image.qcow2", whose data file is "image.data".
fn images(more: &str) -> (tempfile::TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (image, data) = (folder.path().join("image.qcow2"), folder.path().join("image.data"));
    let options = format!("data_file={}{more}", arg(&data));
    good("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &options, arg(&image), &SIZE.to_string()]);
    (folder, image, data)
}

fn failure(image: &Path, options: OpenOptions) -> Error {
    match Session::open(image, options) {
        Ok(_) => panic!("{} was opened", image.display()),
        Err(error) => error,
    }
}

#[test]
fn the_gate_is_asked_and_the_file_is_shown() {
    let (_folder, image, data) = images("");
    let name = arg(&data).to_string();
    let refused = Error::of(&image, FileRole::Image, ErrorKind::NotAllowed { name: name.clone() });
    assert_eq!(failure(&image, OpenOptions::new()), refused);
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = asked.clone();
    let gate = move |named: &Named<'_>| {
        notes.lock().unwrap().push((named.image.to_path_buf(), named.name.to_vec(), named.role));
        named.path()
    };
    let session = Session::open(&image, OpenOptions::new().open_gate_fn(gate)).unwrap();
    assert_eq!(*asked.lock().unwrap(), [(image.clone(), name.clone().into_bytes(), Role::Data)]);
    let layers = session.info().unwrap().layers();
    assert_eq!((layers.len(), &layers[0].path), (1, &image));
    assert_eq!(layers[0].data_file.as_ref(), Some(&data));
    assert_eq!(layers[0].info.data_file.as_deref(), Some(name.as_bytes()));
    assert!(!layers[0].info.data_file_raw);
    session.close().unwrap();
    Session::open(&image, OpenOptions::new().open_gate(SameDirectory)).unwrap().close().unwrap();
}

#[test]
fn the_embedder_may_name_the_file_itself() {
    let (folder, image, data) = images(",data_file_raw=on");
    let moved = folder.path().join("moved");
    std::fs::rename(&data, &moved).unwrap();
    let error = failure(&image, OpenOptions::new().open_gate(AllowAll));
    assert_eq!((error.path(), error.role()), (Some(&*data), Some(FileRole::Data)));
    assert!(matches!(error.kind(), Some(ErrorKind::Io { errno: libc::ENOENT, .. })), "{error:?}");
    // without asking the gate
    let session = Session::open(&image, OpenOptions::new().data_file(&moved)).unwrap();
    let layer = &session.info().unwrap().layers()[0];
    assert_eq!((layer.data_file.as_ref(), layer.info.data_file_raw), (Some(&moved), true));
    session.close().unwrap();
}

/// The extension that names the data file comes to be one that nobody knows.
fn forget_name(image: &Path) {
    let mut bytes = std::fs::read(image).unwrap();
    let named = 0x4441_5441_u32.to_be_bytes();
    let at = bytes[..4096].windows(4).position(|four| four == named).unwrap();
    bytes[at..at + 4].copy_from_slice(b"none");
    std::fs::write(image, bytes).unwrap();
}

#[test]
fn a_file_that_the_image_does_not_name_is_the_embedder_s_to_name() {
    let (_folder, image, data) = images("");
    forget_name(&image);
    let error = failure(&image, OpenOptions::new().open_gate(AllowAll));
    let unnamed = ErrorKind::Unsupported(Lack::UnnamedDataFile);
    assert_eq!((error.path(), error.kind()), (Some(&*image), Some(&unnamed)));
    assert!(error.to_string().ends_with("a qcow2 external data file that the header does not name"));
    let mut session = Session::open(&image, OpenOptions::new().write(true).data_file(&data)).unwrap();
    session.write(0, &[7; 4096]).unwrap();
    session.close().unwrap();
    assert_eq!(std::fs::read(&data).unwrap()[..4096], [7; 4096]);
}

#[test]
fn what_it_names_must_be_another_file() {
    let (_folder, image, data) = images("");
    std::fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink(&image, &data).unwrap();
    for options in [OpenOptions::new().open_gate(AllowAll), OpenOptions::new().data_file(&image)] {
        match failure(&image, options) {
            Error::File { path: by, kind: ErrorKind::BackingLoop { .. }, .. } => assert_eq!(by, image),
            other => panic!("{other:?}"),
        }
    }
    // nor one that stands elsewhere in the chain
    let (folder, base, data) = images("");
    let top = folder.path().join("top.qcow2");
    let options = format!("data_file={}", arg(&folder.path().join("top.data")));
    let backing = ["-b", arg(&base), "-F", "qcow2"];
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    args.extend(backing);
    args.push(arg(&top));
    good("qemu-img", &args);
    let session = Session::open(&top, OpenOptions::new().open_gate(AllowAll)).unwrap();
    let files: Vec<_> =
        session.info().unwrap().layers().iter().map(|layer| layer.data_file.clone()).collect();
    assert_eq!(files, [Some(folder.path().join("top.data")), Some(data.clone())]);
    session.close().unwrap();
    let error = failure(&top, OpenOptions::new().open_gate(AllowAll).data_file(&data));
    assert_eq!(error, Error::of(&base, FileRole::Backing(1), ErrorKind::BackingLoop { repeated: data }));
}

#[test]
fn a_file_without_a_name_is_refused_and_no_name_is_a_protocol_s() {
    let (_folder, image, data) = images("");
    let good = std::fs::read(&image).unwrap();
    let at = good.windows(4).position(|bytes| bytes == 0x4441_5441u32.to_be_bytes()).unwrap();
    let mut bytes = good.clone();
    bytes[at..at + 4].copy_from_slice(&0x1234_5678u32.to_be_bytes());
    std::fs::write(&image, &bytes).unwrap();
    match failure(&image, OpenOptions::new().open_gate(AllowAll)) {
        Error::File { kind: ErrorKind::Unsupported(lack), .. } => {
            assert!(lack.to_string().contains("data file"), "{lack}")
        }
        other => panic!("{other:?}"),
    }
    let mut bytes = good;
    bytes[at + 8..at + 12].copy_from_slice(b"nbd:");
    std::fs::write(&image, &bytes).unwrap();
    // QEMU too takes it for the name of a file, in whatever folder it runs
    match failure(&image, OpenOptions::new().open_gate(AllowAll)) {
        Error::File { path, kind: ErrorKind::Io { errno: libc::ENOENT, .. }, .. } => {
            assert!(path.starts_with("nbd:"), "{path:?}")
        }
        other => panic!("{other:?}"),
    }
    match failure(&image, OpenOptions::new().open_gate(SameDirectory)) {
        Error::File { path: by, kind: ErrorKind::Ambiguous { here, beside, .. }, .. } => {
            assert!(by == image && here.starts_with("nbd:") && beside.starts_with(image.parent().unwrap()));
        }
        other => panic!("{other:?}"),
    }
    Session::open(&image, OpenOptions::new().data_file(data)).unwrap().close().unwrap();
}

#[test]
fn it_is_locked_like_the_image_and_let_go_with_it() {
    let (_folder, image, data) = images("");
    let reads = || OpenOptions::new().open_gate(AllowAll);
    let writes = || OpenOptions::new().format(Some(quod::Format::Raw)).write(true);
    let reader = Session::open(&image, reads()).unwrap();
    assert_eq!(failure(&data, writes()), Error::of(&data, FileRole::Image, ErrorKind::Locked(Lock::Write)));
    reader.close().unwrap();
    let writer = Session::open(&data, writes()).unwrap();
    assert_eq!(failure(&image, reads()), Error::of(&data, FileRole::Data, ErrorKind::Locked(Lock::Read)));
    Session::open(&image, reads().lock(false)).unwrap().close().unwrap();
    writer.close().unwrap();
    Session::open(&data, writes()).unwrap().close().unwrap();
    Session::open(&image, reads()).unwrap().close().unwrap();
}

#[test]
fn unallocated_clusters_read_as_zeros() {
    let (_folder, image, _data) = images("");
    for direct in [false, true] {
        let mut session =
            Session::open(&image, OpenOptions::new().open_gate(AllowAll).direct(direct)).unwrap();
        let mut bytes = vec![9; 100_000];
        session.read(77, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
        session.close().unwrap();
    }
}

#[test]
fn the_stricter_alignment_of_the_two_counts() {
    let (_folder, image, _data) = images("");
    let bytes = std::fs::read(&image).unwrap();
    for (mine, theirs, want) in [(512, 512, 512), (4096, 512, 4096), (512, 4096, 4096)] {
        let mut sim = Sim::new();
        sim.record_log(true);
        let options = |offset_align| FileOptions { offset_align, ..FileOptions::default() };
        sim.insert_file("disk", &bytes, options(mine));
        sim.insert_sparse("data", SIZE, options(theirs));
        let mut driver = Driver::with_backend(sim, Config::default()).unwrap();
        driver.open("disk", OpenOptions::new().direct(true).data_file("data")).unwrap();
        let mut order = Seeded::new(1);
        let done = loop {
            driver.turn().unwrap();
            driver.backend_mut().step(&mut order);
            if let Some(done) = driver.next_completion() {
                break done;
            }
        };
        done.result.unwrap();
        // the machine that runs is the last that read the header, a block of it at first
        let log = driver.backend().log().iter().map(|entry| entry.op);
        let reads = log.filter(|op| (op.kind, op.file, op.offset) == (OpKind::Read, Some(FileId(0)), 0));
        let lens: Vec<u64> = reads.map(|op| op.len).collect();
        assert_eq!(lens[lens.len() - 2], want, "{mine} {theirs}: {lens:?}");
        assert_eq!(lens.len(), if want == u64::from(mine) { 2 } else { 4 });
    }
}

/// Guest data as QEMU wrote it, read by us. The offsets are beyond the end of the image file.
#[test]
fn the_guest_data_is_read_from_it() {
    for (n, more) in ["", ",data_file_raw=on", ",extended_l2=on", ",cluster_size=4k"].into_iter().enumerate()
    {
        let (_folder, image, data) = images(more);
        let writes =
            ["write -P 1 0 5000", "write -P 2 1M 200k", "write -P 3 4193280 1k", "write -z 1100k 64k"];
        let mut args = vec!["-f", "qcow2"];
        writes.iter().for_each(|write| args.extend(["-c", write]));
        args.push(arg(&image));
        good("qemu-io", &args);
        let raw = image.with_extension("raw");
        good("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", arg(&image), arg(&raw)]);
        let model = std::fs::read(&raw).unwrap();
        assert!(model[1 << 20] == 2 && model[SIZE as usize - 1] == 3);
        let options = OpenOptions::new().open_gate(AllowAll).direct(n % 2 == 1);
        let mut session = Session::open(&image, options).unwrap();
        let mut bytes = vec![9; SIZE as usize];
        session.read(0, &mut bytes).unwrap();
        assert!(bytes == model, "{more}");
        session.read((1 << 20) - 77, &mut bytes[..1000]).unwrap();
        assert!(bytes[..1000] == model[(1 << 20) - 77..][..1000]);
        session.close().unwrap();
        if more.contains("raw") {
            assert!(std::fs::read(&data).unwrap() == model);
        }
    }
}
