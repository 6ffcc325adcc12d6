//! The embedding examples, run.

#[path = "../examples/epoll_loop.rs"]
mod epoll_loop;
#[path = "../examples/mio_loop.rs"]
mod mio_loop;

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
