//! Slices that a step needs again after it has asked the cache for others.

use quod_states::qcow2::CreateOptions;
use quod_states::{Options, RequestKind};
use quod_states_tests::qcow2::{check, count, opened, qcow2_file, set_count, snapshot};
use quod_states_tests::{Disk, Rng, request, write};

/// Guest bytes that a table maps: clusters have 512 bytes.
const TABLE: u64 = 64 * 512;

/// Each copy begins where the refcount blocks end: the new block's slice takes the room of one that is of
/// less use than the others, and no miss has asked for the L1 slice for a long time. But the copy needs it.
#[test]
fn a_new_refcount_block_does_not_drive_out_the_l1_slice_of_a_copy() {
    let create =
        CreateOptions { size: 512 * TABLE, cluster_size: 512, refcount_bits: 64, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&create), None, 1);
    let mut image = opened(&mut disk, Options::default()).image;
    for table in 0..12 {
        disk.run(&mut image, request(RequestKind::Write, table * TABLE, 512, 0), vec![1; 512]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    snapshot(&mut disk.file);
    // nothing is free in front of the end
    let len = disk.file.len().next_multiple_of(64 * 512);
    disk.file.resize(len, 0);
    let clusters = 0..disk.file.len() as u64 / 512;
    let free: Vec<u64> = clusters.filter(|cluster| count(&disk.file, *cluster) == 0).collect();
    free.iter().for_each(|cluster| set_count(&mut disk.file, *cluster, 1));

    let options = Options::default().cache_bytes(0).grow_step(0);
    let mut image = opened(&mut disk, options).image;
    for table in 0..12 {
        // all tables are in steady use
        for other in 0..48 {
            disk.run(&mut image, request(RequestKind::Read, other % 12 * TABLE, 512, 0), vec![0; 512]);
        }
        // a block, a table and 62 clusters
        write(&mut disk, &mut image, table * TABLE + 512, 62 * 512, 0xf1);
        disk.settle(&mut image, &mut Rng(1));
        disk.run(&mut image, request(RequestKind::Flush, 0, 0, 0), vec![]);
    }
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
    let mut image = opened(&mut disk, options).image;
    for table in 0..12 {
        let data = disk.run(
            &mut image,
            request(RequestKind::Read, table * TABLE, TABLE, 0),
            vec![0; TABLE as usize],
        );
        let expected = [vec![1; 512], vec![0xf1; 62 * 512], vec![0; 512]].concat();
        assert!(data == expected, "table {table}");
    }
    let report = check(&mut disk.file.clone(), None);
    assert!(report.is_sound() && report.leaks == free.len() as u64, "{report:?}");
}
