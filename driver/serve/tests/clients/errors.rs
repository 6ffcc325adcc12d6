//! An image that contradicts its format in the middle: what a client hears of it.

use super::client::*;
use quod::{Format, OpenOptions};
use quod_serve::ServerOptions;
use quod_tools::{CreateOptions, Session};
use std::io::Read;

const SIZE: usize = 8 << 20;
/// Where the bad cluster is.
const BAD: u64 = 3 << 20;

/// An image of 8 MiB of data with a bad entry at 3 MiB.
fn damaged() -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d");
    quod_tools::create(&path, &CreateOptions::new(Format::Qcow2, SIZE as u64)).unwrap();
    let mut session = Session::open(&path, OpenOptions::new().write(true)).unwrap();
    session.write(0, &pattern(1, SIZE)).unwrap();
    session.close().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = word(&bytes, 40) as usize;
    let l2 = (word(&bytes, l1) & 0x00ff_ffff_ffff_fe00) as usize;
    let entry = l2 + (BAD >> 16) as usize * 8;
    // a cluster begins where none can
    let bad = word(&bytes, entry) | 0x200;
    bytes[entry..entry + 8].copy_from_slice(&bad.to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    Served::of(folder, ServerOptions::default())
}

/// The error of a read is told, and the connection goes on.
#[test]
fn a_read_that_fails_is_answered() {
    let served = damaged();
    for style in STYLES {
        let mut client = served.client(style);
        assert_eq!(client.ask(0, READ, BAD + 5, 100, &[]).error, 5);
        assert!(client.read_at(BAD - 100, 100) == pattern(1, SIZE)[BAD as usize - 100..BAD as usize]);
        if style != Style::Simple {
            // in several pieces: some of them come, and then the error
            assert_eq!(client.ask(0, READ, 0, SIZE as u64, &[]).error, 5);
            assert!(client.read_at(0, 1000) == pattern(1, SIZE)[..1000]);
        }
    }
}

/// "If an error occurs while reading after the server has already sent out the reply header ... the server
/// MUST immediately initiate a hard disconnect".
#[test]
fn a_simple_reply_that_fails_in_the_middle_ends_the_connection() {
    let served = damaged();
    let mut client = served.client(Style::Simple);
    client.send(0, READ, 0, SIZE as u64, &[]);
    let mut came = Vec::new();
    // the other side may reset
    let _ = client.stream.read_to_end(&mut came);
    assert!(came.len() <= 16 + BAD as usize, "{}", came.len());
    assert!(came.len() < 16 || came[16..] == pattern(1, SIZE)[..came.len() - 16]);
    served.client(Style::Simple).read_at(0, 10);
}

/// A write that fails while its payload is coming takes the rest of it along.
#[test]
fn a_write_that_fails_in_the_middle_consumes_its_payload() {
    for style in STYLES {
        let served = damaged();
        let mut client = served.client(style);
        // bytes that look like requests to disconnect
        let payload = client.head(0, DISC, 9, 0, 0).repeat(1 + SIZE / 28);
        let reply = client.ask(FUA, WRITE, 0, SIZE as u64, &payload[..SIZE]);
        assert_eq!(reply.error, 5);
        assert_eq!(client.read_at(0, 28), payload[..28]);
        // the image only reads now, and says so
        assert_eq!(client.ask(0, WRITE, 0, 3, b"abc").error, 5);
        if style != Style::Simple {
            assert_eq!(client.must(0, STATUS, 0, 1 << 20).status.len(), 3);
        }
    }
}
