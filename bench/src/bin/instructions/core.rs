//! Paths of the bare machine: every I/O is answered at once, so that only its own code costs.
//!
//! Knows: the machine. Must never know: files, how instructions are counted.
//! Invariant: a run fails if its requests did not do what the path is called after.

use crate::fault::Fault;
use quod_bench::bare::{Bare, CLUSTER, SLICE};
use quod_states::{Event, Flags, Machine, Options, Outcome, Request, RequestKind};
use std::io::Write;

const CLUSTERS: u64 = 256;
/// Twice what the cache of the misses holds.
const SLICES: u64 = 64;

fn machine(work: &str, format: &str) -> Result<Bare, Fault> {
    let options = match work {
        "miss" => Options::default().cache_bytes(SLICES / 2 * 4096),
        _ => Options::default(),
    };
    let new = match format {
        "qed" => Bare::qed,
        "qcow2" => Bare::qcow2,
        _ => return Err(format!("no such format: {format}").into()),
    };
    let mut bare = new(64 << 30, &options)?;
    let (stride, count) = if work == "miss" { (SLICE, SLICES) } else { (CLUSTER, CLUSTERS) };
    for place in 0..count {
        if !bare.run(RequestKind::Write, place * stride, CLUSTER) {
            return Err("a write failed".into());
        }
    }
    if bare.run(RequestKind::Flush, 0, 0) { Ok(bare) } else { Err("a flush failed".into()) }
}

/// A hit: named, and done, without anything else between.
fn hits(bare: &mut Bare, kind: RequestKind, count: u64) -> u64 {
    let image = bare.image_mut();
    let mut good = 0;
    for hit in 0..count {
        let offset = hit * 4096 % (CLUSTERS * CLUSTER);
        let request = Request { kind, offset, len: 4096, flags: Flags::empty(), user: hit };
        if image.submit(request).is_err() {
            break;
        }
        while let Some(io) = image.poll_io() {
            image.handle_completion(io.id, Outcome::Done);
        }
        while let Some(event) = image.poll_event() {
            good += u64::from(matches!(event, Event::Done { result: Ok(()), .. }));
        }
    }
    good
}

/// As many requests on this path.
pub fn run(work: &str, format: &str, count: u64) -> Result<(), Fault> {
    let mut bare = machine(work, format)?;
    let before = bare.image().counters();
    let good = match work {
        "read" => hits(&mut bare, RequestKind::Read, count),
        "write" => hits(&mut bare, RequestKind::Write, count),
        "allocate" => {
            let written = |at: &u64| bare.run(RequestKind::Write, (CLUSTERS + at) * CLUSTER, 4096);
            (0..count).filter(written).count() as u64
        }
        "miss" => {
            let read = |at: &u64| bare.run(RequestKind::Read, at % SLICES * SLICE, 4096);
            (0..count).filter(read).count() as u64
        }
        "flush" => (0..count).filter(|_| bare.run(RequestKind::Flush, 0, 0)).count() as u64,
        _ => return Err(format!("no such work: {work}").into()),
    };
    let after = bare.image().counters();
    let seen = match work {
        "read" | "write" => after.hits - before.hits,
        "allocate" => after.allocations - before.allocations,
        "miss" => after.misses - before.misses,
        _ => good,
    };
    writeln!(std::io::stdout(), "{work} {format}: {good} of {count} done, {seen} so")?;
    // a write in place asks for its cluster more than once
    if good == count && seen >= count { Ok(()) } else { Err("it was another path".into()) }
}
