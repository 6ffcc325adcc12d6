//! Completing one pending operation: the only place where simulated state changes.
//!
//! Invariant: an operation takes effect at the moment of its completion, entirely, unless a fault says
//! otherwise.

use super::chooser::{Choice, Chooser, pick};
use super::fault::{Aftermath, Fault};
use super::log::Logged;
use super::{Action, Handle, Pending, Sim};
use crate::op::{Completion, Errno, FileId, LockMode, OpenFlags, Output, Proven, Stat, Store};
use std::os::raw::c_int;

fn error(errno: c_int) -> Result<Output, Errno> {
    Err(Errno(errno))
}

impl Sim {
    /// Completes one submitted operation of the chooser's choice. False if there is none.
    pub fn step(&mut self, chooser: &mut dyn Chooser) -> bool {
        if self.submitted == 0 {
            return false;
        }
        let index = pick(chooser, Choice::NextCompletion, self.submitted);
        let pending = self.pending.remove(index);
        self.submitted -= 1;
        let op = pending.op;
        let result = self.execute(pending, chooser);
        self.counters.count(op.kind, &result);
        if let Some(log) = &mut self.log {
            log.push(Logged { op, result, at: self.now });
        }
        self.done.push(Completion { token: op.token, result });
        true
    }

    fn fault(&mut self, pending: &Pending, chooser: &mut dyn Chooser) -> Option<Fault> {
        if self.faults.faults.is_empty() {
            return None;
        }
        let extends = match &pending.action {
            Action::Change { file, entry } => entry.len_after(self.files[*file].len) > self.files[*file].len,
            _ => false,
        };
        let mut fired = None;
        for fault in &mut self.faults.faults {
            let fires = match fault.alternatives(pending.op.kind, pending.op.file, extends) {
                Ok(1) => false,
                // all rules count every operation; only the first that fires is asked
                Ok(n) => fired.is_none() && pick(chooser, Choice::Result, n) == n - 1,
                Err(()) => true,
            };
            if fires && fired.is_none() {
                fired = Some(fault.clone());
            }
        }
        fired
    }

    fn execute(&mut self, pending: Pending, chooser: &mut dyn Chooser) -> Result<Output, Errno> {
        if let Action::Fail(errno) = pending.action {
            return Err(errno);
        }
        let Some(fault) = self.fault(&pending, chooser) else { return self.succeed(pending) };
        match (fault.aftermath, pending.action) {
            (Aftermath::All, action) => drop(self.succeed(Pending { op: pending.op, action })),
            (Aftermath::Torn, Action::Change { file, mut entry }) => {
                // between units of the file: none of them tears
                let (start, unit) = (pending.op.offset, self.crash_unit as u64);
                let (first, end) = (start / unit, start + pending.op.len);
                let units = (end.div_ceil(unit) - first) as usize;
                let stop = (first + pick(chooser, Choice::Torn, units + 1) as u64) * unit;
                let through = stop.clamp(start, end) - start;
                entry.change = entry.change.first_bytes(through);
                entry.reach = entry.reach.min(pending.op.offset + through);
                if through > 0 {
                    self.files[file].complete(entry);
                }
            }
            (Aftermath::DropUnsynced, Action::Sync { file, mark }) => self.files[file].drop_unsynced(mark),
            _ => {}
        }
        Err(fault.errno)
    }

    fn succeed(&mut self, pending: Pending) -> Result<Output, Errno> {
        match pending.action {
            Action::Fail(errno) => Err(errno),
            Action::Open { path, flags } => self.open(&path, flags),
            Action::Stat { file, direct } => Ok(Output::Stat(self.stat(file, direct))),
            Action::Lock { handle, mode } => self.lock(handle, mode),
            Action::Close { handle } => match self.handles.try_remove(handle) {
                Some(_) => Ok(Output::Done),
                None => error(libc::EBADF),
            },
            Action::Read { file, segments } => {
                let file = &self.files[file];
                let mut offset = pending.op.offset;
                let mut left = pending.op.len.min(file.len.saturating_sub(offset));
                let moved = left;
                for segment in segments {
                    let step = left.min(segment.len() as u64);
                    // SAFETY: the segments' maker promised that they are valid until the completion is
                    // reaped.
                    unsafe { file.visible.read(offset, segment.address(), step as usize) };
                    (offset, left) = (offset + step, left - step);
                }
                Ok(Output::Bytes(moved))
            }
            Action::Change { file, entry } => {
                let file = &mut self.files[file];
                if file.options.block_device {
                    if entry.len_after(file.len) > file.len {
                        return error(libc::ENOSPC);
                    }
                    if entry.set.is_some() {
                        return Ok(Output::Done);
                    }
                }
                file.complete(entry);
                match pending.op.kind {
                    super::OpKind::Write => Ok(Output::Bytes(pending.op.len)),
                    _ => Ok(Output::Done),
                }
            }
            Action::Sync { file, mark } => {
                self.files[file].sync(mark);
                Ok(Output::Done)
            }
            Action::Prove { handle, shown } => {
                let Some(handle) = self.handles.get_mut(handle) else { return error(libc::EBADF) };
                let options = self.files[handle.file].options;
                let (holes, zeros) = (options.holes && !options.lies, !options.lies);
                let found = Proven { punch_hole: holes, zero_range: zeros, allocate: true };
                handle.believed = shown.unwrap_or(found);
                Ok(Output::Proven(handle.believed))
            }
        }
    }

    fn open(&mut self, path: &[u8], flags: OpenFlags) -> Result<Output, Errno> {
        let Some(file) = self.find(path) else { return error(libc::ENOENT) };
        let known = self.files[file].options.store == Store::Known;
        let believed = if known { Proven::ALL } else { Proven::NONE };
        let handle = self.handles.insert(Handle { file, flags, lock: LockMode::None, believed });
        Ok(Output::Opened(FileId(handle as u32)))
    }

    fn stat(&self, number: usize, direct: bool) -> Stat {
        let file = &self.files[number];
        let align = |align| if direct { align } else { 1 };
        Stat {
            len: file.len,
            identity: (1, number as u64),
            offset_align: align(file.options.offset_align),
            memory_align: align(file.options.memory_align),
            block_device: file.options.block_device,
            store: file.options.store,
        }
    }

    /// Readers share; a writer shares with readers that tolerate it, and not with writers.
    fn lock(&mut self, index: usize, mode: LockMode) -> Result<Output, Errno> {
        let Some(handle) = self.handles.get(index) else { return error(libc::EBADF) };
        let writes = |mode| mode == LockMode::Write;
        let denies = |mode| matches!(mode, LockMode::Read | LockMode::Write);
        let conflict = self.handles.iter().any(|(other, held)| {
            other != index
                && held.file == handle.file
                && (writes(mode) && denies(held.lock) || denies(mode) && writes(held.lock))
        });
        if conflict {
            return error(libc::EAGAIN);
        }
        self.handles[index].lock = mode;
        Ok(Output::Done)
    }
}
