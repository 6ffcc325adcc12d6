//! Clients that mean no good, and those that are gone.

use super::client::*;
use quod_serve::ServerOptions;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

/// A server that others are served by all the while.
fn still_serves(served: &Served) {
    let mut client = served.client(Style::Structured);
    client.write_at(0, b"still here");
    assert_eq!(client.read_at(0, 10), b"still here");
}

/// A reply for a client that is gone.
#[test]
fn clients_that_go_in_the_middle() {
    let served = Served::new(64 << 20);
    for round in 0..60u64 {
        let mut client = served.client(STYLES[round as usize % 3]);
        // no more than the server takes without its replies being read
        for n in 0..6 {
            client.send(0, WRITE, n << 20, 100_000, &pattern(n, 100_000));
            client.send(0, READ, n << 20, 1 << 20, &[]);
        }
        match round % 4 {
            0 => drop(client),
            // in the middle of a payload
            1 => {
                let head = client.head(0, WRITE, 1, 0, 4 << 20);
                client.stream.write_all(&[head, vec![1; (round as usize + 1) * 50_000]].concat()).unwrap();
            }
            // in the middle of a header
            2 => client.stream.write_all(&client.head(0, READ, 1, 0, 512)[..20]).unwrap(),
            _ => {
                client.send(0, DISC, 0, 0, &[]);
            }
        }
    }
    still_serves(&served);
    served.stop();
}

/// Whatever bytes come, in the negotiation and behind it.
#[test]
fn nonsense_is_answered_or_ends_the_connection() {
    let served = Served::new(1 << 20);
    for seed in 0..200u64 {
        let noise = pattern(seed, 1 + seed as usize * 97 % 5000);
        let mut stream = served.connect();
        // the other side may have closed by then
        let _ = match seed % 4 {
            0 => stream.write_all(&noise),
            1 => stream.write_all(&[&3u32.to_be_bytes()[..], &noise].concat()),
            2 => stream.write_all(&[&3u32.to_be_bytes()[..], &option(seed as u32 % 13, &noise)].concat()),
            _ => {
                let mut client = served.client(STYLES[seed as usize % 3]);
                client.stream.write_all(&noise)
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let _ = stream.read(&mut [0; 100]);
    }
    still_serves(&served);
}

/// Requests without end, replies that nobody reads: the server stops reading, and others are served. When the
/// replies are read after all, each is there.
#[test]
fn a_client_that_does_not_read_is_not_read_from() {
    let served = Served::new(64 << 20);
    let mut slow = served.client(Style::Extended);
    slow.write_at(0, &pattern(7, 1 << 20));
    let head = |slow: &Client, cookie| slow.head(0, READ, cookie, 0, 1 << 20);
    slow.stream.set_nonblocking(true).unwrap();
    let (mut sent, mut bytes) = (0u64, Vec::new());
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        if bytes.is_empty() {
            sent += 1;
            bytes = head(&slow, sent);
        }
        match slow.stream.write(&bytes) {
            Ok(len) => drop(bytes.drain(..len)),
            Err(_) => {
                still_serves(&served);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    assert!(sent > 100 && !bytes.is_empty(), "the server does not take requests without end: {sent}");
    slow.stream.set_nonblocking(false).unwrap();
    let mut reader = slow.stream.try_clone().unwrap();
    let whole = sent - 1;
    let rest = std::thread::spawn(move || {
        let mut total = 0u64;
        let mut buffer = vec![0; 1 << 20];
        // a head of 32 bytes, an offset, the data; the beginning of another head has no reply
        while total < whole * ((1 << 20) + 40) {
            let len = reader.read(&mut buffer).unwrap();
            assert!(len > 0);
            total += len as u64;
        }
        total
    });
    assert_eq!(rest.join().unwrap(), whole * ((1 << 20) + 40));
    still_serves(&served);
}

/// Nothing at all is said: such a client goes when its time is over.
#[test]
fn a_silent_client_goes() {
    let options = ServerOptions::default().negotiation(Duration::from_millis(300));
    let served = Served::with(1 << 20, options);
    let mut silent = served.connect();
    let mut talks = served.connect();
    let began = Instant::now();
    let mut greeting = [0; 18];
    silent.read_exact(&mut greeting).unwrap();
    // one that says something now and then is no better
    let mut said = 0;
    while talks.write_all(&[0]).is_ok() && said < 100 {
        said += 1;
        std::thread::sleep(Duration::from_millis(20));
        still_serves(&served);
    }
    assert!(said < 100);
    assert_eq!(silent.read(&mut greeting).unwrap(), 0);
    let took = began.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&took), "{took:?}");
}
