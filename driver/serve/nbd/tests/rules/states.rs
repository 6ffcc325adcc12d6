//! All conversations of a few messages, and what must hold of each: every edge of the table is taken, a
//! conversation is the same in whatever pieces it comes, and nothing panics.

use super::common::*;
use quod_nbd::{Connection, EDGES, Exports, Next, State, Taken, Tls, What};

/// What a client might say in a negotiation.
fn sayings() -> Vec<Vec<u8>> {
    vec![
        option(EXPORT_NAME, b""),
        option(EXPORT_NAME, b"nothing"),
        option(ABORT, &[]),
        option(LIST, &[]),
        option(STARTTLS, &[]),
        option(OPT_INFO, &info("quiet", &[1, 2, 3])),
        option(GO, &info("", &[3])),
        option(STRUCTURED, &[]),
        option(EXTENDED, &[]),
        option(LIST_CONTEXTS, &queries("", &[])),
        option(SET_CONTEXTS, &queries("", &["base:allocation", "x-quod:kind"])),
        option(99, &[1, 2, 3]),
        option(LIST, &[0; 17_000]),
        vec![0xff; 16],
    ]
}

/// What it might say then; `extended` as it negotiated.
fn requests(style: bool) -> Vec<u8> {
    let build = |flags, command, offset, len: u64| {
        if style {
            extended(flags, command, offset, len)
        } else {
            request(flags, command, offset, len as u32)
        }
    };
    let payload = if style { 32 } else { 0 };
    [
        build(0, 0, 0, 4096),
        build(payload, 1, 512, 16),
        vec![9; 16],
        build(payload, 1, 512, 16),
        vec![9; 16],
        build(payload | 2, 1, 512, 16),
        vec![9; 16],
        build(0, 7, 0, 1 << 20),
        build(0, 3, 0, 0),
        build(payload, 1, SIZE, 40),
        vec![9; 40],
        build(0, 2, 0, 0),
        build(0, 0, 0, 1),
    ]
    .concat()
}

/// All that a conversation showed.
#[derive(PartialEq, Debug, Default)]
struct Story {
    sent: Vec<u8>,
    seen: Vec<String>,
}

/// Runs a conversation that comes in pieces; TLS handshakes are left out.
fn converse(tls: Tls, bytes: &[u8], piece: usize) -> (Story, Taken) {
    let mut connection = Connection::new(tls);
    let (mut story, mut left) = (Story::default(), bytes.to_vec());
    let index = loop {
        let talked = talk_in(&mut connection, &left, piece, &Three);
        story.sent.extend(talked.sent);
        story.seen.push(format!("{:?}", talked.next));
        left = talked.left;
        match talked.next {
            Next::Handshake => connection.secured(),
            Next::Transmission(index) => break index,
            _ => {
                connection.hang_up();
                return (story, *connection.taken());
            }
        }
    };
    left.extend(requests(matches!(connection.style(), quod_nbd::Style::Extended)));
    let export = Three.export(index);
    let (mut from, mut to) = (0, 0);
    let mut writes = 0;
    while connection.state() != State::Ended {
        if connection.payload() > 0 {
            let taken = connection.payload().min((to - from) as u64).min(7);
            connection.took(taken);
            from += taken as usize;
            // the second one fails on its way
            if taken > 0 && connection.payload() > 0 && writes == 2 {
                connection.skip_payload();
            }
            if taken == 0 {
                to = left.len().min(to.saturating_add(piece));
            }
            continue;
        }
        let received = connection.receive(&left[from..to], &export);
        from += received.taken;
        match received.what {
            What::More(wanted) if to - from < wanted && to < left.len() => {
                to = left.len().min(to.saturating_add(piece));
            }
            What::More(_) => {
                story.seen.push("more".into());
                break;
            }
            What::Skipped => {}
            what => {
                writes += u32::from(connection.payload() > 0);
                story.seen.push(format!("{what:?}"));
            }
        }
    }
    connection.hang_up();
    (story, *connection.taken())
}

#[test]
fn every_edge_is_taken_and_pieces_do_not_matter() {
    let sayings = sayings();
    let mut taken = Taken::default();
    for tls in [Tls::Off, Tls::Offered, Tls::Required] {
        for flags in [3u32, 0, 4] {
            for first in &sayings {
                for second in &sayings {
                    for third in &sayings {
                        let bytes = [&flags.to_be_bytes()[..], first, second, third].concat();
                        let (story, edges) = converse(tls, &bytes, usize::MAX);
                        taken = taken.and(&edges);
                        // long ones byte by byte only once
                        if bytes.len() < 1000 || first.len() > 1000 && second == third && flags == 3 {
                            for piece in [1, 5] {
                                assert_eq!(converse(tls, &bytes, piece).0, story, "pieces of {piece}");
                            }
                        }
                    }
                }
            }
        }
    }
    // what only a socket's end leads over
    for cut in [0, 4] {
        let mut connection = Connection::new(Tls::Off);
        if cut > 0 {
            talk(&mut connection, &[0; 3]);
        }
        connection.hang_up();
        taken = taken.and(connection.taken());
    }
    let ended = |bytes: &[u8], tls| {
        let mut connection = greeted(tls);
        talk_in(&mut connection, bytes, usize::MAX, &Three);
        connection.hang_up();
        *connection.taken()
    };
    let half = &option(LIST, &[0; 17_000])[..100];
    taken = taken.and(&ended(half, Tls::Off)).and(&ended(&option(STARTTLS, &[]), Tls::Offered));
    taken = taken.and(&listing_that_ends()).and(&payloads_that_end());
    let missing: Vec<_> = EDGES.iter().filter(|(from, to)| !taken.has(*from, *to)).collect();
    assert!(missing.is_empty(), "edges that no conversation takes: {missing:?}");
}

fn listing_that_ends() -> Taken {
    let mut connection = greeted(Tls::Off);
    let mut room = [0; quod_nbd::SINK_MIN];
    let mut sink = quod_nbd::Sink::new(&mut room);
    assert_eq!(connection.negotiate(&option(LIST, &[]), &mut sink, &Three).next, Next::Again);
    assert_eq!(connection.state(), State::Listing);
    connection.hang_up();
    *connection.taken()
}

fn payloads_that_end() -> Taken {
    let mut taken = Taken::default();
    for (export, name) in [(0, ""), (1, "quiet")] {
        let mut connection = transmitting(name, &[]);
        receive(&mut connection, export, &request(0, 1, 0, 10));
        connection.hang_up();
        taken = taken.and(connection.taken());
    }
    taken
}
