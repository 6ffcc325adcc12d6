//! Cancelling requests.
//!
//! Checks: what waits is left undone and says so when its wait is over; what is in flight goes on, and a
//! request that needs nothing more ends well; extents that were not begun are not begun; requests about the
//! whole image run to their end; nobody else is touched, and nothing leaks.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, Image, IoOp, Options, RequestKind};
use quod_states_tests::qcow2::{assert_sound, qcow2_file};
use quod_states_tests::{Disk, Rng, qed_disk, read_all, request, write};

const CLUSTER: u64 = 65536;

fn settle(disk: &mut Disk, image: &mut Image) -> Vec<(u64, Result<(), Error>)> {
    disk.drain(image);
    disk.settle(image, &mut Rng(1));
    let mut done: Vec<_> =
        std::mem::take(&mut disk.done).into_iter().map(|(user, result, ..)| (user, result)).collect();
    done.sort_by_key(|(user, _)| *user);
    done
}

/// Closes the image; what the guest finds afterwards.
fn closed(mut disk: Disk, mut image: Image) -> Vec<u8> {
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 0), Vec::new());
    read_all(&mut disk, Options::default())
}

fn data_writes(disk: &Disk) -> usize {
    disk.log.iter().filter(|step| matches!(step.op, IoOp::WriteData { .. })).count()
}

#[test]
fn a_writer_that_waits_for_a_cluster_is_left_undone() {
    let (mut disk, mut image) = qed_disk(1 << 20, 1, None, Options::default());
    write(&mut disk, &mut image, 0, 512, 1);
    write(&mut disk, &mut image, 1024, 512, 2);
    write(&mut disk, &mut image, 2048, 512, 3);
    assert_eq!(image.cancel(2), 1);
    assert_eq!(image.cancel(2), 0, "it is cancelled already");
    let done = settle(&mut disk, &mut image);
    assert_eq!(done, [(1, Ok(())), (2, Err(Error::Cancelled)), (3, Ok(()))]);
    let bytes = closed(disk, image);
    assert_eq!((bytes[511], bytes[1024], bytes[1535], bytes[2048]), (1, 0, 0, 3));
}

#[test]
fn what_is_in_flight_goes_on_and_ends_well() {
    let (mut disk, mut image) = qed_disk(1 << 20, 1, None, Options::default());
    disk.run(&mut image, request(RequestKind::Write, 0, CLUSTER, 9), vec![9; CLUSTER as usize]);
    write(&mut disk, &mut image, 512, 512, 1);
    disk.submit(&mut image, request(RequestKind::Read, 4096, 512, 2), vec![0; 512]).unwrap();
    assert_eq!((image.cancel(1), image.cancel(2), image.cancel(3)), (0, 0, 0));
    assert_eq!(settle(&mut disk, &mut image), [(1, Ok(())), (2, Ok(()))]);
}

#[test]
fn extents_that_were_not_begun_are_not_begun() {
    for (kind, writes) in [(RequestKind::Write, 1), (RequestKind::Read, 0), (RequestKind::WriteZeroes, 0)] {
        let (mut disk, mut image) = qed_disk(1 << 20, 1, None, Options::default().acbs(1));
        // host clusters out of order: each is an extent of its own
        for cluster in [2, 1, 0] {
            let offset = cluster * CLUSTER;
            disk.run(&mut image, request(RequestKind::Write, offset, CLUSTER, 9), vec![9; CLUSTER as usize]);
        }
        disk.log.clear();
        disk.submit(&mut image, request(kind, 0, 3 * CLUSTER, 1), vec![5; 3 * CLUSTER as usize]).unwrap();
        assert_eq!(disk.pending.len(), 1);
        assert_eq!(image.cancel(1), 1);
        assert_eq!(settle(&mut disk, &mut image), [(1, Err(Error::Cancelled))], "{kind:?}");
        assert_eq!((disk.log.len(), data_writes(&disk)), (1, writes), "{kind:?}");
        let bytes = closed(disk, image);
        let first = match kind {
            RequestKind::Write => 5,
            RequestKind::WriteZeroes => 0,
            _ => 9,
        };
        assert_eq!((bytes[0], bytes[CLUSTER as usize], bytes[3 * CLUSTER as usize - 1]), (first, 9, 9));
    }
}

#[test]
fn requests_about_the_whole_image_run_to_their_end() {
    for kind in
        [RequestKind::Flush, RequestKind::Quiesce, RequestKind::Resize { size: 2 << 20 }, RequestKind::Close]
    {
        let (mut disk, mut image) = qed_disk(1 << 20, 1, None, Options::default());
        write(&mut disk, &mut image, 0, 512, 1);
        disk.submit(&mut image, request(kind, 0, 0, 2), Vec::new()).unwrap();
        assert_eq!(image.cancel(2), 0, "{kind:?}");
        assert_eq!(settle(&mut disk, &mut image), [(1, Ok(())), (2, Ok(()))], "{kind:?}");
    }
}

#[test]
fn who_waits_for_a_table_is_cancelled_alone_and_nothing_leaks() {
    let options = CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let mut disk = Disk::new(qcow2_file(&options), None, 512);
    let mut image = disk.open(Options::default()).unwrap().image;
    // both need the same new L2 table, and counts that are not loaded yet
    write(&mut disk, &mut image, 0, 4096, 1);
    write(&mut disk, &mut image, 8192, 4096, 2);
    assert_eq!(image.cancel(1), 1);
    let done = settle(&mut disk, &mut image);
    assert_eq!(done, [(1, Err(Error::Cancelled)), (2, Ok(()))]);
    disk.run(&mut image, request(RequestKind::Close, 0, 0, 3), Vec::new());
    assert_sound(&disk.file, "closed after a cancelled write");
    let bytes = read_all(&mut disk, Options::default());
    assert_eq!((bytes[0], bytes[8192]), (0, 3));
}
