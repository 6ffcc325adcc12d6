//! Which discards of a device are commands, on loop devices. Needs root.

#[path = "../../../tests/common/device.rs"]
mod block;

use super::super::work::{Next, Work};
use super::super::{Uring, setup};
use crate::op::{Errno, FileId, Op, OpenFlags, Output, Token};
use crate::sys::SysTask;
use crate::{Backend, Completion};
use block::{LoopDevice, OLD};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// A ring that has the device open; on a kernel that has commands of files or pretends to have none.
fn with_device(commands: bool, device: &LoopDevice) -> (Uring, FileId) {
    let mut ring = setup::build(8).unwrap();
    ring.supported.commands &= commands;
    let mut ring = Uring::with_ring(ring, 8).unwrap();
    let path = CString::new(device.path().as_os_str().as_bytes()).unwrap();
    let flags = OpenFlags { write: true, direct: false, claim: false };
    let (opened, _) = run(&mut ring, Op::Open { path, flags });
    let Ok(Output::Opened(file)) = opened else { panic!("{opened:?}") };
    (ring, file)
}

/// What an operation answered, and whether a worker was asked.
fn run(ring: &mut Uring, op: Op) -> (Result<Output, Errno>, bool) {
    ring.push(Token(1), op).unwrap();
    let mut out: Vec<Completion> = Vec::new();
    let mut by_worker = false;
    while ring.reap(&mut out) == 0 {
        by_worker |= !ring.core.jobs.is_empty() || ring.helped > 0;
        ring.wait(Some(Duration::from_millis(1))).unwrap();
    }
    assert_eq!(out.len(), 1);
    (out[0].result, by_worker)
}

/// Linux 6.12 and later.
fn kernel_has_it() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map_while(|part| part.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

#[test]
fn a_device_is_discarded_by_a_command_or_a_worker() {
    for commands in [true, false] {
        let device = LoopDevice::new(1 << 20, 512);
        let (mut ring, file) = with_device(commands, &device);
        let (result, by_worker) = run(&mut ring, Op::Discard { file, offset: 512, len: 65536 });
        assert_eq!(result, Ok(Output::Done));
        assert_eq!(by_worker, !commands || !kernel_has_it(), "commands {commands}");
        // a loop device makes holes, so that what was discarded is seen
        let bytes = std::fs::read(device.path()).unwrap();
        for (i, byte) in bytes.iter().enumerate() {
            let gone = (4096..65536).contains(&i);
            assert_eq!(*byte, if gone { 0 } else { OLD }, "byte {i}, commands {commands}");
        }
        device.grow(2 << 20);
        let (result, _) = run(&mut ring, Op::Discard { file, offset: 1 << 20, len: 1 << 20 });
        assert_eq!(result, Ok(Output::Done), "of what it has grown by");
        assert_eq!(std::fs::read(device.path()).unwrap()[1 << 20..], [0; 1 << 20]);
        if commands {
            let none = run(&mut ring, Op::Discard { file, offset: 512, len: 4096 });
            assert_eq!(none, (Ok(Output::Done), false), "no whole block: nothing to do");
        }
    }
}

/// The ring is told what kernels answer that have no such command, and devices that do not want it now.
#[test]
fn a_refused_command_is_a_workers_and_an_unknown_one_is_not_tried_again() {
    let device = LoopDevice::new(1 << 20, 512);
    let (mut ring, file) = with_device(true, &device);
    let context = &mut ring.core.context;
    for (errno, again) in [(libc::EINVAL, true), (libc::EBUSY, true), (libc::EOPNOTSUPP, false)] {
        let mut work = context.begin(Op::Discard { file, offset: 512, len: 65536 }).unwrap();
        assert!(matches!(context.issue(&mut work), Next::Entry(_)), "before {errno}");
        let Next::Job(SysTask::On { op, .. }) = context.after(&mut work, -errno) else { panic!("{errno}") };
        let same = matches!(op, Op::Discard { offset: 4096, len: 61440, .. });
        assert!(same, "{errno} handed over {op:?}");
        let next = context.begin(Op::Discard { file, offset: 0, len: 8192 }).unwrap();
        assert_eq!(matches!(next, Work::Discard { .. }), again, "after {errno}");
    }
    let (result, by_worker) = run(&mut ring, Op::Discard { file, offset: 0, len: 65536 });
    assert_eq!((result, by_worker), (Ok(Output::Done), true));
    assert_eq!(std::fs::read(device.path()).unwrap()[..65536], [0; 65536]);
}
