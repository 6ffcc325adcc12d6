//! Workers on real threads: everything that was sent comes back, no thread gets a signal.

use super::*;
use crate::layer::flight::Place;
use crate::memory::arena::Arena;
use crate::transform::tests::{deflated, text};
use quod_backend::pool::Crew;
use quod_backend::{Backend, Threads};
use quod_states::qcow2::Compression;

const SIZE: usize = 64 << 10;

#[test]
fn workers_finish_what_they_were_sent_and_say_so() {
    let backend = Threads::new(1).unwrap();
    let mut arena = Arena::new(false);
    let bytes = text(SIZE);
    let packed = deflated(&bytes);
    let mut send = |pool: &mut Workers, number: usize| {
        let end = if number.is_multiple_of(3) { packed.len() / 2 } else { packed.len() };
        let loan = arena.take(end);
        arena.bytes_mut(&loan, end).copy_from_slice(&packed[..end]);
        pool.send(StreamTask {
            stream: Stream::new(Compression::Deflate, 0, end),
            input: arena.segment(&loan, 0, end),
            contents: Vec::new(),
            size: SIZE,
            progress: Progress::More,
            work: Work { place: Place { disk: 0, layer: 0 }, cluster: number, loan },
        });
    };
    let mut pool =
        Workers::new(backend.notify_fd().unwrap(), Crew { first: 1, most: 4, cpus: None }).unwrap();
    for round in 0..20 {
        (0..round).for_each(|number| send(&mut pool, number));
        let mut seen = vec![false; round];
        while pool.is_busy() {
            pool.reinforce();
            while let Some(Task::Inflate(task)) = pool.next() {
                let number = task.work.cluster;
                assert!(!std::mem::replace(&mut seen[number], true));
                let whole = if number.is_multiple_of(3) { Progress::Broken } else { Progress::Whole };
                assert!(task.progress == whole && (number.is_multiple_of(3) || task.contents == bytes));
            }
            if pool.is_busy() {
                pool.sleep(Some(Duration::from_secs(60))).unwrap();
            }
        }
        assert!(seen.iter().all(|&seen| seen));
    }
    // those that run are waited for, before the arena goes
    (0..50).for_each(|number| send(&mut pool, number));
    drop(pool);
}

/// The masks of blocked signals of this process's threads that decompress and compress.
fn masks() -> Vec<u64> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let mask = |thread: std::io::Result<std::fs::DirEntry>| {
        // a thread of another test may have ended meanwhile
        let status = std::fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let field = |name| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let ours = field("Name:")?.starts_with(Codec::NAME);
        ours.then(|| u64::from_str_radix(field("SigBlk:").unwrap(), 16).unwrap())
    };
    threads.filter_map(mask).collect()
}

#[test]
fn workers_get_no_signals() {
    let backend = Threads::new(1).unwrap();
    let mut workers =
        Workers::new(backend.notify_fd().unwrap(), Crew { first: 1, most: 4, cpus: None }).unwrap();
    let mut arena = Arena::new(false);
    let loan = arena.take(1);
    workers.send(StreamTask {
        stream: Stream::new(Compression::Deflate, 0, 1),
        input: arena.segment(&loan, 0, 1),
        contents: Vec::new(),
        size: SIZE,
        progress: Progress::More,
        work: Work { place: Place { disk: 0, layer: 0 }, cluster: 0, loan },
    });
    // a thread that has done something has its name
    while workers.next().is_none() {
        workers.sleep(Some(Duration::from_secs(60))).unwrap();
    }
    let masks = masks();
    assert!(!masks.is_empty(), "there is one worker at least");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGALRM, libc::SIGXFSZ, libc::SIGCHLD, libc::SIGUSR1] {
        assert!(masks.iter().all(|mask| mask >> (signal - 1) & 1 == 1), "signal {signal}: {masks:x?}");
    }
    drop(workers);
}
