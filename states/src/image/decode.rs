//! From table entries to runs: how long is the guest disk mapped alike?
//!
//! Knows: the entries of one slice, of either format. Must never know: the cache, requests.
//!
//! Invariants: every entry that a run covers was checked (trap Q6); a run ends with its slice at the latest.

use super::find::{Mapping, Run, ZERO_ENTRY};
use super::space::Space;
use crate::error::Error;
use crate::geometry::Geometry;
use crate::qcow2::{L2, Shape, Sub, Subclusters};
use alloc::boxed::Box;

type Decoded = Result<Run, Box<Error>>;

/// The run that starts at `pos`, with entry `first` of a QED slice; it may reach beyond `end`.
#[inline]
pub(super) fn decode_qed(
    geometry: &Geometry,
    entries: &[u64],
    space: &Space,
    first: usize,
    pos: u64,
    end: u64,
) -> Decoded {
    let mut covered = geometry.cluster_size() - (pos - geometry.cluster_start(pos));
    let Some(&head) = entries.get(first) else {
        return Err(Box::new(Error::Misuse("slice without the entry")));
    };
    let mut rest = entries.iter().skip(first + 1);
    if head <= ZERO_ENTRY {
        let mapping = if head == 0 { Mapping::Unallocated } else { Mapping::Zero };
        while covered < end - pos && rest.next() == Some(&head) {
            covered += geometry.cluster_size();
        }
        return Ok(Run { mapping, len: covered, private: true });
    }
    let check = |pos, entry| geometry.check_data(pos, entry, space.end_for(entry, geometry.cluster_size()));
    check(pos, head)?;
    let mut expected = head;
    while covered < end - pos {
        expected += geometry.cluster_size();
        let contiguous = rest.next() == Some(&expected);
        if !contiguous || check(pos + covered, expected).is_err() {
            break;
        }
        covered += geometry.cluster_size();
    }
    let mapping = Mapping::Data(head + (pos - geometry.cluster_start(pos)));
    Ok(Run { mapping, len: covered, private: true })
}

/// The same for a qcow2 slice, whose extended entries have two words; runs of extended entries end with their
/// subcluster run.
pub(super) fn decode_qcow2(
    geometry: &Geometry,
    shape: Shape,
    words: &[u64],
    file_end: u64,
    first: usize,
    pos: u64,
    end: u64,
) -> Decoded {
    let step = 1 << geometry.entry_word_bits;
    let entry = |at: usize| {
        let word = words.get(at).copied()?;
        Some((word, if step == 2 { words.get(at + 1).copied()? } else { 0 }))
    };
    let Some((word, bitmap)) = entry(first) else {
        return Err(Box::new(Error::Misuse("slice without the entry")));
    };
    let within = pos - geometry.cluster_start(pos);
    let Run { mapping, len: mut covered, private } =
        one(geometry, shape, word, bitmap, pos, within, file_end)?;
    let alone = matches!(mapping, Mapping::Compressed { .. } | Mapping::Reserved(_));
    if within + covered < geometry.cluster_size() || alone {
        return Ok(Run { mapping, len: covered, private });
    }
    let mut at = first + step;
    while covered < end - pos {
        let Some((word, bitmap)) = entry(at) else { break };
        let Ok(next) = one(geometry, shape, word, bitmap, pos + covered, 0, file_end) else { break };
        let len = next.len;
        let follows = match (mapping, next.mapping) {
            (Mapping::Data(host), Mapping::Data(next)) => host + covered == next,
            (Mapping::ZeroAllocated(host), Mapping::ZeroAllocated(next)) => host + covered == next,
            (mapping, next) => mapping == next,
        };
        if !follows || next.private != private {
            break;
        }
        covered += len;
        at += step;
        if len < geometry.cluster_size() {
            break;
        }
    }
    Ok(Run { mapping, len: covered, private })
}

/// What one entry says of the bytes from `within` its cluster on, and for how many.
fn one(
    geometry: &Geometry,
    shape: Shape,
    word: u64,
    bitmap: u64,
    pos: u64,
    within: u64,
    file_end: u64,
) -> Result<Run, Error> {
    let left = geometry.cluster_size() - within;
    let run = |mapping, private| Run { mapping, len: left, private };
    let check = |host: u64| match shape.data_file {
        // where the guest has it is where the data file has it (formats.md 3.11)
        true if host == geometry.cluster_start(pos) => Ok(()),
        true => {
            let (place, index) = ("L2 table, guest cluster", pos >> geometry.cluster_bits);
            let what = "the offset in the data file is not the guest's";
            Err(Error::Corrupt { place, index, value: host, what })
        }
        false => geometry.check_data(pos, host, file_end),
    };
    Ok(match shape.decode_l2(geometry.cluster_start(pos), word, bitmap)? {
        L2::Unallocated => run(Mapping::Unallocated, true),
        L2::ZeroPlain => run(Mapping::Zero, true),
        L2::ZeroAllocated { host, copied } => {
            check(host)?;
            run(Mapping::ZeroAllocated(host + within), copied || shape.data_file)
        }
        L2::Normal { host, copied } => {
            check(host)?;
            run(Mapping::Data(host + within), copied || shape.data_file)
        }
        L2::Compressed { host, len } => {
            if host >= file_end {
                let what = "compressed data lies beyond the end of the file";
                let index = pos >> geometry.cluster_bits;
                return Err(Error::Corrupt { place: "L2 table, guest cluster", index, value: host, what });
            }
            run(Mapping::Compressed { host, len }, false)
        }
        L2::Split { host, copied, subclusters } => {
            if let Some(host) = host {
                check(host)?;
            }
            let (mapping, len) = split(geometry, host, subclusters, within);
            Run { mapping, len, private: host.is_none() || copied || shape.data_file }
        }
    })
}

/// A cluster of subclusters: the run of like ones that holds `within`.
fn split(geometry: &Geometry, host: Option<u64>, subclusters: Subclusters, within: u64) -> (Mapping, u64) {
    let size = geometry.cluster_size() / u64::from(Subclusters::COUNT);
    let first = (within / size) as u32;
    let kind = subclusters.get(first);
    let mut last = first + 1;
    while last < Subclusters::COUNT && subclusters.get(last) == kind {
        last += 1;
    }
    let len = u64::from(last) * size - within;
    let mapping = match (kind, host) {
        (Sub::Allocated, Some(host)) => Mapping::Data(host + within),
        (Sub::Zero, Some(host)) => Mapping::ZeroAllocated(host + within),
        (Sub::Zero, None) => Mapping::Zero,
        (Sub::Unallocated, Some(host)) => Mapping::Reserved(host + within),
        _ => Mapping::Unallocated,
    };
    (mapping, len)
}
