//! The scaffold of a machine that goes a step at a time, as openings and checks do: the step it is at, the
//! one I/O that this step waits for, and the result.
//!
//! Knows: that a step waits for one I/O, or for a machine inside it, and that the last one leaves a result.
//! Must never know: which steps there are, or which follows which.
//!
//! Invariants:
//! * one I/O is in flight at a time, under an id of its own: a stale completion is not taken for its;
//! * a completion is taken once, and none after the end;
//! * there is a result exactly when the machine has ended, and it is given out once.

use crate::error::Error;
use crate::io::{Io, IoId, IoOp};

/// See the module's header. `S`: the steps, `T`: what is there in the end.
#[derive(Clone, Debug)]
pub(crate) struct Steps<S, T> {
    /// None: between two steps, or ended.
    step: Option<S>,
    /// Of the last I/O.
    generation: u32,
    out: Option<IoOp>,
    result: Option<Result<T, Error>>,
    ended: bool,
}

impl<S, T> Steps<S, T> {
    /// Before the first step.
    pub(crate) const fn new() -> Steps<S, T> {
        Steps { step: None, generation: 0, out: None, result: None, ended: false }
    }

    /// Where the machine is; None: nowhere, it has ended.
    pub(crate) const fn step(&self) -> Option<&S> {
        debug_assert!(!self.ended || self.step.is_none(), "no step behind the last one");
        self.step.as_ref()
    }

    /// The same, for the machine inside it.
    pub(crate) const fn step_mut(&mut self) -> Option<&mut S> {
        debug_assert!(!self.ended || self.step.is_none(), "no step behind the last one");
        self.step.as_mut()
    }

    const fn id(&self) -> IoId {
        IoId { index: 0, generation: self.generation }
    }

    /// Goes to a step that waits for this I/O.
    pub(crate) fn emit(&mut self, step: S, op: IoOp) {
        self.enter(step);
        self.generation = self.generation.wrapping_add(1);
        self.out = Some(op);
        debug_assert!(self.step.is_some() && !self.ended);
    }

    /// Goes to a step that names no I/O itself: a machine inside it does.
    pub(crate) fn enter(&mut self, step: S) {
        debug_assert!(!self.ended, "a step behind the last one");
        debug_assert!(self.out.is_none(), "the step before is not yet done with its I/O");
        self.step = Some(step);
    }

    /// The next I/O.
    pub(crate) fn poll_io(&mut self) -> Option<Io> {
        debug_assert!(self.step.is_some() || self.ended, "a step was left and nothing came next");
        self.out.take().map(|op| Io { id: self.id(), op })
    }

    /// The I/O with this id ended: leaves the step that waited for it. None: none did.
    pub(crate) fn answered(&mut self, id: IoId) -> Option<S> {
        debug_assert!(self.out.is_none() || self.step.is_some(), "a step waits for what it names");
        if id != self.id() || self.out.is_some() {
            return None;
        }
        self.leave()
    }

    /// Leaves the step, whatever it waited for.
    pub(crate) const fn leave(&mut self) -> Option<S> {
        debug_assert!(self.out.is_none(), "the step before is not yet done with its I/O");
        self.step.take()
    }

    /// All is done.
    pub(crate) fn end(&mut self, result: Result<T, Error>) {
        debug_assert!(!self.ended, "a second result");
        debug_assert!(self.out.is_none(), "an I/O that nothing would wait for");
        self.step = None;
        self.ended = true;
        self.result = Some(result);
    }

    /// It cannot go on.
    pub(crate) fn fail(&mut self, error: Error) {
        self.end(Err(error));
    }

    /// The result, once.
    pub(crate) const fn poll_result(&mut self) -> Option<Result<T, Error>> {
        debug_assert!(self.result.is_none() || self.ended);
        self.result.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Op;

    const READ: IoOp = IoOp::ReadTable { offset: 0, len: 512 };

    fn at(step: u8) -> Steps<u8, u64> {
        let mut steps = Steps::new();
        steps.emit(step, READ);
        steps
    }

    #[test]
    fn an_io_is_named_once_and_its_end_leaves_the_step_once() {
        let mut steps = at(1);
        let io = steps.poll_io().expect("it was emitted");
        assert_eq!((io.op, steps.step()), (READ, Some(&1)));
        assert_eq!(steps.poll_io(), None);
        assert_eq!(steps.answered(io.id), Some(1));
        assert_eq!((steps.answered(io.id), steps.step()), (None, None));
    }

    #[test]
    fn what_was_not_named_yet_and_what_is_stale_leaves_no_step() {
        let mut steps = at(1);
        let id = steps.poll_io().expect("it was emitted").id;
        assert_eq!(steps.answered(IoId { index: 1, ..id }), None);
        assert_eq!(steps.answered(id), Some(1));
        steps.emit(2, IoOp::Sync);
        let next = IoId { generation: id.generation + 1, ..id };
        assert_eq!(steps.answered(next), None, "nobody has seen it");
        assert_eq!(steps.poll_io(), Some(Io { id: next, op: IoOp::Sync }));
        assert_eq!(steps.answered(id), None, "the one before");
        assert_eq!(steps.answered(next), Some(2));
    }

    #[test]
    fn a_machine_inside_a_step_names_its_own() {
        let mut steps = at(1);
        let id = steps.poll_io().expect("it was emitted").id;
        steps.answered(id);
        steps.enter(7);
        assert_eq!(steps.poll_io(), None);
        *steps.step_mut().expect("it is at a step") += 1;
        assert_eq!(steps.leave(), Some(8));
        steps.end(Ok(3));
        assert_eq!(steps.step(), None);
    }

    #[test]
    fn the_result_is_there_once_and_nothing_is_taken_after_it() {
        let mut steps = at(1);
        assert!(steps.poll_result().is_none());
        let id = steps.poll_io().expect("it was emitted").id;
        steps.fail(Error::Device { op: Op::Check, offset: 0, errno: 5 });
        assert_eq!(steps.answered(id), None);
        assert_eq!(steps.poll_result(), Some(Err(Error::Device { op: Op::Check, offset: 0, errno: 5 })));
        assert_eq!((steps.poll_result(), steps.poll_io()), (None, None));
    }

    #[test]
    #[should_panic(expected = "nothing came next")]
    #[cfg(debug_assertions)]
    fn a_machine_that_goes_nowhere_is_noticed() {
        let mut steps = at(1);
        let id = steps.poll_io().expect("it was emitted").id;
        steps.answered(id);
        steps.poll_io();
    }

    #[test]
    #[should_panic(expected = "not yet done")]
    #[cfg(debug_assertions)]
    fn a_second_io_is_noticed() {
        at(1).emit(2, READ);
    }
}
