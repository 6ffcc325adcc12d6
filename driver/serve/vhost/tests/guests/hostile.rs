//! What a guest may not ask for: an error of that request, or the end of that ring, and of nothing else.

use super::*;
use quod_vhost_load::Descriptor;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Behind all memory.
const NOWHERE: u64 = 1 << 40;

/// Address, length, flags, and which of them is next.
type Descriptors = Vec<(u64, u32, u16, u16)>;
/// A chain that is none, and its status.
type Case = (&'static str, Descriptors, Option<u8>);

/// Offers a chain in the ring's own table, and waits for its end.
fn offer(guest: &mut Guest, descriptors: &[(u64, u32, u16, u16)]) -> (u16, u32) {
    let heads: Vec<u16> = descriptors.iter().map(|_| guest.queues[0].head().unwrap()).collect();
    for (n, &(at, len, flags, next)) in descriptors.iter().enumerate() {
        let next = heads.get(usize::from(next)).copied().unwrap_or(next);
        guest.queues[0].put(None, heads[n], Descriptor::new(at, len, flags, next)).unwrap();
    }
    guest.queues[0].offer(heads[0]);
    guest.queues[0].kick().unwrap();
    let ended = finish(guest, 0);
    assert_eq!(ended.0, heads[0]);
    ended
}

#[test]
fn what_is_no_request_ends_with_an_error_and_the_next_one_works() {
    let served = Served::new();
    let mut guest = served.connect(Options { size: 1024, ..Options::default() });
    let data = guest.data();
    let (header, status, table) = (data, data + 64, data + 4096);
    // its status, as far as it has one
    let cases: Vec<Case> = vec![
        ("no status", vec![(header, 16, 0, 0)], None),
        ("no header", vec![(status, 1, WRITE, 0)], Some(1)),
        ("half a header", vec![(header, 15, NEXT, 1), (status, 1, WRITE, 0)], Some(1)),
        ("in a circle", vec![(header, 16, NEXT, 1), (status, 1, NEXT | WRITE, 1)], Some(1)),
        ("a descriptor that is none", vec![(header, 16, NEXT, 5000), (status, 1, WRITE, 0)], None),
        ("no bytes", vec![(header, 16, NEXT, 1), (status, 0, WRITE, 0)], None),
        ("header nowhere", vec![(NOWHERE, 16, NEXT, 1), (status, 1, WRITE, 0)], Some(1)),
        ("status nowhere", vec![(header, 16, NEXT, 1), (NOWHERE, 1, WRITE, 0)], None),
        ("all nowhere", vec![(u64::MAX, 16, NEXT, 1), (u64::MAX, u32::MAX, WRITE, 0)], None),
        (
            "data nowhere",
            vec![(header, 16, NEXT, 1), (NOWHERE, 512, NEXT | WRITE, 2), (status, 1, WRITE, 0)],
            Some(1),
        ),
        (
            "data over the end",
            vec![(header, 16, NEXT, 1), (data, 1 << 30, NEXT | WRITE, 2), (status, 1, WRITE, 0)],
            Some(1),
        ),
        (
            "4 GiB",
            vec![(header, 16, NEXT, 1), (data, u32::MAX, NEXT | WRITE, 2), (status, 1, WRITE, 0)],
            None,
        ),
        (
            "no whole sector",
            vec![(header, 16, NEXT, 1), (data, 511, NEXT | WRITE, 2), (status, 1, WRITE, 0)],
            Some(1),
        ),
        (
            "to be read behind to be written",
            vec![(header, 16, NEXT, 1), (status, 1, NEXT | WRITE, 2), (data, 512, 0, 0)],
            Some(1),
        ),
        ("a table nowhere", vec![(NOWHERE, 64, INDIRECT, 0)], None),
        ("no whole table", vec![(table, 33, INDIRECT, 0)], None),
        ("a table in a table", vec![(table, 32, INDIRECT, 0)], None),
        ("a table with more behind it", vec![(table, 32, INDIRECT | NEXT, 1), (status, 1, WRITE, 0)], None),
    ];
    guest.queues[0].put(Some(table), 0, Descriptor::new(table, 32, INDIRECT, 0)).unwrap();
    for (name, chain, status_wanted) in cases {
        put(&guest, header, &[0; 16]);
        put(&guest, status, &[0xff]);
        let (_, len) = offer(&mut guest, &chain);
        let told = get(&guest, status, 1)[0];
        match status_wanted {
            Some(wanted) => assert_eq!((told, len), (wanted, 1), "{name}"),
            // what was met before the fault may have a place for it
            None => assert!((told, len) == (0xff, 0) || told == 1, "{name}: {told} {len}"),
        }
        works(&mut guest, 0);
    }
    drop(guest);
    served.end();
}

#[test]
fn a_chain_of_more_pieces_than_the_kernel_takes_at_once() {
    let served = Served::new();
    let mut guest = served.connect(Options { size: 16, ..Options::default() });
    let data = guest.data();
    let (table, status, to) = (data, data + (1 << 20), data + (2 << 20));
    let queue = &mut guest.queues[0];
    let head = queue.head().unwrap();
    for (ask, flags) in [(Ask::Write, 0), (Ask::Read, WRITE)] {
        queue.set_header(head, ask as u32, 0).unwrap();
        let header = queue.header_at(head);
        queue.put(Some(table), 0, Descriptor::new(header, 16, NEXT, 1)).unwrap();
        for n in 1..=1500 {
            let at = to + u64::from(n) * 700;
            queue.put(Some(table), n, Descriptor::new(at, 512, NEXT | flags, n + 1)).unwrap();
        }
        queue.put(Some(table), 1501, Descriptor::new(status, 1, WRITE, 0)).unwrap();
        queue.put(None, head, Descriptor::new(table, 1502 * 16, INDIRECT, 0)).unwrap();
        for n in 1..=1500u64 {
            let byte = if ask == Ask::Write { n as u8 } else { 0 };
            guest.memory.write_slice(&[byte; 512], GuestAddress(to + n * 700)).unwrap();
        }
        queue.offer(head);
        queue.kick().unwrap();
        while queue.ended().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        // the same head, by hand
        assert_eq!(queue.head(), Some(head));
    }
    assert_eq!(get(&guest, status, 1), [0]);
    for n in 1..=1500u64 {
        assert_eq!(get(&guest, to + n * 700, 512), [n as u8; 512], "piece {n}");
    }
    drop(guest);
    served.end();
}

/// A ring that is broken is left alone, the other one goes on, and so does the next front end.
#[test]
fn a_ring_that_lies_ends_alone() {
    for case in 0..3 {
        let served = Served::new();
        let mut guest = served.connect(Options { queues: 2, ..Options::default() });
        works(&mut guest, 0);
        let queue = &mut guest.queues[0];
        match case {
            // more than it has
            0 => queue.set_offered(queue.offered().wrapping_add(129)),
            // a head that is none
            1 => queue.offer(5000),
            // twice the same
            _ => {
                let head = queue.head().unwrap();
                queue.set_header(head, 4, 0).unwrap();
                let (header, status) = (queue.header_at(head), queue.status_at(head));
                let other = queue.head().unwrap();
                queue.put(None, head, Descriptor::new(header, 16, NEXT, other)).unwrap();
                queue.put(None, other, Descriptor::new(status, 1, WRITE, 0)).unwrap();
                queue.offer(head);
                queue.offer(head);
            }
        }
        guest.queues[0].kick_always().unwrap();
        works(&mut guest, 1);
        let late = guest.queues[0].request(Ask::Flush, 0, &[]).unwrap().unwrap();
        guest.queues[0].kick_always().unwrap();
        works(&mut guest, 1);
        while let Some((head, _)) = guest.queues[0].ended().unwrap() {
            assert_ne!(head, late, "{case}: a broken ring is not served");
        }
        drop(guest);
        let mut guest = served.connect(Options::default());
        works(&mut guest, 0);
        drop(guest);
        served.end();
    }
}

/// Descriptors and headers that change while they are looked at: each request ends, once.
#[test]
fn a_guest_that_changes_its_mind_harms_itself_alone() {
    let served = Served::new();
    let mut guest = served.connect(Options::default());
    let data = guest.data();
    let memory = guest.memory.clone();
    let header = guest.queues[0].header_at(0);
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let ends = std::sync::Arc::clone(&over);
    let scribbler = std::thread::spawn(move || {
        let mut state = 1u64;
        while !ends.load(std::sync::atomic::Ordering::Relaxed) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // all heads' headers and tables
            let at = header + (state >> 20) % (128 * 1024);
            memory.write_obj((state >> 40) as u32, GuestAddress(at & !3)).unwrap();
        }
    });
    let mut ended = 0;
    for round in 0..200u64 {
        for n in 0..64 {
            let ask = if n % 2 == 0 { Ask::Read } else { Ask::Write };
            guest.queues[0].request(ask, round * 8, &[(data + n * 4096, 4096)]).unwrap().unwrap();
        }
        guest.queues[0].kick().unwrap();
        for _ in 0..64 {
            finish(&mut guest, 0);
            ended += 1;
        }
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    scribbler.join().unwrap();
    assert_eq!(ended, 200 * 64);
    works(&mut guest, 0);
    drop(guest);
    served.end();
}
