//! The first change of an image: before it the autoclear bits that quod does not keep up are cleared
//! (QC14, QC15).
//!
//! An image that is opened and read stays as it is. The first request that may change it has the header
//! written with those bits cleared, and whoever may change something waits until that is durable.
//!
//! Knows: why a change has to wait, or cannot be made any more. Must never know: what is changed.
//!
//! Invariant: `held` is set whenever a change has to wait or cannot be made: requests that change nothing,
//! and those of an image without such bits, pay for no more than that one test.

use super::{Image, Layout};
use crate::acb::Want;
use crate::error::Error;
use crate::qcow2::header::RAW_DATA_FILE;
use crate::request::{Kind, Path};
use crate::rule::Rule;
use crate::state::State;

/// Bits of the header's autoclear features that quod does not keep up.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Autoclear {
    /// None is set.
    Clear,
    /// Some are: nothing was changed yet.
    Stale,
    /// They are cleared in memory: the next header does it in the file.
    Asked,
    /// It is durable with the sync of the round that closes this window.
    Written(u64),
}

impl Image {
    /// The image is about to be used; `stale`: its header has bits that have to go before the first change.
    pub(super) fn hold_if(&mut self, stale: bool) {
        if stale && !self.options.read_only {
            self.autoclear = Autoclear::Stale;
            self.held = true;
        }
    }

    /// No bitmap was made invalid since the image was opened (qcow2).
    pub fn keeps_bitmaps(&self) -> bool {
        self.counted().is_some_and(|counted| counted.header.bitmaps().is_some())
    }

    /// May the acb change the image now? If not, it waits or has ended.
    #[cold]
    pub(super) fn may_change(&mut self, a: u32) -> bool {
        if self.poison.is_some() {
            self.finish(a, Err(Error::Poisoned));
            return false;
        }
        if self.autoclear == Autoclear::Stale {
            self.clear_autoclear();
        }
        if self.autoclear == Autoclear::Clear {
            return true;
        }
        self.note(a, Path::WAITED);
        self.set_state(a, State::ClearAutoclear);
        if let Some(acb) = self.acbs.get_mut(a) {
            acb.want = Want::Header;
        }
        self.commit.waiters.push(&mut self.acbs, a);
        self.kick();
        false
    }

    /// The bits are cleared in memory; the next round writes the header.
    fn clear_autoclear(&mut self) {
        match (&mut self.layout, self.refcounted.as_deref_mut()) {
            (Layout::Qed(_, header), _) => header.autoclear_features = 0,
            (_, Some(counted)) => counted.header.clear_autoclear(RAW_DATA_FILE),
            _ => {}
        }
        self.commit.header_dirty = true;
        self.autoclear = Autoclear::Asked;
        if self.sabotaged(Rule::AutoclearFirst) {
            self.autoclear = Autoclear::Clear;
            self.held = false;
            self.kick();
        }
    }

    /// Somebody waits for them to be cleared.
    pub(super) fn clears_autoclear(&self) -> bool {
        matches!(self.autoclear, Autoclear::Asked | Autoclear::Written(_))
    }

    /// The header is being written, and durable when this window is.
    pub(super) fn autoclear_named(&mut self, window: u64) {
        if self.autoclear == Autoclear::Asked {
            self.autoclear = Autoclear::Written(window);
        }
    }

    /// A sync has ended that covers what was written in the windows before.
    pub(super) fn autoclear_durable(&mut self) {
        if let Autoclear::Written(window) = self.autoclear
            && window <= self.commit.durable()
        {
            self.autoclear = Autoclear::Clear;
            self.held = false;
        }
    }

    /// `ClearAutoclear`: the bits are clear, durably, and the acb begins.
    pub(super) fn cleared(&mut self, a: u32) {
        let Some(acb) = self.acbs.get_mut(a) else { return };
        if let Some(error) = acb.error.take() {
            return self.fail(a, error);
        }
        acb.want = Want::Written;
        match acb.kind {
            Kind::Resize => {
                let size = acb.origin;
                self.resize(a, size);
            }
            _ => self.look(a),
        }
    }
}
