//! The embedding examples, run.

#[path = "../examples/epoll_loop.rs"]
mod epoll_loop;
#[path = "../examples/guest_memory.rs"]
mod guest_memory;
#[path = "../examples/mio_loop.rs"]
mod mio_loop;
#[path = "../examples/readme.rs"]
mod readme;
#[path = "../examples/tokio_loop.rs"]
mod tokio_loop;

use std::path::PathBuf;

fn raw_image(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    path
}

#[test]
fn mio_loop_moves_a_raw_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw_image(&folder);
    mio_loop::run(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 2 << 20);
    assert!(bytes[..1 << 20].chunks(64 << 10).enumerate().all(|(i, b)| b.iter().all(|&x| x == i as u8 + 1)));
    assert!(bytes[1 << 20..].iter().all(|&byte| byte == 0));
}

#[test]
fn epoll_loop_moves_a_raw_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw_image(&folder);
    epoll_loop::run(&path).unwrap();
    assert!(std::fs::read(&path).unwrap()[100..].starts_with(b"written, read and flushed"));
}

#[test]
fn tokio_loop_moves_a_raw_image() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw_image(&folder);
    tokio_loop::run(&path).unwrap();
    assert!(std::fs::read(&path).unwrap()[5000..].starts_with(b"written and read back under tokio"));
}

#[test]
fn guest_memory_is_moved_without_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw_image(&folder);
    guest_memory::run(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert!(bytes[512..8704].chunks(32).enumerate().all(|(i, b)| b.iter().all(|&x| x == i as u8)));
}

/// The kernel takes rings down behind the back of the thread that had them, and interrupts its next wait.
#[test]
fn the_loop_of_the_readme_runs_and_runs() {
    // in memory, if there is a file system of that kind: it is the loop that is tested
    let folder = ["/dev/shm", "/tmp"].into_iter().find(|path| std::path::Path::new(path).is_dir());
    let mut again = std::process::Command::new(std::env::current_exe().unwrap());
    again.args(["--ignored", "--exact", "five_hundred_rounds"]).env("TMPDIR", folder.unwrap());
    assert!(again.status().unwrap().success());
}

#[test]
#[ignore = "the test above runs it"]
fn five_hundred_rounds() {
    for round in 0..500 {
        readme::main().unwrap_or_else(|error| panic!("round {round}: {error}"));
    }
}

#[test]
fn the_readme_shows_the_loop_that_runs() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let (readme, example) = (text("../README.md"), text("examples/readme.rs"));
    let shown = readme.split("```").find_map(|block| block.strip_prefix("rust\n")).unwrap();
    let (_header, code) = example.split_once("\n\n").unwrap();
    assert_eq!(code.replace("pub fn main()", "fn main()"), shown);
}
