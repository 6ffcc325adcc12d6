//! Pools of a worker that counts: bounds, signals, the end.

use super::*;
use std::sync::atomic::AtomicUsize;

/// Answers with how many tasks it has done, the mask of signals that it blocks, and how nice it is.
#[derive(Default)]
struct Counter(usize);

impl Worker for Counter {
    type Task = Arc<AtomicUsize>;
    type Answer = (usize, u64, i32);
    const NAME: &'static str = "quod-count";
    const STACK: usize = 64 << 10;
    const NICE: i32 = 3;

    fn perform(&mut self, task: Arc<AtomicUsize>) -> (usize, u64, i32) {
        self.0 += 1;
        task.fetch_add(1, Ordering::Relaxed);
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        std::thread::sleep(Duration::from_millis(2));
        (self.0, u64::from_str_radix(mask.trim(), 16).unwrap(), niceness())
    }
}

/// Of the calling thread.
fn niceness() -> i32 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    // the 19th, and the second, a name in brackets, may have spaces
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(16).unwrap().parse().unwrap()
}

/// The signals from 1 on that a program can block and that the C library does not keep for itself.
fn all_signals() -> u64 {
    let kept = [libc::SIGKILL, libc::SIGSTOP, 32, 33];
    (1..=64).filter(|signal| !kept.contains(signal)).map(|signal| 1 << (signal - 1)).sum()
}

fn pool(first: usize, most: usize) -> Pool<Counter> {
    Pool::with_event(Arc::new(EventFd::new().unwrap()), Crew { first, most, cpus: None }).unwrap()
}

#[test]
fn threads_are_bounded_and_get_no_signals() {
    let (mut pool, done) = (pool(1, 3), Arc::new(AtomicUsize::new(0)));
    assert_eq!(pool.workers.len(), 1);
    let (mut answers, mut count) = (Vec::new(), 0);
    for _ in 0..10 {
        pool.submit(&mut vec![Arc::clone(&done); 8]);
        pool.reinforce();
        assert!(pool.workers.len() <= 3 && pool.is_busy());
    }
    assert_eq!(pool.workers.len(), 3, "they were too few");
    let nicer = (niceness() + Counter::NICE).min(19);
    while pool.is_busy() {
        pool.sleep(Some(Duration::from_secs(60))).unwrap();
        pool.shared.event.clear();
        pool.collect(&mut answers);
        for (_, mask, nice) in answers.drain(..) {
            count += 1;
            assert_eq!(nice, nicer);
            assert_eq!(mask & all_signals(), all_signals(), "{mask:x}");
        }
    }
    assert_eq!((count, done.load(Ordering::Relaxed)), (80, 80));
}

#[test]
fn the_starting_thread_keeps_its_signals() {
    let mask = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigBlk:")).unwrap().to_string()
    };
    let before = mask();
    let pool = pool(2, 2);
    assert_eq!(mask(), before);
    drop(pool);
}

#[test]
fn a_dropped_pool_has_ended() {
    let done = Arc::new(AtomicUsize::new(0));
    let mut pool = pool(2, 2);
    pool.submit(&mut vec![Arc::clone(&done); 100]);
    drop(pool);
    // nobody holds a task any more: those that ran have ended, the others were dropped
    assert_eq!(Arc::strong_count(&done), 1);
    assert!(done.load(Ordering::Relaxed) <= 100);
}
