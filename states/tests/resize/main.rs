//! Disks whose size changes.

mod growing;
mod layout;
mod poisoned_moves;
mod sizes;
