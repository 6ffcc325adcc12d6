//! Faults by their words: tests tell what a user reads.

use quod_states::{Error, Fault};

/// The fault that has these words, with these numbers.
pub fn fault(place: &str, index: u64, value: u64, what: &str) -> Fault {
    let mut all = Fault::every(index, value).into_iter();
    let found = all.find(|fault| fault.prose() == (place, what));
    found.unwrap_or_else(|| panic!("no fault says {what:?} of {place:?}"))
}

/// The same as an error.
pub fn corrupt(place: &str, index: u64, value: u64, what: &str) -> Error {
    Error::Corrupt(fault(place, index, value, what))
}
