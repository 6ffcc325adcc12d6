//! Runs N read hits through the bare machine, for instruction counts:
//!
//! ```text
//! cargo build --release -p quod-bench --example core_hit
//! valgrind --tool=callgrind target/release/examples/core_hit 10000     # I1
//! valgrind --tool=callgrind target/release/examples/core_hit 110000    # I2
//! ```
//!
//! Instructions of one hit, from `submit` until its event was taken, the loop around it included: (I2 - I1) /
//! 100000; what else the program does is the same in both runs. `core_hit N write` does the same for in-place
//! writes, `core_hit N read qcow2` and `core_hit N write qcow2` for a qcow2 image.

use quod_bench::bare::{Bare, CLUSTER};
use quod_states::{Event, Flags, Machine, Options, Outcome, Request, RequestKind};
use std::process::ExitCode;

const CLUSTERS: u64 = 256;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(10_000);
    let kind = if words.next().as_deref() == Some("write") { RequestKind::Write } else { RequestKind::Read };
    let qcow2 = words.next().as_deref() == Some("qcow2");
    let new = if qcow2 { Bare::qcow2 } else { Bare::qed };
    let mut bare = match new(1 << 30, &Options::default()) {
        Ok(bare) => bare,
        Err(error) => {
            eprintln!("core_hit: {error}");
            return ExitCode::FAILURE;
        }
    };
    let written = (0..CLUSTERS)
        .filter(|cluster| bare.run(RequestKind::Write, cluster * CLUSTER, CLUSTER))
        .count() as u64;
    let flushed = bare.run(RequestKind::Flush, 0, 0);
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
    println!("{count} hits, {} counted by the machine", image.counters().hits);
    if flushed && written == CLUSTERS && good == count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
