//! The parts of the work on a persistent bitmap: which there are, and what each does.
//!
//! Knows: the directory, the table and the bits of the one that changes. Must never know: how an I/O is named
//! or answered (`mod.rs`), what comes after all of them (`parts.rs`).
//!
//! Invariant: a part that is stopped goes on where it was: what it has done it does not do again.

use super::ask::Task;
use super::stop::Stop;
use super::{Edit, Part, Region};
use crate::error::Error;
use crate::fault::{By, Fault, ReferenceFault};
use crate::space::counts::Refcounted;

impl Edit {
    /// Works on a part that only bitmaps have, until it is done.
    pub(super) fn go_on_with_bitmap(&mut self, part: Part, counted: &Refcounted) -> Result<(), Stop> {
        debug_assert!(self.is_bitmap(), "snapshots have none of these");
        match part {
            Part::Directory => self.read_directory(counted),
            Part::Keep => {
                self.active = core::mem::take(&mut self.walk.l1);
                Ok(())
            }
            Part::Map => {
                let words = core::mem::take(&mut self.walk.l1);
                self.maps.table_read(&words, &self.header).map_err(Stop::Bad)?;
                let cluster = self.cluster();
                self.maps.pieces().try_for_each(|host| self.check_place(host, cluster, counted))
            }
            Part::Bits => match self.maps.piece(self.at) {
                Some(offset) => Err(Stop::ReadPiece { offset, len: self.cluster() }),
                None => Ok(()),
            },
            Part::PlaceBits => {
                if self.at == 0
                    && let Task::Bitmap(ask) | Task::Store(ask) = &self.ask
                {
                    self.bits_clusters = self.maps.prepare(&ask.change, self.header.cluster_size());
                    self.at = 1;
                }
                self.place(Region::Bits, self.bits_clusters * self.cluster(), counted)
            }
            Part::PlaceMap => {
                let bits = self.placed(Region::Bits).map_or(0, |(host, _)| host);
                let bytes = self.maps.place_bits(bits, self.cluster());
                self.place(Region::Map, bytes, counted)
            }
            _ => {
                debug_assert!(false, "a part of all: {part:?}");
                Ok(())
            }
        }
    }

    /// The directory of bitmaps, and with it what there is to do.
    fn read_directory(&mut self, counted: &Refcounted) -> Result<(), Stop> {
        debug_assert!(self.parts.len() == 1, "nothing is planned yet");
        if let Some((offset, len)) = self.maps.next(&self.header) {
            return Err(Stop::ReadPiece { offset, len });
        }
        let (Task::Bitmap(ask) | Task::Store(ask)) = &self.ask else {
            return Err(Stop::Bad(Error::Misuse("a directory of bitmaps for a snapshot")));
        };
        let stores = matches!(self.ask, Task::Store(_));
        self.maps.change(ask, stores, &self.header).map_err(Stop::Bad)?;
        // where L2 tables lie is known afterwards as it is before
        self.parts.extend([Part::Load(self.header.l1_offset, self.header.l1_entries), Part::Keep]);
        if let Some((offset, entries)) = self.maps.old_table() {
            self.check_place(offset, u64::from(entries) * 8, counted)?;
            self.parts.extend([Part::Load(offset, entries), Part::Map, Part::Bits]);
        }
        self.parts.extend([Part::Blocks, Part::PlaceBits, Part::PlaceMap, Part::PlaceList]);
        self.plan_end();
        Ok(())
    }

    /// What goes lies in what is in use, and on no metadata that is known.
    fn check_place(&self, offset: u64, bytes: u64, counted: &Refcounted) -> Result<(), Stop> {
        let (bits, count) = (self.shape.cluster_bits, bytes.div_ceil(self.cluster()).max(1));
        debug_assert!(offset.is_multiple_of(self.cluster()), "it was validated");
        let first = offset >> bits;
        if first + count > self.end >> bits {
            let (cluster, offset) = (first + count - 1, (first + count - 1) << bits);
            let fault = Fault::Reference { cluster, offset, why: ReferenceFault::Beyond };
            return Err(Stop::Bad(Error::Corrupt(fault)));
        }
        match counted.overlaps_any(offset, count << bits) {
            None => Ok(()),
            Some(with) => {
                let fault = Fault::Overlap { by: By::Bitmap, index: first, at: offset, with };
                Err(Stop::Bad(Error::Corrupt(fault)))
            }
        }
    }
}
