//! What a check says that it will read soon.
//!
//! Checks: each table behind the one that is read is told once, in order, 2 MiB of them at most; one that no
//! entry leads to is not; what is no table of tables tells nothing.

use quod_states::{IoOp, Machine, Outcome, qed};
use quod_states_tests::qed_file;
use quod_states_tests::sparse::{BLOCK, COPIED, K, L2, PLAN, Plan, REFTABLE, start};

/// Each read, and what was told with it.
type Reads = Vec<(u64, Vec<(u64, u64)>)>;

fn reads<M: Machine>(check: &mut M, read: impl Fn(u64, &mut [u8])) -> Reads {
    let mut all = Reads::new();
    while let Some(io) = check.poll_io() {
        let IoOp::ReadTable { offset, len } = io.op else { panic!("{io:?}") };
        all.push((offset, std::iter::from_fn(|| check.poll_ahead()).collect()));
        let mut bytes = vec![0; len as usize];
        read(offset, &mut bytes);
        check.handle_completion(io.id, Outcome::Table(&bytes));
    }
    all
}

#[test]
fn a_check_of_qcow2_tells_which_tables_follow() {
    let (l1, tables, at_once) = (100 * K, 2100, 2048);
    let table = |n: u64| (200 + n) * K;
    let mut file = Plan { l1: (l1, tables as u32), len: (200 + tables) * K, ..PLAN }.file();
    file.put(REFTABLE, &[BLOCK, 0, L2]);
    let entries: Vec<u64> = (0..tables).map(|n| if n == 5 { 0 } else { COPIED | table(n) }).collect();
    file.put(l1, &entries);
    let all = reads(&mut start(&file, None), |offset, bytes| file.read(offset, bytes));
    let told = |from: u64, to: u64| -> Vec<(u64, u64)> {
        (from..to.min(tables)).filter(|n| *n != 5).map(|n| (table(n), K)).collect()
    };
    // the counts are wrong, so the tables are looked at twice
    for n in (0..tables).filter(|n| *n != 5) {
        let first = if n == 0 { 1 } else { n + at_once };
        // no table is read between the fourth and the sixth
        let first = if n == 6 { first - 1 } else { first };
        let expected = told(first, n + at_once + 1);
        let found: Vec<_> = all.iter().filter(|(offset, _)| *offset == table(n)).collect();
        assert_eq!(found, [&(table(n), expected.clone()), &(table(n), expected)], "table {n}");
    }
    let others: Vec<_> = all.iter().filter(|(offset, ahead)| *offset < l1 && !ahead.is_empty()).collect();
    assert_eq!(others, [&(BLOCK, vec![(L2, K)])], "the second refcount block");
}

#[test]
fn a_check_of_qed_tells_which_tables_follow() {
    const CLUSTER: u64 = 65536;
    let mut file = qed_file(64 << 30, CLUSTER as u32, 4, None);
    file.resize(100 * CLUSTER as usize, 0);
    let table = |n: u64| (5 + 4 * n) * CLUSTER;
    for n in (0..20).filter(|n| *n != 3) {
        file[(CLUSTER + n * 8) as usize..][..8].copy_from_slice(&table(n).to_le_bytes());
    }
    let header = qed::Header::parse(&file[..512], file.len() as u64).unwrap();
    let mut check = qed::Check::new(header, file.len() as u64, None);
    let all = reads(&mut check, |offset, bytes| {
        bytes.copy_from_slice(&file[offset as usize..][..bytes.len()]);
    });
    let told: Vec<_> = all.into_iter().filter(|(_, ahead)| !ahead.is_empty()).collect();
    let one = |n| (table(n), 4 * CLUSTER);
    let mut expected = vec![(table(0), [1, 2, 4, 5, 6, 7, 8].map(one).to_vec())];
    expected.extend([(1, 9), (2, 10)].map(|(n, ahead)| (table(n), vec![one(ahead)])));
    expected.push((table(4), vec![one(11), one(12)]));
    expected.extend((5..12).map(|n| (table(n), vec![one(n + 8)])));
    assert_eq!(told, expected);
}
