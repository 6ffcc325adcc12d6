//! May an image be changed? Whether its metadata can be trusted, and whether its header must be
//! written first.
//!
//! Knows: what went wrong first, and how far the autoclear bits are that quod does not keep up. Must never
//! know: what is changed, or which requests wait.
//!
//! Invariants:
//! * `held` is set whenever a change has to wait or cannot be made: requests that change nothing, and those
//!   of an image without such bits, pay for no more than that one test;
//! * nothing that went wrong is forgotten.

use crate::error::Error;
use alloc::format;
use alloc::string::String;

/// Bits of the header's autoclear features that quod does not keep up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Autoclear {
    /// None is set.
    Clear,
    /// Some are: nothing was changed yet.
    Stale,
    /// They are cleared in memory: the next header does it in the file.
    Asked,
    /// It is durable with the sync of the round that closes this window.
    Written(u64),
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Health {
    /// Metadata or a sync failed.
    poison: Option<Error>,
    /// The first corruption that a request has met, of an image that counts its clusters.
    corrupt: Option<Error>,
    autoclear: Autoclear,
    /// Whoever wants to change the image has to ask.
    held: bool,
}

impl Health {
    /// `stale`: the header has autoclear bits that have to go before the first change.
    pub(crate) fn new(stale: bool) -> Health {
        let autoclear = if stale { Autoclear::Stale } else { Autoclear::Clear };
        Health { poison: None, corrupt: None, autoclear, held: stale }
    }

    /// A change has to wait, or cannot be made.
    #[inline]
    pub(crate) fn is_held(&self) -> bool {
        debug_assert!(self.held || !self.is_halted(), "whoever wants to change a halted image has to ask");
        self.held
    }

    /// A failure of metadata or a sync: nothing is written any more.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poison.is_some()
    }

    /// An entry contradicts the format: what was answered is still committed.
    pub(crate) fn is_corrupt(&self) -> bool {
        self.corrupt.is_some()
    }

    /// No change begins, and none that is under way comes to its end.
    #[inline]
    pub(crate) fn is_halted(&self) -> bool {
        self.is_poisoned() || self.is_corrupt()
    }

    /// Why, if so.
    pub(crate) fn reason(&self) -> Option<&Error> {
        self.poison.as_ref().or(self.corrupt.as_ref())
    }

    pub(crate) fn poison(&mut self, error: Error) {
        debug_assert!(self.poison.is_none(), "the first failure ends all writing");
        self.poison = Some(error);
        self.held = true;
    }

    pub(crate) fn found_corrupt(&mut self, error: Error) {
        debug_assert!(!self.is_halted(), "the first corruption ends all changes");
        self.corrupt = Some(error);
        self.held = true;
    }

    /// The bits are there, and nobody has asked yet.
    pub(crate) fn is_stale(&self) -> bool {
        debug_assert!(self.held || self.autoclear != Autoclear::Stale, "the first change has to ask");
        self.autoclear == Autoclear::Stale
    }

    /// None of the bits is there, durably.
    pub(crate) fn is_clear(&self) -> bool {
        self.autoclear == Autoclear::Clear
    }

    /// They are on their way out.
    pub(crate) fn is_clearing(&self) -> bool {
        debug_assert!(self.held || self.is_clear(), "changes wait until the bits are gone");
        matches!(self.autoclear, Autoclear::Asked | Autoclear::Written(_))
    }

    /// They are cleared in memory.
    pub(crate) fn ask(&mut self) {
        debug_assert!(self.is_stale());
        self.autoclear = Autoclear::Asked;
        debug_assert!(self.held, "changes wait until that is durable");
    }

    /// As if that were durable: only where the rule is removed.
    pub(crate) fn clear_at_once(&mut self) {
        debug_assert!(self.is_clearing());
        self.autoclear = Autoclear::Clear;
        self.held = false;
    }

    /// The header is being written, and durable when this window is.
    pub(crate) fn header_emitted(&mut self, window: u64) {
        debug_assert!(window > 0, "a header belongs to a window");
        if self.autoclear == Autoclear::Asked {
            self.autoclear = Autoclear::Written(window);
        }
    }

    /// A sync has ended that covers what was written in the windows up to this one.
    pub(crate) fn synced(&mut self, durable: u64) {
        if let Autoclear::Written(window) = self.autoclear
            && window <= durable
        {
            debug_assert!(self.held, "changes have waited for it");
            self.autoclear = Autoclear::Clear;
            self.held = self.is_halted();
        }
    }

    /// The image rests, and its header says something else than before: `stale` as when it is opened.
    pub(crate) fn renew(&mut self, stale: bool) {
        debug_assert!(!self.is_clearing() && !self.is_halted(), "it rests, in order");
        self.autoclear = if stale { Autoclear::Stale } else { Autoclear::Clear };
        self.held = stale;
    }

    /// Some of the bits have to go that were kept up.
    pub(crate) fn stale_again(&mut self) {
        debug_assert!(!self.is_clearing() || self.held, "changes wait until the bits are gone");
        self.autoclear = Autoclear::Stale;
        self.held = true;
    }

    /// The invariant that does not hold.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.held == (self.is_halted() || !self.is_clear()) {
            true => Ok(()),
            false => Err(format!("held {} with {:?}", self.held, self.autoclear)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_held_until_the_header_is_durable() {
        let mut health = Health::new(true);
        assert!(health.is_held() && health.is_stale() && !health.is_clearing());
        health.header_emitted(3);
        assert!(health.is_stale(), "a header that was not asked for clears nothing");
        health.ask();
        health.synced(9);
        assert!(health.is_clearing(), "no header is written yet");
        health.header_emitted(4);
        health.header_emitted(5);
        health.synced(3);
        assert!(health.is_held() && health.is_clearing());
        health.synced(4);
        assert!(!health.is_held() && health.is_clear());
        assert_eq!(health.check(), Ok(()));
        assert!(!Health::new(false).is_held());
        health.renew(true);
        assert!(health.is_held() && health.is_stale());
        health.renew(false);
        assert!(!health.is_held() && health.is_clear());
    }

    #[test]
    fn what_went_wrong_first_is_the_reason_and_holds() {
        let mut health = Health::new(true);
        health.ask();
        health.header_emitted(1);
        health.found_corrupt(Error::Closed);
        assert!(health.is_halted() && health.is_corrupt() && !health.is_poisoned());
        health.synced(1);
        assert!(health.is_clear() && health.is_held());
        assert_eq!((health.reason(), health.check()), (Some(&Error::Closed), Ok(())));
        health.poison(Error::NoSpace);
        assert_eq!(health.reason(), Some(&Error::NoSpace));
        health.held = false;
        assert_eq!(health.check(), Err(String::from("held false with Clear")));
    }
}
