//! Chains as guests make them, and as they should not.

use super::*;
use vm_memory::GuestMemoryMmap;

const TABLE: u64 = 0x1000;
const OTHER: u64 = 0x8000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap()
}

fn put(memory: &GuestMemoryMmap<()>, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
    let at = GuestAddress(table + u64::from(index) * SIZE);
    memory.write_obj(Descriptor::new(addr, len, flags, next), at).unwrap();
}

fn read(memory: &GuestMemoryMmap<()>, size: u16, head: u16) -> (Chain, Result<(), Broken>) {
    let mut chain = Chain::default();
    let result = chain.read(memory, GuestAddress(TABLE), size, head);
    (chain, result)
}

#[test]
fn a_request_of_three_pieces() {
    let memory = memory();
    put(&memory, TABLE, 5, (0x2000, 16, NEXT, 2));
    put(&memory, TABLE, 2, (0x3000, 4096, NEXT | WRITE, 7));
    put(&memory, TABLE, 7, (0x4000, 1, WRITE, 0));
    memory.write_slice(&[9; 16], GuestAddress(0x2000)).unwrap();
    let (mut chain, result) = read(&memory, 8, 5);
    assert_eq!((result, chain.out_len(), chain.room()), (Ok(()), 16, 4097));
    assert_eq!(chain.take::<16, _>(&memory), Ok([9; 16]));
    assert_eq!(chain.take_status(), Some(GuestAddress(0x4000)));
    assert_eq!(chain.into, [Piece { address: GuestAddress(0x3000), len: 4096 }]);
    assert!(chain.out.is_empty());
    assert_eq!(chain.take::<1, _>(&memory), Err(Broken::Short));
}

/// With the feature VERSION_1 nothing says where a piece ends.
#[test]
fn a_header_in_pieces_and_a_status_behind_the_data() {
    let memory = memory();
    memory.write_slice(&(0..32).collect::<Vec<u8>>(), GuestAddress(0x2000)).unwrap();
    put(&memory, TABLE, 0, (0x2000, 3, NEXT, 1));
    put(&memory, TABLE, 1, (0x2003, 20, NEXT, 2));
    put(&memory, TABLE, 2, (0x3000, 513, WRITE, 0));
    let (mut chain, result) = read(&memory, 8, 0);
    assert_eq!(result, Ok(()));
    let header: [u8; 16] = chain.take(&memory).unwrap();
    assert!(header.iter().enumerate().all(|(n, &byte)| byte == n as u8));
    assert_eq!(chain.out, [Piece { address: GuestAddress(0x2010), len: 7 }]);
    assert_eq!(chain.take_status(), Some(GuestAddress(0x3200)));
    assert_eq!(chain.room(), 512);
}

#[test]
fn a_table_of_its_own_may_be_longer_than_the_ring() {
    let memory = memory();
    put(&memory, TABLE, 1, (OTHER, 1500 * 16, INDIRECT, 0));
    for n in 0..1500 {
        let flags = if n == 1499 { WRITE } else { NEXT | WRITE };
        put(&memory, OTHER, n, (u64::from(n), 8, flags, n + 1));
    }
    let (chain, result) = read(&memory, 16, 1);
    assert_eq!((result, chain.into.len()), (Ok(()), 1500));
}

#[test]
fn circles_end() {
    let memory = memory();
    put(&memory, TABLE, 0, (0x2000, 16, NEXT, 1));
    put(&memory, TABLE, 1, (0x2000, 16, NEXT, 0));
    assert_eq!(read(&memory, 8, 0).1, Err(Broken::Long));
    // onto itself, in a table of the greatest length
    put(&memory, TABLE, 2, (OTHER, 0x1_0000 * 16 - 16, INDIRECT, 0));
    put(&memory, OTHER, 0, (0x2000, 16, NEXT | WRITE, 0));
    let (chain, result) = read(&memory, 8, 2);
    assert_eq!((result, chain.into.len()), (Err(Broken::Long), LONGEST));
    // all of a table, once, is no circle
    for n in 0..8 {
        put(&memory, TABLE, n, (0x2000, 16, if n == 7 { 0 } else { NEXT }, n + 1));
    }
    assert_eq!(read(&memory, 8, 0).1, Ok(()));
}

#[test]
fn what_is_no_chain_is_named() {
    let memory = memory();
    for (descriptor, broken) in [
        ((0x2000, 16, NEXT, 8), Broken::Index(8)),
        ((0x2000, 0, NEXT, 1), Broken::Empty),
        ((OTHER, 24, INDIRECT, 0), Broken::Indirect),
        ((OTHER, 0, INDIRECT, 0), Broken::Indirect),
        ((OTHER, 32, INDIRECT | NEXT, 1), Broken::Indirect),
        ((0xff_0000, 32, INDIRECT, 0), Broken::Table(0xff_0000)),
        ((u64::MAX - 15, 32, INDIRECT, 0), Broken::Table(u64::MAX - 15)),
    ] {
        put(&memory, TABLE, 0, descriptor);
        assert_eq!(read(&memory, 8, 0).1, Err(broken), "{descriptor:?}");
    }
    assert_eq!(read(&memory, 8, 8).1, Err(Broken::Index(8)));
    // a table in a table
    put(&memory, TABLE, 0, (OTHER, 32, INDIRECT, 0));
    put(&memory, OTHER, 0, (OTHER, 32, INDIRECT, 0));
    assert_eq!(read(&memory, 8, 0).1, Err(Broken::Indirect));
    // to be read behind to be written
    put(&memory, TABLE, 0, (0x2000, 16, NEXT | WRITE, 1));
    put(&memory, TABLE, 1, (0x2000, 16, 0, 0));
    assert_eq!(read(&memory, 8, 0).1, Err(Broken::Order));
    // 4 GiB
    put(&memory, TABLE, 0, (0x2000, u32::MAX, NEXT, 1));
    put(&memory, TABLE, 1, (0x2000, 1, 0, 0));
    assert_eq!(read(&memory, 8, 0).1, Err(Broken::Large));
}

#[test]
fn a_header_outside_memory_is_an_error() {
    let memory = memory();
    put(&memory, TABLE, 0, (u64::MAX - 3, 16, 0, 0));
    let (mut chain, result) = read(&memory, 8, 0);
    assert_eq!(result, Ok(()));
    assert_eq!(chain.take::<16, _>(&memory), Err(Broken::Address(u64::MAX - 3)));
    assert_eq!(chain.take_status(), None);
    put(&memory, TABLE, 0, (u64::MAX, u32::MAX, WRITE, 0));
    assert_eq!(read(&memory, 8, 0).0.take_status(), None, "an address that wraps");
}
