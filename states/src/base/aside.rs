//! What a machine carries along and never decides by: counts, traces, names of generations, scratch memory.
//!
//! Must never know: what it is.
//!
//! Invariant: two values that differ in nothing else behave alike, so they are equal, and hash alike.

use core::hash::{Hash, Hasher};
use core::ops::{Deref, DerefMut};

/// See the module's header.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Aside<T>(pub(crate) T);

impl<T> PartialEq for Aside<T> {
    fn eq(&self, _: &Aside<T>) -> bool {
        true
    }
}

impl<T> Eq for Aside<T> {}

impl<T> Hash for Aside<T> {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl<T> Deref for Aside<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Aside<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::digest::digest;

    #[test]
    fn what_is_aside_makes_no_difference_and_is_kept() {
        let (mut one, two) = ((5u32, Aside(1u32)), (5u32, Aside(2u32)));
        assert!(one == two && digest(&one) == digest(&two));
        *one.1 += 6;
        assert_eq!((*one.1, *two.1), (7, 2));
        assert!(one == two && one != (6, Aside(7)));
    }
}
