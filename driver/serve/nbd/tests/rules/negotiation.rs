//! "Handshake", "Option types", "Option reply types".

use super::common::*;
use quod_nbd::{Connection, End, Next, Tls, Violation};

fn broken(talked: &Talked) -> Option<Violation> {
    match talked.next {
        Next::End(End::Broken(violation)) => Some(violation),
        _ => None,
    }
}

/// "Client flags": "the server MUST drop the TCP connection if the client sets an unknown flag".
#[test]
fn unknown_client_flags_end_the_connection() {
    for flags in [4u32, 7, 1 << 31] {
        let talked = talk(&mut Connection::new(Tls::Off), &flags.to_be_bytes());
        assert_eq!(broken(&talked), Some(Violation::ClientFlags));
    }
    for flags in 0..4u32 {
        assert_eq!(talk(&mut Connection::new(Tls::Off), &flags.to_be_bytes()).next, Next::More(16));
    }
}

/// "`NBD_OPT_EXPORT_NAME`": an answer without a head, with 124 zeros unless they were declined.
#[test]
fn export_name_is_answered_without_a_head() {
    for (flags, len) in [(0u32, 134), (1, 134), (2, 10), (3, 10)] {
        let mut connection = Connection::new(Tls::Off);
        let bytes = [&flags.to_be_bytes()[..], &option(EXPORT_NAME, b"quiet")].concat();
        let talked = talk(&mut connection, &bytes);
        assert_eq!(talked.next, Next::Transmission(1));
        assert_eq!((talked.sent.len() - 18, &talked.sent[18..26]), (len, &SIZE.to_be_bytes()[..]));
        // HAS_FLAGS, READ_ONLY, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN, SEND_CACHE
        assert_eq!(talked.sent[26..28], [0b101, 0b1111]);
    }
}

/// "If the chosen export does not exist ... the server MUST terminate the session".
#[test]
fn export_name_of_nothing_ends_the_connection() {
    for name in [&b"nothing"[..], b"\xff", b"a\0", &[b'n'; 4097], &[b'n'; 20_000]] {
        let talked = talk(&mut greeted(Tls::Off), &option(EXPORT_NAME, name));
        assert_eq!((broken(&talked), talked.sent.len()), (Some(Violation::NoExport), 0));
    }
}

/// "Once extended headers are successfully requested, a client MUST NOT use `NBD_OPT_EXPORT_NAME`."
#[test]
fn export_name_does_not_go_with_extended_headers() {
    let mut connection = greeted(Tls::Off);
    assert_eq!(kinds(&mut connection, EXTENDED, &[]), [ACK]);
    let talked = talk(&mut connection, &option(EXPORT_NAME, b""));
    assert_eq!(broken(&talked), Some(Violation::ExportName));
}

/// "`NBD_OPT_ABORT`": "The server MUST reply with `NBD_REP_ACK`", and "SHOULD ignore any data".
#[test]
fn abort_is_acknowledged_and_the_end() {
    for data in [&b""[..], b"bye"] {
        let mut connection = greeted(Tls::Off);
        let talked = talk(&mut connection, &option(ABORT, data));
        assert_eq!(replies(ABORT, &talked.sent), [(ACK, Vec::new())]);
        assert_eq!(talked.next, Next::End(End::Asked));
        let after = talk(&mut connection, &option(LIST, &[]));
        assert!(after.sent.is_empty() && after.next == Next::End(End::Asked));
    }
}

/// "`NBD_OPT_LIST`", "`NBD_REP_SERVER`": names and descriptions; data are an error.
#[test]
fn list_tells_names_and_descriptions() {
    let mut connection = greeted(Tls::Off);
    let found = ask(&mut connection, LIST, &[]);
    let entry = |name: &str, text: &str| {
        let len = (name.len() as u32).to_be_bytes();
        (SERVER, [&len[..], name.as_bytes(), text.as_bytes()].concat())
    };
    let exports = [entry("", "all of it"), entry("quiet", ""), entry("blocks", "all of it")];
    assert_eq!(found[..3], exports);
    assert_eq!(found[3..], [(ACK, Vec::new())]);
    assert_eq!(kinds(&mut connection, LIST, b"x"), [ERR_INVALID]);
}

/// A list that no sink could hold is told in pieces.
#[test]
fn a_long_list_is_told_in_pieces() {
    let mut connection = greeted(Tls::Off);
    let talked = talk_in(&mut connection, &option(LIST, &[]), 1, &Many(100));
    let found = replies(LIST, &talked.sent);
    assert_eq!(found.len(), 101);
    assert!(found[..100].iter().all(|(kind, data)| *kind == SERVER && data.len() == 4 + 4096 + 9));
}

/// "`NBD_OPT_INFO` and `NBD_OPT_GO`": an INFO_EXPORT at least; the block sizes come before it, because QEMU
/// believes a size only together with the block size that it has heard by then.
#[test]
fn block_sizes_are_told_before_the_export() {
    for number in [OPT_INFO, GO] {
        let mut connection = greeted(Tls::Off);
        let found = ask(&mut connection, number, &info("blocks", &[3]));
        let [sizes, export, ack] = &found[..] else { panic!("{found:?}") };
        let words = |words: [u32; 3]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        assert_eq!(*sizes, (INFO, [&[0, 3][..], &words([4096, 4096, 32 << 20])].concat()));
        assert_eq!((export.0, &export.1[..10]), (INFO, &[&[0, 0][..], &SIZE.to_be_bytes()].concat()[..]));
        assert_eq!(*ack, (ACK, Vec::new()));
    }
}

/// Name and description are told if they are asked for; unknown requests are ignored.
#[test]
fn information_is_told_if_it_is_asked_for() {
    let mut connection = greeted(Tls::Off);
    let found = ask(&mut connection, OPT_INFO, &info("", &[1, 2, 99, 3, 0]));
    let kinds: Vec<&[u8]> =
        found.iter().filter(|(kind, _)| *kind == INFO).map(|(_, data)| &data[..2]).collect();
    assert_eq!(kinds, [[0, 1], [0, 2], [0, 3], [0, 0]]);
    assert_eq!(found[1].1[2..], *b"all of it");
    let few = ask(&mut connection, OPT_INFO, &info("quiet", &[2]));
    assert_eq!(few.len(), 3, "an empty description is none");
}

/// "`NBD_REP_ERR_UNKNOWN`", and the data must be what they say.
#[test]
fn go_is_refused_for_what_is_not_there_or_makes_no_sense() {
    let mut connection = greeted(Tls::Off);
    assert_eq!(kinds(&mut connection, GO, &info("nothing", &[])), [ERR_UNKNOWN]);
    let mut long = info("x", &[]);
    long[3] = 200;
    let nul = info("a\0", &[]);
    let behind = [&info("", &[])[..], &[0]].concat();
    for bad in [&long[..], &nul, &behind, &[], &[0, 0, 0, 0], &[0, 0, 0, 0, 0, 1]] {
        assert_eq!(kinds(&mut connection, GO, bad), [ERR_INVALID], "{bad:?}");
    }
    let huge = "n".repeat(5000);
    assert_eq!(kinds(&mut connection, GO, &info(&huge, &[])), [ERR_TOO_BIG]);
    assert_eq!(kinds(&mut connection, GO, &info("", &[])).last(), Some(&ACK));
}

/// "Servers that receive messages which they do not implement MUST reply ... `NBD_REP_ERR_UNSUP`, and MUST
/// NOT fail to parse the next message."
#[test]
fn unknown_options_are_refused_and_skipped() {
    let mut connection = greeted(Tls::Off);
    for number in [0, 4, 12, 1 << 30] {
        assert_eq!(kinds(&mut connection, number, b"what"), [ERR_UNSUP]);
        assert_eq!(kinds(&mut connection, number, &vec![7; 100_000]), [ERR_UNSUP]);
    }
    assert_eq!(kinds(&mut connection, LIST, &[]).len(), 4);
}

/// `NBD_REP_ERR_TOO_BIG`: more data than are looked at; and beyond what may be taken for an attack the end.
#[test]
fn long_options_are_skipped_and_longer_ones_end_the_connection() {
    let mut connection = greeted(Tls::Off);
    for number in [ABORT, LIST, SET_CONTEXTS] {
        assert_eq!(kinds(&mut connection, number, &vec![0; 16_385]), [ERR_TOO_BIG]);
    }
    let mut endless = option(SET_CONTEXTS, &[]);
    endless[12..].copy_from_slice(&((32u32 << 20) + 1).to_be_bytes());
    assert_eq!(broken(&talk(&mut connection, &endless)), Some(Violation::OptionLength));
}

#[test]
fn what_is_no_option_ends_the_connection() {
    let mut bytes = option(LIST, &[]);
    bytes[0] ^= 1;
    assert_eq!(broken(&talk(&mut greeted(Tls::Off), &bytes)), Some(Violation::OptionMagic));
}

#[test]
fn nobody_sends_options_for_ever() {
    let mut connection = greeted(Tls::Off);
    let many = option(99, &[]).repeat(16_384);
    assert_eq!(talk(&mut connection, &many).next, Next::More(16));
    assert_eq!(broken(&talk(&mut connection, &option(99, &[]))), Some(Violation::Options));
}

/// "`NBD_OPT_STRUCTURED_REPLY`", "`NBD_OPT_EXTENDED_HEADERS`": no data; extended headers take precedence.
#[test]
fn extended_headers_take_precedence() {
    let mut connection = greeted(Tls::Off);
    assert_eq!(kinds(&mut connection, STRUCTURED, b"x"), [ERR_INVALID]);
    assert_eq!(kinds(&mut connection, EXTENDED, b"x"), [ERR_INVALID]);
    assert_eq!(kinds(&mut connection, STRUCTURED, &[]), [ACK]);
    assert_eq!(kinds(&mut connection, STRUCTURED, &[]), [ACK]);
    assert_eq!(kinds(&mut connection, EXTENDED, &[]), [ACK]);
    assert_eq!(kinds(&mut connection, STRUCTURED, &[]), [ERR_EXT_HEADER_REQD]);
}

/// "Transmission flags": DF only with chunks, a filter of contexts only with extended headers and contexts,
/// and nothing that changes of what is read-only.
#[test]
fn flags_say_what_there_is() {
    const CHANGES: u16 = 1 << 5 | 1 << 6 | 1 << 11;
    const ALWAYS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 8 | 1 << 10;
    const READ_ONLY: u16 = 1 << 1;
    const DF: u16 = 1 << 7;
    const FILTER: u16 = 1 << 12;
    assert_eq!(go(&mut greeted(Tls::Off), ""), ALWAYS | CHANGES);
    assert_eq!(go(&mut greeted(Tls::Off), "quiet"), ALWAYS | READ_ONLY);
    for (options, contexts, more) in [
        (&[STRUCTURED][..], true, DF),
        (&[EXTENDED], false, DF),
        (&[EXTENDED], true, DF | FILTER),
        (&[STRUCTURED, EXTENDED], true, DF | FILTER),
    ] {
        let mut connection = greeted(Tls::Off);
        options.iter().for_each(|option| assert_eq!(kinds(&mut connection, *option, &[]), [ACK]));
        if contexts {
            let data = queries("", &["base:allocation"]);
            assert_eq!(kinds(&mut connection, SET_CONTEXTS, &data), [META_CONTEXT, ACK]);
        }
        assert_eq!(go(&mut connection, ""), ALWAYS | CHANGES | more, "{options:?}");
    }
}

/// "`NBD_OPT_LIST_META_CONTEXT`": no query lists all; an unknown namespace is ignored; the number is zero.
#[test]
fn contexts_are_listed() {
    let mut connection = greeted(Tls::Off);
    let all = queries("", &[]);
    assert_eq!(kinds(&mut connection, LIST_CONTEXTS, &all), [ERR_INVALID], "structured replies come first");
    assert_eq!(kinds(&mut connection, STRUCTURED, &[]), [ACK]);
    let mut names = |list: &[&str]| {
        let mut found = ask(&mut connection, LIST_CONTEXTS, &queries("quiet", list));
        assert_eq!(found.pop(), Some((ACK, Vec::new())));
        let name = |(kind, data): (u32, Vec<u8>)| {
            assert_eq!((kind, &data[..4]), (META_CONTEXT, &[0; 4][..]));
            String::from_utf8(data[4..].to_vec()).unwrap()
        };
        found.into_iter().map(name).collect::<Vec<String>>()
    };
    assert_eq!(names(&[]), ["base:allocation", "qemu:allocation-depth", "x-quod:kind"]);
    assert_eq!(names(&["base:", "nobody:knows", "qemu:dirty-bitmap:b"]), ["base:allocation"]);
    assert_eq!(names(&["qemu:allocation-depth", "qemu:"]), ["qemu:allocation-depth"]);
    assert_eq!(names(&["x-quod:", "base"]), ["x-quod:kind"]);
    assert_eq!(kinds(&mut connection, LIST_CONTEXTS, &queries("nothing", &[])), [ERR_UNKNOWN]);
}

/// "`NBD_OPT_SET_META_CONTEXT`": replaces what was selected, also when it fails; a wildcard selects nothing.
#[test]
fn contexts_are_selected_and_replaced() {
    let filter = |connection: &mut Connection| go(connection, "") & 1 << 12 != 0;
    let selecting = || {
        let mut connection = greeted(Tls::Off);
        assert_eq!(kinds(&mut connection, SET_CONTEXTS, &queries("", &["base:allocation"])), [ERR_INVALID]);
        assert_eq!(kinds(&mut connection, EXTENDED, &[]), [ACK]);
        let found = ask(&mut connection, SET_CONTEXTS, &queries("", &["x-quod:kind", "base:allocation"]));
        assert_eq!(found[0], (META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec()));
        assert_eq!(found[1], (META_CONTEXT, b"\0\0\0\x03x-quod:kind".to_vec()));
        assert_eq!(found[2..], [(ACK, Vec::new())]);
        connection
    };
    assert!(filter(&mut selecting()));
    for (data, kind) in [
        (queries("", &[]), ACK),
        (queries("", &["base:"]), ACK),
        (queries("nothing", &["base:allocation"]), ERR_UNKNOWN),
        (vec![0; 5], ERR_INVALID),
    ] {
        let mut connection = selecting();
        assert_eq!(kinds(&mut connection, SET_CONTEXTS, &data), [kind]);
        assert!(!filter(&mut connection), "{data:?}");
    }
    // of another export
    let mut connection = selecting();
    assert_eq!(
        kinds(&mut connection, SET_CONTEXTS, &queries("quiet", &["base:allocation"])),
        [META_CONTEXT, ACK]
    );
    assert!(!filter(&mut connection));
}

/// "If the option request is syntactically invalid ... the server MUST fail the request with
/// `NBD_REP_ERR_INVALID`".
#[test]
fn queries_that_end_early_are_invalid() {
    let mut connection = greeted(Tls::Off);
    assert_eq!(kinds(&mut connection, STRUCTURED, &[]), [ACK]);
    let whole = queries("", &["base:allocation"]);
    for len in 0..whole.len() {
        assert_eq!(kinds(&mut connection, SET_CONTEXTS, &whole[..len]), [ERR_INVALID], "{len}");
    }
    let behind = [&whole[..], &[0]].concat();
    assert_eq!(kinds(&mut connection, SET_CONTEXTS, &behind), [ERR_INVALID]);
    let many = [&[0; 4][..], &u32::MAX.to_be_bytes()].concat();
    assert_eq!(kinds(&mut connection, LIST_CONTEXTS, &many), [ERR_INVALID]);
}

/// "Termination of the session": further options are refused with `NBD_REP_ERR_SHUTDOWN`, but for ABORT.
#[test]
fn a_server_that_ends_refuses_options() {
    let mut connection = greeted(Tls::Off);
    connection.stop();
    for number in [LIST, GO, STRUCTURED, 99] {
        assert_eq!(kinds(&mut connection, number, &[]), [ERR_SHUTDOWN]);
    }
    assert_eq!(talk(&mut connection.clone(), &option(EXPORT_NAME, b"")).next, Next::End(End::Asked));
    assert_eq!(kinds(&mut connection, ABORT, &[]), [ACK]);
}
