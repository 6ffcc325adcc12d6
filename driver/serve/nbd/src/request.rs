//! A request's header, and whether the request can be served.
//!
//! Knows: "Request message", "Request types", "Size constraints", "Error values". Must never know: how a
//! request is served.
//! Invariant: a request that leaves here lies inside its export and is aligned to its blocks.

use crate::bytes::Reader;
use crate::context::{Context, Contexts};
use crate::export::Export;
use crate::reply::Style;
use crate::wire::{
    CommandFlags as Flags, EXTENDED_REQUEST, Errno, MAXIMUM_PAYLOAD, REQUEST, UNFRAGMENTED_MAX, cmd,
};

/// Which request an answer is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes of the export that it is about.
    pub len: u64,
    /// What is asked.
    pub command: Command,
}

/// What is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the flags have the protocol's names")]
pub enum Command {
    /// At most [`MAXIMUM_PAYLOAD`] bytes. `unfragmented`: in one chunk (DF).
    Read {
        unfragmented: bool,
    },
    /// The payload follows.
    Write {
        fua: bool,
    },
    Flush,
    Trim {
        fua: bool,
    },
    Cache,
    /// `fast`: at once, or not at all ([`Errno::NotSupported`]).
    WriteZeroes {
        fua: bool,
        no_hole: bool,
        fast: bool,
    },
    /// `one`: one extent a context (REQ_ONE).
    BlockStatus {
        one: bool,
        contexts: Contexts,
    },
}

/// A request that is answered with an error, and nothing else is done about it. What it has of payload is
/// skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The client's name for it.
    pub cookie: u64,
    /// As it came.
    pub offset: u64,
    /// Why.
    pub errno: Errno,
    /// The same for people.
    pub text: &'static str,
}

/// A header as it came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub flags: u16,
    pub command: u16,
    pub cookie: u64,
    pub offset: u64,
    pub len: u64,
}

impl Header {
    /// Bytes of it on the wire.
    pub const fn size(style: Style) -> usize {
        match style {
            Style::Extended => 32,
            Style::Simple | Style::Structured => 28,
        }
    }

    /// None: it is none, by its magic number.
    pub fn parse(style: Style, bytes: &[u8]) -> Option<Header> {
        let mut reader = Reader::new(bytes);
        let extended = matches!(style, Style::Extended);
        let magic = if extended { EXTENDED_REQUEST } else { REQUEST };
        if reader.u32()? != magic {
            return None;
        }
        let (flags, command) = (reader.u16()?, reader.u16()?);
        let (cookie, offset) = (reader.u64()?, reader.u64()?);
        let len = if extended { reader.u64()? } else { u64::from(reader.u32()?) };
        Some(Header { flags, command, cookie, offset, len })
    }

    /// Bytes that follow it. With extended headers a flag says so; but QEMU (10.0) sends writes without it,
    /// and with their payload, so that a write has one in any case.
    pub fn payload(&self, style: Style) -> u64 {
        let flagged = matches!(style, Style::Extended) && self.flags & Flags::PAYLOAD_LEN.bits() != 0;
        if flagged || self.command == cmd::WRITE { self.len } else { 0 }
    }

    /// Does the payload belong to the header: a filter of contexts, short enough for a window?
    pub fn has_filter(&self, style: Style) -> bool {
        let longest = 8 + 4 * Context::ALL.len() as u64;
        self.command == cmd::BLOCK_STATUS && (12..=longest).contains(&self.payload(style))
    }

    fn refuse(&self, errno: Errno, text: &'static str) -> Refused {
        Refused { cookie: self.cookie, offset: self.offset, errno, text }
    }

    /// May this be done? `contexts`: those that were selected. `filter`: the payload, if it belongs to the
    /// header.
    pub fn check(
        &self,
        style: Style,
        export: &Export<'_>,
        contexts: Contexts,
        filter: Option<&[u8]>,
    ) -> Result<Request, Refused> {
        let invalid = |text| Err(self.refuse(Errno::Invalid, text));
        // FUA is valid everywhere ("Command flags")
        let known = Flags::FUA
            | match self.command {
                cmd::READ if !matches!(style, Style::Simple) => Flags::DF,
                cmd::WRITE if matches!(style, Style::Extended) => Flags::PAYLOAD_LEN,
                cmd::WRITE_ZEROES => Flags::NO_HOLE | Flags::FAST_ZERO,
                cmd::BLOCK_STATUS if filter.is_some() => Flags::REQ_ONE | Flags::PAYLOAD_LEN,
                cmd::BLOCK_STATUS => Flags::REQ_ONE,
                _ => Flags::empty(),
            };
        let Some(flags) = Flags::from_bits(self.flags).filter(|flags| known.contains(*flags)) else {
            return invalid("a flag that this command does not have");
        };
        let fua = flags.contains(Flags::FUA);
        let mut len = self.len;
        let command = match self.command {
            cmd::READ => Command::Read { unfragmented: flags.contains(Flags::DF) },
            cmd::WRITE => Command::Write { fua },
            cmd::FLUSH => Command::Flush,
            cmd::TRIM => Command::Trim { fua },
            cmd::CACHE => Command::Cache,
            cmd::WRITE_ZEROES => {
                let (no_hole, fast) = (flags.contains(Flags::NO_HOLE), flags.contains(Flags::FAST_ZERO));
                Command::WriteZeroes { fua, no_hole, fast }
            }
            cmd::BLOCK_STATUS => {
                let Some((asked, wanted)) = filtered(self.len, contexts, filter) else {
                    return invalid("a filter of contexts that were not selected, or of one twice");
                };
                len = asked;
                Command::BlockStatus { one: flags.contains(Flags::REQ_ONE), contexts: wanted }
            }
            _ => return invalid("an unknown command"),
        };
        let request = Request { cookie: self.cookie, offset: self.offset, len, command };
        if matches!(command, Command::Flush) {
            // its range is reserved
            return Ok(Request { offset: self.offset, len: 0, ..request });
        }
        self.admit(request, style, export)
    }

    /// The rules about what is changed, lengths and ranges.
    fn admit(&self, request: Request, style: Style, export: &Export<'_>) -> Result<Request, Refused> {
        let refuse = |errno, text| Err(self.refuse(errno, text));
        let changes = matches!(
            request.command,
            Command::Write { .. } | Command::Trim { .. } | Command::WriteZeroes { .. }
        );
        if changes && export.read_only {
            return refuse(Errno::Perm, "the export is read-only");
        }
        match request.command {
            Command::Write { .. } if request.len > u64::from(MAXIMUM_PAYLOAD) => {
                return refuse(Errno::Invalid, "a write of more than the maximum payload");
            }
            Command::Read { unfragmented: true } if request.len > u64::from(UNFRAGMENTED_MAX) => {
                return refuse(Errno::Overflow, "a read that is too long for one chunk");
            }
            Command::Read { .. } if request.len > u64::from(MAXIMUM_PAYLOAD) => {
                let errno = if matches!(style, Style::Simple) { Errno::Invalid } else { Errno::Overflow };
                return refuse(errno, "a read of more than the maximum payload");
            }
            Command::BlockStatus { contexts, .. } if contexts.is_empty() => {
                return refuse(Errno::Invalid, "no metadata context was selected");
            }
            _ => {}
        }
        if request.len == 0 {
            return refuse(Errno::Invalid, "a request of no bytes");
        }
        let end = request.offset.checked_add(request.len);
        if end.is_none_or(|end| end > export.size) {
            let grows = matches!(request.command, Command::Write { .. } | Command::WriteZeroes { .. });
            let errno = if grows { Errno::NoSpace } else { Errno::Invalid };
            return refuse(errno, "a range behind the end of the export");
        }
        let minimum = u64::from(export.minimum);
        if !(request.offset.is_multiple_of(minimum) && request.len.is_multiple_of(minimum)) {
            return refuse(Errno::Invalid, "not a multiple of the minimum block size");
        }
        Ok(request)
    }
}

/// The length and the contexts that block status is asked for ("`NBD_CMD_BLOCK_STATUS`"). None: the filter is
/// no good.
fn filtered(len: u64, contexts: Contexts, filter: Option<&[u8]>) -> Option<(u64, Contexts)> {
    let Some(filter) = filter else { return Some((len, contexts)) };
    let mut reader = Reader::new(filter);
    let len = reader.u64()?;
    let mut wanted = Contexts::empty();
    while !reader.is_empty() {
        let bit = Context::of_id(reader.u32()?)?.bit();
        if wanted.contains(bit) || !contexts.contains(bit) {
            return None;
        }
        wanted |= bit;
    }
    Some((len, wanted))
}
