//! A machine without a driver: every I/O that it names is answered at once from memory, so that only its own
//! code costs.
//!
//! Knows: the machine's grammar, table bytes. Must never know: data bytes (nobody looks at them here), files.
//!
//! Invariant: hits and in-place writes allocate nothing here, or the machine's own allocations could not be
//! counted.

use quod::states::{
    Error, Event, Flags, Format, Image, Io, IoOp, Kind, Machine, Opening, Options, Outcome, Refused, Request,
    qcow2,
};
use std::collections::{BTreeMap, VecDeque};

const CHUNK: usize = 4096;
/// Guest bytes that one cluster of [`Bare::qed`] covers.
pub const CLUSTER: u64 = 64 << 10;
/// Guest bytes that one cached table slice (512 entries) of [`Bare::qed`] covers.
pub const SLICE: u64 = 512 * CLUSTER;

/// Metadata of a file, sparse.
#[derive(Clone, Debug, Default)]
struct Memory {
    len: u64,
    chunks: BTreeMap<u64, Box<[u8; CHUNK]>>,
    scratch: Vec<u8>,
}

impl Memory {
    /// `len` bytes into the scratch buffer.
    fn read(&mut self, offset: u64, len: usize) {
        self.scratch.clear();
        self.scratch.resize(len, 0);
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let count = (CHUNK - start).min(len - done);
            if let Some(bytes) = self.chunks.get(&chunk) {
                self.scratch[done..done + count].copy_from_slice(&bytes[start..start + count]);
            }
            done += count;
        }
    }

    /// The scratch buffer into the file.
    fn write(&mut self, offset: u64) {
        let mut done = 0;
        while done < self.scratch.len() {
            let at = offset + done as u64;
            let (chunk, start) = (at / CHUNK as u64, (at % CHUNK as u64) as usize);
            let count = (CHUNK - start).min(self.scratch.len() - done);
            let bytes = self.chunks.entry(chunk).or_insert_with(|| Box::new([0; CHUNK]));
            bytes[start..start + count].copy_from_slice(&self.scratch[done..done + count]);
            done += count;
        }
        self.len = self.len.max(offset + self.scratch.len() as u64);
    }
}

/// Takes all that the machine wants now. Table writes are done at once, their bytes being asked for here.
fn drain(machine: &mut impl Machine, memory: &mut Memory, queue: &mut VecDeque<Io>) {
    while let Some(io) = machine.poll_io() {
        match io.op {
            IoOp::ZeroBuffer { .. } | IoOp::ForgetCompressed { .. } => continue,
            IoOp::WriteTable { offset, len } => {
                memory.scratch.clear();
                memory.scratch.resize(len as usize, 0);
                machine.encode(io.id, &mut memory.scratch);
                memory.write(offset);
            }
            IoOp::Grow { to, .. } => memory.len = memory.len.max(to),
            IoOp::SetLen { len } => memory.len = len,
            _ => {}
        }
        queue.push_back(io);
    }
}

/// Answers until the machine wants nothing more.
fn answer(machine: &mut impl Machine, memory: &mut Memory, queue: &mut VecDeque<Io>) {
    drain(machine, memory, queue);
    while let Some(io) = queue.pop_front() {
        if let IoOp::ReadTable { offset, len } = io.op {
            memory.read(offset, len as usize);
            machine.handle_completion(io.id, Outcome::Table(&memory.scratch));
        } else {
            machine.handle_completion(io.id, Outcome::Done);
        }
        drain(machine, memory, queue);
    }
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
        let mut memory = Memory { scratch: header(guest_len), ..Memory::default() };
        memory.write(0);
        memory.len = 5 * CLUSTER;
        Bare::open(Format::Qed, memory, options)
    }

    /// An empty qcow2 image as qemu-img makes it, without a backing file.
    pub fn qcow2(guest_len: u64, options: &Options) -> Result<Bare, Error> {
        let created = qcow2::create(&qcow2::CreateOptions { size: guest_len, ..Default::default() })?;
        let mut memory = Memory::default();
        for (offset, bytes) in created.pieces() {
            memory.scratch = bytes;
            memory.write(offset);
        }
        memory.len = created.len();
        Bare::open(Format::Qcow2, memory, options)
    }

    fn open(format: Format, mut memory: Memory, options: &Options) -> Result<Bare, Error> {
        let mut queue = VecDeque::with_capacity(1024);
        let mut opening = Opening::new(Some(format), memory.len, *options);
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
    pub fn submit(&mut self, kind: Kind, offset: u64, len: u64) -> Result<(), Refused> {
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
    pub fn run(&mut self, kind: Kind, offset: u64, len: u64) -> bool {
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
    fn memory_reads_what_was_written() {
        let mut memory = Memory { scratch: (0..100).collect(), ..Memory::default() };
        memory.write(4050);
        memory.read(4049, 102);
        assert_eq!((memory.scratch[0], memory.scratch[1], memory.scratch[100]), (0, 0, 99));
        assert_eq!((memory.scratch[50], memory.scratch[101], memory.len), (49, 0, 4150));
        assert_eq!(header(5).len(), 64);
    }
}
