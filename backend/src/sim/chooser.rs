//! The one source of nondeterminism: every decision of the simulation is a choice between `n` numbered
//! alternatives.
//!
//! Knows: numbers. Must never know: what they mean (the [`Choice`] is there for traces and for biased
//! choosers). Invariants: alternative 0 is always the plain one (oldest first, no error, nothing but the
//! durable survives); a question with a single answer is not asked, so that scripts stay short.

/// What is being decided.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Choice {
    /// Which submitted operation completes next (oldest is 0).
    NextCompletion,
    /// How an operation ends: the last alternative is the fault.
    Result,
    /// How many crash units of a failing write got through.
    Torn,
    /// Is the power cut now? Asked by harnesses.
    Crash,
    /// Which version of a crash unit survives: 0 is the durable one.
    Survive,
    /// Which length survives: 0 is the durable one.
    Length,
    /// What the guest does next. Asked by harnesses.
    Workload,
    /// Anything else that a harness asks.
    Other,
}

/// Decides.
pub trait Chooser {
    /// An index below `n`; `n` is at least 2.
    fn choose(&mut self, what: Choice, n: usize) -> usize;
}

impl<C: Chooser + ?Sized> Chooser for &mut C {
    fn choose(&mut self, what: Choice, n: usize) -> usize {
        (**self).choose(what, n)
    }
}

/// Asks unless there is only one answer.
///
/// # Panics
/// If the chooser answers out of range.
pub fn pick(chooser: &mut dyn Chooser, what: Choice, n: usize) -> usize {
    if n <= 1 {
        return 0;
    }
    let index = chooser.choose(what, n);
    assert!(index < n, "{what:?}: the chooser chose {index} of {n}");
    index
}

/// Pseudorandom (SplitMix64): the same seed, the same run.
#[derive(Clone, Debug)]
pub struct Seeded(u64);

impl Seeded {
    /// From a seed; every number is as good as another.
    pub fn new(seed: u64) -> Seeded {
        Seeded(seed)
    }

    /// Sixty-four pseudorandom bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

impl Chooser for Seeded {
    fn choose(&mut self, _what: Choice, n: usize) -> usize {
        // the high half of a product: unbiased enough for every n that occurs here
        ((u128::from(self.next_u64()) * n as u128) >> 64) as usize
    }
}

/// Written down in advance; 0 past its end. An entry that is too large means the last alternative.
#[derive(Clone, Debug, Default)]
pub struct Script {
    choices: Vec<u32>,
    next: usize,
}

impl Script {
    /// These choices.
    pub fn new(choices: Vec<u32>) -> Script {
        Script { choices, next: 0 }
    }

    /// How many choices were asked for, those past the end included.
    pub fn asked(&self) -> usize {
        self.next
    }
}

impl Chooser for Script {
    fn choose(&mut self, _what: Choice, n: usize) -> usize {
        let choice = self.choices.get(self.next).copied().unwrap_or(0);
        self.next += 1;
        (choice as usize).min(n - 1)
    }
}

/// Always 0: in order, without faults.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fifo;

impl Chooser for Fifo {
    fn choose(&mut self, _what: Choice, _n: usize) -> usize {
        0
    }
}
