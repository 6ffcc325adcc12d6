//! Whoever is told how a replay comes along, and may end it.
//!
//! Knows: phases and their steps. Must never know: terminals.

use quod::DiskInfo;

/// Is told how a replay comes along.
pub trait Observer {
    /// The image is open; nothing was changed yet.
    fn opened(&mut self, _disk: &DiskInfo) {}
    /// A new phase begins; it has `total` steps.
    fn phase(&mut self, name: &'static str, total: u64);
    /// So many steps of it are done.
    fn progress(&mut self, done: u64);
    /// Shall it end early? Then it ends in order, and verifies no more.
    fn stops(&mut self) -> bool {
        false
    }
}

/// Nobody looks.
impl Observer for () {
    fn phase(&mut self, _name: &'static str, _total: u64) {}
    fn progress(&mut self, _done: u64) {}
}
