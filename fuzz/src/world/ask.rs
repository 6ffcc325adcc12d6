//! Requests of the guest, and how they look to the driver.
//!
//! Knows: kinds, ranges, payloads. Must never know: what is allowed as an answer.

use crate::image::MapChange;
use quod::{Buffer, Buffers, Request, SnapshotAsk, SnapshotSelector};
use quod_bench::contract::payload;

/// What the guest may ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // offset and length in bytes everywhere
pub enum Ask {
    Read {
        offset: u64,
        len: u64,
    },
    Write {
        offset: u64,
        len: u64,
        fua: bool,
    },
    /// One whole cluster, compressed.
    Pack {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Zero {
        offset: u64,
        len: u64,
        fua: bool,
    },
    Discard {
        offset: u64,
        len: u64,
    },
    Flush,
    Quiesce,
    Resize {
        len: u64,
    },
    /// Room for so many bytes of VM state.
    GrowState {
        len: u64,
    },
    /// Some of it is written. What it is nobody looks at: it is there so that the disk is not harmed.
    WriteState {
        offset: u64,
        len: u64,
    },
    /// The disk is kept, as the last snapshot of the list.
    Keep,
    /// The disk becomes what the snapshot of this index keeps.
    Apply {
        index: usize,
    },
    /// That one goes.
    Drop {
        index: usize,
    },
    /// A persistent bitmap changes: that of this number.
    Map {
        index: u8,
        change: MapChange,
    },
    /// Of an image without a backing file: the disk reads as zeros, durably.
    Empty,
    Close,
    /// No request: cancels the one that was made so many before.
    Cancel {
        back: u64,
    },
}

impl Ask {
    /// It may change what the guest reads, or the size of its disk.
    pub fn changes(self) -> bool {
        let data =
            matches!(self, Ask::Write { .. } | Ask::Pack { .. } | Ask::Zero { .. } | Ask::Discard { .. });
        data || self.is_snapshot() || matches!(self, Ask::Resize { .. } | Ask::Empty)
    }

    /// It is about the list of snapshots.
    pub fn is_snapshot(self) -> bool {
        matches!(self, Ask::Keep | Ask::Apply { .. } | Ask::Drop { .. })
    }

    /// It is about what the image keeps beside the disk: nobody else is let in.
    pub fn is_edit(self) -> bool {
        self.is_snapshot() || matches!(self, Ask::Map { .. })
    }

    /// The guest's bytes that it is about.
    pub fn range(self) -> Option<(u64, u64)> {
        match self {
            Ask::Read { offset, len }
            | Ask::Write { offset, len, .. }
            | Ask::Pack { offset, len, .. }
            | Ask::Zero { offset, len, .. }
            | Ask::Discard { offset, len } => Some((offset, offset + len)),
            Ask::Flush | Ask::Quiesce | Ask::Resize { .. } | Ask::Close | Ask::Cancel { .. } => None,
            Ask::Keep | Ask::Apply { .. } | Ask::Drop { .. } | Ask::Map { .. } | Ask::Empty => None,
            Ask::GrowState { .. } | Ask::WriteState { .. } => None,
        }
    }
}

/// The payload of a compressed write: most of them become shorter.
pub(super) fn pack_id(user: u64) -> u64 {
    if user % 5 == 4 { user } else { user | payload::THIN }
}

/// The driver's request, if it is one; payloads are split into up to three buffers, by its number. `ids`: of
/// the snapshots in the list; `size`: bytes of the disk.
pub(super) fn request(ask: Ask, user: u64, ids: &[Vec<u8>], size: u64) -> Option<Request> {
    let which = |index: usize| SnapshotSelector::Id(ids.get(index).cloned().unwrap_or_default());
    let split = |bytes: Vec<u8>| -> Buffers {
        if !user.is_multiple_of(3) || bytes.len() < 3 {
            return Buffer::from(&bytes[..]).into();
        }
        let (a, b) = (bytes.len() / 3, bytes.len() / 2);
        Buffers::Vec([&bytes[..a], &bytes[a..b], &bytes[b..]].map(Buffer::from).into())
    };
    let flag = |request: Request, fua: bool| if fua { request.fua() } else { request };
    Some(match ask {
        Ask::Read { offset, len } => Request::read(offset, split(vec![0xee; len as usize]), user),
        Ask::Write { offset, len, fua } => {
            flag(Request::write(offset, split(payload::bytes(user, offset, offset + len)), user), fua)
        }
        Ask::Pack { offset, len, fua } => {
            let bytes = payload::bytes(pack_id(user), offset, offset + len);
            flag(Request::write_compressed(offset, split(bytes), user), fua)
        }
        Ask::Zero { offset, len, fua } => {
            let request = Request::write_zeroes(offset, len, user);
            flag(if user.is_multiple_of(2) { request.may_unmap() } else { request }, fua)
        }
        Ask::Discard { offset, len } => Request::discard(offset, len, user),
        Ask::Flush => Request::flush(user),
        Ask::Quiesce => Request::quiesce(user),
        Ask::Resize { len } => Request::resize(len, user),
        Ask::GrowState { len } => Request::grow_state(len, user),
        Ask::WriteState { offset, len } => {
            Request::write_state(offset, split(vec![0xbb; len as usize]), user)
        }
        Ask::Keep => {
            let ask = SnapshotAsk::Create { name: b"kept".to_vec(), date_sec: 1, date_nsec: 2 };
            Request::snapshot(ask, user)
        }
        Ask::Apply { index } => Request::snapshot(SnapshotAsk::Apply(which(index)), user),
        Ask::Drop { index } => Request::snapshot(SnapshotAsk::Delete(which(index)), user),
        Ask::Map { index, change } => Request::bitmap(change.ask(index, size), user),
        Ask::Empty => Request::empty(user),
        Ask::Close => Request::close(user),
        Ask::Cancel { .. } => return None,
    })
}
