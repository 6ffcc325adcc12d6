//! Block status.

use super::client::*;
use quod::{Format, OpenOptions};
use quod_serve::ServerOptions;
use quod_tools::{CreateOptions, Session};

const HOLE: u64 = 3;
const ZERO: u64 = 2;

/// A range of zeros that is longer than 32 bits is told, and zeroed, whole: a copier that believes a shorter
/// one would leave old data behind it.
#[test]
fn long_ranges_are_not_cut_short() {
    const SIZE: u64 = 1 << 37;
    let served = Served::new(SIZE);
    let mut client = served.client(Style::Extended);
    let reply = client.must(0, STATUS, 0, SIZE);
    assert_eq!(reply.status, [(1, vec![(SIZE, HOLE)]), (2, vec![(SIZE, 0)]), (3, vec![(SIZE, 0)])]);
    // data on both sides of borders at 32 bits
    for at in [(1 << 32) - 1, 1 << 32, 3 << 32, SIZE - 1] {
        client.write_at(at, b"x");
    }
    client.must(0, ZEROES, 1 << 20, SIZE - (1 << 20));
    for at in [(1 << 32) - 1, 1 << 32, 3 << 32, SIZE - 1] {
        assert_eq!(client.read_at(at, 1), [0], "{at}");
    }
    client.write_at(0, b"x");
    client.write_at(5 << 32, b"x");
    client.must(0, TRIM, 0, SIZE);
    assert_eq!(client.read_at(0, 1), [0]);
    assert_eq!(client.read_at(5 << 32, 1), [0]);
}

/// The largest length of a compact request.
#[test]
fn compact_ranges_are_told_up_to_their_largest_length() {
    let served = Served::new(1 << 40);
    let mut client = served.client(Style::Structured);
    let most = u64::from(u32::MAX);
    for (offset, len) in [(0, most), (12_345, most), ((1 << 40) - most, most), (1, 1)] {
        let reply = client.must(0, STATUS, offset, len);
        assert_eq!(reply.status[0], (1, vec![(len, HOLE)]));
    }
}

/// Kinds and layers: no descriptor goes beyond what was asked (QEMU believes one that does), whatever the
/// offset.
#[test]
fn kinds_and_layers_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let (base, image) = (folder.path().join("base"), folder.path().join("d"));
    quod_tools::create(&base, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    let mut below = Session::open(&base, OpenOptions::new().write(true)).unwrap();
    below.write(0, &[1; 256 << 10]).unwrap();
    below.close().unwrap();
    let mut options = CreateOptions::new(Format::Qcow2, 2 << 20);
    options.backing = Some(("base".into(), Some(Format::Qcow2)));
    quod_tools::create(&image, &options).unwrap();
    let gate = OpenOptions::new().write(true).open_gate(quod::SameDirectory);
    let mut above = Session::open(&image, gate).unwrap();
    above.write(64 << 10, &[2; 64 << 10]).unwrap();
    above.write_zeroes(128 << 10, 64 << 10, true).unwrap();
    above.close().unwrap();
    let served = Served::of_chain(folder, ServerOptions::default());
    const K: u64 = 1 << 10;
    for style in [Style::Structured, Style::Extended] {
        let mut client = served.client(style);
        let all = client.must(0, STATUS, 0, 2 << 20).status;
        assert_eq!(all[0], (1, vec![(128 * K, 0), (64 * K, HOLE), (64 * K, 0), ((2048 - 256) * K, HOLE)]));
        let depths = vec![(64 * K, 2), (128 * K, 1), (64 * K, 2), ((2048 - 256) * K, 0)];
        assert_eq!(all[1], (2, depths));
        let kinds = vec![(128 * K, 1), (64 * K, 2), (64 * K, 1), ((2048 - 256) * K, 0)];
        assert_eq!(all[2], (3, kinds));
        let one = client.must(REQ_ONE, STATUS, 100, 300 * K).status;
        assert!(one.iter().all(|(_, runs)| runs.len() == 1), "{one:?}");
        assert_eq!(one[1].1, [(64 * K - 100, 2)]);
        let odd = client.must(0, STATUS, 127 * K + 1, 3 * K).status;
        assert_eq!(odd[0].1, [(K - 1, 0), (2 * K + 1, HOLE)]);
    }
}

/// Zeros with space set aside for them are no hole.
#[test]
fn zeros_in_place_are_no_hole() {
    let served = Served::new(1 << 20);
    let mut client = served.client(Style::Extended);
    client.write_at(0, &[7; 64 << 10]);
    client.must(NO_HOLE, ZEROES, 0, 64 << 10);
    assert_eq!(client.must(0, STATUS, 0, 64 << 10).status[0].1, [(64 << 10, ZERO)]);
    client.must(0, ZEROES, 0, 64 << 10);
    assert_eq!(client.must(0, STATUS, 0, 64 << 10).status[0].1, [(64 << 10, HOLE)]);
}

/// A disk in many pieces: a reply has as many as it has room for, and the client asks on.
#[test]
fn many_runs_are_told_in_several_replies() {
    const CLUSTER: u64 = 512;
    const SIZE: u64 = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let mut options = CreateOptions::new(Format::Qcow2, SIZE);
    options.cluster_size = Some(CLUSTER as u32);
    quod_tools::create(folder.path().join("d"), &options).unwrap();
    let served = Served::of(folder, ServerOptions::default());
    let mut client = served.client(Style::Structured);
    for n in (0..SIZE / CLUSTER).step_by(2) {
        client.send(0, WRITE, n * CLUSTER, 1, b"x");
        client.reply(0, 0);
    }
    let (mut at, mut replies) = (0, 0);
    while at < SIZE {
        let status = client.must(0, STATUS, at, SIZE - at).status;
        for (len, status) in &status[2].1 {
            assert_eq!((*len, *status), (CLUSTER, u64::from((at / CLUSTER).is_multiple_of(2))));
            at += len;
        }
        replies += 1;
    }
    assert!((2..100).contains(&replies), "{replies}");
}
