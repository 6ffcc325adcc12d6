//! The system calls that a driver makes, held by the kernel: a session runs in a process that is killed at
//! the first other one.
//!
//! Knows: seccomp(2), the list of docs/embedding.md. Must never know: how the backends make their calls.
#![cfg(target_arch = "x86_64")]

use quod::{
    AllowAll, BackendKind, Buffer, CompletionKind, Config, DiskId, Driver, Format, OpenOptions, Request,
};
use quod_tools::{self as tools, CreateOptions};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// The page that has the list.
const PAGE: &str = "../docs/embedding.md";

macro_rules! numbers {
    ($($name:ident $number:ident),* $(,)?) => { [$((stringify!($name), libc::$number)),*] };
}

/// Numbers of what the list may name.
const NUMBERS: [(&str, i64); 41] = numbers!(
    brk SYS_brk,
    clone3 SYS_clone3,
    close SYS_close,
    eventfd2 SYS_eventfd2,
    exit SYS_exit,
    exit_group SYS_exit_group,
    fallocate SYS_fallocate,
    fcntl SYS_fcntl,
    fdatasync SYS_fdatasync,
    fstatfs SYS_fstatfs,
    ftruncate SYS_ftruncate,
    futex SYS_futex,
    getrandom SYS_getrandom,
    getpriority SYS_getpriority,
    gettid SYS_gettid,
    io_uring_enter SYS_io_uring_enter,
    io_uring_register SYS_io_uring_register,
    io_uring_setup SYS_io_uring_setup,
    ioctl SYS_ioctl,
    lseek SYS_lseek,
    madvise SYS_madvise,
    mmap SYS_mmap,
    mprotect SYS_mprotect,
    mremap SYS_mremap,
    munmap SYS_munmap,
    openat SYS_openat,
    ppoll SYS_ppoll,
    poll SYS_poll,
    prctl SYS_prctl,
    preadv SYS_preadv,
    pwritev SYS_pwritev,
    read SYS_read,
    restart_syscall SYS_restart_syscall,
    rseq SYS_rseq,
    rt_sigprocmask SYS_rt_sigprocmask,
    sched_getaffinity SYS_sched_getaffinity,
    set_robust_list SYS_set_robust_list,
    setpriority SYS_setpriority,
    sigaltstack SYS_sigaltstack,
    statx SYS_statx,
    write SYS_write,
);

/// The calls that the page lists for a backend, with those of every process.
fn listed(backend: &str) -> Vec<i64> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("System calls")).unwrap();
    let rows =
        section.lines().filter(|row| row.starts_with("| memory") || row.starts_with(&format!("| {backend}")));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let number = |name: &str| NUMBERS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let numbers: Vec<i64> = names.map(|name| number(name).unwrap_or_else(|| panic!("{name}?"))).collect();
    assert!(numbers.len() > 10, "{backend}: {numbers:?}");
    numbers
}

/// From here on this thread, and those that it makes, are killed with the whole process at any other call.
fn allow_only(calls: &[i64]) {
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let end = |action| step(libc::BPF_RET | libc::BPF_K, 0, 0, action);
    // the number of the call is the first word
    let mut program = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (at, call) in calls.iter().enumerate() {
        let allowed = (calls.len() - at) as u8;
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, allowed, 0, *call as u32));
    }
    program.extend([end(libc::SECCOMP_RET_KILL_PROCESS), end(libc::SECCOMP_RET_ALLOW)]);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the program is read within the call.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

fn ends(driver: &mut Driver) -> CompletionKind {
    loop {
        driver.turn().unwrap();
        if let Some(done) = driver.next_completion() {
            done.result.unwrap();
            return done.kind;
        }
        let mut poll = libc::pollfd {
            fd: std::os::fd::AsRawFd::as_raw_fd(&driver.as_fd()),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = driver.next_timeout().map_or(-1, |time| time.as_micros().div_ceil(1000) as i32);
        // SAFETY: one entry, which outlives the call.
        unsafe { libc::poll(&mut poll, 1, millis) };
    }
}

fn run(driver: &mut Driver, disk: DiskId, request: Request) {
    driver.submit(disk, request).unwrap();
    ends(driver);
}

/// What a guest does in a life, on every format.
fn session(folder: &Path, kind: BackendKind) {
    let mut driver = Driver::new(Config::default().backend(kind)).unwrap();
    for direct in [false, true] {
        for name in ["raw", "qed", "qcow2", "packed"] {
            let options = OpenOptions::new().write(true).direct(direct).open_gate(AllowAll).commit_ms(1);
            let disk = driver.open(folder.join(name), options).unwrap();
            ends(&mut driver);
            for offset in [0, 70_000, 1 << 20] {
                run(&mut driver, disk, Request::write(offset, Buffer::from(&[7; 9000][..]), 1));
            }
            run(&mut driver, disk, Request::read(0, Buffer::zeroed(2 << 20), 1));
            run(&mut driver, disk, Request::write_zeroes(1 << 16, 1 << 16, 1).may_unmap());
            run(&mut driver, disk, Request::write_zeroes(1000, 3000, 1));
            run(&mut driver, disk, Request::discard(1 << 20, 1 << 16, 1));
            run(&mut driver, disk, Request::flush(1));
            run(&mut driver, disk, Request::write(1 << 19, Buffer::from(&[7; 512][..]), 1).fua());
            let size = driver.disk_info(disk).unwrap().virtual_size();
            if name != "qed" {
                run(&mut driver, disk, Request::resize(size + (1 << 20), 1));
            }
            driver.wait(Some(Duration::from_millis(5))).unwrap();
            run(&mut driver, disk, Request::close(1));
        }
    }
}

/// The images of a session; some of their clusters are compressed, some lie in a backing file.
fn images(folder: &Path) {
    std::fs::write(folder.join("raw"), vec![5; 2 << 20]).unwrap();
    let backing = Some((folder.join("base").display().to_string(), Some(Format::Raw)));
    std::fs::write(folder.join("base"), vec![6; 2 << 20]).unwrap();
    for (name, format) in [("qed", Format::Qed), ("qcow2", Format::Qcow2)] {
        let options = CreateOptions { backing: backing.clone(), ..CreateOptions::new(format, 2 << 20) };
        tools::create(folder.join(name), &options).unwrap();
    }
    let mut convert = Command::new("qemu-img");
    convert.args(["convert", "-c", "-O", "qcow2", "-f", "raw", "raw", "packed"]).current_dir(folder);
    assert!(convert.status().unwrap().success(), "qemu-img must be installed for this test");
}

#[test]
#[ignore = "the tests below run it in a process of its own"]
fn a_life_under_the_filter() {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let (backend, folder) = (variable("QUOD_BACKEND"), variable("QUOD_FOLDER"));
    let kind = if backend == "io_uring" { BackendKind::Uring } else { BackendKind::Threads };
    let calls = listed(&backend);
    allow_only(&calls);
    session(Path::new(&folder), kind);
    // SAFETY: ends the process. What the test program does after a test is not the driver's.
    unsafe { libc::_exit(42) };
}

/// How a life ends whose filter allows what the page lists.
fn life(backend: &str) -> Option<i32> {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    images(folder.path());
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--ignored", "--exact", "a_life_under_the_filter"]);
    again.env("QUOD_BACKEND", backend).env("QUOD_FOLDER", folder.path());
    let output = again.output().unwrap();
    output.status.code()
}

#[test]
fn the_page_lists_all_calls() {
    for backend in ["io_uring", "threads"] {
        assert_eq!(life(backend), Some(42), "{backend}: a call that the page does not list");
    }
}

#[test]
fn a_call_that_is_not_listed_ends_the_process() {
    assert_eq!(life("nothing"), None, "killed by a signal");
}
