//! Block status: what a range is made of, over all layers of a disk.
//!
//! Knows: extents of layers, statuses of contexts. Must never know: the loop, how a map is asked for.
//! Invariants: runs follow each other without a gap from the request's offset on, and none goes beyond its
//! end (QEMU believes one that does); what is told is what the first layer says that has something to say.

use quod::{Extent, Status as Found};
use quod_nbd::{Context, Contexts, Descriptors, Kind, STATE_HOLE, STATE_ZERO, Sink, Style};

/// Runs that one reply tells of, at most: the client asks on.
const RUNS_MAX: usize = 4096;
/// Maps that one reply is made of, at most: each looks at a few KiB of tables.
const MAPS_MAX: u32 = 64 << 10;
/// Maps after which others come first.
const MAPS_AT_ONCE: u32 = 256;

/// A run of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Run {
    len: u64,
    /// 0: no layer has it; otherwise one more than the layer's number.
    depth: u32,
    kind: Kind,
    /// Space is set aside for it.
    reserved: bool,
}

impl Run {
    fn status(&self, context: Context) -> u32 {
        match context {
            Context::Allocation => match self.kind {
                Kind::Data | Kind::Compressed => 0,
                Kind::Zero if self.reserved => STATE_ZERO,
                Kind::Zero | Kind::Hole => STATE_HOLE | STATE_ZERO,
            },
            Context::Depth => self.depth,
            Context::Kind => self.kind as u32,
        }
    }
}

/// A question for one layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Question {
    pub layer: usize,
    pub offset: u64,
    pub len: u64,
}

/// A request's answer so far.
#[derive(Debug)]
pub(super) struct Status {
    contexts: Contexts,
    one: bool,
    end: u64,
    question: Question,
    runs: Vec<Run>,
    maps: u32,
}

impl Status {
    pub fn new(offset: u64, len: u64, contexts: Contexts, one: bool) -> Status {
        let question = Question { layer: 0, offset, len };
        Status { contexts, one, end: offset + len, question, runs: Vec::new(), maps: 0 }
    }

    /// What to ask next.
    pub fn question(&self) -> Question {
        self.question
    }

    /// It has asked for a while, and others come first.
    pub fn should_rest(&self) -> bool {
        self.maps.is_multiple_of(MAPS_AT_ONCE)
    }

    /// Something can be told.
    pub fn has_runs(&self) -> bool {
        !self.runs.is_empty()
    }

    /// The answer to the question; `below` is the size of the next layer, if there is one. False: that is
    /// enough.
    pub fn found(&mut self, extent: Extent, below: Option<u64>) -> bool {
        let Question { layer, offset, len } = self.question;
        let len = len.min(extent.len);
        debug_assert!(len > 0 && extent.offset == offset, "an extent begins where it was asked for");
        self.maps += 1;
        let shows = below.unwrap_or(0).saturating_sub(offset);
        let (len, kind, depth) = match extent.status {
            Found::Unallocated if shows > 0 => {
                self.question = Question { layer: layer + 1, offset, len: len.min(shows) };
                return true;
            }
            Found::Unallocated => (len, Kind::Hole, 0),
            Found::Zero => (len, Kind::Zero, layer as u32 + 1),
            Found::Data => (len, Kind::Data, layer as u32 + 1),
            Found::Compressed => (len, Kind::Compressed, layer as u32 + 1),
        };
        self.add(Run { len, depth, kind, reserved: extent.host.is_some() });
        let next = offset + len;
        self.question = Question { layer: 0, offset: next, len: self.end - next };
        let most = if self.one { 2 } else { RUNS_MAX };
        next < self.end && self.runs.len() < most && self.maps < MAPS_MAX
    }

    fn add(&mut self, run: Run) {
        match self.runs.last_mut() {
            Some(last) if (Run { len: run.len, ..*last }) == run => last.len += run.len,
            _ => self.runs.push(run),
        }
    }

    /// The whole reply.
    pub fn reply(&self, style: Style, tag: (u64, u64)) -> Vec<u8> {
        let runs = if self.one { &self.runs[..self.runs.len().min(1)] } else { &self.runs[..] };
        let contexts = self.contexts.iter_contexts().count();
        let mut bytes = vec![0; contexts * (48 + 16 * runs.len())];
        let mut sink = Sink::new(&mut bytes);
        for (n, context) in self.contexts.iter_contexts().enumerate() {
            let last = n + 1 == contexts;
            let mut ended = false;
            if let Some(mut chunk) = Descriptors::begin(&mut sink, style, tag, context, last) {
                let whole = runs.iter().all(|run| chunk.push(run.len, run.status(context)));
                debug_assert!(whole, "the reply was given room for all");
                ended = chunk.end();
            }
            debug_assert!(ended, "a reply is made of a run at least");
        }
        let len = sink.len();
        bytes.truncate(len);
        bytes
    }
}
