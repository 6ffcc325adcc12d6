//! Does an event loop ever miss a completion? Edge-triggered epoll through mio on the notification
//! descriptor: every operation wakes the loop, in either order of clearing and submitting. Also: drop with
//! operations in flight, and a ring that moves to another thread.

mod common;
use common::*;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use quod_backend::*;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 100;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Cached,
    Direct,
    Fsync,
    Stat,
    /// A worker answers.
    Lock,
    /// Nobody is asked.
    Refused,
}

/// The order in which an event loop may call: all of them must be safe.
#[derive(Clone, Copy, Debug)]
enum Turn {
    SubmitClearReap,
    ClearSubmitReap,
    /// Submits only to send; collects when woken.
    ClearReapSubmit,
    /// So slow that things finish in between.
    SubmitPauseClearReap,
}

const ORDERS: [Turn; 4] =
    [Turn::SubmitClearReap, Turn::ClearSubmitReap, Turn::ClearReapSubmit, Turn::SubmitPauseClearReap];

fn turn(b: &mut dyn Backend, order: Turn, out: &mut Vec<Completion>) {
    match order {
        Turn::SubmitClearReap => {
            b.submit().unwrap();
            b.clear_notify();
            b.reap(out);
        }
        Turn::ClearSubmitReap => {
            b.clear_notify();
            b.submit().unwrap();
            b.reap(out);
        }
        Turn::ClearReapSubmit => {
            b.clear_notify();
            b.reap(out);
            b.submit().unwrap();
        }
        Turn::SubmitPauseClearReap => {
            b.submit().unwrap();
            std::thread::sleep(Duration::from_micros(500));
            b.clear_notify();
            b.reap(out);
        }
    }
}

struct Loop {
    poll: Poll,
    events: Events,
}

impl Loop {
    fn new(b: &dyn Backend) -> Loop {
        let poll = Poll::new().unwrap();
        let fd = b.notify_fd().unwrap().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), mio::Token(0), Interest::READABLE).unwrap();
        Loop { poll, events: Events::with_capacity(4) }
    }

    /// Sleeps for an event; a lost wake-up panics.
    fn sleep(&mut self, what: &dyn std::fmt::Debug) {
        let start = Instant::now();
        loop {
            match self.poll.poll(&mut self.events, Some(Duration::from_secs(5))) {
                Ok(()) if !self.events.is_empty() => return,
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return,
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < Duration::from_secs(5), "lost wake-up: {what:?}");
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    for mut backend in backends(16) {
        let b = &mut *backend;
        let dir = temp_dir();
        let path = dir.path().join("f");
        std::fs::write(&path, vec![3; 4 << 20]).unwrap();
        let (cached, direct) = (open(b, &path, true, false), open(b, &path, false, true));
        let mut events = Loop::new(b);
        let mut buffer = Buffer::zeroed(65536);
        for order in ORDERS {
            for kind in [Kind::Cached, Kind::Direct, Kind::Fsync, Kind::Stat, Kind::Lock, Kind::Refused] {
                for round in 0..ROUNDS {
                    let offset = round % 60 * 65536;
                    let list = segments(&mut buffer, &[]);
                    let op = match kind {
                        Kind::Cached => Op::Read { file: cached, offset, segments: list },
                        Kind::Direct => Op::Read { file: direct, offset, segments: list },
                        Kind::Fsync => Op::Sync { file: cached },
                        Kind::Stat => Op::Stat { file: cached },
                        Kind::Lock => Op::Lock { file: cached, mode: LockMode::Read },
                        Kind::Refused => Op::Stat { file: FileId(999) },
                    };
                    b.push(Token(round), op).unwrap();
                    let mut out = Vec::new();
                    // every second time the sending turn may collect it already
                    match round % 2 {
                        0 => b.submit().unwrap(),
                        _ => turn(b, order, &mut out),
                    }
                    while out.is_empty() {
                        events.sleep(&(b.name(), order, kind, round));
                        turn(b, order, &mut out);
                    }
                    assert_eq!(out.len(), 1);
                    assert_eq!(out[0].result.is_ok(), !matches!(kind, Kind::Refused));
                }
            }
        }
    }
}

/// Many in flight, sent from inside the turn as a driver does it, with two workers' worth of jobs in between.
#[test]
fn a_busy_loop_finishes() {
    for order in ORDERS {
        for mut backend in backends(16) {
            let b = &mut *backend;
            let dir = temp_dir();
            let path = dir.path().join("f");
            std::fs::write(&path, vec![3; 4 << 20]).unwrap();
            b.time_calls(true);
            let (cached, direct) = (open(b, &path, true, false), open(b, &path, false, true));
            let mut events = Loop::new(b);
            let mut buffers: Vec<Buffer> = (0..16).map(|_| Buffer::zeroed(4096)).collect();
            let mut free: Vec<usize> = (0..16).collect();
            let (mut sent, mut done) = (0u64, 0u64);
            while done < 3000 {
                while sent < 3000
                    && let Some(slot) = free.pop()
                {
                    let list = segments(&mut buffers[slot], &[]);
                    let offset = sent % 1024 * 4096;
                    let op = match sent % 50 {
                        0 => Op::Lock { file: cached, mode: LockMode::None },
                        1 => Op::Sync { file: cached },
                        n if n % 2 == 0 => Op::Read { file: direct, offset, segments: list },
                        _ => Op::Read { file: cached, offset, segments: list },
                    };
                    b.push(Token(slot as u64), op).unwrap();
                    sent += 1;
                }
                let mut out = Vec::new();
                turn(b, order, &mut out);
                if out.is_empty() {
                    events.sleep(&(b.name(), order, sent, done));
                }
                for completion in out {
                    assert!(completion.result.is_ok());
                    free.push(completion.token.0 as usize);
                    done += 1;
                }
            }
            assert_eq!(b.in_flight(), 0);
            let nanos = b.take_syscall_nanos();
            assert!(nanos > 0 && b.take_syscall_nanos() == 0);
        }
    }
}

#[test]
fn drop_waits_for_what_is_in_flight() {
    for round in 0..30u8 {
        for mut backend in backends(64) {
            let b = &mut *backend;
            let dir = temp_dir();
            let path = dir.path().join("f");
            std::fs::write(&path, vec![7; 8 << 20]).unwrap();
            let f = open(b, &path, true, true);
            let mut buffers: Vec<Buffer> = (0..40).map(|_| Buffer::zeroed(128 << 10)).collect();
            for (i, buffer) in buffers.iter_mut().enumerate() {
                let list = segments(buffer, &[]);
                b.push(Token(i as u64), Op::Read { file: f, offset: (i as u64) << 17, segments: list })
                    .unwrap();
            }
            b.push(Token(100), Op::Sync { file: f }).unwrap();
            b.push(Token(101), Op::Lock { file: f, mode: LockMode::Read }).unwrap();
            b.submit().unwrap();
            // one that is never submitted
            b.push(Token(102), Op::SetLen { file: f, len: 0 }).unwrap();
            let _ = b;
            drop(backend);
            // the kernel must not write to them any more
            buffers.iter_mut().for_each(|buffer| buffer.as_mut_slice().fill(round));
            std::thread::sleep(Duration::from_millis(2));
            assert!(buffers.iter().all(|buffer| buffer.as_slice().iter().all(|&x| x == round)));
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 8 << 20);
        }
    }
}

#[test]
fn a_ring_may_move_before_its_first_use() {
    let dir = temp_dir();
    let path = dir.path().join("f");
    std::fs::write(&path, b"hello").unwrap();
    let mut arena = Buffer::zeroed(8192);
    let mut ring = Uring::new(8).unwrap();
    // SAFETY: the arena is dropped after the ring.
    let _ = ring.register_memory(unsafe { arena.segment(0, 8192) });
    let worker = std::thread::spawn(move || {
        let f = open(&mut ring, &path, false, false);
        assert_eq!(read(&mut ring, f, 0, 100).unwrap(), b"hello");
        drop(ring);
    });
    worker.join().unwrap();
    drop(arena);
}

#[test]
fn a_ring_refuses_a_second_thread_and_survives_it() {
    let dir = temp_dir();
    std::fs::write(dir.path().join("f"), b"hello").unwrap();
    let mut ring = Uring::new(8).unwrap();
    let f = open(&mut ring, &dir.path().join("f"), false, false);
    let mut ring = std::thread::spawn(move || {
        ring.push(Token(1), Op::Sync { file: f }).unwrap();
        assert!(ring.submit().is_err());
        ring
    })
    .join()
    .unwrap();
    let mut out = Vec::new();
    while ring.reap(&mut out) == 0 {
        ring.wait(Some(Duration::from_secs(5))).unwrap();
    }
    assert_eq!(out[0].result, Ok(Output::Done));
}
