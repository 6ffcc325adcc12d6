//! Slices of tables that are on their way while the table they come from is given up.

use quod_states::qcow2::CreateOptions;
use quod_states::{Image, IoOp, Options, RequestKind};
use quod_states_tests::qcow2::{l1_entry, l2_entry, opened, qcow2_file, set_l1_entry};
use quod_states_tests::{Disk, Rng, request, write};

const CLUSTER: u64 = 65536;
/// As far as one slice of a table maps.
const SLICE: u64 = 512 * CLUSTER;
const COPIED: u64 = 1 << 63;

/// Two flushes, while this load is in flight.
fn flush_beside(disk: &mut Disk, image: &mut Image, load: IoOp) {
    for user in [98, 99] {
        disk.submit(image, request(RequestKind::Flush, 0, 0, user), vec![]).unwrap();
        while let Some(index) = disk.pending.iter().position(|(io, _)| io.op != load) {
            disk.complete(image, index);
        }
    }
    assert!(disk.done.iter().any(|done| done.0 == 99));
}

fn holes(disk: &Disk) -> Vec<u64> {
    let hole = |op| match op {
        IoOp::PunchHole { host, .. } => Some(host),
        _ => None,
    };
    disk.log.iter().filter_map(|step| hole(step.op)).collect()
}

/// The flag says that others share the table, the count says that nobody does: the old table comes free when
/// it is copied. A slice that was asked for before is read from there, and not from a hole; clusters beside
/// the table are not held up.
#[test]
fn a_table_is_not_punched_while_a_slice_of_it_is_loaded() {
    for slice in [0, 1, 15] {
        let create = CreateOptions { size: 1 << 30, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        let (here, late) = (2 * SLICE, slice * SLICE);
        // the host cluster in front of the table, and three behind it
        for (offset, byte) in [(1 << 29, 1), (here, 2), (late, 3), (here + CLUSTER, 4)] {
            disk.run(&mut image, request(RequestKind::Write, offset, CLUSTER, 0), vec![byte; 1 << 16]);
        }
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let table = l1_entry(&disk.file, 0) & !COPIED;
        let beside = [1 << 29, here + CLUSTER].map(|offset| l2_entry(&disk.file, offset) & !COPIED);
        assert_eq!(beside, [table - CLUSTER, table + 3 * CLUSTER]);
        set_l1_entry(&mut disk.file, 0, table);

        let mut image = opened(&mut disk, Options::default().grow_step(0)).image;
        for offset in [here + CLUSTER, 1 << 29] {
            disk.run(&mut image, request(RequestKind::Read, offset, 512, 0), vec![0; 512]);
        }
        disk.log.clear();
        disk.submit(&mut image, request(RequestKind::Read, late, 512, 7), vec![0; 512]).unwrap();
        let load = IoOp::ReadTable { offset: table + slice * 4096, len: 4096 };
        assert_eq!(disk.pending[0].0.op, load);
        for offset in [here + CLUSTER, 1 << 29] {
            disk.submit(&mut image, request(RequestKind::Discard, offset, CLUSTER, 1), vec![]).unwrap();
        }
        flush_beside(&mut disk, &mut image, load);
        let mut found = holes(&disk);
        found.sort_unstable();
        assert_eq!(found, beside);

        disk.settle(&mut image, &mut Rng(1));
        assert_eq!(holes(&disk).len(), 3);
        assert_eq!(holes(&disk)[2], table, "it is not held up for longer");
        let answer = disk.done.iter().find(|done| done.0 == 7).unwrap();
        assert!(answer.2 == [3; 512], "what the table leads to");
        // and what is written there later stands beside it, not beside a hole
        write(&mut disk, &mut image, late + CLUSTER, CLUSTER, 5);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), vec![]);
        let mut image = opened(&mut disk, Options::default()).image;
        let read = disk.run(&mut image, request(RequestKind::Read, late, 2 * CLUSTER, 0), vec![0; 2 << 16]);
        assert!(read == [vec![3; 1 << 16], vec![5; 1 << 16]].concat());
    }
}
