//! Programs in C: compiled against quod.h and the library that cargo has built, and run.
//!
//! Checks:
//! * the examples do what they show, and leave sound images;
//! * every kind of request, and what its completion says (`c/requests.c`), on both backends;
//! * what a careless caller does is refused (`c/hostile.c`), on both backends, and leaks nothing under
//!   valgrind;
//! * the static library does as well as the shared one.
//!
//! Needs gcc, valgrind, pkg-config and GLib's headers, which .ci/test installs.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// Where cargo puts the libraries that it builds with these tests.
fn libraries() -> PathBuf {
    let here = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    assert!(here.join("libquod_capi.so").is_file() && here.join("libquod_capi.a").is_file(), "{here:?}");
    here
}

fn told(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs a program that must succeed; what it says.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {:?}: {}", output.status, told(&output));
    told(&output)
}

/// What pkg-config says of a package.
fn flags(package: &str) -> Vec<String> {
    let text = run(Command::new("pkg-config").args(["--cflags", "--libs", package]));
    text.split_whitespace().map(str::to_string).collect()
}

/// Compiles a source, strictly, and links it to the shared library, or the static one.
fn compile(source: &str, to: &Path, shared: bool, more: &[String]) {
    let libraries = libraries();
    let mut command = Command::new("gcc");
    command.args(["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"]).arg(to);
    command.arg(folder().join(source)).arg("-I").arg(folder().join("include"));
    match shared {
        true => {
            let path = format!("-Wl,-rpath,{}", libraries.display());
            command.arg(libraries.join("libquod_capi.so")).arg(path)
        }
        false => command.arg(libraries.join("libquod_capi.a")).args(["-lm", "-ldl"]),
    };
    run(command.args(more));
}

fn image(folder: &Path, name: &str, format: quod::Format) -> PathBuf {
    let path = folder.join(name);
    quod_tools::create(&path, &quod_tools::CreateOptions::new(format, 8 << 20)).unwrap();
    path
}

/// The first page's two commands: what cargo has built with these tests stands for the first.
#[test]
fn the_commands_of_the_documentation_work() {
    let page = std::fs::read_to_string(folder().join("../../docs/c.md")).unwrap().replace("\\\n", "");
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let block = blocks.into_iter().find(|block| block.starts_with("cargo build")).unwrap();
    let [first, second] = block.lines().collect::<Vec<&str>>()[..] else { panic!("{block}") };
    assert_eq!(first, "cargo build --release -p quod-capi");
    let tree = tempfile::tempdir().unwrap();
    let release = tree.path().join("target/release");
    std::fs::create_dir_all(&release).unwrap();
    std::os::unix::fs::symlink(folder().parent().unwrap(), tree.path().join("driver")).unwrap();
    std::os::unix::fs::symlink(libraries().join("libquod_capi.a"), release.join("libquod_capi.a")).unwrap();
    let text = run(Command::new("sh").args(["-c", second]).current_dir(&tree));
    assert!(text.starts_with("create: 64 MiB\n") && text.contains("\nopen: 67108864 bytes"), "{text}");
    sound(&tree.path().join("disk.qcow2"));
}

/// An image is sound, and nothing of it has leaked.
fn sound(image: &Path) {
    run(Command::new("qemu-img").arg("check").arg(image));
}

fn bytes(image: &Path, offset: u64, len: u64) -> Vec<u8> {
    let raw = image.with_extension("bytes");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(image).arg(&raw));
    let (from, to) = (offset as usize, (offset + len) as usize);
    std::fs::read(raw).unwrap()[from..to].to_vec()
}

#[test]
fn the_epoll_loop_runs() {
    let folder = tempfile::tempdir().unwrap();
    for (name, shared) in [("shared", true), ("static", false)] {
        let program = folder.path().join(name);
        compile("examples/epoll_loop.c", &program, shared, &[]);
        let image = image(folder.path(), &format!("{name}.qcow2"), quod::Format::Qcow2);
        let text = run(Command::new(&program).arg(&image));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].contains("no/such/image: could not open"), "{text}");
        assert!(lines[0].contains("kind 20, errno 2"), "{text}");
        let rest = [
            "open: 8388608 bytes, clusters of 65536",
            "read: written and read back from a bare epoll loop",
            "map: 65536 bytes are data",
            "stats: 45 bytes were written, 45 read",
        ];
        assert_eq!(lines[1..], rest);
        sound(&image);
        assert!(bytes(&image, 100, 60).starts_with(b"written and read back from a bare epoll loop\0"));
    }
}

#[test]
fn the_glib_loop_runs() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("glib_loop");
    compile("examples/glib_loop.c", &program, true, &flags("glib-2.0"));
    let image = image(folder.path(), "disk.qcow2", quod::Format::Qcow2);
    let text = run(Command::new(&program).arg(&image));
    assert_eq!(text, "64 chunks were written and read back; the loop did other work meanwhile: yes\n");
    sound(&image);
    let bytes = bytes(&image, 0, 4 << 20);
    assert!(
        bytes.chunks(64 << 10).enumerate().all(|(n, chunk)| chunk.iter().all(|&byte| byte == n as u8 + 1))
    );
}

#[test]
fn every_request_ends_as_it_should() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("requests");
    compile("tests/c/requests.c", &program, true, &[]);
    for backend in ["auto", "threads"] {
        let image = image(folder.path(), backend, quod::Format::Qcow2);
        let text = run(Command::new(&program).arg(&image).arg(backend));
        assert_eq!(text, "each of them, once\n");
        sound(&image);
    }
}

/// The hostile program, its image, an overlay, and the overlay's base.
fn hostile(folder: &Path) -> [PathBuf; 4] {
    let program = folder.join("hostile");
    compile("tests/c/hostile.c", &program, true, &[]);
    let image = folder.join("image.qcow2");
    quod_tools::create(&image, &quod_tools::CreateOptions::new(quod::Format::Qcow2, 1 << 20)).unwrap();
    let base = self::image(folder, "base.raw", quod::Format::Raw);
    let overlay = folder.join("overlay.qcow2");
    let mut options = quod_tools::CreateOptions::new(quod::Format::Qcow2, 8 << 20);
    options.backing = Some(("base.raw".into(), Some(quod::Format::Raw)));
    quod_tools::create(&overlay, &options).unwrap();
    [program, image, overlay, base]
}

#[test]
fn careless_callers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [program, image, overlay, base] = hostile(folder.path());
    for backend in ["auto", "threads"] {
        let text = run(Command::new(&program).args([&image, &overlay, &base]).arg(backend));
        assert_eq!(text, "refused, all of it\n");
    }
    sound(&image);
}

/// Valgrind knows no io_uring.
#[test]
fn careless_callers_leak_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [program, image, overlay, base] = hostile(folder.path());
    let mut valgrind = Command::new("valgrind");
    valgrind.args([
        "--error-exitcode=99",
        "--leak-check=full",
        "--show-leak-kinds=definite,indirect,possible",
    ]);
    valgrind.args(["--errors-for-leak-kinds=definite,indirect", "--track-fds=no"]);
    let text = run(valgrind.arg(&program).args([&image, &overlay, &base]).arg("threads"));
    assert!(text.contains("refused, all of it"), "{text}");
    assert!(text.contains("ERROR SUMMARY: 0 errors"), "{text}");
    assert!(
        text.contains("All heap blocks were freed") || text.contains("definitely lost: 0 bytes"),
        "{text}"
    );
}
