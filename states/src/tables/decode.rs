//! From table entries to runs: how long is the guest disk mapped alike?
//!
//! Knows: the entries of one slice, of either format. Must never know: the cache, requests.
//!
//! Invariants: every entry that a run covers was checked (trap Q6); a run ends with its slice at the latest.

use super::mapping::{Mapping, Run, ZERO_ENTRY};
use crate::base::geometry::Geometry;
use crate::error::Error;
use crate::fault::{Fault, PointerFault};

use crate::qcow2::{L2, Shape, Sub, Subclusters};
use crate::space::append::Append;
use alloc::boxed::Box;

type Decoded = Result<Run, Box<Error>>;

/// The run that starts at `pos`, with entry `first` of a QED slice; it may reach beyond `end`.
#[inline]
pub(crate) fn decode_qed(
    geometry: &Geometry,
    entries: &[u64],
    space: &Append,
    first: usize,
    pos: u64,
    end: u64,
) -> Decoded {
    debug_assert!(pos < end);
    let mut covered = geometry.cluster_size() - (pos - geometry.cluster_start(pos));
    debug_assert!(covered > 0 && covered <= geometry.cluster_size(), "a run begins within a cluster");
    let Some(&head) = entries.get(first) else {
        return Err(Box::new(Error::Misuse("slice without the entry")));
    };
    let mut rest = entries.iter().skip(first + 1);
    if head <= ZERO_ENTRY {
        let mapping = if head == 0 { Mapping::Unallocated } else { Mapping::Zero };
        while covered < end - pos && rest.next() == Some(&head) {
            covered += geometry.cluster_size();
        }
        let clusters = (pos - geometry.cluster_start(pos) + covered) >> geometry.cluster_bits;
        debug_assert!(clusters <= (entries.len() - first) as u64, "a run ends with its slice");
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
    debug_assert!((pos + covered).is_multiple_of(geometry.cluster_size()), "a run ends with a cluster");
    let clusters = (pos - geometry.cluster_start(pos) + covered) >> geometry.cluster_bits;
    debug_assert!(clusters <= (entries.len() - first) as u64, "a run ends with its slice");
    let mapping = Mapping::Data(head + (pos - geometry.cluster_start(pos)));
    Ok(Run { mapping, len: covered, private: true })
}

/// The same for a qcow2 slice, whose extended entries have two words; runs of extended entries end with their
/// subcluster run.
pub(crate) fn decode_qcow2(
    geometry: &Geometry,
    shape: Shape,
    words: &[u64],
    file_end: u64,
    first: usize,
    pos: u64,
    end: u64,
) -> Decoded {
    debug_assert!(pos < end && first.is_multiple_of(1 << geometry.entry_word_bits));
    let step = 1 << geometry.entry_word_bits;
    let entry = |at: usize| {
        let word = words.get(at).copied()?;
        Some((word, if step == 2 { words.get(at + 1).copied()? } else { 0 }))
    };
    let Some((word, bitmap)) = entry(first) else {
        return Err(Box::new(Error::Misuse("slice without the entry")));
    };
    let within = pos - geometry.cluster_start(pos);
    debug_assert!(within < geometry.cluster_size(), "it is a place in the cluster");
    let Run { mapping, len: mut covered, private } =
        one(geometry, shape, word, bitmap, pos, within, file_end)?;
    let alone = matches!(mapping, Mapping::Compressed { .. } | Mapping::Reserved(_));
    debug_assert!(covered > 0, "an entry says something of each byte");
    if within + covered < geometry.cluster_size() || alone {
        return Ok(Run { mapping, len: covered, private });
    }
    let mut at = first + step;
    while covered < end - pos {
        let Some((word, bitmap)) = entry(at) else { break };
        let Ok(next) = one(geometry, shape, word, bitmap, pos + covered, 0, file_end) else { break };
        let len = next.len;
        debug_assert!(len > 0 && len <= geometry.cluster_size(), "an entry maps one cluster at most");
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
    debug_assert!(at <= words.len(), "a run ends with its slice");
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
    debug_assert!(within < geometry.cluster_size() && pos - geometry.cluster_start(pos) == within);
    let left = geometry.cluster_size() - within;
    debug_assert!(left > 0, "a run is not empty");
    let run = |mapping, private| Run { mapping, len: left, private };
    let check = |host: u64| match shape.data_file {
        // where the guest has it is where the data file has it (formats.md 3.11)
        true if host == geometry.cluster_start(pos) => Ok(()),
        true => {
            let (cluster, why) = (pos >> geometry.cluster_bits, PointerFault::NotTheGuests);
            Err(Error::Corrupt(Fault::Pointer { cluster, host, why }))
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
                let (cluster, why) = (pos >> geometry.cluster_bits, PointerFault::CompressedBeyond);
                return Err(Error::Corrupt(Fault::Pointer { cluster, host, why }));
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
    debug_assert!(within < geometry.cluster_size());
    let size = geometry.cluster_size() / u64::from(Subclusters::COUNT);
    let first = (within / size) as u32;
    debug_assert!(first < Subclusters::COUNT, "it is one of the cluster's subclusters");
    let kind = subclusters.get(first);
    let mut last = first + 1;
    while last < Subclusters::COUNT && subclusters.get(last) == kind {
        last += 1;
    }
    let len = u64::from(last) * size - within;
    debug_assert!(len > 0 && within + len <= geometry.cluster_size());
    let mapping = match (kind, host) {
        (Sub::Allocated, Some(host)) => Mapping::Data(host + within),
        (Sub::Zero, Some(host)) => Mapping::ZeroAllocated(host + within),
        (Sub::Zero, None) => Mapping::Zero,
        (Sub::Unallocated, Some(host)) => Mapping::Reserved(host + within),
        _ => Mapping::Unallocated,
    };
    (mapping, len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qcow2::entry::{COMPRESSED, COPIED, ZERO};

    const CLUSTER: u64 = 65536;
    /// The last cluster ends where the file does.
    const END: u64 = 100 * CLUSTER;

    fn at(host: u64) -> u64 {
        host * CLUSTER
    }

    /// The run from byte `pos` on, decoded up to `end`: what it is and where it ends.
    fn qed(entries: &[u64], pos: u64, end: u64) -> Result<(Mapping, u64), Box<Error>> {
        let geometry = Geometry::new(16, 8192, CLUSTER, CLUSTER, CLUSTER);
        let space = Append::new(END, CLUSTER, 0);
        let run = decode_qed(&geometry, entries, &space, (pos / CLUSTER) as usize, pos, end)?;
        assert!(run.private);
        Ok((run.mapping, pos + run.len))
    }

    fn qcow2(extended: bool, data_file: bool, words: &[u64], pos: u64, end: u64) -> Decoded {
        let geometry = Geometry::qcow2(16, extended, CLUSTER);
        let shape = Shape { version: 3, cluster_bits: 16, extended, data_file };
        let first = (pos / CLUSTER) as usize * if extended { 2 } else { 1 };
        decode_qcow2(&geometry, shape, words, END, first, pos, end)
    }

    fn plain(words: &[u64], pos: u64, end: u64) -> Result<(Mapping, u64, bool), Box<Error>> {
        qcow2(false, false, words, pos, end).map(|run| (run.mapping, pos + run.len, run.private))
    }

    #[test]
    fn runs_of_qed() {
        let entries = [0, 0, 1, 1, at(5), at(6), at(7), at(9), at(98), at(99), at(100), 0];
        for (pos, end, mapping, run_end) in [
            (0, 12, Mapping::Unallocated, 2),
            (2, 12, Mapping::Zero, 4),
            (2, 3, Mapping::Zero, 3),
            (4, 12, Mapping::Data(at(5)), 7),
            (4, 6, Mapping::Data(at(5)), 6),
            (6, 12, Mapping::Data(at(7)), 7),
            (7, 12, Mapping::Data(at(9)), 8),
            (8, 12, Mapping::Data(at(98)), 10),
            (11, 20, Mapping::Unallocated, 12),
        ] {
            assert_eq!(qed(&entries, at(pos), at(end)), Ok((mapping, at(run_end))), "{pos}");
        }
        // from within a cluster, to within one: whole clusters all the same
        assert_eq!(qed(&entries, at(4) + 5, at(5) + 1), Ok((Mapping::Data(at(5) + 5), at(6))));
        assert_eq!(qed(&entries, 9, CLUSTER), Ok((Mapping::Unallocated, CLUSTER)));
        assert_eq!(qed(&entries, 9, CLUSTER + 1), Ok((Mapping::Unallocated, 2 * CLUSTER)));
        let (host, why) = (at(100), PointerFault::Beyond);
        let corrupt = Error::Corrupt(Fault::Pointer { cluster: 10, host, why });
        assert_eq!(qed(&entries, at(10), at(11)), Err(Box::new(corrupt)));
        assert!(qed(&entries, at(12), at(13)).is_err(), "there is no such entry");
    }

    #[test]
    fn runs_of_qcow2() {
        let host = |n| at(n) | COPIED;
        let words = [
            [0, 0, ZERO, ZERO].as_slice(),
            &[host(5), host(6), at(7), at(8), host(9), host(11)],
            &[host(20) | ZERO, host(21) | ZERO, host(23) | ZERO, at(24) | ZERO],
            &[COMPRESSED | at(30), COMPRESSED | at(30), host(99), host(100), 0],
        ]
        .concat();
        for (pos, end, mapping, run_end, private) in [
            (0, 30, Mapping::Unallocated, 2, true),
            (2, 30, Mapping::Zero, 4, true),
            (4, 30, Mapping::Data(at(5)), 6, true),
            (4, 5, Mapping::Data(at(5)), 5, true),
            (6, 30, Mapping::Data(at(7)), 8, false),
            (8, 30, Mapping::Data(at(9)), 9, true),
            (9, 30, Mapping::Data(at(11)), 10, true),
            (10, 30, Mapping::ZeroAllocated(at(20)), 12, true),
            (12, 30, Mapping::ZeroAllocated(at(23)), 13, true),
            (13, 30, Mapping::ZeroAllocated(at(24)), 14, false),
            (14, 30, Mapping::Compressed { host: at(30), len: 512 }, 15, false),
            (16, 30, Mapping::Data(at(99)), 17, true),
            (18, 30, Mapping::Unallocated, 19, true),
        ] {
            assert_eq!(plain(&words, at(pos), at(end)), Ok((mapping, at(run_end), private)), "{pos}");
        }
        assert_eq!(plain(&words, at(4) + 5, at(5) + 1), Ok((Mapping::Data(at(5) + 5), at(6), true)));
        assert_eq!(plain(&words, at(10) + 5, at(30)), Ok((Mapping::ZeroAllocated(at(20) + 5), at(12), true)));
        assert_eq!(plain(&words, 9, CLUSTER), Ok((Mapping::Unallocated, CLUSTER, true)));
        assert!(plain(&words, at(17), at(18)).is_err(), "beyond the end of the file");
        assert!(plain(&words, at(19), at(20)).is_err(), "there is no such entry");
        let why = PointerFault::CompressedBeyond;
        for (host, good) in [(END - 1, true), (END, false), (END + 512, false)] {
            let words = [0, 0, COMPRESSED | host];
            let run = plain(&words, at(2), at(3));
            let error = Error::Corrupt(Fault::Pointer { cluster: 2, host, why });
            assert_eq!(run.err(), (!good).then(|| Box::new(error)));
        }
    }

    #[test]
    fn a_data_file_has_clusters_where_the_guest_has_them() {
        let words = [COPIED, at(1), at(2) | ZERO, at(3) | ZERO | COPIED, at(9)];
        let run =
            |pos| qcow2(false, true, &words, pos, at(5)).map(|run| (run.mapping, pos + run.len, run.private));
        assert_eq!(run(0), Ok((Mapping::Data(0), at(2), true)));
        assert_eq!(run(at(1) + 7), Ok((Mapping::Data(at(1) + 7), at(2), true)));
        assert_eq!(run(at(2)), Ok((Mapping::ZeroAllocated(at(2)), at(4), true)));
        let (host, why) = (at(9), PointerFault::NotTheGuests);
        let error = Error::Corrupt(Fault::Pointer { cluster: 4, host, why });
        assert_eq!(run(at(4)), Err(Box::new(error)));
    }

    #[test]
    fn runs_of_subclusters() {
        const SUB: u64 = CLUSTER / 32;
        // allocated: 0 to 3 and 30; zero: 4 and 5; all of the next one; zeros and nothing without space
        let bits = 0xf | 1 << 30 | 0x30 << 32;
        let words = [at(5) | COPIED, bits, at(6) | COPIED, 0xffff_ffff, at(7), 1, 0, 3 << 32, 0, 0, 0, 0];
        for (pos, mapping, end, private) in [
            (0, Mapping::Data(at(5)), 4 * SUB, true),
            (2 * SUB + 1, Mapping::Data(at(5) + 2 * SUB + 1), 4 * SUB, true),
            (4 * SUB, Mapping::ZeroAllocated(at(5) + 4 * SUB), 6 * SUB, true),
            (6 * SUB, Mapping::Reserved(at(5) + 6 * SUB), 30 * SUB, true),
            (30 * SUB, Mapping::Data(at(5) + 30 * SUB), 31 * SUB, true),
            (31 * SUB, Mapping::Reserved(at(5) + 31 * SUB), 32 * SUB, true),
            (at(1), Mapping::Data(at(6)), at(2), true),
            (at(2), Mapping::Data(at(7)), at(2) + SUB, false),
            (at(3), Mapping::Zero, at(3) + 2 * SUB, true),
            (at(3) + 2 * SUB, Mapping::Unallocated, at(6), true),
            (at(4), Mapping::Unallocated, at(6), true),
        ] {
            let run = qcow2(true, false, &words, pos, at(6));
            assert_eq!(run, Ok(Run { mapping, len: end - pos, private }), "{pos:#x}");
        }
        // a run that ends within a cluster ends there, whatever follows
        let words = [0, 3 << 32, 0, 0xffff_ffff << 32, 0, 3 << 32, 0, 0xffff_ffff << 32];
        for (pos, end) in [(0, 2 * SUB), (at(1), at(2) + 2 * SUB)] {
            let run = qcow2(true, false, &words, pos, at(4));
            assert_eq!(run, Ok(Run { mapping: Mapping::Zero, len: end - pos, private: true }), "{pos:#x}");
        }
        // whole clusters go on into the like subclusters of the next
        let words = [at(5), 0xffff_ffff, at(6), 0xff, at(7), 0xffff_ffff];
        let run = qcow2(true, false, &words, SUB, at(3));
        assert_eq!(
            run,
            Ok(Run { mapping: Mapping::Data(at(5) + SUB), len: at(1) + 7 * SUB, private: false })
        );
    }
}
