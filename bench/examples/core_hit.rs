//! Runs N read hits through the bare machine, for instruction counts:
//!
//! ```text
//! cargo build --release -p quod-bench --example core_hit
//! valgrind --tool=callgrind target/release/examples/core_hit 10000     # I1
//! valgrind --tool=callgrind target/release/examples/core_hit 110000    # I2
//! ```
//!
//! Instructions of one hit, from submit to completion, the answering loop included: (I2 - I1) / 100000.
//! Callgrind's `--toggle-collect` is not needed: everything else is the same in both runs and falls out of
//! the difference. `core_hit N write` does the same for in-place writes.

use quod::states::{Kind, Options};
use quod_bench::bare::{Bare, CLUSTER};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let count: u64 = words.next().and_then(|word| word.parse().ok()).unwrap_or(10_000);
    let kind = if words.next().as_deref() == Some("write") { Kind::Write } else { Kind::Read };
    let mut bare = match Bare::qed(1 << 30, &Options::default()) {
        Ok(bare) => bare,
        Err(error) => {
            eprintln!("core_hit: {error}");
            return ExitCode::FAILURE;
        }
    };
    const CLUSTERS: u64 = 256;
    let mut good =
        (0..CLUSTERS).filter(|cluster| bare.run(Kind::Write, cluster * CLUSTER, CLUSTER)).count() as u64;
    good += u64::from(bare.run(Kind::Flush, 0, 0));
    good += (0..count).filter(|hit| bare.run(kind, hit * 4096 % (CLUSTERS * CLUSTER), 4096)).count() as u64;
    println!("{count} hits, {} counted by the machine", bare.image().counters().hits);
    if good == CLUSTERS + 1 + count { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
