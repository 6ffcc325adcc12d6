//! Raw images through the commit pipeline.
//!
//! Checks: findings of the simulator that are about images without tables.

use quod_states::{Event, Flags, Image, Io, IoOp, Kind, Machine, Options, Outcome, Request};

fn submit(image: &mut Image, kind: Kind, len: u64, user: u64) -> Option<Io> {
    image.submit(Request { kind, offset: 0, len, flags: Flags::empty(), user }).unwrap();
    image.poll_io()
}

/// Seed 23 of the simulator: a quiesce that a flush joined outlasts its own round, and has no tables to wait
/// for.
#[test]
fn a_quiesce_that_a_flush_joins_waits_for_no_tables() {
    let mut image = Image::raw(4096, &Options::default());
    let write = submit(&mut image, Kind::Write, 512, 1).unwrap();
    let sync = submit(&mut image, Kind::Quiesce, 0, 2).unwrap();
    assert!(matches!(sync.op, IoOp::Sync));
    image.handle_completion(write.id, Outcome::Done);
    assert!(submit(&mut image, Kind::Flush, 0, 3).is_none(), "one sync at a time");
    image.handle_completion(sync.id, Outcome::Done);
    let again = image.poll_io().unwrap();
    image.handle_completion(again.id, Outcome::Done);
    let ended = core::iter::from_fn(|| image.poll_event());
    let users: Vec<u64> = ended
        .map(|event| match event {
            Event::Done { user, result: Ok(()), .. } => user,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(users.len(), 3, "{users:?}");
}
