//! stub
use crate::acb::AcbId;
use crate::request::RequestId;
/// States of an acb.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum State {
    Free, FindCluster, ReadL2, WaitCluster, WaitSector, WaitSlot, ReadData, ReadBacking, CopyOnWrite, ReadModify,
    WriteData, ZeroData, GrowFile, AllocL2, MarkDirty, SyncData, UpdateL2, Done,
}
impl State {
    /// How many there are; `State as usize` is below it.
    pub const COUNT: usize = 18;
    /// All, by index.
    pub const ALL: [State; State::COUNT] = [State::Free; State::COUNT];
    /// Its name.
    pub fn name(self) -> &'static str { "" }
}
/// One step of one acb.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Transition {
    /// Whose.
    pub acb: AcbId,
    /// Of which request.
    pub request: RequestId,
    /// Before.
    pub from: State,
    /// After.
    pub to: State,
}
