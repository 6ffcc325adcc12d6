//! Which operations fail, and how.
//!
//! Knows: kinds of operations, counting. Must never know: content.

use crate::op::{Errno, FileId, Op};

/// An operation without its operands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[allow(missing_docs)] // they are those of `Op`
pub enum OpKind {
    Open,
    Stat,
    Lock,
    Close,
    Read,
    Write,
    Sync,
    ZeroRange,
    PunchHole,
    Grow,
    SetLen,
    Prove,
}

impl OpKind {
    /// How many there are.
    pub const COUNT: usize = 12;

    /// All that change a file's content or length.
    pub const CHANGES: [OpKind; 5] =
        [OpKind::Write, OpKind::ZeroRange, OpKind::PunchHole, OpKind::Grow, OpKind::SetLen];

    /// All that move data or order it.
    pub const DATA: [OpKind; 3] = [OpKind::Read, OpKind::Write, OpKind::Sync];

    /// The kind of an operation.
    pub fn of(op: &Op) -> OpKind {
        match op {
            Op::Open { .. } | Op::Adopt { .. } => OpKind::Open,
            Op::Stat { .. } => OpKind::Stat,
            Op::Lock { .. } => OpKind::Lock,
            Op::Close { .. } => OpKind::Close,
            Op::Read { .. } => OpKind::Read,
            Op::Write { .. } => OpKind::Write,
            Op::Sync { .. } => OpKind::Sync,
            Op::ZeroRange { .. } => OpKind::ZeroRange,
            Op::PunchHole { .. } | Op::Discard { .. } => OpKind::PunchHole,
            Op::Grow { .. } => OpKind::Grow,
            Op::SetLen { .. } => OpKind::SetLen,
            Op::Prove { .. } => OpKind::Prove,
        }
    }

    fn bit(self) -> u16 {
        1 << self as u16
    }
}

/// Which of the operations that a fault is about fail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum When {
    /// Each may: the chooser decides between `n` alternatives, and the last one is failure. 2 for explorers,
    /// 100 for one percent.
    OneIn(usize),
    /// The n-th, counted from 0, once.
    Nth(u64),
    /// The n-th and all that follow.
    From(u64),
}

/// What a failing operation leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Aftermath {
    /// Nothing happened. (A failing sync: what was volatile stays so, and a later sync can succeed.)
    #[default]
    Nothing,
    /// A write got through up to a crash unit that the chooser chooses ([`super::Choice::Torn`]).
    Torn,
    /// It happened entirely, though it reports failure.
    All,
    /// A sync dropped the pages that it could not write, as Linux does: they are lost, reads see the old
    /// content.
    DropUnsynced,
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Fault {
    kinds: u16,
    file: Option<FileId>,
    extending: bool,
    when: When,
    /// How it fails.
    pub errno: Errno,
    /// What it leaves behind.
    pub aftermath: Aftermath,
    seen: u64,
}

impl Fault {
    /// Operations of these kinds fail, when `when` says so, with `errno`.
    pub fn new(kinds: &[OpKind], when: When, errno: i32) -> Fault {
        let kinds = kinds.iter().fold(0, |set, kind| set | kind.bit());
        Fault {
            kinds,
            file: None,
            extending: false,
            when,
            errno: Errno(errno),
            aftermath: Aftermath::Nothing,
            seen: 0,
        }
    }

    /// Only on this file.
    pub fn on(self, file: FileId) -> Fault {
        Fault { file: Some(file), ..self }
    }

    /// Only operations that make their file longer (for ENOSPC).
    pub fn extending(self) -> Fault {
        Fault { extending: true, ..self }
    }

    /// Leaving this behind.
    pub fn leaving(self, aftermath: Aftermath) -> Fault {
        Fault { aftermath, ..self }
    }

    /// Operations of this kind may fail.
    pub fn concerns(&self, kind: OpKind) -> bool {
        self.kinds & kind.bit() != 0
    }

    /// One operation fails at most.
    pub fn is_once(&self) -> bool {
        matches!(self.when, When::Nth(_))
    }

    /// Counts an operation; how many alternatives to choose from: 1 is "no fault", `Err(())` is "fault, do
    /// not ask".
    pub(super) fn alternatives(
        &mut self,
        kind: OpKind,
        file: Option<FileId>,
        extends: bool,
    ) -> Result<usize, ()> {
        if !self.concerns(kind) || (self.file.is_some() && self.file != file) || (self.extending && !extends)
        {
            return Ok(1);
        }
        let number = self.seen;
        self.seen += 1;
        match self.when {
            When::OneIn(n) => Ok(n.max(1)),
            When::Nth(n) if n == number => Err(()),
            When::From(n) if n <= number => Err(()),
            When::Nth(_) | When::From(_) => Ok(1),
        }
    }

    /// How far its counting is from mattering: equal numbers behave equally.
    pub(super) fn state(&self) -> u64 {
        match self.when {
            When::OneIn(_) => 0,
            When::Nth(n) | When::From(n) => (n + 1).saturating_sub(self.seen),
        }
    }
}

/// Rules in order; the first that fires decides.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct FaultPlan {
    pub(super) faults: Vec<Fault>,
}

impl FaultPlan {
    /// Nothing fails.
    pub fn none() -> FaultPlan {
        FaultPlan::default()
    }

    /// With one more rule.
    pub fn and(mut self, fault: Fault) -> FaultPlan {
        self.faults.push(fault);
        self
    }
}

impl From<Fault> for FaultPlan {
    fn from(fault: Fault) -> FaultPlan {
        FaultPlan { faults: vec![fault] }
    }
}
