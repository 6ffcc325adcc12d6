//! What a front end says, in time and out of it.

use super::*;
use quod_vhost_load::vhost::VhostBackend;
use quod_vhost_load::vhost::vhost_user::VhostUserFrontend;
use std::io::{Read, Write};
use std::net::Shutdown;

/// Fills a ring with reads, and does not wait for them.
fn fill(guest: &mut Guest, count: usize) {
    let data = guest.data();
    for n in 0..count {
        let at = data + n as u64 * 65536;
        guest.queues[0].request(Ask::Write, n as u64 * 128, &[(at, 65536)]).unwrap().unwrap();
    }
    guest.queues[0].kick().unwrap();
}

fn finish_all(guest: &mut Guest, count: usize) {
    for _ in 0..count {
        let (head, _) = finish(guest, 0);
        assert_eq!(guest.queues[0].status(head), 0);
    }
}

#[test]
fn a_ring_stops_when_all_that_was_taken_is_answered() {
    let served = Served::new();
    let mut guest = served.connect(Options::default());
    fill(&mut guest, 64);
    let base = guest.front.get_vring_base(0).unwrap() as u16;
    assert_eq!(base, guest.queues[0].used_index(), "what was taken was answered");
    let answered = usize::from(base);
    finish_all(&mut guest, answered);
    // what was not is done when it runs again
    guest.begin_ring(0).unwrap();
    guest.queues[0].kick_always().unwrap();
    finish_all(&mut guest, 64 - answered);
    works(&mut guest, 0);
    drop(guest);
    served.end();
}

#[test]
fn a_ring_that_is_not_enabled_is_not_served() {
    let served = Served::new();
    let mut guest = served.connect(Options { queues: 2, ..Options::default() });
    works(&mut guest, 0);
    guest.front.set_vring_enable(0, false).unwrap();
    fill(&mut guest, 3);
    works(&mut guest, 1);
    assert!(guest.queues[0].ended().unwrap().is_none());
    guest.front.set_vring_enable(0, true).unwrap();
    finish_all(&mut guest, 3);
    drop(guest);
    served.end();
}

#[test]
fn memory_changes_while_requests_are_under_way() {
    for register in [false, true] {
        let served = Served::with(|options| options.register_memory(register), true);
        let mut guest = served.connect(Options::default());
        for _ in 0..20 {
            fill(&mut guest, 20);
            let region = guest.region();
            guest.front.set_mem_table(&[region]).unwrap();
            finish_all(&mut guest, 20);
        }
        // a second one, far behind, and away again
        let mut more = guest.region();
        more.guest_phys_addr = 1 << 30;
        more.userspace_addr += 1 << 40;
        for _ in 0..5 {
            fill(&mut guest, 20);
            guest.front.add_mem_region(&more).unwrap();
            finish_all(&mut guest, 20);
            let data = guest.data();
            put(&guest, data, &[3; 512]);
            assert_eq!(ask(&mut guest, 0, Ask::Write, 0, &[((1 << 30) + data, 512)]), (0, 1));
            guest.front.remove_mem_region(&more).unwrap();
            assert_eq!(ask(&mut guest, 0, Ask::Write, 0, &[((1 << 30) + data, 512)]), (1, 1));
        }
        assert!(guest.front.remove_mem_region(&more).is_err(), "it is not there");
        let region = guest.region();
        assert!(guest.front.add_mem_region(&region).is_err(), "it is there already");
        works(&mut guest, 0);
        drop(guest);
        served.end();
    }
}

#[test]
fn what_is_refused_is_told_and_changes_nothing() {
    let served = Served::with(|options| options.queues(2), true);
    let mut guest = served.connect(Options { queues: 2, ..Options::default() });
    assert_eq!(guest.front.get_queue_num().unwrap(), 2);
    assert!(guest.front.get_max_mem_slots().unwrap() >= 8);
    assert!(guest.front.set_vring_num(0, 100).is_err(), "no power of two");
    assert!(guest.front.set_vring_num(0, 2048).is_err(), "too many");
    assert!(guest.front.set_features(1 << 34).is_err(), "a packed ring was not offered");
    works(&mut guest, 0);
    works(&mut guest, 1);
    drop(guest);
    served.end();
}

/// A front end goes in the middle of everything; what it has asked for is done, and the next one is served.
#[test]
fn front_ends_come_and_go() {
    let served = Served::new();
    for n in 0..10 {
        let mut guest = served.connect(Options { inflight: n % 2 == 0, ..Options::default() });
        fill(&mut guest, 50);
    }
    // the second one waits for the first
    let mut first = served.connect(Options::default());
    let socket = served.socket.clone();
    let second = std::thread::spawn(move || {
        let mut guest = Guest::connect(&socket, Options::default()).unwrap();
        works(&mut guest, 0);
    });
    works(&mut first, 0);
    drop(first);
    second.join().unwrap();
    served.end();
}

/// Half a message, none, too much, and nonsense: nobody else is held up.
#[test]
fn noise_ends_a_connection_and_half_a_message_waits() {
    let served = Served::new();
    let word = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    for noise in [
        word(&[1, 1, 0xffff]),
        word(&[999, 1, 0]),
        word(&[8, 1, 8, 70_000, 5]),
        word(&[11, 1, 8, 70_000, 0]),
        word(&[1, 0xffff_ffff, 0]),
        word(&[5, 1, 8, 1, 0]),
        word(&[12, 1, 8, 0, 0]),
        vec![0xff; 5000],
        vec![1, 0, 0],
    ] {
        let mut socket = UnixStream::connect(&served.socket).unwrap();
        socket.write_all(&noise).unwrap();
        if noise.len() < 12 {
            // it says no more
            socket.shutdown(Shutdown::Write).unwrap();
        }
        let mut told = Vec::new();
        // its end, or an error; in no case an answer that is waited for
        let _ = socket.read_to_end(&mut told);
        let mut guest = served.connect(Options::default());
        works(&mut guest, 0);
    }
    // half a message does not keep the server from its end
    let mut half = UnixStream::connect(&served.socket).unwrap();
    half.write_all(&word(&[11, 1, 8, 0])).unwrap();
    served.end();
}

/// The end in the middle of requests, and the next server goes on: nothing is lost, nothing answered twice.
#[test]
fn the_next_server_does_what_was_left() {
    let mut served = Served::new();
    let mut guest = served.connect(Options::default());
    for round in 0..10u16 {
        fill(&mut guest, 100);
        served.stop();
        assert!(guest.queues[0].used_index() <= (round + 1) * 100);
        served.begin();
        guest.reconnect(&served.socket).unwrap();
        finish_all(&mut guest, 100);
        assert_eq!(guest.queues[0].used_index(), (round + 1) * 100);
    }
    works(&mut guest, 0);
    drop(guest);
    served.end();
}
