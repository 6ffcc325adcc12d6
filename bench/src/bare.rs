//! A machine without a driver: every I/O that it names is answered at once from memory, so that only its own
//! code costs.
//!
//! Knows: the machine's grammar, table bytes. Must never know: data bytes (nobody looks at them here), files.
//!
//! Invariant: hits and in-place writes allocate nothing here, or the machine's own allocations could not be
//! counted.

use quod_memory::{Sparse, Store, encode, outcome, plain};
use quod_states::{
    Error, Event, Flags, Format, Image, Io, IoOp, Machine, Opening, Options, Refused, Request, RequestKind,
    qcow2,
};
use std::collections::VecDeque;

/// Guest bytes that one cluster of [`Bare::qed`] covers.
pub const CLUSTER: u64 = 64 << 10;
/// Guest bytes that one cached table slice (512 entries) of [`Bare::qed`] covers.
pub const SLICE: u64 = 512 * CLUSTER;

/// Takes all that the machine wants now. What changes metadata is done at once, its bytes being asked for
/// here.
fn drain(machine: &mut impl Machine, memory: &mut Memory, queue: &mut VecDeque<Io>) {
    while let Some(io) = machine.poll_io() {
        match io.op {
            IoOp::ZeroBuffer { .. } | IoOp::ForgetCompressed { .. } => continue,
            IoOp::ReadData { .. } | IoOp::WriteData { .. } | IoOp::ReadTable { .. } => {}
            _ => {
                encode(machine, &io, &mut memory.bytes);
                plain(&mut memory.file, &io.op, &mut memory.bytes);
            }
        }
        queue.push_back(io);
    }
}

/// Answers until the machine wants nothing more.
fn answer(machine: &mut impl Machine, memory: &mut Memory, queue: &mut VecDeque<Io>) {
    drain(machine, memory, queue);
    while let Some(io) = queue.pop_front() {
        if let IoOp::ReadTable { .. } = io.op {
            plain(&mut memory.file, &io.op, &mut memory.bytes);
        }
        machine.handle_completion(io.id, outcome(&io.op, &memory.bytes));
        drain(machine, memory, queue);
    }
}

/// Metadata of a file, and the table that is on its way.
#[derive(Clone, Debug, Default)]
struct Memory {
    file: Sparse,
    bytes: Vec<u8>,
}

/// One image in memory.
#[derive(Clone, Debug)]
pub struct Bare {
    image: Image,
    memory: Memory,
    queue: VecDeque<Io>,
}

impl Bare {
    /// An empty QED image: clusters of 64 KiB, tables of four clusters, no backing file.
    pub fn qed(guest_len: u64, options: &Options) -> Result<Bare, Error> {
        let mut memory = Memory::default();
        memory.file.write(0, &header(guest_len));
        memory.file.set_end(5 * CLUSTER);
        Bare::open(Format::Qed, memory, options)
    }

    /// An empty qcow2 image as qemu-img makes it, without a backing file.
    pub fn qcow2(guest_len: u64, options: &Options) -> Result<Bare, Error> {
        let created = qcow2::create(&qcow2::CreateOptions { size: guest_len, ..Default::default() })?;
        let mut memory = Memory::default();
        for (offset, bytes) in created.pieces() {
            memory.file.write(offset, &bytes);
        }
        memory.file.set_end(created.len());
        Bare::open(Format::Qcow2, memory, options)
    }

    fn open(format: Format, mut memory: Memory, options: &Options) -> Result<Bare, Error> {
        let mut queue = VecDeque::with_capacity(1024);
        let mut opening = Opening::new(Some(format), memory.file.end(), *options);
        answer(&mut opening, &mut memory, &mut queue);
        let opened = opening.poll_result().ok_or(Error::Misuse("the opening came to no end"))??;
        let mut image = opened.image;
        image.set_backing_len(None);
        Ok(Bare { image, memory, queue })
    }

    /// The machine.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The machine, for a loop of the caller's own.
    pub fn image_mut(&mut self) -> &mut Image {
        &mut self.image
    }

    /// Submits one request without running it.
    pub fn submit(&mut self, kind: RequestKind, offset: u64, len: u64) -> Result<(), Refused> {
        let request = Request { kind, offset, len, flags: Flags::empty(), user: 0 };
        self.image.submit(request)?;
        drain(&mut self.image, &mut self.memory, &mut self.queue);
        Ok(())
    }

    /// Runs what was submitted to its end; how many requests ended well. Timers never run out here.
    pub fn finish(&mut self) -> usize {
        answer(&mut self.image, &mut self.memory, &mut self.queue);
        while self.image.poll_timeout().is_some() {}
        while self.image.poll_transition().is_some() {}
        let mut count = 0;
        while let Some(event) = self.image.poll_event() {
            count += usize::from(matches!(event, Event::Done { result: Ok(()), .. }));
        }
        count
    }

    /// Runs one request; did it end well?
    pub fn run(&mut self, kind: RequestKind, offset: u64, len: u64) -> bool {
        self.submit(kind, offset, len).is_ok() && self.finish() == 1
    }
}

/// The 64 bytes in front of an empty image.
fn header(guest_len: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    bytes.extend(b"QED\0");
    // cluster size, clusters of a table, clusters of the header
    [CLUSTER as u32, 4, 1].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    // features, compatible features, autoclear features, offset of the L1 table, size of the guest disk
    [0, 0, 0, CLUSTER, guest_len].iter().for_each(|word| bytes.extend(word.to_le_bytes()));
    // no backing name
    bytes.extend([0; 8]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_as_long_as_the_format_says() {
        assert_eq!(header(5).len(), 64);
    }
}
