//! Compressed writes: where their bytes lie, who counts them, what is refused, what comes back.
//!
//! Checks: bytes are packed behind each other, each host cluster counts those in it (QC23), a new one begins
//! where the counter is full or blocks have to be kept apart; data and counts are durable before the entry;
//! what is allocated is refused and stays; what does not shrink is a normal cluster; the disk's last cluster
//! may be a part; a failed write gives its place back; nothing is packed where all went (QC24).

use quod_states::qcow2::{CreateOptions, L2};
use quod_states::{Error, Extent, Image, IoOp, Options, Refused, RequestKind, Status};
use quod_states_tests::packed::text;
use quod_states_tests::qcow2::{
    assert_durable_before, assert_sound, count, header, l2_entry, opened, qcow2_file,
};
use quod_states_tests::{Disk, Rng, Step, read_all, request};

const CLUSTER: u64 = 4096;
/// Guest clusters.
const CLUSTERS: u64 = 40;

fn setup(create: CreateOptions<'_>, options: Options) -> (Disk, Image) {
    let create = CreateOptions { size: CLUSTERS * CLUSTER - 512, cluster_size: CLUSTER as u32, ..create };
    let mut disk = Disk::new(qcow2_file(&create), None, options.align.into());
    let image = opened(&mut disk, options).image;
    (disk, image)
}

fn pack(disk: &mut Disk, image: &mut Image, cluster: u64, value: u8) -> Result<Vec<u8>, Error> {
    let len = CLUSTER.min(image.virtual_size() - cluster * CLUSTER);
    let wanted = request(RequestKind::WriteCompressed, cluster * CLUSTER, len, 7);
    disk.try_run(image, wanted, text(value, len))
}

fn flush(disk: &mut Disk, image: &mut Image) {
    disk.run(image, request(RequestKind::Flush, 0, 0, 1), vec![]);
}

fn close(disk: &mut Disk, image: &mut Image) {
    disk.run(image, request(RequestKind::Close, 0, 0, 1), vec![]);
}

/// Bytes that this value becomes.
const fn len(value: u8) -> u64 {
    8 + value as u64 * 7 % 300
}

/// Where the compressed bytes of a guest cluster lie.
fn place(disk: &Disk, cluster: u64) -> (u64, u64) {
    let (word, bitmap) = (l2_entry(&disk.file, cluster * CLUSTER), 0);
    match header(&disk.file).shape().decode_l2(cluster * CLUSTER, word, bitmap).unwrap() {
        L2::Compressed { host, len } => (host, len.into()),
        other => panic!("cluster {cluster} is {other:?}"),
    }
}

fn map(disk: &mut Disk, image: &mut Image, cluster: u64) -> Status {
    disk.run(image, request(RequestKind::Map, cluster * CLUSTER, 512, 9), vec![]);
    let Some(Extent { status, .. }) = disk.extent else { panic!("no answer") };
    status
}

#[test]
fn bytes_follow_each_other_and_each_host_cluster_counts_its_own() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    let values: Vec<u8> = (0..CLUSTERS as u8).map(|n| n.wrapping_mul(37) | 1).collect();
    for (cluster, &value) in values.iter().enumerate() {
        pack(&mut disk, &mut image, cluster as u64, value).unwrap();
    }
    close(&mut disk, &mut image);
    let mut end = place(&disk, 0).0;
    assert_eq!(end % CLUSTER, 0, "the first begins a host cluster");
    let mut inside = std::collections::BTreeMap::<u64, u64>::new();
    for (cluster, &value) in values.iter().enumerate() {
        let (host, sectors) = place(&disk, cluster as u64);
        assert_eq!(host, end, "cluster {cluster}");
        assert!(sectors >= len(value) && sectors < len(value) + 512 + host % 512);
        end = host + len(value);
        for host in host / CLUSTER..=(end - 1) / CLUSTER {
            *inside.entry(host).or_default() += 1;
        }
    }
    assert!(inside.len() > 1, "some bytes lie in two host clusters");
    for (host, counted) in inside {
        assert_eq!(count(&disk.file, host), counted, "host cluster {host}");
    }
    let expected: Vec<u8> = values.iter().flat_map(|value| text(*value, CLUSTER)).collect();
    let read = read_all(&mut disk, Options::default());
    assert!(read == expected[..read.len()]);
    assert_sound(&disk.file, "packed");
}

/// Whatever is compressed first.
#[test]
fn places_come_in_the_order_of_the_requests() {
    let file = |seed: u64| {
        let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
        for cluster in 0..12 {
            let noise: Vec<u8> = (0..CLUSTER).map(|at| (at * at / 7) as u8).collect();
            let bytes = if cluster % 5 == 3 { noise } else { text(cluster as u8 | 1, CLUSTER) };
            let wanted = request(RequestKind::WriteCompressed, (11 - cluster) * CLUSTER, CLUSTER, cluster);
            disk.submit(&mut image, wanted, bytes).unwrap();
        }
        disk.settle(&mut image, &mut Rng(seed));
        assert!(disk.done.drain(..).all(|done| done.1.is_ok()));
        close(&mut disk, &mut image);
        assert_sound(&disk.file, "in any order");
        disk.file.clone()
    };
    let first = file(1);
    assert!((2..30).all(|seed| file(seed) == first));
}

#[test]
fn counters_that_are_full_and_blocks_begin_a_place_of_their_own() {
    let narrow = CreateOptions { refcount_bits: 1, ..CreateOptions::default() };
    for (create, options, apart) in [
        (narrow, Options::default(), CLUSTER),
        (CreateOptions::default(), Options::default().align(512), 512),
        (CreateOptions::default(), Options::default().align(4096), 4096),
    ] {
        let (mut disk, mut image) = setup(create, options);
        for cluster in 0..6 {
            pack(&mut disk, &mut image, cluster, 5).unwrap();
        }
        close(&mut disk, &mut image);
        let places: Vec<u64> = (0..6).map(|cluster| place(&disk, cluster).0).collect();
        assert!(places.windows(2).all(|pair| pair[0] + apart == pair[1]), "{places:x?}");
        assert_sound(&disk.file, "packed");
    }
}

#[test]
fn bytes_and_counts_are_durable_before_the_entry() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    for cluster in [0, 1] {
        pack(&mut disk, &mut image, cluster, 9).unwrap();
        flush(&mut disk, &mut image);
    }
    let (first, second) = (place(&disk, 0).0, place(&disk, 1).0);
    assert_eq!(first / CLUSTER, second / CLUSTER, "they share a host cluster");
    let table = header(&disk.file).l1_offset as usize;
    let l2 = u64::from_be_bytes(*disk.file[table..].first_chunk().unwrap()) & !(1 << 63);
    let writes = |from: u64| {
        move |step: &Step| match step.op {
            IoOp::WriteTable { offset, .. } => offset / CLUSTER == from / CLUSTER,
            _ => false,
        }
    };
    let bytes = |step: &Step| matches!(step.op, IoOp::WriteCompressed { .. });
    assert_durable_before(&disk, "bytes before entries", bytes, writes(l2));
    assert_durable_before(&disk, "counts before entries", writes(2 * CLUSTER), writes(l2));
}

#[test]
fn what_is_allocated_is_refused_and_stays() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    let whole = |kind, cluster| request(kind, cluster * CLUSTER, CLUSTER, 3);
    disk.run(&mut image, whole(RequestKind::Write, 0), vec![3; CLUSTER as usize]);
    disk.run(&mut image, whole(RequestKind::Write, 1), vec![3; CLUSTER as usize]);
    // zeros with space, zeros without, a compressed one
    disk.run(&mut image, whole(RequestKind::WriteZeroes, 1), vec![]);
    disk.run(&mut image, whole(RequestKind::WriteZeroes, 2), vec![]);
    pack(&mut disk, &mut image, 3, 1).unwrap();
    let before = disk.log.len();
    for (cluster, ok) in [(0, false), (1, false), (2, true), (3, false), (4, true)] {
        let occupied = Err(Error::Occupied(cluster * CLUSTER));
        let result = pack(&mut disk, &mut image, cluster, 8);
        assert!(if ok { result.is_ok() } else { result == occupied }, "{cluster}: {result:?}");
        // nor does noise, which would be a write like any other
        let noise = (0..CLUSTER).map(|at| (at * at / 7) as u8).collect();
        let result = disk.try_run(&mut image, whole(RequestKind::WriteCompressed, cluster), noise);
        assert_eq!(result, Err(Error::Occupied(cluster * CLUSTER)));
    }
    let wrote = disk.log[before..].iter().filter(|step| matches!(step.op, IoOp::WriteCompressed { .. }));
    assert_eq!(wrote.count(), 2, "where nothing was");
    close(&mut disk, &mut image);
    assert_sound(&disk.file, "packed");
}

#[test]
fn parts_are_refused_but_the_disks_last() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    let size = image.virtual_size();
    for (offset, len) in [
        (0, 512),
        (512, CLUSTER),
        (0, 2 * CLUSTER),
        (0, 0),
        (0, CLUSTER + 512),
        (CLUSTER / 2, CLUSTER / 2),
        (size - 512, 512),
        (size, 0),
        (CLUSTER, size - CLUSTER),
    ] {
        let refused = image.submit(request(RequestKind::WriteCompressed, offset, len, 1));
        assert!(matches!(refused, Err(Refused::Invalid(Error::Misuse(_)))), "{offset} {len}: {refused:?}");
    }
    pack(&mut disk, &mut image, CLUSTERS - 1, 77).unwrap();
    assert_eq!(map(&mut disk, &mut image, CLUSTERS - 1), Status::Compressed);
    close(&mut disk, &mut image);
    let read = read_all(&mut disk, Options::default());
    assert!(read[(size - size % CLUSTER) as usize..] == text(77, size % CLUSTER));
    let mut raw = Image::raw(8 * CLUSTER, &Options::default());
    let refused = raw.submit(request(RequestKind::WriteCompressed, 0, CLUSTER, 1));
    assert!(matches!(refused, Err(Refused::Invalid(Error::Unsupported(_)))));
}

#[test]
fn what_does_not_shrink_is_a_normal_cluster() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    let noise: Vec<u8> = (0..CLUSTER).map(|at| (at * at / 7) as u8).collect();
    let wanted = request(RequestKind::WriteCompressed, CLUSTER, CLUSTER, 1);
    disk.run(&mut image, wanted, noise.clone());
    assert_eq!(map(&mut disk, &mut image, 1), Status::Data);
    close(&mut disk, &mut image);
    let read = read_all(&mut disk, Options::default());
    assert!(read[CLUSTER as usize..][..CLUSTER as usize] == noise);
    assert_sound(&disk.file, "packed");
}

#[test]
fn a_write_that_fails_gives_its_place_back() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    pack(&mut disk, &mut image, 0, 1).unwrap();
    flush(&mut disk, &mut image);
    let wanted = request(RequestKind::WriteCompressed, CLUSTER, CLUSTER, 2);
    disk.submit(&mut image, wanted, text(2, CLUSTER)).unwrap();
    while !disk.pending.iter().any(|(io, _)| matches!(io.op, IoOp::WriteCompressed { .. })) {
        disk.complete_first(&mut image);
    }
    disk.fail = Some((0, 5));
    disk.complete_first(&mut image);
    assert!(matches!(disk.done.pop().unwrap().1, Err(Error::Device { errno: 5, .. })));
    pack(&mut disk, &mut image, 2, 3).unwrap();
    close(&mut disk, &mut image);
    assert_eq!(count(&disk.file, place(&disk, 0).0 / CLUSTER), 2, "the first and the last");
    assert_eq!(l2_entry(&disk.file, CLUSTER), 0);
    assert_sound(&disk.file, "packed");
}

#[test]
fn a_host_cluster_comes_back_with_its_last_and_takes_no_more() {
    let (mut disk, mut image) = setup(CreateOptions::default(), Options::default());
    for cluster in 0..3 {
        pack(&mut disk, &mut image, cluster, 4).unwrap();
    }
    flush(&mut disk, &mut image);
    let host = place(&disk, 0).0 / CLUSTER * CLUSTER;
    let discard = |disk: &mut Disk, image: &mut Image, cluster| {
        disk.run(image, request(RequestKind::Discard, cluster * CLUSTER, CLUSTER, 5), vec![]);
        // the removal is durable with the second
        flush(disk, image);
        flush(disk, image);
    };
    let punched = |disk: &Disk| {
        let hole = |op: &IoOp| matches!(op, IoOp::PunchHole { host: at, .. } if *at == host);
        disk.log.iter().any(|step| hole(&step.op))
    };
    discard(&mut disk, &mut image, 0);
    discard(&mut disk, &mut image, 1);
    assert!(!punched(&disk), "one is left");
    pack(&mut disk, &mut image, 3, 4).unwrap();
    discard(&mut disk, &mut image, 2);
    assert!(!punched(&disk), "another has come");
    discard(&mut disk, &mut image, 3);
    assert!(punched(&disk));
    // whoever gets the cluster keeps it
    let write = request(RequestKind::Write, 8 * CLUSTER, CLUSTER, 6);
    disk.run(&mut image, write, vec![9; CLUSTER as usize]);
    pack(&mut disk, &mut image, 9, 4).unwrap();
    close(&mut disk, &mut image);
    assert_eq!(l2_entry(&disk.file, 8 * CLUSTER) & 0x00ff_ffff_ffff_fe00, host);
    assert_ne!(place(&disk, 9).0 / CLUSTER * CLUSTER, host);
    let read = read_all(&mut disk, Options::default());
    assert!(read[8 * CLUSTER as usize..][..CLUSTER as usize].iter().all(|byte| *byte == 9));
    assert_sound(&disk.file, "packed");
}
