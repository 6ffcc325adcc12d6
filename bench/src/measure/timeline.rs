//! A timeline in Chrome's trace format, which Perfetto opens: one process a layer, one row a control block,
//! one slice a stay in a state.
//!
//! Knows: slices, JSON. Must never know: drivers.
//!
//! Invariant: streamed; memory does not grow with the length of the run.

use crate::measure::dwell::Slice;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Writes slices to a file.
#[derive(Debug)]
pub struct Timeline<W: Write = BufWriter<File>> {
    output: W,
    rows: BTreeSet<(usize, u32)>,
    failed: Option<io::Error>,
}

impl Timeline {
    /// Creates (or overwrites) a file.
    pub fn create(path: &Path) -> io::Result<Timeline> {
        Timeline::new(BufWriter::with_capacity(1 << 18, File::create(path)?))
    }
}

impl<W: Write> Timeline<W> {
    /// Begins a timeline.
    pub fn new(mut output: W) -> io::Result<Timeline<W>> {
        writeln!(output, "{{\"displayTimeUnit\":\"ns\",\"traceEvents\":[")?;
        write!(output, r#"{{"name":"process_name","ph":"M","pid":0,"args":{{"name":"image"}}}}"#)?;
        Ok(Timeline { output, rows: BTreeSet::new(), failed: None })
    }

    /// Adds a slice. A failure is kept and told by [`Timeline::finish`].
    pub fn slice(&mut self, slice: &Slice) {
        if self.failed.is_none() {
            self.failed = self.try_slice(slice).err();
        }
    }

    fn try_slice(&mut self, slice: &Slice) -> io::Result<()> {
        let Slice { layer, acb, request, state, from, lasted } = *slice;
        let output = &mut self.output;
        if self.rows.insert((layer, acb)) {
            let head = r#"{"name":"thread_name","ph":"M","pid":"#;
            write!(output, ",\n{head}{layer},\"tid\":{acb},\"args\":{{\"name\":\"acb {acb}\"}}}}")?;
        }
        let (ts, dur) = (from.as_nanos() as f64 / 1e3, lasted.as_nanos() as f64 / 1e3);
        let name = state.name();
        write!(output, ",\n{{\"name\":\"{name}\",\"ph\":\"X\",\"pid\":{layer},\"tid\":{acb},")?;
        write!(output, "\"ts\":{ts:.3},\"dur\":{dur:.3},\"args\":{{\"request\":{request}}}}}")
    }

    /// Ends the timeline, or tells the first failure.
    pub fn finish(mut self) -> io::Result<W> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        self.output.write_all(b"\n]}\n")?;
        self.output.flush()?;
        Ok(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quod::State;
    use std::time::Duration;

    #[test]
    fn it_is_json() {
        let mut timeline = Timeline::new(Vec::new()).unwrap();
        for acb in [3, 3, 4] {
            let (from, lasted) = (Duration::from_nanos(1_234_567), Duration::from_micros(5));
            timeline.slice(&Slice { layer: 0, acb, request: 1, state: State::ReadData, from, lasted });
        }
        let value: serde_json::Value = serde_json::from_slice(&timeline.finish().unwrap()).unwrap();
        let events = value["traceEvents"].as_array().unwrap();
        assert_eq!(events.len(), 1 + 2 + 3);
        assert_eq!((events[2]["ts"].as_f64(), events[2]["dur"].as_f64()), (Some(1234.567), Some(5.0)));
        assert_eq!(events[2]["tid"], 3);
    }
}
