//! `qemu-img bench`.
//!
//! Knows: its options and its last line. Must never know: how a process is measured.

use crate::feed::PATTERN;
use crate::setting::Format;
use crate::workload::Load;
use std::path::Path;

/// Who moves bytes; the best one counts.
pub const MOVERS: [&str; 3] = ["native", "io_uring", "threads"];

/// The line that is printed when the last request has ended, up to the figure.
pub const COMPLETED: &str = "Run completed in ";

/// The words of one run. stdout is written line by line, so that the time from that line to the end of the
/// process can be taken: it flushes there.
pub fn command(load: &Load, image: &Path, format: Format, mover: &str, cache: Option<u64>) -> Vec<String> {
    let mut words: Vec<String> =
        ["stdbuf", "-oL", "qemu-img", "bench", "-t", "none"].map(String::from).into();
    let mut say = |name: &str, value: String| words.extend([name.to_owned(), value]);
    say("-i", mover.to_owned());
    say("-d", load.depth.to_string());
    say("-c", load.count.to_string());
    say("-s", load.size.to_string());
    say("-S", load.step.to_string());
    if load.writes() {
        say("--pattern", PATTERN.to_string());
        words.push("-w".to_owned());
    }
    if load.flush_every > 0 {
        words.push(format!("--flush-interval={}", load.flush_every));
    }
    let path = image.display();
    match cache {
        None => words.extend(["-f".to_owned(), format.name().to_owned(), path.to_string()]),
        Some(cache) => {
            let file = format!("file.driver=file,file.filename={path},file.cache.direct=on,file.aio={mover}");
            let image = format!("driver={},l2-cache-size={cache},{file}", format.name());
            words.extend(["--image-opts".to_owned(), image]);
        }
    }
    words
}

/// The seconds in its output.
pub fn seconds(stdout: &str) -> Option<f64> {
    let (_, rest) = stdout.split_once(COMPLETED)?;
    rest.split_once(' ')?.0.parse().ok()
}
