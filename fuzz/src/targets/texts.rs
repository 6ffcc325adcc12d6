//! Targets about texts: schedules and traces.
//!
//! Checks: any text is read or refused; what was read and written again is the same.
//!
//! Knows: the texts' round trips. Must never know: their grammar.

use crate::schedule::Schedule;
use crate::sim;
use crate::world::as_is;
use quod_bench::contract::{Checked, Failure, fail};
use quod_bench::trace::{Choice, Reader, Record, Source, Version, Writer, summarise};

/// Choices of a schedule that is run as well as read.
const RUN_MAX: usize = 300;
/// Longest transfer, as the replay's.
const TRANSFER_MAX: u64 = 32 << 20;

/// Reads a schedule, writes it, reads it again; a short one of the simulator is run.
pub(super) fn schedule(input: &[u8]) -> Checked {
    let text = String::from_utf8_lossy(input);
    let Ok(schedule) = Schedule::parse(&text) else { return Ok(()) };
    let again = Schedule::parse(&schedule.to_string());
    if again.as_ref() != Ok(&schedule) {
        return fail(format!("{schedule:?} was written and read as {again:?}"));
    }
    if schedule.run == "sim" && schedule.choices.len() <= RUN_MAX {
        let outcome = sim::replay(&schedule.choices, as_is);
        return outcome.map(drop).map_err(|(failure, _)| Failure(format!("{failure}\n{schedule}")));
    }
    Ok(())
}

fn records(text: &[u8]) -> Result<Vec<Record>, quod_bench::trace::TraceError> {
    let (mut reader, mut records) = (Reader::new(text)?, Vec::new());
    while let Some(record) = reader.next_record()? {
        records.push(record);
    }
    Ok(records)
}

/// Reads a trace; what it says, written in both versions, says the same.
pub(super) fn iolog(input: &[u8]) -> Checked {
    let _ = summarise(&Source::Text(input.to_vec()), &Choice::default(), TRANSFER_MAX);
    let Ok(mut read) = records(input) else { return Ok(()) };
    // one writer writes one file, and lines are its own
    for record in &mut read {
        (record.file, record.line) = (0, 0);
    }
    let ascending = read.is_sorted_by_key(|record| record.at_us);
    for version in [Version::V2, Version::V3] {
        if version == Version::V2 && !ascending {
            continue;
        }
        let written = || -> std::io::Result<Vec<u8>> {
            let mut writer = Writer::new(Vec::new(), version, "disk")?;
            read.iter().try_for_each(|record| writer.write(record))?;
            writer.finish()
        };
        let text = written().map_err(|error| Failure(format!("writing to memory: {error}")))?;
        let mut again = records(&text).map_err(|error| Failure(format!("what was written: {error}")))?;
        again.iter_mut().for_each(|record| record.line = 0);
        if again != read {
            return fail(format!("{version:?}: {read:?} was written and read as {again:?}"));
        }
    }
    Ok(())
}
