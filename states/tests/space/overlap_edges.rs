//! Data on metadata that is longer than a cluster, or that only the end of a request meets.
//!
//! Checks: each cluster of a refcount table is known; a write is refused as a whole, with the guest cluster
//! where it begins, if any of its clusters lies on a table.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Options, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{header, qcow2_file, set_count, set_l2_entry};
use quod_states_tests::{Disk, Rng, request};

const COPIED: u64 = 1 << 63;

/// Guest clusters 0 and 64 have data, each under its own L2 table: these lie at 2048 and 3072, the data
/// behind them.
fn filled() -> Vec<u8> {
    let create = CreateOptions { size: 1 << 20, cluster_size: 512, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    for offset in [0, 64 * 512] {
        disk.run(&mut image, request(RequestKind::Write, offset, 512, 0), vec![1; 512]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    std::mem::take(&mut disk.file)
}

/// How a write ends, and that it did not reach the file if it was refused.
fn written(file: Vec<u8>, offset: u64, len: u64) -> Result<(), Error> {
    let mut disk = Disk::new(file, None, 1);
    let mut image = disk.open(Options::default()).unwrap().image;
    let mut before = disk.file.clone();
    disk.submit(&mut image, request(RequestKind::Write, offset, len, 0), vec![9; len as usize]).unwrap();
    disk.settle(&mut image, &mut Rng(1));
    let result = disk.done.pop().unwrap().1;
    // the corrupt bit
    before[79] |= 2;
    before.resize(disk.file.len(), 0);
    assert_eq!(disk.file == before, result.is_err());
    result
}

fn error(guest: u64, host: u64, what: &'static str) -> Result<(), Error> {
    Err(corrupt("L2 table, guest cluster", guest, host, what))
}

#[test]
fn each_cluster_of_a_refcount_table_is_known() {
    for n in 0..4 {
        let mut file = filled();
        let table = file.len().next_multiple_of(512);
        file.resize(table + 4 * 512, 0);
        file.copy_within(512..1024, table);
        // three clusters; the one behind is data
        file[48..56].copy_from_slice(&(table as u64).to_be_bytes());
        file[56..60].copy_from_slice(&3u32.to_be_bytes());
        (0..4).for_each(|n| set_count(&mut file, (table / 512 + n) as u64, 1));
        assert_eq!(header(&file).reftable_offset, table as u64);
        let host = (table + n * 512) as u64;
        set_l2_entry(&mut file, 5 * 512, COPIED | host);
        let expected = if n < 3 { error(5, host, "overlaps the refcount table") } else { Ok(()) };
        assert_eq!(written(file, 5 * 512, 512), expected, "cluster {n}");
    }
}

#[test]
fn a_write_whose_last_cluster_lies_on_a_table_is_refused_as_a_whole() {
    let mut file = filled();
    set_l2_entry(&mut file, 0, 0);
    set_l2_entry(&mut file, 3 * 512, COPIED | 2560);
    set_l2_entry(&mut file, 4 * 512, COPIED | 3072);
    let what = "the data overlaps an L2 table";
    assert_eq!(written(file.clone(), 3 * 512, 512), Ok(()));
    assert_eq!(written(file.clone(), 3 * 512, 1024), error(3, 2560, what));
    assert_eq!(written(file.clone(), 3 * 512 + 100, 600), error(3, 2660, what));
    assert_eq!(written(file, 4 * 512, 512), error(4, 3072, what));
}
