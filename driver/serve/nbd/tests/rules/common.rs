//! A client in bytes: what it sends, and what comes back.

use quod_nbd::{Connection, Export, Exports, Next, Received, SINK_MIN, Sink, Tls, WINDOW_MIN, What};

pub const ACK: u32 = 1;
pub const SERVER: u32 = 2;
pub const INFO: u32 = 3;
pub const META_CONTEXT: u32 = 4;
pub const ERR_UNSUP: u32 = (1 << 31) + 1;
pub const ERR_POLICY: u32 = (1 << 31) + 2;
pub const ERR_INVALID: u32 = (1 << 31) + 3;
pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
pub const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;

pub const EXPORT_NAME: u32 = 1;
pub const ABORT: u32 = 2;
pub const LIST: u32 = 3;
pub const STARTTLS: u32 = 5;
pub const OPT_INFO: u32 = 6;
pub const GO: u32 = 7;
pub const STRUCTURED: u32 = 8;
pub const LIST_CONTEXTS: u32 = 9;
pub const SET_CONTEXTS: u32 = 10;
pub const EXTENDED: u32 = 11;

pub const SIZE: u64 = 1 << 33;

/// Three exports: the default one, one that is read-only, one with large blocks.
pub struct Three;

impl Exports for Three {
    fn count(&self) -> usize {
        3
    }

    fn export(&self, index: usize) -> Export<'_> {
        let plain = Export {
            name: "",
            description: "all of it",
            size: SIZE,
            read_only: false,
            minimum: 1,
            preferred: 65536,
        };
        match index {
            0 => plain,
            1 => Export { name: "quiet", description: "", read_only: true, ..plain },
            2 => Export { name: "blocks", minimum: 4096, preferred: 4096, ..plain },
            _ => panic!("there are three"),
        }
    }
}

/// Many exports with long names.
pub struct Many(pub usize);

impl Exports for Many {
    fn count(&self) -> usize {
        self.0
    }

    fn export(&self, _index: usize) -> Export<'_> {
        Export { name: LONG, ..Three.export(0) }
    }
}

const LONG: &str = match std::str::from_utf8(&[b'n'; 4096]) {
    Ok(text) => text,
    Err(_) => "",
};

/// An option as it is sent.
pub fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let head = [&0x4948_4156_454f_5054u64.to_be_bytes()[..], &number.to_be_bytes()];
    [&head.concat()[..], &(data.len() as u32).to_be_bytes(), data].concat()
}

/// Data of INFO and GO.
pub fn info(name: &str, requests: &[u16]) -> Vec<u8> {
    let mut data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    data.extend((requests.len() as u16).to_be_bytes());
    data.extend(requests.iter().flat_map(|request| request.to_be_bytes()));
    data
}

/// Data of the options about contexts.
pub fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = [&(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    data.extend((queries.len() as u32).to_be_bytes());
    for query in queries {
        data.extend((query.len() as u32).to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

/// What came of a negotiation: the bytes that were sent, the bytes that were not taken, the end.
pub struct Talked {
    pub sent: Vec<u8>,
    pub left: Vec<u8>,
    pub next: Next,
}

/// Shows a client's bytes, at most `piece` at once, until the negotiation wants more or has ended.
pub fn talk_in(connection: &mut Connection, bytes: &[u8], piece: usize, exports: &impl Exports) -> Talked {
    let (mut window, mut coming, mut sent) = (Vec::new(), bytes, Vec::new());
    loop {
        let mut room = [0; SINK_MIN + 100];
        let mut sink = Sink::new(&mut room);
        let negotiated = connection.negotiate(&window, &mut sink, exports);
        sent.extend(sink.as_slice());
        assert!(negotiated.taken <= window.len());
        window.drain(..negotiated.taken);
        match negotiated.next {
            Next::Again => {}
            Next::Full => assert!(!sink.is_empty(), "an empty sink has room"),
            Next::More(wanted) => {
                assert!(wanted > window.len() && wanted <= WINDOW_MIN, "{wanted}");
                if coming.is_empty() {
                    return Talked { sent, left: window, next: negotiated.next };
                }
                let (now, later) = coming.split_at(piece.min(coming.len()));
                window.extend(now);
                coming = later;
            }
            next => {
                window.extend(coming);
                return Talked { sent, left: window, next };
            }
        }
    }
}

pub fn talk(connection: &mut Connection, bytes: &[u8]) -> Talked {
    talk_in(connection, bytes, usize::MAX, &Three)
}

/// A client that has sent its flags (fixed newstyle, no zeroes).
pub fn greeted(tls: Tls) -> Connection {
    let mut connection = Connection::new(tls);
    let talked = talk(&mut connection, &3u32.to_be_bytes());
    assert_eq!(talked.sent, [&b"NBDMAGICIHAVEOPT"[..], &[0, 3]].concat());
    connection
}

/// One reply to an option: its type and its data.
pub type Reply = (u32, Vec<u8>);

/// Takes replies apart; all of them are to `option`.
pub fn replies(option: u32, mut sent: &[u8]) -> Vec<Reply> {
    let mut found = Vec::new();
    while !sent.is_empty() {
        assert_eq!(sent[..8], 0x0003_e889_0455_65a9u64.to_be_bytes(), "the magic number of replies");
        let word = |at: usize| u32::from_be_bytes(sent[at..at + 4].try_into().unwrap());
        assert_eq!(word(8), option);
        let (kind, len) = (word(12), word(16) as usize);
        found.push((kind, sent[20..20 + len].to_vec()));
        sent = &sent[20 + len..];
    }
    found
}

/// Sends an option, and takes the replies.
pub fn ask(connection: &mut Connection, number: u32, data: &[u8]) -> Vec<Reply> {
    let talked = talk(connection, &option(number, data));
    assert!(talked.left.is_empty(), "an option is taken whole");
    replies(number, &talked.sent)
}

/// The types of the replies to an option.
pub fn kinds(connection: &mut Connection, number: u32, data: &[u8]) -> Vec<u32> {
    ask(connection, number, data).into_iter().map(|(kind, _)| kind).collect()
}

/// Flags of the export that a client gets by GO.
pub fn go(connection: &mut Connection, name: &str) -> u16 {
    let replies = ask(connection, GO, &info(name, &[]));
    assert_eq!(replies.last().map(|(kind, _)| *kind), Some(ACK));
    let export =
        replies.iter().find(|(kind, data)| *kind == INFO && data[..2] == [0, 0]).expect("the export");
    u16::from_be_bytes(export.1[10..12].try_into().unwrap())
}

/// A client of the transmission phase, with its options.
pub fn transmitting(name: &str, options: &[u32]) -> Connection {
    let mut connection = greeted(Tls::Off);
    for option in options {
        assert_eq!(kinds(&mut connection, *option, &[]), [ACK]);
    }
    go(&mut connection, name);
    connection
}

/// A compact request.
pub fn request(flags: u16, command: u16, offset: u64, len: u32) -> Vec<u8> {
    let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&head[..], &77u64.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// An extended one.
pub fn extended(flags: u16, command: u16, offset: u64, len: u64) -> Vec<u8> {
    let head = [&0x21e4_1c71u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
    [&head[..], &77u64.to_be_bytes(), &offset.to_be_bytes(), &len.to_be_bytes()].concat()
}

/// Shows bytes of the transmission phase; all of them must be taken.
pub fn receive(connection: &mut Connection, export: usize, bytes: &[u8]) -> What {
    let Received { taken, what } = connection.receive(bytes, &Three.export(export));
    assert_eq!(taken, bytes.len(), "{what:?}");
    what
}
