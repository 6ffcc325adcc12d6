//! The states of a connection, and which may follow which.
//!
//! Knows: the table, and which edges were taken. Must never know: why one is taken.
//! Invariants: a state changes in [`Machine::go`] alone, over an edge of the table; [`State::Ended`] is left
//! never.

/// Where a connection is: what is awaited next from the client.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Nothing yet: the server greets first.
    Greeting,
    /// The client's flags.
    ClientFlags,
    /// An option, head and data.
    Option,
    /// Nothing: the list of exports is being told, in as many pieces as the sink has room for.
    Listing,
    /// The rest of an option that is not looked at.
    SkipOption,
    /// A TLS handshake, and the bytes of it are not the codec's.
    Handshake,
    /// A request's header.
    Request,
    /// The payload of a write, which is not the codec's.
    Payload,
    /// The payload of a request that was refused.
    SkipPayload,
    /// Nothing more: what comes is ignored.
    Ended,
}

use State::*;

const STATES: usize = 10;

/// The edges: `(from, to)`.
pub const EDGES: &[(State, State)] = &[
    (Greeting, ClientFlags),
    (Greeting, Ended),
    (ClientFlags, Option),
    (ClientFlags, Ended),
    // answered
    (Option, Option),
    (Option, Listing),
    (Option, SkipOption),
    (Option, Handshake),
    // GO, EXPORT_NAME
    (Option, Request),
    (Option, Ended),
    (Listing, Option),
    (Listing, Ended),
    (SkipOption, Option),
    (SkipOption, Ended),
    (Handshake, Option),
    (Handshake, Ended),
    (Request, Payload),
    (Request, SkipPayload),
    (Request, Ended),
    (Payload, Request),
    // a write that turns out to fail while its payload is coming
    (Payload, SkipPayload),
    (Payload, Ended),
    (SkipPayload, Request),
    (SkipPayload, Ended),
];

/// Successors of each state, a bit each.
const ALLOWED: [u16; STATES] = {
    let mut allowed = [0; STATES];
    let mut n = 0;
    while n < EDGES.len() {
        let (from, to) = EDGES[n];
        allowed[from as usize] |= 1 << to as u16;
        n += 1;
    }
    allowed
};

/// Which edges were taken: successors of each state, a bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Taken([u16; STATES]);

impl Taken {
    /// Was this edge taken?
    pub fn has(&self, from: State, to: State) -> bool {
        self.0[from as usize] & (1 << to as u16) != 0
    }

    /// Those of both.
    pub fn and(mut self, other: &Taken) -> Taken {
        for (ours, theirs) in self.0.iter_mut().zip(other.0) {
            *ours |= theirs;
        }
        self
    }
}

/// A state that moves over edges.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Machine {
    state: State,
    taken: Taken,
}

impl Machine {
    pub fn new() -> Machine {
        Machine { state: Greeting, taken: Taken::default() }
    }

    pub fn state(&self) -> State {
        self.state
    }

    pub fn taken(&self) -> &Taken {
        &self.taken
    }

    /// The only place where a state changes.
    ///
    /// # Panics
    /// If there is no such edge: a mistake of the codec's own, and never what a client sends.
    #[inline]
    pub fn go(&mut self, to: State) {
        let (from, bit) = (self.state as usize, 1 << to as u16);
        assert!(ALLOWED[from] & bit != 0, "no edge leads from {:?} to {to:?}", self.state);
        self.taken.0[from] |= bit;
        self.state = to;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_the_end_and_everything_leads_there() {
        assert!(EDGES.iter().all(|(from, _)| *from != Ended));
        for from in
            [Greeting, ClientFlags, Option, Listing, SkipOption, Handshake, Request, Payload, SkipPayload]
        {
            assert!(EDGES.contains(&(from, Ended)), "{from:?}");
        }
    }

    #[test]
    #[should_panic(expected = "no edge leads from Greeting to Request")]
    fn what_is_no_edge_is_not_taken() {
        Machine::new().go(Request);
    }
}
