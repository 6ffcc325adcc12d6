//! A process that has confined itself cannot do what it has given up: each half alone, and both.
//!
//! Knows: what an intruder would try. Must never know: how it is kept from it.

use super::{Needs, confine, give_up_calls, give_up_files};
use quod::{BackendKind, Config, Driver};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;

/// What was possible, by name. Needs the folder of the test with the sockets `s` and a file `f`.
fn possible(file: &mut File, port: u16) -> Vec<&'static str> {
    let tries: [(&'static str, bool); 12] = [
        ("open", File::open("/etc/passwd").is_ok()),
        ("open the image again", File::open("f").is_ok()),
        ("make", File::create("new").is_ok()),
        ("list", std::fs::read_dir(".").is_ok()),
        ("exec", Command::new("/bin/true").status().is_ok()),
        ("connect", UnixStream::connect("s").is_ok()),
        ("connect tcp", TcpStream::connect(("127.0.0.1", port)).is_ok()),
        ("listen", UnixListener::bind("t").is_ok()),
        ("remove elsewhere", std::fs::remove_file("other/f").is_ok()),
        ("a ring", Driver::new(Config::default().backend(BackendKind::Uring)).is_ok()),
        ("share memory", memfd_create("m", MemfdFlags::CLOEXEC).is_ok()),
        ("write", file.write_all(b"x").is_ok()),
    ];
    let thread = std::thread::spawn(|| File::open("/etc/passwd").is_ok());
    let mut done: Vec<&str> = tries.into_iter().filter(|(_, done)| *done).map(|(name, _)| name).collect();
    match thread.join() {
        Ok(true) => done.push("open by a thread"),
        Ok(false) => done.push("a thread"),
        Err(_) => {}
    }
    if std::fs::remove_file("s").is_ok() {
        done.push("remove the socket");
    }
    done
}

#[test]
#[ignore = "the test below runs it in a process of its own"]
fn confined() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    std::env::set_current_dir(variable("QUOD_FOLDER")).unwrap();
    let _listener = UnixListener::bind("s").unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut file = File::options().write(true).open("f").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let folders = [PathBuf::from(".").canonicalize().unwrap()];
    let needs = match variable("QUOD_NEEDS").as_str() {
        "vhost-user" => Needs::VHOST_USER,
        "mount" => Needs::MOUNT,
        _ => Needs::NBD,
    };
    let lacking = match variable("QUOD_CONFINE").as_str() {
        "files" => give_up_files(&folders).err().into_iter().collect(),
        "calls" => give_up_calls(needs).err().into_iter().collect(),
        "both" => confine(needs, &folders, || Ok::<(), ()>(())).unwrap(),
        _ => Vec::new(),
    };
    assert_eq!(lacking, [""; 0]);
    println!("possible: {:?}", possible(&mut file, port));
}

/// What a process can do that has given up so much.
fn life(needs: &str, confine: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // a folder beside that of the socket
    let (sockets, beside) = (folder.path().join("sockets"), folder.path().join("beside"));
    std::fs::create_dir(&sockets).unwrap();
    std::fs::create_dir(&beside).unwrap();
    std::fs::write(sockets.join("f"), "").unwrap();
    std::fs::write(beside.join("f"), "").unwrap();
    std::os::unix::fs::symlink(&beside, sockets.join("other")).unwrap();
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--ignored", "--exact", "cmd::sandbox::tests::confined", "--nocapture"]);
    again.env("QUOD_FOLDER", &sockets).env("QUOD_CONFINE", confine).env("QUOD_NEEDS", needs);
    let output = again.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text.lines().find_map(|line| line.split_once("possible: ")).map(|(_, told)| told.to_string());
    told.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_confined_process_serves_and_does_nothing_else() {
    let everything = life("", "nothing");
    for name in ["open", "make", "exec", "connect", "connect tcp", "listen", "a ring", "open by a thread"] {
        assert!(everything.contains(&format!("\"{name}\"")), "{name}: {everything}");
    }
    for needs in ["nbd", "mount"] {
        assert_eq!(life(needs, "both"), "[\"write\", \"a thread\", \"remove the socket\"]", "{needs}");
    }
    let shared = "[\"share memory\", \"write\", \"a thread\", \"remove the socket\"]";
    assert_eq!(life("vhost-user", "both"), shared);
    // each half by itself; unlinking is a call that serving takes, UNIX sockets are no files of Landlock's
    let calls = life("nbd", "calls");
    assert_eq!(calls, "[\"remove elsewhere\", \"write\", \"a thread\", \"remove the socket\"]");
    let files = life("nbd", "files");
    for name in ["open", "make", "exec", "connect tcp", "listen", "remove elsewhere", "open by a thread"] {
        assert!(!files.contains(&format!("\"{name}\"")), "{name}: {files}");
    }
}
