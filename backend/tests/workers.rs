//! Growing a file sets its size: so that direct writes into what it has grown by are done where they are
//! submitted, and not handed to one of the ring's workers.
//!
//! Checks: after a growth the file is as long as was asked, allocated or with holes. What that buys is the
//! file system's: on ext4 (Linux 6.18) writes into space that was allocated ahead wake no worker, writes that
//! make the file longer wake one each; elsewhere the first wake at least no more workers than the second.
//!
//! A worker is a thread of ours that is named after the thread that submits, and that sleeps between two
//! jobs: its voluntary context switches count them.
//!
//! And they run where they are told to, and so do threads of the backends' own.

mod common;
use common::*;
use quod_backend::*;
use std::path::Path;

const BLOCK: usize = 4096;
/// Whose threads are looked at.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

const WRITES: u64 = 200;

/// What the kernel says under this key of threads whose names begin so.
fn told(name: &str, key: &str) -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let named = tasks.filter(|task| {
        std::fs::read_to_string(task.path().join("comm")).is_ok_and(|comm| comm.starts_with(name))
    });
    let value = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        Some(line.trim().to_owned())
    };
    named.filter_map(value).collect()
}

/// The name of the workers of this thread's rings.
fn ring_workers() -> String {
    // SAFETY: no pointers.
    format!("iou-wrk-{}", unsafe { libc::gettid() })
}

/// How often workers of this thread's ring were woken.
fn woken() -> u64 {
    let switches = told(&ring_workers(), "voluntary_ctxt_switches");
    switches.iter().map(|count| count.parse().unwrap_or(0)).sum()
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
    let _alone = alone();
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

#[test]
fn workers_run_where_they_are_told_to() {
    let _alone = alone();
    let dir = temp_dir();
    let mine = told("", "Cpus_allowed_list");
    // the last processor that we may have
    let last: usize = mine[0].rsplit([',', '-']).next().unwrap().parse().unwrap();
    let cpus = CpuSet::default().with(last).unwrap();
    let path = dir.path().join("f");
    std::fs::write(&path, []).unwrap();
    let mut ring = Uring::new(8).unwrap();
    ring.set_worker_cpus(cpus);
    let mut threads = Threads::with_workers(8, 2).unwrap();
    threads.set_worker_cpus(cpus);
    let each: [(&mut dyn Backend, String); 2] =
        [(&mut ring, ring_workers()), (&mut threads, "quod-io".into())];
    for (backend, name) in each {
        let file = open(backend, &path, true, false);
        // more than a ring does itself
        for n in 0..4 {
            assert_eq!(write(backend, file, n << 20, &vec![1; 1 << 20]), Ok(1 << 20));
        }
        let found = told(&name, "Cpus_allowed_list");
        assert!(!found.is_empty() && found.iter().all(|cpus| *cpus == last.to_string()), "{name}: {found:?}");
    }
    assert!(told("", "Cpus_allowed_list").contains(&mine[0]), "this thread runs where it did");
}
