//! Targets about the NBD protocol's codec.
//!
//! Checks: whatever a client sends is answered or ends the connection; a conversation is the same in whatever
//! pieces it comes; windows and sinks stay in their bounds; replies are framed as the protocol wants them;
//! a request that passes lies inside its export, and its payload is no other request.
//!
//! Knows: the codec's face. Must never know: its inside.

use quod_bench::contract::{Checked, fail};
use quod_nbd::{
    Command, Connection, Export, Exports, MAXIMUM_PAYLOAD, Next, SINK_MIN, Sink, State, Tls, WINDOW_MIN, What,
};

const SIZE: u64 = 1 << 33;

/// Two exports: one that may be written, one with large blocks that may not.
struct Two;

impl Exports for Two {
    fn count(&self) -> usize {
        2
    }

    fn export(&self, index: usize) -> Export<'_> {
        let (name, read_only, minimum) = if index == 0 { ("", false, 1) } else { ("quiet", true, 4096) };
        Export { name, description: "a disk", size: SIZE, read_only, minimum, preferred: 65_536 }
    }
}

/// What a conversation showed, and where it was left.
#[derive(PartialEq, Eq, Debug, Default)]
struct Told {
    sent: Vec<u8>,
    seen: Vec<String>,
    /// Bytes that nobody took.
    left: usize,
}

/// A negotiation: the first byte says which TLS there is.
pub(super) fn negotiation(input: &[u8]) -> Checked {
    let Some((first, bytes)) = input.split_first() else { return Ok(()) };
    let tls = [Tls::Off, Tls::Offered, Tls::Required][usize::from(*first) % 3];
    let whole = negotiate(tls, bytes, usize::MAX)?;
    framed(&whole.sent)?;
    for piece in [1, 13, 1000] {
        if bytes.len() / piece < 2000 && negotiate(tls, bytes, piece)? != whole {
            return fail(format!("in pieces of {piece} it is another conversation"));
        }
    }
    Ok(())
}

/// Runs one; TLS handshakes are left out.
fn negotiate(tls: Tls, bytes: &[u8], piece: usize) -> Checked<Told> {
    let mut connection = Connection::new(tls);
    let (mut told, mut from, mut to) = (Told::default(), 0, 0);
    loop {
        let mut room = [0; SINK_MIN];
        let mut sink = Sink::new(&mut room);
        let negotiated = connection.negotiate(&bytes[from..to], &mut sink, &Two);
        told.sent.extend(sink.as_slice());
        if negotiated.taken > to - from {
            return fail("more was taken than there was");
        }
        from += negotiated.taken;
        match negotiated.next {
            Next::Again => continue,
            Next::Full if !sink.is_empty() => continue,
            Next::Full => return fail("an empty sink has no room"),
            Next::More(wanted) => {
                if wanted <= to - from || wanted > WINDOW_MIN {
                    return fail(format!("{wanted} bytes are wanted"));
                }
                if to < bytes.len() {
                    to = bytes.len().min(to.saturating_add(piece));
                    continue;
                }
            }
            Next::Handshake => {
                told.seen.push("handshake".into());
                connection.secured();
                continue;
            }
            Next::Transmission(_) | Next::End(_) => {}
        }
        told.seen.push(format!("{:?} {:?}", negotiated.next, connection.state()));
        told.left = bytes.len() - from;
        if let Next::Transmission(_) = negotiated.next
            && connection.state() != State::Request
        {
            return fail("requests come in another state");
        }
        return Ok(told);
    }
}

/// The greeting, replies with their lengths, and at the end perhaps the answer to EXPORT_NAME, which has no
/// head.
fn framed(sent: &[u8]) -> Checked {
    let Some((greeting, mut rest)) = sent.split_at_checked(18) else {
        return fail("the server greets");
    };
    if greeting[..16] != *b"NBDMAGICIHAVEOPT" {
        return fail("the greeting is another one");
    }
    while let Some((head, behind)) = rest.split_at_checked(20) {
        if head[..8] != 0x0003_e889_0455_65a9u64.to_be_bytes() {
            break;
        }
        let len = u32::from_be_bytes([head[16], head[17], head[18], head[19]]) as usize;
        match behind.get(len..) {
            Some(next) => rest = next,
            None => return fail("a reply is shorter than it says"),
        }
    }
    let whole = rest.is_empty() || (rest.len() == 10 || rest.len() == 134) && rest[..8] == SIZE.to_be_bytes();
    if whole { Ok(()) } else { fail(format!("{} bytes are no reply", rest.len())) }
}

/// Requests: the first byte says of which style, and for which export.
pub(super) fn requests(input: &[u8]) -> Checked {
    let Some((first, bytes)) = input.split_first() else { return Ok(()) };
    let (style, export) = (usize::from(*first) % 3, usize::from(*first) / 3 % 2);
    let whole = receive(style, export, bytes, usize::MAX)?;
    for piece in [1, 13, 1000] {
        if bytes.len() / piece < 2000 && receive(style, export, bytes, piece)? != whole {
            return fail(format!("in pieces of {piece} it is another conversation"));
        }
    }
    Ok(())
}

/// A client that has negotiated: simple, structured or extended replies.
fn negotiated(style: usize, export: usize) -> Checked<Connection> {
    let number = [None, Some(8u32), Some(11)][style];
    let name = ["", "quiet"][export];
    let mut bytes = 3u32.to_be_bytes().to_vec();
    let mut option = |number: u32, data: &[u8]| {
        bytes.extend(b"IHAVEOPT");
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
    };
    let text = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    if let Some(number) = number {
        option(number, &[]);
        let query = [text(name), 1u32.to_be_bytes().to_vec(), text("base:allocation")].concat();
        option(10, &query);
    }
    option(7, &[text(name), vec![0, 0]].concat());
    let mut connection = Connection::new(Tls::Off);
    let mut from = 0;
    loop {
        let mut room = [0; SINK_MIN];
        let negotiated = connection.negotiate(&bytes[from..], &mut Sink::new(&mut room), &Two);
        from += negotiated.taken;
        match negotiated.next {
            Next::Again => {}
            Next::Transmission(_) => return Ok(connection),
            next => return fail(format!("a good negotiation ends with {next:?}")),
        }
    }
}

fn receive(style: usize, export: usize, bytes: &[u8], piece: usize) -> Checked<Told> {
    let mut connection = negotiated(style, export)?;
    let told_export = Two.export(export);
    let (mut told, mut from, mut to) = (Told::default(), 0, 0);
    // where the next request must begin
    let mut next = 0;
    loop {
        let payload = connection.payload();
        let wanted = if payload > 0 {
            let taken = payload.min((to - from) as u64);
            connection.took(taken);
            from += taken as usize;
            usize::from(taken == 0)
        } else {
            let received = connection.receive(&bytes[from..to], &told_export);
            if received.taken > to - from {
                return fail("more was taken than there was");
            }
            if matches!(received.what, What::Request(_) | What::Refused(_)) {
                if from != next {
                    return fail(format!("a request was read at {from}, and one begins at {next}"));
                }
                next = behind(style, bytes, from);
            }
            from += received.taken;
            match received.what {
                What::More(wanted) if wanted <= to - from => return fail("what is there is wanted"),
                What::More(wanted) => wanted,
                What::Skipped => 0,
                What::End(_) => {
                    told.seen.push(format!("{:?} {:?}", received.what, connection.state()));
                    return Ok(told);
                }
                What::Refused(refused) => {
                    told.seen.push(format!("{refused:?}"));
                    0
                }
                What::Request(request) => {
                    sound(&request, &told_export, style)?;
                    told.seen.push(format!("{request:?}"));
                    0
                }
            }
        };
        if wanted > 0 {
            if wanted > 100 {
                return fail(format!("{wanted} bytes are wanted of a header"));
            }
            if to == bytes.len() {
                told.left = to - from;
                return Ok(told);
            }
            to = bytes.len().min(to.saturating_add(piece));
        }
    }
}

/// Where the request that begins at `at` ends, its payload included.
fn behind(style: usize, bytes: &[u8], at: usize) -> usize {
    let number = |from: usize, len: usize| {
        bytes[at + from..at + from + len].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte))
    };
    let (flags, command) = (number(4, 2), number(6, 2));
    let (size, len) = if style == 2 { (32, number(24, 8)) } else { (28, number(24, 4)) };
    let has_payload = command == 1 || style == 2 && flags & 32 != 0;
    at + size + if has_payload { len as usize } else { 0 }
}

/// What a request that passes must be.
fn sound(request: &quod_nbd::Request, export: &Export<'_>, style: usize) -> Checked {
    let told = || format!("{request:?} has passed");
    let flush = matches!(request.command, Command::Flush);
    let inside = request.offset.checked_add(request.len).is_some_and(|end| end <= SIZE) && request.len > 0;
    let minimum = u64::from(export.minimum);
    let aligned = request.offset.is_multiple_of(minimum) && request.len.is_multiple_of(minimum);
    if !(flush || inside && aligned) {
        return fail(told());
    }
    let good = match request.command {
        Command::Read { unfragmented } => {
            request.len <= u64::from(MAXIMUM_PAYLOAD) && !(unfragmented && style == 0)
        }
        Command::Write { .. } => request.len <= u64::from(MAXIMUM_PAYLOAD) && !export.read_only,
        Command::Trim { .. } | Command::WriteZeroes { .. } => !export.read_only,
        Command::BlockStatus { contexts, .. } => !contexts.is_empty() && style > 0,
        Command::Flush | Command::Cache => true,
    };
    if good { Ok(()) } else { fail(told()) }
}
