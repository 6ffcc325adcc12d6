//! Checks: what both models can judge, they judge alike.

use super::blocks::{self, Change, Initial};
use super::exact::{self, Fill, View};
use super::payload::{self, BLOCK, SECTOR};
use super::verdict::Verdict;
use proptest::prelude::*;
use std::ops::Range;

const SEED: u64 = 42;
const BLOCKS: u64 = 12;

/// A request in flight, by its name in either model.
enum InFlight {
    Read { blocks: Range<u64>, ticket: blocks::Ticket, since: u64 },
    Change { ticket: blocks::Ticket, index: u32 },
}

struct Both {
    blocks: blocks::Model,
    exact: exact::Model,
    in_flight: Vec<InFlight>,
    versions: u32,
}

impl Both {
    fn new() -> Both {
        Both {
            blocks: blocks::Model::new(BLOCKS * SECTOR, SEED, Initial::Zeros),
            exact: exact::Model::new(vec![0; BLOCKS as usize * BLOCK]),
            in_flight: Vec::new(),
            versions: 0,
        }
    }

    fn read(&mut self, blocks: Range<u64>) {
        let (ticket, since) = (self.blocks.begin_read(blocks.clone()), self.exact.tick());
        self.in_flight.push(InFlight::Read { blocks, ticket, since });
    }

    fn change(&mut self, blocks: Range<u64>, change: Change) {
        let (start, end) = (blocks.start * SECTOR, blocks.end * SECTOR);
        let (ticket, version) = self.blocks.begin_change(blocks, change);
        let fill = if change == Change::Write { Fill::Data(version.into()) } else { Fill::Zero };
        let index = self.exact.submit(start, end, fill, change == Change::Discard);
        self.versions = version;
        self.in_flight.push(InFlight::Change { ticket, index });
    }

    /// Ends one; a read finds `version` (0: zeros), and both say the same to it, block by block.
    fn end(&mut self, which: usize, ok: bool, version: u32) -> Result<(), TestCaseError> {
        match self.in_flight.swap_remove(which) {
            InFlight::Change { ticket, index } => {
                self.blocks.finish_change(ticket, ok);
                self.exact.end(index, ok, false);
            }
            InFlight::Read { blocks, ticket, since } => {
                let bytes = labelled(&blocks, version);
                let verdict = self.blocks.finish_read(ticket, &bytes);
                let judge = |block: &u64| !self.allows(*block, version, View::Live(since));
                let wrong = blocks.filter(judge).count();
                prop_assert_eq!(verdict.wrong, wrong as u64, "{:?}", verdict.mismatches);
            }
        }
        Ok(())
    }

    /// Does the exact model?
    fn allows(&self, block: u64, version: u32, view: View) -> bool {
        let (start, end) = (block * SECTOR, block * SECTOR + SECTOR);
        let bytes = if version == 0 { vec![0; BLOCK] } else { payload::bytes(version.into(), start, end) };
        self.exact.check_sector(block, &bytes, view).is_ok()
    }

    /// With nothing in flight both allow the same versions everywhere.
    fn agree(&mut self) -> Result<(), TestCaseError> {
        let now = self.exact.tick();
        for block in 0..BLOCKS {
            for version in 0..=self.versions {
                let mut verdict = Verdict::default();
                self.blocks.verify(block, &labelled(&(block..block + 1), version), &mut verdict);
                let allowed = self.allows(block, version, View::Live(now));
                prop_assert_eq!(verdict.wrong == 0, allowed, "block {} version {}", block, version);
            }
        }
        Ok(())
    }
}

fn labelled(blocks: &Range<u64>, version: u32) -> Vec<u8> {
    let mut bytes = vec![0; (blocks.end - blocks.start) as usize * BLOCK];
    if version > 0 {
        payload::fill_labelled(&mut bytes, SEED, blocks.start, version);
    }
    bytes
}

proptest! {
    #[test]
    fn the_models_agree(steps in prop::collection::vec((0..8u8, 0..BLOCKS, 1..5u64, any::<u16>()), 1..60)) {
        let mut both = Both::new();
        for (kind, start, count, dice) in steps {
            let blocks = start..(start + count).min(BLOCKS);
            match kind {
                0 | 1 => both.read(blocks),
                2 | 3 => both.change(blocks, Change::Write),
                4 => both.change(blocks, Change::Zero),
                5 => both.change(blocks, Change::Discard),
                _ if !both.in_flight.is_empty() => {
                    let which = usize::from(dice) % both.in_flight.len();
                    let version = u32::from(dice >> 4) % (both.versions + 1);
                    both.end(which, dice & 8 == 0, version)?;
                }
                _ => {}
            }
            while both.in_flight.len() > 4 {
                both.end(0, true, both.versions)?;
            }
        }
        while !both.in_flight.is_empty() {
            both.end(0, true, both.versions)?;
        }
        both.agree()?;
    }
}
