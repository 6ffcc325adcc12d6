//! What the transforms have in hand: clusters whose compressed bytes are there, clusters that are made,
//! copies.
//!
//! Knows: whose they are, the loan that keeps the input. Must never know: who works on them.

use super::inflate::Progress;
use crate::layer::clusters::Want;
use crate::layer::flight::Place;
use crate::memory::arena::Loan;

/// A cluster whose compressed bytes are there.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) place: Place,
    pub(super) cluster: usize,
    pub(super) loan: Loan,
}

/// A cluster whose stream has ended.
#[derive(Debug)]
pub(crate) struct Made {
    pub(super) work: Work,
    pub(super) progress: Progress,
    /// What a worker made; None: it was made in its place.
    pub(super) contents: Option<Vec<u8>>,
}

impl Made {
    /// Whose it is.
    pub(crate) fn place(&self) -> Place {
        self.work.place
    }
}

/// A want whose cluster is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copying {
    pub(super) place: Place,
    pub(super) cluster: usize,
    pub(super) want: Want,
    pub(super) done: u64,
}
