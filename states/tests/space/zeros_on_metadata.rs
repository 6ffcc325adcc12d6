//! Zeros that an image's entries want written over its own metadata.

use quod_states::qcow2::CreateOptions;
use quod_states::{IoOp, Options, RequestKind};
use quod_states_tests::faults::corrupt;
use quod_states_tests::qcow2::{l1_entry, opened, qcow2_file, set_l2_entry};
use quod_states_tests::{Disk, Rng, request};

const CLUSTER: u64 = 65536;
const COPIED: u64 = 1 << 63;

fn words(place: u64) -> &'static str {
    match place {
        1 => "overlaps the refcount table",
        2 => "overlaps a refcount block",
        3 => "overlaps the header, the L1 table or a snapshot's",
        _ => "the data overlaps an L2 table",
    }
}

/// Whole blocks are zeroed by other means than parts of blocks, which are read and written back: neither may
/// happen to metadata, and the error names the guest's cluster and what is wrong with it.
#[test]
fn no_part_of_metadata_is_zeroed() {
    let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
    for (align, from, len) in
        [(1, 512, 512), (4096, 512, 512), (4096, 512, 8192), (4096, 4096, 8192), (4096, 4096, 512)]
    {
        for place in [1, 2, 3, 4] {
            let mut disk = Disk::new(qcow2_file(&create), None, align);
            let options = Options::default().align(align as u32);
            let mut image = opened(&mut disk, options).image;
            disk.run(&mut image, request(RequestKind::Write, 0, 8 * CLUSTER, 0), vec![1; 8 << 16]);
            disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
            assert_eq!(l1_entry(&disk.file, 0), COPIED | (4 * CLUSTER));
            set_l2_entry(&mut disk.file, 5 * CLUSTER, COPIED | (place * CLUSTER));

            let mut image = opened(&mut disk, options).image;
            let mut expected = disk.file.clone();
            expected[79] |= 2;
            disk.log.clear();
            disk.submit(&mut image, request(RequestKind::WriteZeroes, 5 * CLUSTER + from, len, 1), vec![])
                .unwrap();
            disk.settle(&mut image, &mut Rng(1));
            let (_, result, ..) = disk.done.pop().unwrap();
            let value = place * CLUSTER + from;
            let error = corrupt("L2 table, guest cluster", 5, value, words(place));
            assert_eq!(result, Err(error), "{len} bytes at {from}, blocks of {align}");
            expected.resize(disk.file.len(), 0);
            assert!(disk.file == expected, "the corrupt bit, and nothing else");
            let others = disk.log.iter().filter(|step| !matches!(step.op, IoOp::ReadTable { .. }));
            let others: Vec<IoOp> = others.map(|step| step.op).collect();
            assert!(matches!(others[..], [IoOp::WriteTable { offset: 0, .. }, IoOp::Sync]), "{others:?}");
        }
    }
}
