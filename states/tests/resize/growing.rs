//! A larger qcow2 disk: the part that comes to light reads as zeros, whatever stands in the file where its
//! entries come to be, and whatever a longer backing layer holds there.

use quod_states::qcow2::CreateOptions;
use quod_states::{Options, RequestKind};
use quod_states_tests::ops::{asked, mapped, writes};
use quod_states_tests::qcow2::{assert_sound, header, opened, qcow2_file};
use quod_states_tests::{Disk, read_all, request};

/// What one L1 entry maps in an image with clusters of 512 bytes.
const SPAN: u64 = 32 << 10;

/// The L1 table is read in pieces of 4 KiB; what lies behind it in the file, tables and data, is none of it.
#[test]
fn what_lies_behind_the_l1_table_maps_nothing_when_it_has_grown() {
    // entries of the table, before and after; a slice has 512
    for (old, new) in [(2, 8), (100, 500), (600, 700), (1030, 1500)] {
        let create = CreateOptions { size: old * SPAN, cluster_size: 512, ..CreateOptions::default() };
        let mut disk = Disk::new(qcow2_file(&create), None, 1);
        let mut image = opened(&mut disk, Options::default()).image;
        let mut model = vec![0; (new * SPAN) as usize];
        // data behind the table, and far enough
        for offset in [0, (old - 1) * SPAN] {
            writes(&mut disk, &mut image, offset, SPAN);
            for at in 0..SPAN {
                model[(offset + at) as usize] = (at / 512 % 251 + 1) as u8;
            }
        }
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_eq!(u64::from(header(&disk.file).l1_entries), old);
        let mut image = opened(&mut disk, Options::default()).image;
        // its slices are in the cache
        for offset in [0, (old - 1) * SPAN] {
            disk.run(&mut image, request(RequestKind::Map, offset, 1, 1), vec![]);
        }
        disk.run(&mut image, request(RequestKind::Resize { size: new * SPAN }, 0, 0, 1), vec![]);
        let read = disk.run(&mut image, request(RequestKind::Read, 0, new * SPAN, 1), vec![9; model.len()]);
        assert!(read == model, "{old} entries");
        writes(&mut disk, &mut image, (new - 1) * SPAN, 512);
        model[((new - 1) * SPAN) as usize..][..512].fill(1);
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_sound(&disk.file, "closed");
        assert!(read_all(&mut disk, Options::default()) == model, "{old} entries, read again");
    }
}

/// No byte is copied for that: behind the backing layer's end there is nothing that could be lost.
#[test]
fn a_longer_backing_layer_is_hidden_by_zeros_alone() {
    const CLUSTER: u64 = 65536;
    for (extended_l2, map) in
        [(false, "- - - z z z - -"), (true, ":0/0 :0/0 :0/0 :0/ffffffff :0/ffffffff :0/ffffffff :0/0 :0/0")]
    {
        let create = CreateOptions {
            size: 3 * CLUSTER,
            extended_l2,
            backing: Some(b"base"),
            backing_format: Some(b"raw"),
            ..CreateOptions::default()
        };
        let backing = vec![7; 5 * CLUSTER as usize + 3584];
        let mut disk = Disk::new(qcow2_file(&create), Some(backing), 512);
        let options = Options::default().align(512);
        let mut image = opened(&mut disk, options).image;
        let ops = asked(&mut disk, &mut image, request(RequestKind::Resize { size: 8 * CLUSTER }, 0, 0, 1));
        assert!(ops.is_empty(), "{ops:?}");
        disk.run(&mut image, request(RequestKind::Close, 0, 0, 1), vec![]);
        assert_eq!(mapped(&disk.file, 0..8), map);
        let read = read_all(&mut disk, options);
        assert!((0..8 * CLUSTER).all(|at| read[at as usize] == if at < 3 * CLUSTER { 7 } else { 0 }));
    }
}
