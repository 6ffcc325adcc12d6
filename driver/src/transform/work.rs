//! What the transforms have in hand: clusters whose compressed bytes are there, clusters that are to become
//! shorter, those that are made, copies.
//!
//! Knows: whose they are, the loan that keeps the input. Must never know: who works on them.

use super::inflate::Progress;
use crate::layer::clusters::Want;
use crate::layer::flight::Place;
use crate::memory::arena::Loan;
use quod_states::IoId;

/// A cluster whose compressed bytes are there.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) place: Place,
    pub(super) cluster: usize,
    pub(super) loan: Loan,
}

/// A request's cluster that is to become shorter.
#[derive(Debug)]
pub(super) struct PackWork {
    pub(super) place: Place,
    pub(super) io: IoId,
    /// Its slot.
    pub(super) request: u32,
    /// For what it becomes.
    pub(super) loan: Loan,
}

/// A cluster whose stream has ended.
#[derive(Debug)]
pub(crate) struct MadeCluster {
    pub(super) work: Work,
    pub(super) progress: Progress,
    /// What a worker made; None: it was made in its place.
    pub(super) contents: Option<Vec<u8>>,
}

/// A cluster that has become so many bytes; None: it does not become shorter.
#[derive(Debug)]
pub(crate) struct MadePack {
    pub(super) work: PackWork,
    pub(super) made: Option<u32>,
}

/// What has come out of a transform.
#[derive(Debug)]
pub(crate) enum Made {
    Cluster(MadeCluster),
    Pack(MadePack),
}

impl Made {
    /// Whose it is.
    pub(crate) fn place(&self) -> Place {
        match self {
            Made::Cluster(made) => made.work.place,
            Made::Pack(made) => made.work.place,
        }
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
