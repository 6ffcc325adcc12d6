//! A new image is clean; hostile images end the check without a panic and without much memory.

use super::super::be;
use super::super::create::{CreateOptions, Preallocation, create};
use super::super::header::{Header, Purpose};
use super::*;
use alloc::vec;
use proptest::prelude::*;

/// Runs the machine on a file in memory.
fn check(file: &mut Vec<u8>, repair: Option<Repair>) -> Result<Report, Error> {
    let header = Header::parse(&padded(file), Purpose::Check)?;
    let mut check = Check::new(header, file.len() as u64, repair);
    for _ in 0..100_000 {
        let Some(io) = check.poll_io() else { break };
        let mut bytes = Vec::new();
        let outcome = match io.op {
            IoOp::ReadTable { offset, len } => {
                let from = (offset as usize).min(file.len());
                bytes.extend(&file[from..file.len().min(from + len as usize)]);
                bytes.resize(len as usize, 0);
                Outcome::Table(&bytes)
            }
            IoOp::WriteTable { offset, len } => {
                assert!(repair.is_some(), "a check without repair writes nothing");
                bytes.resize(len as usize, 0);
                check.encode(io.id, &mut bytes);
                let end = offset as usize + bytes.len();
                file.resize(file.len().max(end), 0);
                file[offset as usize..end].copy_from_slice(&bytes);
                Outcome::Done
            }
            IoOp::SetLen { len } if len > 1 << 24 => Outcome::Failed(28),
            IoOp::SetLen { len } => {
                file.resize(len as usize, 0);
                Outcome::Done
            }
            _ => Outcome::Done,
        };
        check.handle_completion(io.id, outcome);
    }
    check.poll_result().expect("the check ends")
}

fn padded(file: &[u8]) -> Vec<u8> {
    let mut bytes = file.to_vec();
    bytes.resize(Header::region(file).max(file.len()), 0);
    bytes
}

fn image(cluster_size: u32, preallocation: Preallocation) -> Vec<u8> {
    let options = CreateOptions { size: 64 << 10, cluster_size, preallocation, ..CreateOptions::default() };
    let created = create(&options).unwrap();
    let mut file = vec![0; created.len() as usize];
    for (offset, bytes) in created.pieces() {
        file[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    file
}

#[test]
fn a_new_image_is_clean() {
    for preallocation in [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc] {
        let report = check(&mut image(512, preallocation), None).unwrap();
        assert!(report.is_sound() && report.leaks == 0, "{report:?}");
        assert_eq!(report.total_clusters, 128);
        let allocated = if preallocation == Preallocation::Off { 0 } else { 128 };
        assert_eq!(report.allocated_clusters, allocated);
    }
}

#[test]
fn a_missing_refcount_table_is_rebuilt() {
    let mut file = image(512, Preallocation::Metadata);
    file[48..60].fill(0);
    assert!(check(&mut file, None).is_ok_and(|report| report.corruptions > 100));
    let report = check(&mut file, Some(Repair::All)).unwrap();
    assert!(report.is_sound() && report.leaks == 0 && report.corruptions_fixed > 100, "{report:?}");
    let report = check(&mut file, None).unwrap();
    assert!(report.is_sound() && report.leaks == 0, "{report:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn hostile_bytes(
        changes in prop::collection::vec((0..80usize, 0..64usize, any::<u64>(), 0..64u32), 1..6),
        repair in 0..3usize,
    ) {
        let mut file = image(512, Preallocation::Metadata);
        for (cluster, word, value, shift) in changes {
            let at = cluster * 512 + word * 8;
            // the header stays mostly as it is
            if cluster == 0 && !(4..9).contains(&word) {
                continue;
            }
            let old = be::u64_at(&file, at);
            let new = if shift < 32 { old ^ (value & 0xff) << shift } else { value >> (shift - 32) };
            be::put_u64(&mut file, at, new);
        }
        let repair = [None, Some(Repair::Leaks), Some(Repair::All)][repair];
        if check(&mut file, repair).is_ok() && repair == Some(Repair::All) {
            // what a repair left is what a check finds
            let _ = check(&mut file, None);
        }
    }
}
