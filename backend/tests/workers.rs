//! Growing a file sets its size: so that direct writes into what it has grown by are done where they are
//! submitted, and not handed to one of the ring's workers.
//!
//! Checks: after a growth the file is as long as was asked, allocated or with holes. What that buys is the
//! file system's: on ext4 (Linux 6.18) writes into space that was allocated ahead wake no worker, writes that
//! make the file longer wake one each; elsewhere the first wake at least no more workers than the second.
//!
//! A worker is a thread of ours that is named after the thread that submits, and that sleeps between two
//! jobs: its voluntary context switches count them.

mod common;
use common::*;
use quod_backend::*;
use std::path::Path;

const BLOCK: usize = 4096;
const WRITES: u64 = 200;

/// How often workers of this thread's ring were woken.
fn woken() -> u64 {
    // SAFETY: no pointers.
    let name = format!("iou-wrk-{}", unsafe { libc::gettid() });
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let ours = tasks.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    let switches = ours.map(|task| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0)
    });
    switches.sum()
}

/// Wakes of workers by so many direct writes, one after the other, from `offset` on.
fn wakes(backend: &mut dyn Backend, file: FileId, offset: u64) -> u64 {
    let before = woken();
    for n in 0..WRITES {
        let bytes = vec![n as u8; BLOCK];
        assert_eq!(write(backend, file, offset + n * BLOCK as u64, &bytes), Ok(BLOCK as u64));
    }
    woken().saturating_sub(before)
}

/// Is it ext4, and what number does it have?
fn file_system(path: &Path) -> (bool, String) {
    let path = c_path(path);
    // SAFETY: zeros are a value of it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid during the call.
    assert_eq!(unsafe { libc::statfs(path.as_ptr(), &mut stat) }, 0);
    (stat.f_type == libc::EXT4_SUPER_MAGIC, format!("{:#x}", stat.f_type))
}

/// The kernel's version, as far as it has two numbers.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.trim().parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[test]
fn what_a_file_has_grown_by_is_written_without_workers() {
    let dir = temp_dir();
    let path = dir.path().join("f");
    std::fs::write(&path, []).unwrap();
    let mut ring = Uring::new(8).unwrap();
    let file = open(&mut ring, &path, true, true);
    let len = WRITES * BLOCK as u64;
    let grow = |from, to, allocate| Op::Grow { file, from, to, allocate };
    assert_eq!(run(&mut ring, grow(0, len, true)), Ok(Output::Done));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), len, "the size is set");
    let inside = wakes(&mut ring, file, 0);
    let extending = wakes(&mut ring, file, len);
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 2 * len);
    assert_eq!(run(&mut ring, grow(2 * len, 3 * len, false)), Ok(Output::Done));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 * len, "and so it is of holes");
    let ((ext4, system), kernel) = (file_system(&path), kernel());
    let told = format!("{inside} and {extending} wakes on file system {system}, Linux {kernel:?}");
    if ext4 && kernel >= (6, 18) {
        assert!(inside < WRITES / 4 && extending >= WRITES / 2, "{told}");
    } else {
        assert!(inside <= extending + WRITES / 4, "{told}");
    }
    println!("{told}");
}
