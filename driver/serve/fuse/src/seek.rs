//! The search for data or a hole (lseek(2), SEEK_DATA and SEEK_HOLE), as a walk over the layers of a disk.
//!
//! Knows: runs, layers, their sizes. Must never know: who asks whom, when.
//! Invariant: each step is one question about one layer, and comes nearer to the end of the disk or to the
//! last layer; so a walk ends, and takes no memory.

use quod::Status;

/// What is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    Data,
    Hole,
}

/// A walk under way: what is to be asked next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Walk {
    wanted: Wanted,
    /// Bytes of the disk.
    size: u64,
    pub layer: usize,
    pub offset: u64,
    /// As far as the layers above have nothing.
    pub len: u64,
}

/// What comes of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Ask `layer` about `offset` and `len`.
    Ask,
    /// It begins here.
    Found(u64),
    /// There is none up to the end of the disk.
    Nothing,
}

impl Walk {
    /// From `offset` on; None: that is not in the disk.
    pub fn new(wanted: Wanted, offset: u64, size: u64) -> Option<Walk> {
        let len = size.checked_sub(offset).filter(|len| *len > 0)?;
        Some(Walk { wanted, size, layer: 0, offset, len })
    }

    /// The answer to what was asked last: what the layer has there, and how much of it. `sizes` are those of
    /// the layers, from the image down.
    pub fn answer(&mut self, status: Status, len: u64, sizes: &[u64]) -> Step {
        // a run of no bytes would be no step
        let len = len.clamp(1, self.len);
        let below = sizes.get(self.layer + 1).and_then(|size| size.checked_sub(self.offset));
        match status {
            Status::Unallocated if below.is_some_and(|below| below > 0) => {
                self.layer += 1;
                self.len = len.min(below.unwrap_or(0));
                return Step::Ask;
            }
            Status::Data | Status::Compressed if self.wanted == Wanted::Data => {
                return Step::Found(self.offset);
            }
            Status::Zero | Status::Unallocated if self.wanted == Wanted::Hole => {
                return Step::Found(self.offset);
            }
            _ => {}
        }
        self.offset += len;
        (self.layer, self.len) = (0, self.size.saturating_sub(self.offset));
        match self.wanted {
            _ if self.len > 0 => Step::Ask,
            // every file ends with a hole
            Wanted::Hole => Step::Found(self.size),
            Wanted::Data => Step::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Status::{Compressed, Data, Unallocated, Zero};

    /// Layers as runs that begin at 0; what a walk finds, and in how many steps.
    fn walk(layers: &[&[(u64, Status)]], wanted: Wanted, from: u64) -> (Option<u64>, usize) {
        let size = |runs: &[(u64, Status)]| runs.iter().map(|(len, _)| len).sum::<u64>();
        let sizes: Vec<u64> = layers.iter().map(|runs| size(runs)).collect();
        let Some(mut walk) = Walk::new(wanted, from, sizes[0]) else { return (None, 0) };
        for step in 1..1000 {
            let (offset, end) = (walk.offset, walk.offset + walk.len);
            assert!(walk.len > 0 && end <= sizes[walk.layer], "{walk:?} of {sizes:?}");
            let mut at = 0;
            let run = layers[walk.layer].iter().find(|(len, _)| {
                at += len;
                at > offset
            });
            let (_, status) = run.unwrap();
            match walk.answer(*status, at.min(end) - offset, &sizes) {
                Step::Ask => {}
                Step::Found(offset) => return (Some(offset), step),
                Step::Nothing => return (None, step),
            }
        }
        panic!("it does not end");
    }

    #[test]
    fn one_layer_is_what_it_says() {
        let layer: &[&[(u64, Status)]] = &[&[(10, Data), (10, Unallocated), (10, Compressed), (10, Zero)]];
        for (wanted, from, found) in [
            (Wanted::Data, 0, Some(0)),
            (Wanted::Data, 5, Some(5)),
            (Wanted::Data, 10, Some(20)),
            (Wanted::Data, 30, None),
            (Wanted::Data, 40, None),
            (Wanted::Data, u64::MAX, None),
            (Wanted::Hole, 0, Some(10)),
            (Wanted::Hole, 15, Some(15)),
            (Wanted::Hole, 20, Some(30)),
            (Wanted::Hole, 40, None),
        ] {
            assert_eq!(walk(layer, wanted, from).0, found, "{wanted:?} from {from}");
        }
        assert_eq!(walk(&[&[(10, Data)]], Wanted::Hole, 3).0, Some(10), "every file ends with a hole");
    }

    #[test]
    fn what_shows_through_counts() {
        let top: &[(u64, Status)] = &[(10, Unallocated), (10, Zero), (20, Unallocated), (60, Unallocated)];
        // shorter than the layers above it
        let base: &[(u64, Status)] = &[(5, Zero), (20, Data), (5, Unallocated), (5, Data)];
        let layers = [top, &[(100, Unallocated)], base];
        for (wanted, from, found) in [
            (Wanted::Data, 0, Some(5)),
            (Wanted::Hole, 5, Some(10)),
            (Wanted::Data, 10, Some(20)),
            (Wanted::Hole, 20, Some(25)),
            (Wanted::Data, 25, Some(30)),
            (Wanted::Hole, 30, Some(35)),
            (Wanted::Data, 35, None),
        ] {
            let (offset, steps) = walk(&layers, wanted, from);
            assert_eq!(offset, found, "{wanted:?} from {from}");
            assert!(steps < 15, "{steps} steps");
        }
    }

    #[test]
    fn runs_of_no_bytes_do_not_hold_a_walk() {
        let mut walk = Walk::new(Wanted::Data, 0, 3).unwrap();
        let steps: Vec<Step> = (0..3).map(|_| walk.answer(Zero, 0, &[3])).collect();
        assert_eq!(steps, [Step::Ask, Step::Ask, Step::Nothing]);
    }
}
