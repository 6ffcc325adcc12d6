//! What requests do, in all styles of replies.

use super::client::*;
use quod_serve::ServerOptions;

/// A minimum block of one byte is told, so any offset and length must do.
#[test]
fn bytes_are_written_and_read_at_any_offset() {
    let served = Served::new(64 << 20);
    for (n, style) in STYLES.into_iter().enumerate() {
        let mut client = served.client(style);
        let base = n as u64 * (16 << 20);
        for (offset, len) in [(0, 1), (511, 3), (4097, 70_000), (65_535, 131_074), (1_000_001, 1)] {
            let bytes = pattern(offset + n as u64, len);
            client.write_at(base + offset, &bytes);
            assert!(client.read_at(base + offset, len) == bytes, "{style:?} {offset} {len}");
        }
    }
}

/// Long requests go in pieces; a simple reply has one head, and nothing else between its bytes.
#[test]
fn long_requests_are_whole() {
    const LONG: usize = 32 << 20;
    let served = Served::new(128 << 20);
    for style in STYLES {
        let mut client = served.client(style);
        let bytes = pattern(style as u64, LONG);
        assert_eq!(client.ask(FUA, WRITE, 12_345, LONG as u64, &bytes), Reply::default());
        // short ones on both sides, whose replies must not come between
        let before = client.send(0, READ, 12_345, 512, &[]);
        let long = client.send(0, READ, 12_345, LONG as u64, &[]);
        let flush = client.send(0, FLUSH, 0, 0, &[]);
        let mut left = vec![before, long, flush];
        while !left.is_empty() {
            if style == Style::Simple {
                // which one is known by its cookie alone
                let mut head = [0; 16];
                std::io::Read::read_exact(&mut client.stream, &mut head).unwrap();
                let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
                let len = if cookie == long {
                    LONG
                } else if cookie == before {
                    512
                } else {
                    0
                };
                let mut data = vec![0; len];
                std::io::Read::read_exact(&mut client.stream, &mut data).unwrap();
                assert!(data[..] == bytes[..len]);
                left.retain(|sent| *sent != cookie);
            } else {
                let reply = chunks(&mut client, &mut left);
                let Some((cookie, reply)) = reply else { continue };
                let len = if cookie == long { LONG } else { 512 };
                assert!(reply.bytes(12_345, len)[..] == bytes[..len]);
            }
        }
        assert!(client.read_at(12_345 + 5, 1 << 20) == bytes[5..5 + (1 << 20)]);
    }
}

/// Replies whose chunks come between each other's are kept apart by their cookies; this client asks one after
/// the other instead, which is as good: the server may answer in any order, but a chunk names its request.
fn chunks(client: &mut Client, left: &mut Vec<u64>) -> Option<(u64, Reply)> {
    thread_local! {
        static PARTS: std::cell::RefCell<std::collections::HashMap<u64, Reply>> = Default::default();
    }
    let extended = client.style == Style::Extended;
    let magic = u32::from_be_bytes(client.read());
    if magic == 0x6744_6698 {
        let (error, cookie) = (u32::from_be_bytes(client.read()), u64::from_be_bytes(client.read()));
        assert_eq!(error, 0);
        left.retain(|sent| *sent != cookie);
        return None;
    }
    let (flags, kind) = (u16::from_be_bytes(client.read()), u16::from_be_bytes(client.read()));
    let cookie = u64::from_be_bytes(client.read());
    if extended {
        client.read::<8>();
    }
    let len = if extended {
        u64::from_be_bytes(client.read())
    } else {
        u64::from(u32::from_be_bytes(client.read()))
    };
    let mut payload = vec![0; len as usize];
    std::io::Read::read_exact(&mut client.stream, &mut payload).unwrap();
    let key = (client.style as u64) << 32 | cookie;
    PARTS.with_borrow_mut(|parts| {
        let reply = parts.entry(key).or_default();
        match kind {
            0 => {}
            1 => {
                reply.data.push((u64::from_be_bytes(payload[..8].try_into().unwrap()), payload[8..].to_vec()))
            }
            kind => panic!("a chunk of type {kind}"),
        }
        if flags & 1 == 0 {
            return None;
        }
        left.retain(|sent| *sent != cookie);
        let reply = parts.remove(&key).unwrap();
        (!reply.data.is_empty()).then_some((cookie, reply))
    })
}

/// "SHOULD use chunks": a read of what was never written is told as a hole; a simple reply has the zeros.
#[test]
fn reads_of_nothing_are_told_as_holes() {
    let served = Served::new(64 << 20);
    for style in STYLES {
        let mut client = served.client(style);
        let reply = client.must(0, READ, 8 << 20, 1 << 20);
        let (data, holes) = (reply.data.len(), reply.holes.clone());
        assert_eq!((data, holes.len()), if style == Style::Simple { (1, 0) } else { (0, 1) });
        assert_eq!(reply.bytes(8 << 20, 1 << 20), vec![0; 1 << 20]);
        let long = client.must(0, READ, 8 << 20, 5 << 20);
        assert_eq!(long.bytes(8 << 20, 5 << 20), vec![0; 5 << 20]);
    }
    let mut client = served.client(Style::Extended);
    client.write_at(100 << 10, b"data in the middle");
    let mixed = client.must(DF, READ, 0, 1 << 20);
    assert_eq!((mixed.data.len(), mixed.holes.len()), (1, 0), "one chunk was asked for");
    assert_eq!(mixed.bytes(0, 1 << 20)[100 << 10..][..18], *b"data in the middle");
}

/// A write that is refused has its payload taken along: the next request is not read from the middle of it.
#[test]
fn a_refused_write_consumes_its_payload() {
    let served = Served::new(1 << 20);
    for style in STYLES {
        let mut client = served.client(style);
        for len in [10, 100_000, 3 << 20, 33 << 20] {
            if len > 32 << 20 && style == Style::Extended {
                continue; // such a one ends the connection
            }
            // bytes that look like requests to disconnect
            let payload = client.head(0, DISC, 9, 0, 0).repeat(1 + len / 28);
            let reply = client.ask(0, WRITE, 1 << 20, len as u64, &payload[..len]);
            assert!(reply.error == 28 || reply.error == EINVAL, "{}", reply.error);
            assert_eq!(client.read_at(0, 10).len(), 10);
        }
    }
}

#[test]
fn zeroing_trimming_and_flags() {
    let served = Served::new(16 << 20);
    let mut client = served.client(Style::Structured);
    client.write_at(0, &pattern(1, 1 << 20));
    // fast: whole clusters are a matter of metadata, parts of them are not
    client.must(FAST, ZEROES, 0, 128 << 10);
    assert_eq!(client.ask(FAST, ZEROES, 1000, 128 << 10, &[]).error, ENOTSUP);
    assert_eq!(client.read_at(128 << 10, 1 << 10), pattern(1, 1 << 20)[128 << 10..129 << 10]);
    client.must(FAST | NO_HOLE | FUA, ZEROES, 128 << 10, 64 << 10);
    client.must(0, ZEROES, 200_001, 77);
    let expected = {
        let mut bytes = pattern(1, 1 << 20);
        bytes[..192 << 10].fill(0);
        bytes[200_001..200_078].fill(0);
        bytes
    };
    assert!(client.read_at(0, 1 << 20) == expected);
    client.must(FUA, TRIM, 512 << 10, 256 << 10);
    client.must(0, CACHE, 0, 16 << 20);
    client.must(FUA, FLUSH, 0, 0);
    // the end of the disk counts as the end of a cluster
    client.must(FAST, ZEROES, 15 << 20, 1 << 20);
}

/// Several connections see what the others have written, and a flush over one covers all.
#[test]
fn connections_share_the_disk() {
    let served = Served::new(16 << 20);
    let mut clients: Vec<Client> = (0..5).map(|n| served.client(STYLES[n % 3])).collect();
    for (n, client) in clients.iter_mut().enumerate() {
        client.write_at(n as u64 * 100_000, &pattern(n as u64, 100_000));
    }
    for client in &mut clients {
        for n in 0..5 {
            assert!(client.read_at(n * 100_000, 100_000) == pattern(n, 100_000));
        }
        client.must(0, FLUSH, 0, 0);
    }
}

/// The end of a server: what is under way is answered, what comes then is refused, and the image is closed.
#[test]
fn a_server_that_ends_answers_what_is_under_way() {
    let mut served = Served::with(64 << 20, ServerOptions::default());
    let (mut idle, mut busy) = (served.client(Style::Structured), served.client(Style::Structured));
    let bytes = pattern(3, 4 << 20);
    let (first, second) = bytes.split_at(2 << 20);
    let head = busy.head(FUA, WRITE, 1, 0, 4 << 20);
    std::io::Write::write_all(&mut busy.stream, &[&head, first].concat()).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(100));
    served.ask_to_stop();
    assert!(idle.is_closed(), "nothing was under way");
    std::io::Write::write_all(&mut busy.stream, second).unwrap();
    busy.send(0, READ, 0, 512, &[]);
    let mut replies = [busy.reply(0, 0), busy.reply(0, 0)].map(|(cookie, reply)| (cookie, reply.error));
    replies.sort_unstable();
    assert_eq!(replies, [(1, 0), (1, ESHUTDOWN)], "both were sent as the first of their kind");
    served.join();
    let mut session =
        quod_tools::Session::open(served.folder.path().join("d"), quod::OpenOptions::new()).unwrap();
    let mut found = vec![0; 4 << 20];
    session.read(0, &mut found).unwrap();
    assert!(found == bytes && !session.info().unwrap().image().info.dirty);
}

/// The first piece takes longest (its clusters are compressed), and is sent first all the same where the
/// bytes of a reply have an order.
#[test]
fn pieces_keep_their_order_however_long_they_take() {
    const LEN: usize = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..LEN).map(|n| (n / 997) as u8).collect();
    std::fs::write(folder.path().join("raw"), &bytes).unwrap();
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "raw", "d"];
    let made = std::process::Command::new("qemu-img").args(convert).current_dir(folder.path()).status();
    assert!(made.expect("qemu-img must be installed").success());
    let mut plain =
        quod_tools::Session::open(folder.path().join("d"), quod::OpenOptions::new().write(true)).unwrap();
    plain.write(1 << 20, &bytes[1 << 20..]).unwrap();
    plain.close().unwrap();
    let served = Served::of(folder, ServerOptions::default());
    for style in STYLES {
        for _ in 0..5 {
            assert!(served.client(style).read_at(0, LEN) == bytes, "{style:?}");
        }
    }
}
