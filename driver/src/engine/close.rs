//! The end of a disk: its files are closed, and then its completion is delivered.
//!
//! Knows: a disk's files and how many of its operations are in flight. Must never know: why it ends.
//! Invariant: nothing is closed while an operation of the disk is in flight.

use super::Engine;
use crate::completion::Ended;
use crate::layer::disk::{Closing, Phase};
use crate::layer::flight::{Flight, FlightTask, NO_IO, Target};
use quod_backend::{Backend, Op};

impl<B: Backend> Engine<B> {
    /// The disk goes away; `ended` is delivered when its files are closed.
    pub(super) fn begin_close(&mut self, index: u32, ended: Ended) {
        let disk = &mut self.disks[index as usize];
        for layer in &mut disk.layers {
            layer.deadlines = [None; 2];
        }
        let closing = Closing { ended, sent: false, left: disk.files.len() };
        disk.phase = Phase::Closing(Box::new(closing));
        self.try_close(index);
    }

    /// Closes the files of a disk that is going away, once nothing of it is in flight.
    #[inline]
    pub(super) fn try_close(&mut self, index: u32) {
        if matches!(self.disks[index as usize].phase, Phase::Closing(_)) {
            self.close_files(index);
        }
    }

    #[inline(never)]
    fn close_files(&mut self, index: u32) {
        let disk = &mut self.disks[index as usize];
        let Phase::Closing(closing) = &mut disk.phase else { return };
        if closing.sent || disk.flights > 0 {
            return;
        }
        closing.sent = true;
        if closing.left == 0 {
            return self.closed(index);
        }
        for (file, _) in &disk.files {
            let flight = Flight { disk: index, target: Target::Close, io: NO_IO, task: FlightTask::Close };
            self.port.send(flight, Op::Close { file: *file });
        }
    }

    /// A file was closed. Its error, if any, changes nothing: what had to be durable was synced before.
    pub(super) fn file_closed(&mut self, index: u32) {
        if let Phase::Closing(closing) = &mut self.disks[index as usize].phase {
            closing.left -= 1;
            if closing.left == 0 {
                self.closed(index);
            }
        }
    }

    fn closed(&mut self, index: u32) {
        let disk = &mut self.disks[index as usize];
        if let Phase::Closing(closing) = std::mem::replace(&mut disk.phase, Phase::Vacant) {
            disk.vacate();
            self.vacant.push(index);
            self.complete(closing.ended);
        }
    }
}
