//! One client: what came from it, what it has negotiated, what comes next.
//!
//! Knows: "Protocol phases", "TLS support", the order of all things. Must never know: whose bytes these are,
//! what a request does, time.
//!
//! Invariants: what is not taken from a window is shown again; a message is answered or refused as a whole,
//! and once; a request that is refused takes its payload with it; without TLS nothing is told where TLS is
//! asked for.

use crate::answer;
use crate::bytes::{Reader, Sink};
use crate::context::Contexts;
use crate::export::{Export, Exports};
use crate::option::{self, Asked};
use crate::reply::Style;
use crate::request::{Command, Header, Refused, Request};
use crate::state::{Machine, State, Taken};
use crate::wire::{
    Errno, HandshakeFlags, I_HAVE_OPT, INIT_PASSWD, MAXIMUM_PAYLOAD, OPTION_HEAD, OPTION_MAX,
    OPTION_SKIPPED_MAX, OPTIONS_MAX, PAYLOAD_SKIPPED_MAX, SINK_MIN, opt, rep,
};
use core::fmt;

/// May, or must, a client use TLS?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tls {
    /// There is none (NOTLS).
    Off,
    /// It may (SELECTIVETLS, and no export is for TLS alone).
    Offered,
    /// It must (FORCEDTLS).
    Required,
}

/// Why a connection ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The client said so.
    Asked,
    /// The client broke a rule that cannot be answered.
    Broken(Violation),
}

/// A rule whose breach cannot be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// Flags that the server did not offer.
    ClientFlags,
    /// It is no option, by its magic number.
    OptionMagic,
    /// An option that is too long to be skipped.
    OptionLength,
    /// More options than anybody needs.
    Options,
    /// `EXPORT_NAME` of an export that there is not, or with a name that is none.
    NoExport,
    /// `EXPORT_NAME` behind extended headers, which forbid it.
    ExportName,
    /// `EXPORT_NAME` without the TLS that is asked for.
    NoTls,
    /// It is no request, by its magic number.
    RequestMagic,
    /// A payload that is too long to be skipped.
    Payload,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Violation::ClientFlags => "flags that were not offered",
            Violation::OptionMagic => "no NBD option",
            Violation::OptionLength => "an option of more than 32 MiB",
            Violation::Options => "too many options",
            Violation::NoExport => "an export that does not exist was asked for by EXPORT_NAME",
            Violation::ExportName => "EXPORT_NAME with extended headers",
            Violation::NoTls => "an export was asked for without TLS",
            Violation::RequestMagic => "no NBD request",
            Violation::Payload => "a payload that is too long",
        })
    }
}

/// What [`Connection::negotiate`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    /// Bytes of the window that are done with.
    pub taken: usize,
    /// What comes next.
    pub next: Next,
}

/// What comes next in a negotiation. In any case what is in the sink is sent first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// The window must show this many bytes; at most [`WINDOW_MIN`](crate::WINDOW_MIN).
    More(usize),
    /// Ask again.
    Again,
    /// The sink must have room for [`SINK_MIN`](crate::SINK_MIN) bytes.
    Full,
    /// A TLS handshake begins with the next byte; then [`Connection::secured`].
    Handshake,
    /// The client has chosen this export: from now on [`Connection::receive`].
    Transmission(usize),
    /// The connection ends.
    End(End),
}

/// What [`Connection::receive`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Received {
    /// Bytes of the window that are done with.
    pub taken: usize,
    /// What.
    pub what: What,
}

/// What a window of the transmission phase begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum What {
    /// The window must show this many bytes.
    More(usize),
    /// A request. Of a write the payload follows: [`Connection::payload`].
    Request(Request),
    /// A request that is answered with an error.
    Refused(Refused),
    /// Payload of a request that was refused: ask again.
    Skipped,
    /// The client is done: what is under way is answered, then the connection ends. Or it ends at once.
    End(End),
}

/// See the module's header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Connection {
    machine: Machine,
    tls: Tls,
    secured: bool,
    stopping: bool,
    flags: HandshakeFlags,
    structured: bool,
    extended: bool,
    options: u32,
    /// The export that is told next.
    listed: usize,
    /// An option that is skipped: which, and what is answered then.
    skipped: (u32, u32),
    /// Bytes left: of what is skipped, or of a payload.
    left: u64,
    /// What was selected, for which export.
    selected: Option<(usize, Contexts)>,
    /// Of the export that was chosen.
    contexts: Contexts,
}

impl Connection {
    /// A client that has just come.
    pub fn new(tls: Tls) -> Connection {
        Connection {
            machine: Machine::new(),
            tls,
            secured: false,
            stopping: false,
            flags: HandshakeFlags::empty(),
            structured: false,
            extended: false,
            options: 0,
            listed: 0,
            skipped: (0, 0),
            left: 0,
            selected: None,
            contexts: Contexts::empty(),
        }
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.machine.state()
    }

    /// Which edges it went.
    pub fn taken(&self) -> &Taken {
        self.machine.taken()
    }

    /// Which replies the client gets.
    pub fn style(&self) -> Style {
        match (self.extended, self.structured) {
            (true, _) => Style::Extended,
            (false, true) => Style::Structured,
            (false, false) => Style::Simple,
        }
    }

    /// The server is ending: options and requests are refused from now on ("Termination of the session").
    pub fn stop(&mut self) {
        self.stopping = true;
    }

    /// Goes on with the negotiation by one message at most.
    ///
    /// # Panics
    /// In the transmission phase, or during a TLS handshake: whoever calls was told.
    pub fn negotiate(&mut self, window: &[u8], sink: &mut Sink, exports: &impl Exports) -> Negotiated {
        let (taken, next) = match self.state() {
            State::Greeting => (0, self.greet(sink)),
            State::ClientFlags => self.client_flags(window),
            State::Option => self.option(window, sink, exports),
            State::Listing => (0, self.list(sink, exports)),
            State::SkipOption => self.skip_option(window, sink),
            State::Ended => (window.len(), Next::End(End::Asked)),
            state @ (State::Handshake | State::Request | State::Payload | State::SkipPayload) => {
                panic!("no negotiation goes on in {state:?}")
            }
        };
        if let Next::End(_) = next
            && self.state() != State::Ended
        {
            self.machine.go(State::Ended);
        }
        Negotiated { taken, next }
    }

    fn greet(&mut self, sink: &mut Sink) -> Next {
        let flags = (HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES).bits() as u16;
        if sink.free() < SINK_MIN {
            return Next::Full;
        }
        let whole = sink.put(&INIT_PASSWD.to_be_bytes())
            && sink.put(&I_HAVE_OPT.to_be_bytes())
            && sink.put(&flags.to_be_bytes());
        debug_assert!(whole, "there was room");
        self.machine.go(State::ClientFlags);
        Next::Again
    }

    fn client_flags(&mut self, window: &[u8]) -> (usize, Next) {
        let Some(flags) = Reader::new(window).u32() else { return (0, Next::More(4)) };
        let Some(flags) = HandshakeFlags::from_bits(flags) else {
            return (4, Next::End(End::Broken(Violation::ClientFlags)));
        };
        self.flags = flags;
        self.machine.go(State::Option);
        (4, Next::Again)
    }

    fn option(&mut self, window: &[u8], sink: &mut Sink, exports: &impl Exports) -> (usize, Next) {
        let mut reader = Reader::new(window);
        let (magic, option, len) = (reader.u64(), reader.u32(), reader.u32());
        let (Some(magic), Some(option), Some(len)) = (magic, option, len) else {
            return (0, Next::More(OPTION_HEAD));
        };
        let broken = |violation| (OPTION_HEAD, Next::End(End::Broken(violation)));
        if magic != I_HAVE_OPT {
            return broken(Violation::OptionMagic);
        }
        if self.options >= OPTIONS_MAX {
            return broken(Violation::Options);
        }
        if len > OPTION_SKIPPED_MAX {
            return broken(Violation::OptionLength);
        }
        if len as usize > OPTION_MAX {
            if option == opt::EXPORT_NAME {
                return broken(Violation::NoExport);
            }
            self.options += 1;
            let known = matches!(option, opt::ABORT..=opt::LIST | opt::STARTTLS..=opt::EXTENDED_HEADERS);
            let answer = match () {
                () if self.wants_tls() && option != opt::STARTTLS => rep::ERR_TLS_REQD,
                () if known => rep::ERR_TOO_BIG,
                () => rep::ERR_UNSUP,
            };
            self.skipped = (option, answer);
            self.left = u64::from(len);
            self.machine.go(State::SkipOption);
            return (OPTION_HEAD, Next::Again);
        }
        let Some(data) = reader.bytes(len as usize) else {
            return (0, Next::More(OPTION_HEAD + len as usize));
        };
        if sink.free() < SINK_MIN {
            return (0, Next::Full);
        }
        self.options += 1;
        (OPTION_HEAD + data.len(), self.answer(option, data, sink, exports))
    }

    fn skip_option(&mut self, window: &[u8], sink: &mut Sink) -> (usize, Next) {
        let taken = self.left.min(window.len() as u64);
        if taken < self.left {
            self.left -= taken;
            return (taken as usize, Next::More(1));
        }
        if sink.free() < SINK_MIN {
            return (0, Next::Full);
        }
        self.left = 0;
        let (option, kind) = self.skipped;
        answer::refuse(sink, option, kind, "more data than any option has");
        self.machine.go(State::Option);
        (taken as usize, Next::Again)
    }

    fn wants_tls(&self) -> bool {
        self.tls == Tls::Required && !self.secured
    }

    /// Answers an option whose data are here.
    fn answer(&mut self, option: u32, data: &[u8], sink: &mut Sink, exports: &impl Exports) -> Next {
        let asked = option::parse(option, data);
        if self.wants_tls() && !matches!(option, opt::STARTTLS | opt::ABORT) {
            if option == opt::EXPORT_NAME {
                return Next::End(End::Broken(Violation::NoTls));
            }
            return self.refuse(sink, option, rep::ERR_TLS_REQD, "this server wants TLS first");
        }
        if self.stopping && option != opt::ABORT {
            if option == opt::EXPORT_NAME {
                return Next::End(End::Asked);
            }
            return self.refuse(sink, option, rep::ERR_SHUTDOWN, "the server is ending");
        }
        if option == opt::SET_META_CONTEXT {
            // also by one that fails
            self.selected = None;
        }
        let asked = match asked {
            Ok(asked) => asked,
            Err(_) if option == opt::EXPORT_NAME => return Next::End(End::Broken(Violation::NoExport)),
            Err(fault) => {
                answer::fault(sink, option, fault);
                return self.answered();
            }
        };
        match asked {
            Asked::ExportName(name) => self.export_name(name, sink, exports),
            Asked::Abort => {
                answer::ack(sink, option);
                Next::End(End::Asked)
            }
            Asked::List => {
                self.listed = 0;
                self.machine.go(State::Listing);
                Next::Again
            }
            Asked::StartTls => self.start_tls(sink),
            Asked::StructuredReply if self.extended => {
                self.refuse(sink, option, rep::ERR_EXT_HEADER_REQD, "extended headers take precedence")
            }
            Asked::StructuredReply => {
                self.structured = true;
                answer::ack(sink, option);
                self.answered()
            }
            Asked::ExtendedHeaders => {
                self.extended = true;
                answer::ack(sink, option);
                self.answered()
            }
            Asked::Unknown => {
                self.refuse(sink, option, rep::ERR_UNSUP, "this server does not know the option")
            }
            Asked::Info { name, .. } | Asked::ListContexts { name, .. } | Asked::SetContexts { name, .. } => {
                let Some(index) = exports.find(name) else {
                    return self.refuse(sink, option, rep::ERR_UNKNOWN, "there is no export of this name");
                };
                self.about(index, option, asked, sink, &exports.export(index))
            }
        }
    }

    /// Answers an option about an export that exists.
    fn about(
        &mut self,
        index: usize,
        option: u32,
        asked: Asked<'_>,
        sink: &mut Sink,
        export: &Export<'_>,
    ) -> Next {
        let chunks = self.structured || self.extended;
        match asked {
            Asked::Info { go, wants, .. } => {
                let contexts = self.contexts_of(index);
                let filters = self.extended && !contexts.is_empty();
                answer::infos(sink, option, export, export.flags(chunks, filters), wants);
                answer::ack(sink, option);
                if go { self.enter(index) } else { self.answered() }
            }
            _ if !chunks => {
                self.refuse(sink, option, rep::ERR_INVALID, "contexts need structured replies first")
            }
            Asked::ListContexts { contexts, .. } => {
                answer::contexts(sink, option, contexts, true);
                answer::ack(sink, option);
                self.answered()
            }
            Asked::SetContexts { contexts, .. } => {
                self.selected = Some((index, contexts));
                answer::contexts(sink, option, contexts, false);
                answer::ack(sink, option);
                self.answered()
            }
            _ => self.answered(),
        }
    }

    fn answered(&mut self) -> Next {
        self.machine.go(State::Option);
        Next::Again
    }

    fn refuse(&mut self, sink: &mut Sink, option: u32, kind: u32, text: &str) -> Next {
        answer::refuse(sink, option, kind, text);
        self.answered()
    }

    fn contexts_of(&self, index: usize) -> Contexts {
        self.selected.filter(|(of, _)| *of == index).map_or(Contexts::empty(), |(_, contexts)| contexts)
    }

    fn enter(&mut self, index: usize) -> Next {
        self.contexts = self.contexts_of(index);
        self.machine.go(State::Request);
        Next::Transmission(index)
    }

    /// "`NBD_OPT_EXPORT_NAME`": an answer without a head, or none.
    fn export_name(&mut self, name: &str, sink: &mut Sink, exports: &impl Exports) -> Next {
        if self.extended {
            return Next::End(End::Broken(Violation::ExportName));
        }
        let Some(index) = exports.find(name) else {
            return Next::End(End::Broken(Violation::NoExport));
        };
        let export = exports.export(index);
        let mut whole = sink.put(&export.size.to_be_bytes());
        whole &= sink.put(&export.flags(self.structured, false).bits().to_be_bytes());
        if !self.flags.contains(HandshakeFlags::NO_ZEROES) {
            whole &= sink.put(&[0; 124]);
        }
        debug_assert!(whole, "there was room");
        self.enter(index)
    }

    /// "TLS support".
    fn start_tls(&mut self, sink: &mut Sink) -> Next {
        let option = opt::STARTTLS;
        if self.secured {
            return self.refuse(sink, option, rep::ERR_INVALID, "TLS is in use already");
        }
        if self.tls == Tls::Off || !self.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
            return self.refuse(sink, option, rep::ERR_POLICY, "this server has no TLS");
        }
        answer::ack(sink, option);
        self.machine.go(State::Handshake);
        Next::Handshake
    }

    /// The TLS handshake has ended well: what was negotiated before is forgotten.
    ///
    /// # Panics
    /// If there was none.
    pub fn secured(&mut self) {
        self.machine.go(State::Option);
        self.secured = true;
        self.structured = false;
        self.extended = false;
        self.selected = None;
    }

    fn list(&mut self, sink: &mut Sink, exports: &impl Exports) -> Next {
        while self.listed < exports.count() {
            if sink.free() < SINK_MIN {
                return Next::Full;
            }
            answer::server(sink, opt::LIST, &exports.export(self.listed));
            self.listed += 1;
        }
        if sink.free() < SINK_MIN {
            return Next::Full;
        }
        answer::ack(sink, opt::LIST);
        self.answered()
    }

    /// Looks at what a window of the transmission phase begins with.
    ///
    /// # Panics
    /// In the negotiation, or while a payload is awaited ([`Connection::payload`]): whoever calls was told.
    pub fn receive(&mut self, window: &[u8], export: &Export<'_>) -> Received {
        match self.state() {
            State::Request => self.request(window, export),
            State::SkipPayload => {
                let taken = self.left.min(window.len() as u64);
                self.left -= taken;
                if self.left == 0 {
                    self.machine.go(State::Request);
                }
                let what = if taken == 0 { What::More(1) } else { What::Skipped };
                Received { taken: taken as usize, what }
            }
            State::Ended => Received { taken: window.len(), what: What::End(End::Asked) },
            state => panic!("no request is awaited in {state:?}"),
        }
    }

    fn request(&mut self, window: &[u8], export: &Export<'_>) -> Received {
        let style = self.style();
        let size = Header::size(style);
        let Some(bytes) = window.get(..size) else {
            return Received { taken: 0, what: What::More(size) };
        };
        let Some(header) = Header::parse(style, bytes) else {
            return self.end(size, End::Broken(Violation::RequestMagic));
        };
        if header.command == crate::wire::cmd::DISC {
            return self.end(size, End::Asked);
        }
        let mut payload = header.payload(style);
        // "A server SHOULD initiate hard disconnect": extended requests are cut short earlier
        let skipped = if matches!(style, Style::Extended) { MAXIMUM_PAYLOAD } else { PAYLOAD_SKIPPED_MAX };
        if payload > u64::from(skipped) {
            return self.end(size, End::Broken(Violation::Payload));
        }
        let (mut taken, mut filter) = (size, None);
        if header.has_filter(style) {
            let whole = size + payload as usize;
            let Some(bytes) = window.get(size..whole) else {
                return Received { taken: 0, what: What::More(whole) };
            };
            (taken, filter, payload) = (whole, Some(bytes), 0);
        }
        let checked = if self.stopping {
            let Header { cookie, offset, .. } = header;
            Err(Refused { cookie, offset, errno: Errno::Shutdown, text: "the server is ending" })
        } else {
            header.check(style, export, self.contexts, filter)
        };
        self.left = payload;
        match checked {
            Ok(request) => {
                if payload > 0 {
                    debug_assert!(matches!(request.command, Command::Write { .. }), "all others are refused");
                    self.machine.go(State::Payload);
                }
                Received { taken, what: What::Request(request) }
            }
            Err(refused) => {
                if payload > 0 {
                    self.machine.go(State::SkipPayload);
                }
                Received { taken, what: What::Refused(refused) }
            }
        }
    }

    fn end(&mut self, taken: usize, end: End) -> Received {
        self.machine.go(State::Ended);
        Received { taken, what: What::End(end) }
    }

    /// Bytes of a write's payload that are still to come; 0: a request is awaited.
    pub fn payload(&self) -> u64 {
        if self.state() == State::Payload { self.left } else { 0 }
    }

    /// This many bytes of the payload came.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn took(&mut self, bytes: u64) {
        assert!(bytes <= self.payload(), "bytes that are no payload");
        self.left -= bytes;
        if self.left == 0 && self.state() == State::Payload {
            self.machine.go(State::Request);
        }
    }

    /// The write has failed already: the rest of its payload is skipped.
    pub fn skip_payload(&mut self) {
        if self.state() == State::Payload {
            self.machine.go(State::SkipPayload);
        }
    }

    /// The connection is gone, or is to go.
    pub fn hang_up(&mut self) {
        if self.state() != State::Ended {
            self.machine.go(State::Ended);
        }
    }
}
