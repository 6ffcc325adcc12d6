//! Disks whose size changes.

mod emptied;
mod growing;
mod layout;
mod poisoned_moves;
mod sizes;
