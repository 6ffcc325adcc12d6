//! "Request message", "Request types", "Command flags", "Size constraints", "Error values".

use super::common::*;
use quod_nbd::{Command, Connection, Contexts, End, Errno, Refused, State, Style, Violation, What};

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const ZEROES: u16 = 6;
const STATUS: u16 = 7;

const FUA: u16 = 1;
const NO_HOLE: u16 = 2;
const DF: u16 = 4;
const REQ_ONE: u16 = 8;
const FAST: u16 = 16;
const PAYLOAD: u16 = 32;

fn command(what: What) -> Command {
    match what {
        What::Request(request) => {
            assert_eq!(request.cookie, 77);
            request.command
        }
        what => panic!("{what:?}"),
    }
}

fn errno(what: What) -> Errno {
    match what {
        What::Refused(Refused { cookie: 77, errno, text, .. }) if !text.is_empty() => errno,
        what => panic!("{what:?}"),
    }
}

/// All contexts selected, structured replies, for the default export.
fn with_contexts(options: &[u32]) -> Connection {
    let mut connection = greeted(quod_nbd::Tls::Off);
    options.iter().for_each(|option| assert_eq!(kinds(&mut connection, *option, &[]), [ACK]));
    let names = ["base:allocation", "qemu:allocation-depth"];
    assert_eq!(kinds(&mut connection, SET_CONTEXTS, &queries("", &names)).len(), 3);
    go(&mut connection, "");
    connection
}

#[test]
fn commands_and_their_flags() {
    let mut client = transmitting("", &[STRUCTURED]);
    let mut ask = |flags, number| command(receive(&mut client, 0, &request(flags, number, 512, 512)));
    assert_eq!(ask(0, READ), Command::Read { unfragmented: false });
    assert_eq!(ask(DF | FUA, READ), Command::Read { unfragmented: true });
    assert_eq!(ask(0, FLUSH), Command::Flush);
    assert_eq!(ask(FUA, FLUSH), Command::Flush);
    assert_eq!(ask(FUA, TRIM), Command::Trim { fua: true });
    assert_eq!(ask(0, CACHE), Command::Cache);
    assert_eq!(ask(0, ZEROES), Command::WriteZeroes { fua: false, no_hole: false, fast: false });
    assert_eq!(
        ask(NO_HOLE | FAST | FUA, ZEROES),
        Command::WriteZeroes { fua: true, no_hole: true, fast: true }
    );
}

/// "SHOULD return `NBD_EINVAL` if it receives a request with a flag not explicitly documented as applicable".
#[test]
fn flags_that_a_command_does_not_have_are_refused() {
    let mut client = transmitting("", &[STRUCTURED]);
    for (flags, number) in [
        (NO_HOLE, READ),
        (DF, ZEROES),
        (REQ_ONE, READ),
        (NO_HOLE, TRIM),
        (FAST, CACHE),
        (PAYLOAD, READ),
        (1 << 15, READ),
        (DF, FLUSH),
    ] {
        assert_eq!(
            errno(receive(&mut client, 0, &request(flags, number, 0, 512))),
            Errno::Invalid,
            "{flags}"
        );
    }
    // "Clients MUST NOT set the `NBD_CMD_FLAG_DF` request flag unless" chunks were negotiated
    let mut simple = transmitting("", &[]);
    assert_eq!(errno(receive(&mut simple, 0, &request(DF, READ, 0, 512))), Errno::Invalid);
}

/// "The server SHOULD return `NBD_EINVAL` if it receives an unknown command."
#[test]
fn unknown_commands_are_refused_and_the_next_is_served() {
    let mut client = transmitting("", &[]);
    for number in [8, 100, u16::MAX] {
        assert_eq!(errno(receive(&mut client, 0, &request(0, number, 0, 512))), Errno::Invalid);
    }
    command(receive(&mut client, 0, &request(0, READ, 0, 512)));
}

/// "The server SHOULD return `NBD_ENOSPC`" for writes behind the end, `NBD_EINVAL` for the rest.
#[test]
fn ranges_behind_the_end_are_refused() {
    let mut client = with_contexts(&[STRUCTURED]);
    for offset in [SIZE - 511, SIZE, u64::MAX - 511, u64::MAX] {
        for number in [READ, TRIM, CACHE, STATUS] {
            assert_eq!(errno(receive(&mut client, 0, &request(0, number, offset, 512))), Errno::Invalid);
        }
        assert_eq!(errno(receive(&mut client, 0, &request(0, ZEROES, offset, 512))), Errno::NoSpace);
        let write = [&request(0, WRITE, offset, 512)[..], &[0; 512]].concat();
        let received = client.receive(&write, &quod_nbd::Exports::export(&Three, 0));
        assert_eq!(errno(received.what), Errno::NoSpace);
        assert_eq!(receive(&mut client, 0, &write[received.taken..]), What::Skipped);
    }
    for number in [READ, TRIM, CACHE, STATUS, ZEROES] {
        command(receive(&mut client, 0, &request(0, number, SIZE - 512, 512)));
    }
}

/// A write that is refused still has its payload, which is no request.
#[test]
fn a_refused_write_consumes_its_payload() {
    let mut client = transmitting("quiet", &[]);
    // a payload that looks like requests
    let payload = request(0, DISC, 0, 0).repeat(20);
    let head = request(0, WRITE, 0, payload.len() as u32);
    assert_eq!(errno(receive(&mut client, 1, &head)), Errno::Perm);
    for piece in payload.chunks(33) {
        assert_eq!(client.state(), State::SkipPayload);
        assert_eq!(receive(&mut client, 1, piece), What::Skipped);
    }
    assert_eq!(client.state(), State::Request);
    command(receive(&mut client, 1, &request(0, READ, 0, 1)));
}

/// "If this flag is set, the server MUST error subsequent write operations to the export."
#[test]
fn what_is_read_only_is_not_changed() {
    let mut client = transmitting("quiet", &[]);
    for number in [TRIM, ZEROES] {
        assert_eq!(errno(receive(&mut client, 1, &request(0, number, 0, 512))), Errno::Perm);
    }
    for number in [READ, FLUSH, CACHE] {
        command(receive(&mut client, 1, &request(0, number, 0, 512)));
    }
}

/// "Size constraints": "The server SHOULD report an `NBD_EINVAL` error if the client's request is not
/// aligned".
#[test]
fn what_is_not_aligned_is_refused() {
    let mut client = transmitting("blocks", &[]);
    for (offset, len) in [(1, 4096), (512, 4096), (0, 4095), (0, 512)] {
        assert_eq!(errno(receive(&mut client, 2, &request(0, READ, offset, len))), Errno::Invalid);
    }
    command(receive(&mut client, 2, &request(0, READ, 4096, 8192)));
    // a minimum of one byte
    let mut client = transmitting("", &[]);
    command(receive(&mut client, 0, &request(0, READ, SIZE - 1, 1)));
}

/// A length of zero: "the behavior of a server on such a request is unspecified although the server SHOULD
/// NOT disconnect".
#[test]
fn a_request_of_no_bytes_is_refused() {
    let mut client = transmitting("", &[]);
    for number in [READ, WRITE, TRIM, CACHE, ZEROES] {
        assert_eq!(errno(receive(&mut client, 0, &request(0, number, 0, 0))), Errno::Invalid);
    }
    command(receive(&mut client, 0, &request(0, FLUSH, 0, 0)));
}

/// "Size constraints": payloads are limited, effects are not.
#[test]
fn payloads_are_limited_and_effects_are_not() {
    const MAXIMUM: u32 = 32 << 20;
    let mut client = transmitting("", &[]);
    command(receive(&mut client, 0, &request(0, READ, 0, MAXIMUM)));
    assert_eq!(errno(receive(&mut client, 0, &request(0, READ, 0, MAXIMUM + 1))), Errno::Invalid);
    for number in [TRIM, ZEROES, CACHE] {
        let What::Request(request) = receive(&mut client, 0, &request(0, number, 0, u32::MAX)) else {
            panic!("{number}");
        };
        assert_eq!(request.len, u64::from(u32::MAX));
    }
    // "the server is also permitted to reject large read requests up front with `NBD_EOVERFLOW`"
    let mut client = transmitting("", &[STRUCTURED]);
    assert_eq!(errno(receive(&mut client, 0, &request(0, READ, 0, MAXIMUM + 1))), Errno::Overflow);
    // "`NBD_CMD_READ`": at least 65,536 bytes in one chunk
    command(receive(&mut client, 0, &request(DF, READ, 0, 65_536)));
    assert_eq!(errno(receive(&mut client, 0, &request(DF, READ, 0, MAXIMUM))), Errno::Overflow);
    // a payload that is too long is consumed, up to a bound
    assert_eq!(errno(receive(&mut client, 0, &request(0, WRITE, 0, MAXIMUM + 1))), Errno::Invalid);
    assert_eq!(receive(&mut client, 0, &vec![0; MAXIMUM as usize + 1]), What::Skipped);
    let endless = receive(&mut client, 0, &request(0, WRITE, 0, 2 * MAXIMUM + 1));
    assert_eq!(endless, What::End(End::Broken(Violation::Payload)));
}

#[test]
fn the_payload_of_a_write_is_counted() {
    let mut client = transmitting("", &[STRUCTURED]);
    assert_eq!(command(receive(&mut client, 0, &request(FUA, WRITE, 0, 600))), Command::Write { fua: true });
    assert_eq!((client.payload(), client.state()), (600, State::Payload));
    client.took(500);
    assert_eq!(client.payload(), 100);
    client.took(100);
    assert_eq!((client.payload(), client.state()), (0, State::Request));
    // and one that turns out to fail on its way
    command(receive(&mut client, 0, &request(0, WRITE, 0, 600)));
    client.took(500);
    client.skip_payload();
    assert_eq!(receive(&mut client, 0, &[0; 100]), What::Skipped);
    command(receive(&mut client, 0, &request(0, READ, 0, 1)));
}

/// "`NBD_CMD_DISC`": no reply, and nothing behind it.
#[test]
fn disc_is_the_end() {
    let mut client = transmitting("", &[]);
    let bytes = [request(0, DISC, 0, 0), request(0, READ, 0, 512)].concat();
    let received = client.receive(&bytes, &quod_nbd::Exports::export(&Three, 0));
    assert_eq!((received.taken, received.what), (28, What::End(End::Asked)));
    assert_eq!(receive(&mut client, 0, &bytes[28..]), What::End(End::Asked));
}

#[test]
fn what_is_no_request_ends_the_connection() {
    for (options, good) in [(&[][..], request(0, READ, 0, 1)), (&[EXTENDED], extended(0, READ, 0, 1))] {
        for byte in 0..4 {
            let mut bad = good.clone();
            bad[byte] ^= 0x10;
            let what = receive(&mut transmitting("", options), 0, &bad);
            assert_eq!(what, What::End(End::Broken(Violation::RequestMagic)));
        }
    }
    // compact requests are none where extended ones were agreed on
    let mut compact = request(0, READ, 0, 1);
    compact.extend([0; 4]);
    let what = receive(&mut transmitting("", &[EXTENDED]), 0, &compact);
    assert_eq!(what, What::End(End::Broken(Violation::RequestMagic)));
}

#[test]
fn a_header_is_waited_for() {
    for (options, whole) in [(&[][..], request(0, READ, 0, 1)), (&[EXTENDED], extended(0, READ, 0, 1))] {
        let mut client = transmitting("", options);
        for len in 0..whole.len() {
            let received = client.receive(&whole[..len], &quod_nbd::Exports::export(&Three, 0));
            assert_eq!((received.taken, received.what), (0, What::More(whole.len())));
        }
        command(receive(&mut client, 0, &whole));
    }
}

/// "`NBD_CMD_BLOCK_STATUS`": `NBD_EINVAL` without a context.
#[test]
fn block_status_needs_a_context() {
    let mut without = transmitting("", &[STRUCTURED]);
    assert_eq!(errno(receive(&mut without, 0, &request(0, STATUS, 0, 512))), Errno::Invalid);
    let both = Contexts::ALLOCATION | Contexts::DEPTH;
    let mut client = with_contexts(&[STRUCTURED]);
    let what = command(receive(&mut client, 0, &request(REQ_ONE, STATUS, 0, u32::MAX)));
    assert_eq!(what, Command::BlockStatus { one: true, contexts: both });
}

/// "Request message" (extended): `NBD_CMD_WRITE` has a payload; other commands with one are refused and
/// consume it; without the flag a length has 64 bits.
#[test]
fn extended_requests() {
    let mut client = transmitting("", &[EXTENDED]);
    assert_eq!(client.style(), Style::Extended);
    // QEMU's client leaves the flag out, and sends the payload all the same
    for flags in [PAYLOAD, 0] {
        command(receive(&mut client, 0, &extended(flags, WRITE, 0, 512)));
        assert_eq!(client.payload(), 512);
        client.took(512);
    }
    let What::Request(zeroes) = receive(&mut client, 0, &extended(0, ZEROES, 0, SIZE)) else { panic!() };
    assert_eq!(zeroes.len, SIZE);
    assert_eq!(errno(receive(&mut client, 0, &extended(0, ZEROES, 0, u64::MAX))), Errno::NoSpace);
    assert_eq!(errno(receive(&mut client, 0, &extended(PAYLOAD, READ, 0, 512))), Errno::Invalid);
    assert_eq!(receive(&mut client, 0, &[0; 512]), What::Skipped);
    assert_eq!(errno(receive(&mut client, 0, &extended(PAYLOAD, WRITE, 0, 0))), Errno::Invalid);
    // "A server SHOULD initiate hard disconnect"
    let end = receive(&mut client, 0, &extended(PAYLOAD, TRIM, 0, (32 << 20) + 1));
    assert_eq!(end, What::End(End::Broken(Violation::Payload)));
}

/// "`NBD_CMD_BLOCK_STATUS`" (extended): a payload of a length and contexts; duplicate or unknown ones are
/// refused, and consumed.
#[test]
fn block_status_with_a_filter() {
    let filter = |len: u64, ids: &[u32]| {
        let ids = ids.iter().flat_map(|id| id.to_be_bytes());
        len.to_be_bytes().into_iter().chain(ids).collect::<Vec<u8>>()
    };
    let asked = |payload: &[u8]| {
        let mut client = with_contexts(&[EXTENDED]);
        let bytes = [&extended(PAYLOAD, STATUS, 512, payload.len() as u64)[..], payload].concat();
        let export = quod_nbd::Exports::export(&Three, 0);
        let short = client.receive(&bytes[..bytes.len() - 1], &export);
        assert_eq!(short.taken == 0, matches!(short.what, What::More(_)));
        let received = match short.what {
            What::More(wanted) => {
                assert_eq!(wanted, bytes.len());
                client.receive(&bytes, &export)
            }
            _ => short,
        };
        let rest = &bytes[received.taken..];
        assert!(rest.is_empty() || receive(&mut client, 0, rest) == What::Skipped);
        assert_eq!(client.state(), State::Request);
        received.what
    };
    let What::Request(request) = asked(&filter(SIZE - 512, &[2])) else { panic!() };
    let only = Command::BlockStatus { one: false, contexts: Contexts::DEPTH };
    assert_eq!((request.len, request.command), (SIZE - 512, only));
    assert!(matches!(asked(&filter(512, &[2, 1])), What::Request(_)));
    for bad in [
        filter(512, &[2, 2]),
        filter(512, &[3]),
        filter(512, &[0]),
        filter(512, &[]),
        filter(0, &[1]),
        filter(SIZE, &[1]),
        filter(512, &[1, 2, 3, 4, 5]),
        vec![0; 13],
    ] {
        assert_eq!(errno(asked(&bad)), Errno::Invalid, "{bad:?}");
    }
}

/// "Terminating the transmission phase": `NBD_ESHUTDOWN`.
#[test]
fn a_server_that_ends_refuses_requests() {
    let mut client = transmitting("", &[]);
    client.stop();
    assert_eq!(errno(receive(&mut client, 0, &request(0, FLUSH, 0, 0))), Errno::Shutdown);
    assert_eq!(errno(receive(&mut client, 0, &request(0, WRITE, 0, 9))), Errno::Shutdown);
    assert_eq!(receive(&mut client, 0, &[0; 9]), What::Skipped);
    assert_eq!(receive(&mut client, 0, &request(0, DISC, 0, 0)), What::End(End::Asked));
}
