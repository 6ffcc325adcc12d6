//! The work on snapshots, or bitmaps, as the image holds it: asked for, waited for, under way.
//!
//! Knows: which acb waits for it. Must never know: what is done.
//!
//! Invariant: one acb waits while it works, and nobody before or after.

use super::Edit;
use super::ask::Task;
use crate::base::queue::Queue;

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Editing {
    ask: Task,
    begun: bool,
    edit: Option<Edit>,
    waiter: Queue,
}

impl Editing {
    pub(crate) const fn new(ask: Task) -> Editing {
        Editing { ask, begun: false, edit: None, waiter: Queue::new() }
    }

    /// What is asked.
    pub(crate) const fn ask(&self) -> &Task {
        debug_assert!(self.begun || self.edit.is_none(), "it works when it has begun");
        &self.ask
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

    /// It begins to.
    pub(crate) fn work(&mut self, begin: impl FnOnce(Task) -> Edit) {
        debug_assert!(self.edit.is_none() && !self.waiter.is_empty(), "once, and somebody waits for it");
        self.edit = Some(begin(self.ask.clone()));
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
