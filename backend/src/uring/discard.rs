//! A device's own discard as a command of the ring (Linux 6.12).
//!
//! Knows: how the command lies in an entry, and which kernels mistake it. Must never know: who asks.
//! Invariant: a discard promises no zeros; it is made where one is meant, never to clear space.

#[cfg(test)]
mod tests;

use io_uring::{opcode, squeue, types};

/// BLOCK_URING_CMD_DISCARD: `_IO(0x12, 0)`. The kernel has no other command of block devices.
const DISCARD: u32 = 0x1200;

/// Whole sectors from `offset` on. It is answered with EOPNOTSUPP where kernel or device have no discard.
pub(super) fn entry(fd: types::Fd, offset: u64, len: u64) -> squeue::Entry {
    // the kernel looks for the length in `addr3`: the first half of what the crate calls the command
    let mut command = [0; 16];
    command[..8].copy_from_slice(&len.to_ne_bytes());
    let entry = opcode::UringCmd16::new(fd, DISCARD).cmd(command).addr(Some(offset)).build();
    // always by the kernel's worker, which takes a copy. Begun at once, a command that finds the device
    // without room for one more is begun again, and Linux 6.17 and 6.18 read the range anew from the queue's
    // entry then, which may be another operation's (mended in later releases of 6.18): the discard would
    // take what nobody gave away
    entry.flags(squeue::Flags::ASYNC)
}
