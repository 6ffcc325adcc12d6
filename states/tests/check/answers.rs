//! What a check of either format makes of answers to I/O that it did not ask for.
//!
//! Checks: an answer that comes twice, late, or with another's name changes nothing, whatever it says; nor do
//! bytes that come with the answer to a write.

use quod_states::{Error, Io, IoId, IoOp, Machine, Outcome, Repair, Report, qcow2, qed};
use quod_states_tests::qed_file;
use quod_states_tests::sparse::{BLOCK, File, sound, sound_report, start};

/// Answers all I/O; between two answers come such that nobody waits for.
fn disturbed<M: Machine>(
    check: &mut M,
    answer: impl Fn(&mut M, Io),
    result: fn(&mut M) -> Option<Result<Report, Error>>,
) -> Result<Report, Error> {
    let strange = |check: &mut M, id: IoId| {
        for generation in [id.generation.wrapping_sub(1), id.generation.wrapping_add(1)] {
            let id = IoId { generation, ..id };
            check.handle_completion(id, Outcome::Failed(5));
            check.handle_completion(id, Outcome::Table(&[0x55; 16]));
            check.handle_completion(id, Outcome::Done);
        }
        assert!(result(check).is_none() && check.poll_io().is_none(), "nobody has answered {id:?}");
    };
    let mut last = IoId { index: 0, generation: 0 };
    let report = loop {
        if let Some(report) = result(check) {
            break report;
        }
        let io = check.poll_io().unwrap();
        last = io.id;
        strange(check, io.id);
        answer(check, io);
    };
    // it has ended, and its last I/O is answered again
    for outcome in [Outcome::Done, Outcome::Failed(5), Outcome::Table(&[0x55; 16])] {
        check.handle_completion(last, outcome);
        assert!(result(check).is_none() && check.poll_io().is_none(), "it has ended");
    }
    report
}

#[test]
fn a_check_of_qcow2_waits_for_its_own_answers() {
    let file = sound();
    let report = disturbed(
        &mut start(&file, None),
        |check, io| {
            let IoOp::ReadTable { offset, len } = io.op else { panic!("{io:?}") };
            let mut bytes = vec![0; len as usize];
            file.read(offset, &mut bytes);
            check.handle_completion(io.id, Outcome::Table(&bytes));
        },
        qcow2::Check::poll_result,
    );
    assert_eq!(report, Ok(sound_report()));
}

#[test]
fn a_check_of_qed_waits_for_its_own_answers() {
    let file = qed_file(1 << 20, 65536, 2, None);
    let header = qed::Header::parse(&file[..512], file.len() as u64).unwrap();
    let report = disturbed(
        &mut qed::Check::new(header, file.len() as u64, None),
        |check, io| {
            let IoOp::ReadTable { offset, len } = io.op else { panic!("{io:?}") };
            check.handle_completion(io.id, Outcome::Table(&file[offset as usize..][..len as usize]));
        },
        qed::Check::poll_result,
    );
    assert_eq!(report, Ok(Report { total_clusters: 16, ..Report::default() }));
}

/// Runs a repair of all; what is written is answered with bytes.
fn repair(file: &mut File, junk: &[u8]) -> Result<Report, Error> {
    let mut check = start(file, Some(Repair::All));
    loop {
        if let Some(report) = check.poll_result() {
            return report;
        }
        let io = check.poll_io().unwrap();
        match io.op {
            IoOp::ReadTable { offset, len } => {
                let mut bytes = vec![0; len as usize];
                file.read(offset, &mut bytes);
                check.handle_completion(io.id, Outcome::Table(&bytes));
            }
            IoOp::WriteTable { offset, len } => {
                let mut bytes = vec![0; len as usize];
                check.encode(io.id, &mut bytes);
                file.write(offset, &bytes);
                check.handle_completion(io.id, Outcome::Table(junk));
            }
            _ => check.handle_completion(io.id, Outcome::Done),
        }
    }
}

#[test]
fn bytes_from_a_write_are_not_taken_for_a_table() {
    for junk in [&[][..], &[0x55; 8], &[0x55; 1024]] {
        let mut file = sound();
        file.put(BLOCK + 9 * 8, &[1]);
        file.len += 2 * quod_states_tests::sparse::K;
        assert_eq!(repair(&mut file, junk), Ok(Report { leaks_fixed: 1, ..sound_report() }));
        file.len = sound().len;
        assert_eq!(file, sound());
        // the header is written last
        file.put(72, &[1]);
        assert_eq!(repair(&mut file, junk), Ok(sound_report()));
        assert_eq!(file, sound(), "the dirty bit is clear");
    }
    // and a read that comes without its bytes is no table at all
    let mut check = start(&sound(), None);
    let io = check.poll_io().unwrap();
    check.handle_completion(io.id, Outcome::Done);
    let misuse = Error::Misuse("a table read was completed without its bytes");
    assert_eq!(check.poll_result(), Some(Err(misuse)));
}
