//! Chains of descriptors: what a guest's request is made of, read once and checked.
//!
//! Knows: tables of descriptors in a guest's memory. Must never know: what a request means.
//!
//! Invariants: each descriptor is read once, so that a guest that changes it changes nothing; a chain ends,
//! whatever the tables say; what can be read stands before what can be written, as the specification says.
//! `virtio-queue`'s own walk hides all of this: a chain that leads nowhere ends there without a word, one
//! that leads in a circle goes on for as many steps as its table is long.

use std::fmt;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Descriptors in a chain, at most. Linux makes chains of more than a ring's size, in tables of their own.
pub const LONGEST: usize = 4096;
/// Bytes of a descriptor.
const SIZE: u64 = 16;

/// Some memory of the guest's, as it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub address: GuestAddress,
    pub len: u32,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// The table is not memory.
    Table(u64),
    /// A descriptor that the table does not have.
    Index(u16),
    /// It goes round, or is longer than what is taken.
    Long,
    /// A table in a table, or of no whole number of descriptors, or in the middle of a chain.
    Indirect,
    /// A piece of no bytes.
    Empty,
    /// What can be read stands behind what can be written.
    Order,
    /// It lacks a header, or a place for the status.
    Short,
    /// More than 4 GiB.
    Large,
    /// An address that is not memory.
    Address(u64),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Table(at) => write!(f, "its table of descriptors, at {at:#x}, is not in memory"),
            Broken::Index(index) => write!(f, "descriptor {index} is beyond its table"),
            Broken::Long => f.write_str("it goes round in a circle, or is too long"),
            Broken::Indirect => f.write_str("a table of descriptors where none may be"),
            Broken::Empty => f.write_str("a descriptor of no bytes"),
            Broken::Order => f.write_str("memory to be read behind memory to be written"),
            Broken::Short => f.write_str("it has no room for a header and a status"),
            Broken::Large => f.write_str("it is longer than 4 GiB"),
            Broken::Address(at) => write!(f, "address {at:#x} is not in memory"),
        }
    }
}

/// The pieces of a chain. It is used again and again.
#[derive(Debug, Default)]
pub struct Chain {
    /// What the guest gives.
    pub out: Vec<Piece>,
    /// What it takes.
    pub into: Vec<Piece>,
}

fn total(pieces: &[Piece]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

impl Chain {
    /// The chain that begins at descriptor `head` of a table of `size` at `table`. What was read before an
    /// error stays.
    pub fn read<M: GuestMemory>(
        &mut self,
        memory: &M,
        table: GuestAddress,
        size: u16,
        head: u16,
    ) -> Result<(), Broken> {
        self.out.clear();
        self.into.clear();
        let (mut table, mut size, mut index) = (table.0, u32::from(size), head);
        let (mut indirect, mut steps, mut bytes) = (false, 0, 0u32);
        loop {
            if u32::from(index) >= size {
                return Err(Broken::Index(index));
            }
            let at = table.checked_add(u64::from(index) * SIZE).ok_or(Broken::Table(table))?;
            let found: Descriptor = memory.read_obj(GuestAddress(at)).map_err(|_| Broken::Table(table))?;
            steps += 1;
            if found.refers_to_indirect_table() {
                let whole = found.len() > 0 && u64::from(found.len()).is_multiple_of(SIZE);
                if indirect || found.has_next() || !whole {
                    return Err(Broken::Indirect);
                }
                (table, size, index) = (found.addr().0, found.len() / SIZE as u32, 0);
                (indirect, steps) = (true, 0);
                continue;
            }
            // one that is as long as its table has met each of its descriptors
            if steps > size as usize || self.out.len() + self.into.len() >= LONGEST {
                return Err(Broken::Long);
            }
            if found.len() == 0 {
                return Err(Broken::Empty);
            }
            bytes = bytes.checked_add(found.len()).ok_or(Broken::Large)?;
            let piece = Piece { address: found.addr(), len: found.len() };
            match (found.is_write_only(), self.into.is_empty()) {
                (true, _) => self.into.push(piece),
                (false, true) => self.out.push(piece),
                (false, false) => return Err(Broken::Order),
            }
            if !found.has_next() {
                return Ok(());
            }
            index = found.next();
        }
    }

    /// Takes bytes from the front of what the guest gives, however it is cut.
    pub fn take<const N: usize, M: GuestMemory>(&mut self, memory: &M) -> Result<[u8; N], Broken> {
        let mut bytes = [0; N];
        let (mut at, mut used) = (0, 0);
        while at < N {
            let piece = self.out.get_mut(used).ok_or(Broken::Short)?;
            let len = (N - at).min(piece.len as usize);
            let wrong = Broken::Address(piece.address.0);
            memory.read_slice(&mut bytes[at..at + len], piece.address).map_err(|_| wrong)?;
            piece.address.0 = piece.address.0.wrapping_add(len as u64);
            piece.len -= len as u32;
            at += len;
            used += usize::from(piece.len == 0);
        }
        self.out.drain(..used);
        Ok(bytes)
    }

    /// Takes the last byte of what the guest takes: where it wants to read the status.
    pub fn take_status(&mut self) -> Option<GuestAddress> {
        let last = self.into.last_mut()?;
        last.len -= 1;
        let at = last.address.0.checked_add(last.len.into())?;
        if last.len == 0 {
            self.into.pop();
        }
        Some(GuestAddress(at))
    }

    /// Bytes that the guest gives.
    pub fn out_len(&self) -> u64 {
        total(&self.out)
    }

    /// Bytes that it takes.
    pub fn room(&self) -> u64 {
        total(&self.into)
    }
}

#[cfg(test)]
mod tests;
