//! I/O that has nothing to do with a guest's bytes.
//!
//! Knows: one file, the machine's grammar. Must never know: guest buffers.

use crate::store::Store;
use quod_states::{Io, IoOp, Machine, Outcome};

/// The bytes of a table write that was just named; of other I/O none.
pub fn encode(machine: &mut (impl Machine + ?Sized), io: &Io, bytes: &mut Vec<u8>) {
    bytes.clear();
    if let IoOp::WriteTable { len, .. } = io.op {
        // a machine that leaves bytes out writes no zeros by chance
        bytes.resize(len as usize, 0xee);
        machine.encode(io.id, bytes);
    }
}

/// Does it. `bytes`: what a table write writes, what a table read has read, or the file's length. False: it
/// is about guest bytes, and nothing was done.
pub fn plain(file: &mut (impl Store + ?Sized), op: &IoOp, bytes: &mut Vec<u8>) -> bool {
    match *op {
        IoOp::ReadTable { offset, len } => {
            bytes.clear();
            bytes.resize(len as usize, 0);
            file.read(offset, bytes);
        }
        IoOp::WriteTable { offset, .. } => file.write(offset, bytes),
        IoOp::PunchHole { host, len } | IoOp::Clear { host, len } | IoOp::Discard { host, len } => {
            file.zero(host, len);
        }
        IoOp::Grow { from, to } => {
            // longer it may be: it may not have been cut as far as was asked
            assert!(from <= file.end(), "the file is shorter than the machine thinks");
            file.set_end(to.max(file.end()));
        }
        IoOp::SetLen { len } => file.set_end(len),
        IoOp::Length => {
            bytes.clear();
            bytes.extend(file.end().to_le_bytes());
        }
        IoOp::Sync | IoOp::Yield => {}
        IoOp::ReadData { .. }
        | IoOp::ReadBacking { .. }
        | IoOp::ReadCompressed { .. }
        | IoOp::ForgetCompressed { .. }
        | IoOp::ZeroBuffer { .. }
        | IoOp::ReadFill { .. }
        | IoOp::WriteData { .. }
        | IoOp::Compress { .. }
        | IoOp::WriteCompressed { .. }
        | IoOp::ZeroRange { .. } => return false,
    }
    true
}

/// What a machine is told when I/O has ended well.
pub fn outcome<'a>(op: &IoOp, bytes: &'a [u8]) -> Outcome<'a> {
    match op {
        IoOp::ReadTable { .. } => Outcome::Table(bytes),
        IoOp::Compress { .. } => match bytes.first_chunk() {
            Some(len) => Outcome::Compressed(u32::from_le_bytes(*len)),
            None => Outcome::Done,
        },
        IoOp::Length => Outcome::Length(bytes.first_chunk().map_or(0, |len| u64::from_le_bytes(*len))),
        _ => Outcome::Done,
    }
}

/// Runs a machine that needs no guest bytes until `ended` answers. Each I/O is shown to `admit` first, which
/// may end the run.
///
/// # Panics
/// If the machine wants nothing and has not ended, or wants guest bytes.
pub fn run<M: Machine, T, E>(
    machine: &mut M,
    file: &mut (impl Store + ?Sized),
    mut ended: impl FnMut(&mut M) -> Option<T>,
    mut admit: impl FnMut(&IoOp) -> Result<(), E>,
) -> Result<T, E> {
    let mut bytes = Vec::new();
    loop {
        if let Some(result) = ended(machine) {
            return Ok(result);
        }
        let Some(io) = machine.poll_io() else { panic!("the machine wants nothing and has not ended") };
        admit(&io.op)?;
        encode(machine, &io, &mut bytes);
        assert!(plain(file, &io.op, &mut bytes), "the machine wants guest bytes: {:?}", io.op);
        machine.handle_completion(io.id, outcome(&io.op, &bytes));
    }
}
