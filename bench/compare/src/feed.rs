//! The requests of a work one after the other, for engines whose tasks or threads ask for the next.
//!
//! Knows: works. Must never know: engines.

use crate::workload::{Load, Work};
use quod_bench::load::order::{Order, Places, Sequence};
use quod_bench::trace::{Op, Source, Waits};

/// The byte that is written.
pub const PATTERN: u8 = 90;
/// Of the chances, the same for every engine.
pub const SEED: u64 = 1;

/// One thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Read.
    Read {
        /// Where.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Write [`PATTERN`].
    Write {
        /// Where.
        offset: u64,
        /// Bytes.
        len: usize,
    },
    /// Discard.
    Discard {
        /// Where.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Flush, while others go on.
    Flush,
}

/// What comes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// This.
    Step(Step),
    /// When nothing is in flight any more a flush, and then go on.
    Drain,
    /// Nothing.
    End,
}

/// Where the steps come from.
#[derive(Debug)]
enum Source_ {
    Load { load: Load, places: Places, left: u64, unflushed: u64 },
    List(std::vec::IntoIter<Step>),
}

/// Gives the steps of a work.
#[derive(Debug)]
pub struct Feed(Source_);

impl Feed {
    /// Of a work on an image of this many bytes.
    pub fn new(work: &Work, image_size: u64) -> Result<Feed, String> {
        let list = match *work {
            Work::Load(load) => {
                let sequence = sequence(&load);
                let places = Places::new(sequence, image_size).ok_or("the image is too small")?;
                return Ok(Feed(Source_::Load { load, places, left: load.count, unflushed: 0 }));
            }
            Work::Discard { size, count, .. } => discards(size, count, image_size),
            Work::Trace { count, .. } => trace(count)?,
        };
        Ok(Feed(Source_::List(list.into_iter())))
    }

    /// Takes the next.
    pub fn next(&mut self) -> Next {
        match &mut self.0 {
            Source_::List(list) => list.next().map_or(Next::End, Next::Step),
            Source_::Load { load, places, left, unflushed } => {
                if load.flush_every > 0 && *unflushed == load.flush_every {
                    *unflushed = 0;
                    return if load.drain { Next::Drain } else { Next::Step(Step::Flush) };
                }
                if *left == 0 {
                    return Next::End;
                }
                *left -= 1;
                let next = places.draw();
                let (offset, len) = (next.offset, load.size as usize);
                *unflushed += u64::from(!next.reads);
                Next::Step(if next.reads { Step::Read { offset, len } } else { Step::Write { offset, len } })
            }
        }
    }
}

/// How a load is drawn.
fn sequence(load: &Load) -> Sequence {
    let order = if load.random { Order::Random } else { Order::Steps };
    Sequence { order, offset: 0, step: load.step, size: load.size, reads: load.reads, seed: SEED }
}

/// Everything is discarded in a stride, and then written in order.
fn discards(size: u64, count: u64, image_size: u64) -> Vec<Step> {
    let pieces = image_size / size;
    // odd: each comes once where their number is a power of two
    let discard = |index| Step::Discard { offset: index * 1579 % pieces * size, len: size };
    let write = |index| Step::Write { offset: index % pieces * size, len: size as usize };
    (0..count).map(discard).chain((0..count).map(write)).collect()
}

fn trace(count: u64) -> Result<Vec<Step>, String> {
    let mut reader = Source::Shipped.open(Waits::Micros).map_err(|error| error.to_string())?;
    let mut steps = Vec::new();
    while let Some(record) = reader.next_record().map_err(|error| error.to_string())? {
        let (offset, len) = (record.offset, record.len);
        steps.push(match record.op {
            Op::Read => Step::Read { offset, len: len as usize },
            Op::Write => Step::Write { offset, len: len as usize },
            Op::Trim => Step::Discard { offset, len },
            Op::Sync => Step::Flush,
        });
        if steps.len() as u64 == count {
            break;
        }
    }
    Ok(steps)
}
