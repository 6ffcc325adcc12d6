//! Checks: order gives one right answer, overlap gives exactly the possible ones, discards and failures
//! widen, mistakes are found and counted, memory follows what is touched.

use super::super::verdict::MISMATCHES_MAX;
use super::*;
use proptest::prelude::*;

const SEED: u64 = 42;

fn payload_of(blocks: Range<u64>, version: u32) -> Vec<u8> {
    let mut bytes = vec![0; (blocks.end - blocks.start) as usize * BLOCK];
    payload::fill_labelled(&mut bytes, SEED, blocks.start, version);
    bytes
}

fn model() -> Model {
    Model::new(1 << 20, SEED, Initial::Zeros)
}

fn write(model: &mut Model, blocks: Range<u64>) -> u32 {
    let (ticket, version) = model.begin_change(blocks, Change::Write);
    model.finish_change(ticket, true);
    version
}

#[test]
fn the_last_write_counts() {
    let mut model = model();
    write(&mut model, 0..8);
    let version = write(&mut model, 4..8);
    let ticket = model.begin_read(4..8);
    let verdict = model.finish_read(ticket, &payload_of(4..8, version));
    assert_eq!((verdict.verified, verdict.wrong), (4, 0));
    let ticket = model.begin_read(4..8);
    let verdict = model.finish_read(ticket, &payload_of(4..8, version - 1));
    assert_eq!((verdict.verified, verdict.wrong), (4, 4));
    let text = verdict.mismatches[0].to_string();
    assert_eq!(text, "offset 0x800 (block 4): expected version 2, found block 4 version 1 of seed 42");
}

#[test]
fn a_read_beside_a_write_sees_either() {
    let mut model = model();
    let old = write(&mut model, 0..4);
    for read_first in [false, true] {
        for write_ends_first in [false, true] {
            let before = read_first.then(|| model.begin_read(0..4));
            let (change, new) = model.begin_change(0..2, Change::Write);
            let read = before.unwrap_or_else(|| model.begin_read(0..4));
            if write_ends_first {
                model.finish_change(change, true);
            }
            let mut bytes = payload_of(0..4, old);
            bytes[..BLOCK].copy_from_slice(&payload_of(0..1, new));
            assert_eq!(model.finish_read(read, &bytes).wrong, 0);
            if !write_ends_first {
                model.finish_change(change, true);
            }
            write(&mut model, 0..4);
            let ticket = model.begin_read(0..1);
            assert_eq!(model.finish_read(ticket, &payload_of(0..1, new)).wrong, 1);
            // back to a known state for the next round
            model.cells.set(0..4, old);
        }
    }
}

#[test]
fn rival_writes_leave_either_until_one_more() {
    let mut model = model();
    let (a, first) = model.begin_change(0..2, Change::Write);
    let (b, second) = model.begin_change(1..3, Change::Write);
    model.finish_change(b, true);
    model.finish_change(a, true);
    assert_eq!(model.expected(0).versions, [first]);
    assert_eq!(model.expected(1).versions, [second, first]);
    assert_eq!(model.expected(2).versions, [second]);
    let last = write(&mut model, 0..3);
    assert_eq!(model.expected(1).versions, [last]);
}

#[test]
fn a_write_after_one_rival_but_beside_the_other() {
    let mut model = model();
    let (long, long_version) = model.begin_change(0..1, Change::Write);
    write(&mut model, 0..1);
    let late = write(&mut model, 0..1);
    model.finish_change(long, true);
    // the middle write was over before the late one began: it cannot come back
    assert_eq!(model.expected(0).versions, [late, long_version]);
}

#[test]
fn zeros_that_a_later_write_replaced_do_not_come_back() {
    let mut model = model();
    let (long, long_version) = model.begin_change(0..1, Change::Write);
    let (zero, _) = model.begin_change(0..1, Change::Zero);
    model.finish_change(zero, true);
    let late = write(&mut model, 0..1);
    model.finish_change(long, true);
    let versions = vec![late, long_version];
    assert_eq!(model.expected(0), Expected { unknown: false, zeros: false, versions });
}

#[test]
fn a_discard_leaves_old_or_zeros() {
    let mut model = model();
    let version = write(&mut model, 2..4);
    let (ticket, _) = model.begin_change(0..1 << 11, Change::Discard);
    model.finish_change(ticket, true);
    assert_eq!(model.expected(3), Expected { unknown: false, zeros: true, versions: vec![version] });
    assert_eq!(model.expected(9), Expected { unknown: false, zeros: true, versions: vec![] });
    let mut verdict = Verdict::default();
    model.verify(2, &[0; BLOCK], &mut verdict);
    model.verify(3, &payload_of(3..4, version), &mut verdict);
    assert_eq!((verdict.verified, verdict.wrong), (2, 0));
    let version = write(&mut model, 2..3);
    assert_eq!(model.expected(2).versions, [version]);
    assert!(!model.expected(2).zeros);
    let (ticket, _) = model.begin_change(2..3, Change::Zero);
    model.finish_change(ticket, true);
    assert_eq!(model.expected(2), Expected { zeros: true, ..Expected::default() });
}

#[test]
fn a_failed_write_happened_or_not() {
    let mut model = model();
    let old = write(&mut model, 0..1);
    let (ticket, new) = model.begin_change(0..1, Change::Write);
    model.finish_change(ticket, false);
    assert_eq!(model.expected(0).versions, [old, new]);
}

#[test]
fn unknown_content_is_passed_over() {
    let mut model = Model::new(1 << 20, SEED, Initial::Unknown);
    let (ticket, _) = model.begin_change(0..100, Change::Discard);
    model.finish_change(ticket, true);
    write(&mut model, 5..6);
    let mut verdict = Verdict::default();
    model.verify(4, &[7; 3 * BLOCK], &mut verdict);
    assert_eq!((verdict.unknown, verdict.verified, verdict.wrong), (2, 1, 1));
    assert_eq!(model.next_touched(0, 100), Some(5..6));
}

#[test]
fn touched_runs_cross_pages_and_stop_at_max() {
    let mut model = Model::new(1 << 40, SEED, Initial::Zeros);
    write(&mut model, 8190..8200);
    write(&mut model, 1 << 30..(1 << 30) + 1);
    assert_eq!(model.next_touched(0, 4), Some(8190..8194));
    assert_eq!(model.next_touched(8194, 100), Some(8194..8200));
    assert_eq!(model.next_touched(8200, 100), Some(1 << 30..(1 << 30) + 1));
    assert_eq!(model.next_touched((1 << 30) + 1, 100), None);
}

#[test]
fn mismatches_are_bounded() {
    let mut model = model();
    write(&mut model, 0..1000);
    let mut verdict = Verdict::default();
    model.verify(0, &[1; 1000 * BLOCK], &mut verdict);
    assert_eq!((verdict.wrong, verdict.mismatches.len()), (1000, MISMATCHES_MAX));
}

/// In flight: ticket, kind, range, bytes to apply or those seen, applied?
type InFlightStep = (Ticket, u8, Range<u64>, Vec<u8>, bool);

proptest! {
    /// A disk that applies every change at a random moment while it is in flight never contradicts the model.
    #[test]
    fn no_false_alarm(steps in prop::collection::vec((0..4u8, 0..12u64, 1..6u64, any::<u8>()), 1..200)) {
        let mut model = Model::new(16 * BLOCK as u64, SEED, Initial::Zeros);
        let mut disk = vec![0u8; 16 * BLOCK];
        let mut flight: Vec<InFlightStep> = Vec::new();
        for (kind, start, count, dice) in steps {
            let blocks = start..start + count.min(16 - start);
            let bytes = blocks.start as usize * BLOCK..blocks.end as usize * BLOCK;
            if flight.len() < 4 {
                let entry = match kind {
                    0 => (model.begin_read(blocks.clone()), kind, blocks, disk[bytes].to_vec(), false),
                    1 | 2 => {
                        let (ticket, version) = model.begin_change(blocks.clone(), Change::Write);
                        (ticket, 1, blocks.clone(), payload_of(blocks, version), false)
                    }
                    _ => {
                        let change = if dice & 1 == 0 { Change::Zero } else { Change::Discard };
                        let (ticket, _) = model.begin_change(blocks.clone(), change);
                        let data = if dice & 3 == 3 { Vec::new() } else { vec![0; bytes.len()] };
                        (ticket, 3, blocks, data, false)
                    }
                };
                flight.push(entry);
            }
            // one operation takes effect now, and perhaps one ends
            let index = dice as usize % flight.len();
            let (_, kind, blocks, data, applied) = &mut flight[index];
            let bytes = blocks.start as usize * BLOCK..blocks.end as usize * BLOCK;
            if *kind == 0 {
                data.copy_from_slice(&disk[bytes]);
            } else if !*applied && !data.is_empty() {
                disk[bytes].copy_from_slice(data);
            }
            *applied = true;
            if dice & 16 != 0 {
                let (ticket, kind, _, data, _) = flight.swap_remove(index);
                if kind == 0 {
                    let verdict = model.finish_read(ticket, &data);
                    prop_assert_eq!(verdict.wrong, 0, "{:?}", verdict.mismatches);
                } else {
                    model.finish_change(ticket, true);
                }
            }
        }
    }
}
