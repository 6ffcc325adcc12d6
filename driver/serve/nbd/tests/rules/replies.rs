//! "Simple reply message", "Structured reply types", "Extended reply chunk message".

use quod_nbd::{Errno, REPLY_HEAD_MAX, Sink, Style};

const TAG: (u64, u64) = (0x0102_0304_0506_0708, 0x1000);
const COOKIE: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

fn written(write: impl FnOnce(&mut Sink) -> bool) -> Vec<u8> {
    let mut room = [0; REPLY_HEAD_MAX];
    let mut sink = Sink::new(&mut room);
    assert!(write(&mut sink), "there is room");
    sink.as_slice().to_vec()
}

fn structured(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let head = [&[0x66, 0x8e, 0x33, 0xef][..], &flags.to_be_bytes(), &kind.to_be_bytes(), &COOKIE].concat();
    [&head[..], &(payload.len() as u32).to_be_bytes(), payload].concat()
}

fn extended(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let head = [&[0x6e, 0x8a, 0x27, 0x8c][..], &flags.to_be_bytes(), &kind.to_be_bytes(), &COOKIE].concat();
    let offset = 0x1000u64.to_be_bytes();
    [&head[..], &offset, &(payload.len() as u64).to_be_bytes(), payload].concat()
}

/// "a simple reply MAY be used as a reply to any request other than `NBD_CMD_READ`, but only if the reply has
/// no data payload"; "If extended headers have been negotiated, a simple reply MUST NOT be used".
#[test]
fn success() {
    let simple = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE].concat();
    assert_eq!(written(|sink| Style::Simple.success(sink, TAG)), simple);
    assert_eq!(written(|sink| Style::Structured.success(sink, TAG)), simple);
    assert_eq!(written(|sink| Style::Extended.success(sink, TAG)), extended(1, 0, &[]));
    // "MUST NOT use a simple reply for `NBD_CMD_READ`"
    assert_eq!(written(|sink| Style::Structured.end(sink, TAG)), structured(1, 0, &[]));
    assert_eq!(written(|sink| Style::Extended.end(sink, TAG)), extended(1, 0, &[]));
}

/// "`NBD_REPLY_TYPE_ERROR`": number, length of the text, text.
#[test]
fn errors() {
    let simple = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22][..], &COOKIE].concat();
    assert_eq!(written(|sink| Style::Simple.error(sink, TAG, Errno::Invalid, "why")), simple);
    let payload = [&[0, 0, 0, 28, 0, 3][..], b"why"].concat();
    assert_eq!(
        written(|sink| Style::Structured.error(sink, TAG, Errno::NoSpace, "why")),
        structured(1, 0x8001, &payload)
    );
    assert_eq!(
        written(|sink| Style::Extended.error(sink, TAG, Errno::NoSpace, "why")),
        extended(1, 0x8001, &payload)
    );
    let long = written(|sink| Style::Extended.error(sink, TAG, Errno::Io, &"\u{e4}".repeat(500)));
    assert!(long.len() <= REPLY_HEAD_MAX && std::str::from_utf8(&long[38..]).is_ok());
}

/// "`NBD_REPLY_TYPE_OFFSET_DATA`", "`NBD_REPLY_TYPE_OFFSET_HOLE`".
#[test]
fn data_and_holes() {
    let simple = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0][..], &COOKIE].concat();
    assert_eq!(written(|sink| Style::Simple.data(sink, TAG, 0x1000, 512, true)), simple);
    // the length counts the data that follow
    let mut chunk = structured(1, 1, &0x1200u64.to_be_bytes());
    chunk[19] = 8 + 100;
    assert_eq!(written(|sink| Style::Structured.data(sink, TAG, 0x1200, 100, true)), chunk);
    let mut chunk = extended(0, 1, &0x1200u64.to_be_bytes());
    chunk[31] = 8 + 100;
    assert_eq!(written(|sink| Style::Extended.data(sink, TAG, 0x1200, 100, false)), chunk);
    let hole = [&0x1200u64.to_be_bytes()[..], &512u32.to_be_bytes()].concat();
    assert_eq!(
        written(|sink| Style::Structured.hole(sink, TAG, 0x1200, 512, false)),
        structured(0, 2, &hole)
    );
    assert_eq!(written(|sink| Style::Extended.hole(sink, TAG, 0x1200, 512, true)), extended(1, 2, &hole));
}

#[test]
fn what_does_not_fit_leaves_no_trace() {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        for room in 0..16 {
            let mut room = vec![0; room];
            let mut sink = Sink::new(&mut room);
            let whole = style.success(&mut sink, TAG)
                || style.error(&mut sink, TAG, Errno::Io, "a text")
                || style.data(&mut sink, TAG, 0, 1, true);
            assert!(!whole && sink.is_empty());
        }
    }
    let mut room = [0; 25];
    let mut sink = Sink::new(&mut room);
    assert!(
        !Style::Structured.hole(&mut sink, TAG, 0, 1, true) && sink.is_empty(),
        "the head fits, the rest not"
    );
}

/// "Error values": EDQUOT and EFBIG are ENOSPC; what is not in the list is EIO.
#[test]
fn error_numbers_of_the_host() {
    let known = [
        (1, Errno::Perm),
        (13, Errno::Perm),
        (28, Errno::NoSpace),
        (27, Errno::NoSpace),
        (122, Errno::NoSpace),
    ];
    let known = known.into_iter().chain([(5, Errno::Io), (22, Errno::Invalid), (12, Errno::NoMemory)]);
    let known = known.chain([(9, Errno::Shutdown), (95, Errno::Io), (75, Errno::Io), (107, Errno::Io)]);
    for (host, wire) in known {
        assert_eq!(Errno::of_host(host), wire, "{host}");
    }
}
