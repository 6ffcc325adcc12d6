//! The work on snapshots, or bitmaps, as the image holds it: asked for, waited for, under way.
//!
//! Knows: which acb waits for it, what comes before it. Must never know: what is done.
//!
//! Invariant: one acb waits while it works, and nobody before or after.

use super::Edit;
use super::ask::Task;
use crate::base::queue::Queue;
use alloc::collections::VecDeque;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Editing {
    /// What is asked; None: only what comes before it is done.
    ask: Option<Task>,
    begun: bool,
    /// What is left to do.
    left: VecDeque<Task>,
    edit: Option<Edit>,
    waiter: Queue,
    /// Something was done: the directory of bitmaps as it is now, if it is another one.
    pub(crate) directory: Option<alloc::vec::Vec<u8>>,
}

impl Editing {
    pub(crate) fn new(ask: Option<Task>) -> Editing {
        let left = ask.iter().cloned().collect();
        Editing { ask, begun: false, left, edit: None, waiter: Queue::new(), directory: None }
    }

    /// What is asked.
    pub(crate) const fn ask(&self) -> Option<&Task> {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        self.ask.as_ref()
    }

    /// This comes before it.
    pub(crate) fn first(&mut self, tasks: impl DoubleEndedIterator<Item = Task>) {
        debug_assert!(self.edit.is_none(), "nothing is done yet");
        tasks.rev().for_each(|task| self.left.push_front(task));
    }

    /// Its request was accepted.
    pub(crate) const fn has_begun(&self) -> bool {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        self.begun
    }

    pub(crate) const fn accept(&mut self) {
        debug_assert!(!self.begun, "a request is accepted once");
        self.begun = true;
    }

    /// Its acb waits for it to be done.
    pub(crate) const fn waiter(&self) -> &Queue {
        debug_assert!(self.begun || self.waiter.is_empty(), "nobody waits before");
        &self.waiter
    }

    pub(crate) const fn waiter_mut(&mut self) -> &mut Queue {
        debug_assert!(self.begun, "nobody waits before");
        &mut self.waiter
    }

    /// It works on the file.
    pub(crate) const fn is_working(&self) -> bool {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        self.edit.is_some()
    }

    /// It begins with what comes next; false: all is done.
    pub(crate) fn work(&mut self, begin: impl FnOnce(Task) -> Edit) -> bool {
        debug_assert!(self.edit.is_none() && !self.waiter.is_empty(), "once, and somebody waits for it");
        self.edit = self.left.pop_front().map(begin);
        self.edit.is_some()
    }

    /// A part of it has ended, well or not.
    pub(crate) fn rest(&mut self) {
        debug_assert!(self.edit.is_some(), "it was at work");
        self.edit = None;
    }

    pub(crate) const fn edit(&self) -> Option<&Edit> {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        self.edit.as_ref()
    }

    pub(crate) const fn edit_mut(&mut self) -> Option<&mut Edit> {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        self.edit.as_mut()
    }

    /// It has ended: the list of its acb.
    pub(crate) const fn end(&mut self) -> Queue {
        debug_assert!(self.begun, "what ends has begun");
        core::mem::replace(&mut self.waiter, Queue::new())
    }
}
