//! stub
/// Names an AIO control block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct AcbId {
    /// Slot: below the configured number of acbs.
    pub index: u32,
    /// Changes whenever the slot is used again.
    pub generation: u32,
}
