//! How many, how much.

use super::client::*;
use quod_serve::{Address, ExportOptions, ServeError, Server, ServerOptions};
use std::io::Read;
use std::time::Duration;

/// One client more than there may be takes the place of one that has not chosen an export, or is turned away.
#[test]
fn clients_are_counted() {
    let served = Served::with(1 << 20, ServerOptions::default().clients(3));
    let (mut first, mut second) = (served.client(Style::Simple), served.client(Style::Simple));
    let mut idle = served.connect();
    idle.read_exact(&mut [0; 18]).unwrap();
    let mut third = served.client(Style::Simple);
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "it had chosen nothing");
    let mut fourth = served.connect();
    assert_eq!(fourth.read(&mut [0; 1]).unwrap(), 0, "there is no place");
    for client in [&mut first, &mut second, &mut third] {
        client.write_at(0, b"x");
    }
    drop(third);
    std::thread::sleep(Duration::from_millis(100));
    served.client(Style::Simple).write_at(0, b"x");
}

/// More requests at once than the disk has slots, of several clients: all of them are answered.
#[test]
fn more_requests_than_slots() {
    let config = quod::Config::default().requests(4);
    let served = Served::with(64 << 20, ServerOptions::default().config(config));
    let mut clients: Vec<Client> = (0..6).map(|_| served.client(Style::Structured)).collect();
    for round in 0..3 {
        for client in &mut clients {
            for n in 0..100 {
                client.send(0, WRITE, n * 8192, 4096, &pattern(round, 4096));
            }
            client.send(0, WRITE, 8 << 20, 5 << 20, &pattern(round, 5 << 20));
        }
        for client in &mut clients {
            let mut cookies: Vec<u64> = (0..101)
                .map(|_| client.reply(0, 0))
                .map(|(cookie, reply)| {
                    assert_eq!(reply.error, 0);
                    cookie
                })
                .collect();
            cookies.sort_unstable();
            cookies.dedup();
            assert_eq!(cookies.len(), 101);
            assert!(client.read_at(8 << 20, 5 << 20) == pattern(round, 5 << 20));
        }
    }
}

/// A budget of two pieces must do for a request of thirty-two.
#[test]
fn little_memory_is_enough() {
    let served = Served::with(128 << 20, ServerOptions::default().memory(1));
    for style in STYLES {
        let mut client = served.client(style);
        let bytes = pattern(9, 32 << 20);
        client.write_at(1, &bytes);
        assert!(client.read_at(1, 32 << 20) == bytes);
    }
}

#[test]
fn what_cannot_be_served_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let raw = folder.path().join("raw");
    std::fs::write(&raw, [0; 4096]).unwrap();
    let mut server = Server::new(ServerOptions::default()).unwrap();
    let options = quod::OpenOptions::new();
    let guessed = server.open(ExportOptions::new("", &raw, options.clone().write(true))).unwrap_err();
    assert!(matches!(guessed, ServeError::Guessed(ref path) if *path == raw), "{guessed}");
    let missing = server.open(ExportOptions::new("", "no/such/file", options.clone())).unwrap_err();
    assert!(matches!(missing, ServeError::Open { .. }), "{missing}");
    let named = |name: &str| ExportOptions::new(name, &raw, options.clone().tolerate_writers(true));
    server.open(named("a")).unwrap();
    assert!(matches!(server.open(named("a")), Err(ServeError::SameName(_))));
    assert!(matches!(server.open(named("a\0")), Err(ServeError::BadName(_))));
    assert!(matches!(server.open(named(&"n".repeat(4097))), Err(ServeError::BadName(_))));
    let nowhere = server.listen(&Address::Unix(folder.path().join("no/folder"))).unwrap_err();
    assert!(nowhere.to_string().ends_with("No such file or directory"), "{nowhere}");
}
