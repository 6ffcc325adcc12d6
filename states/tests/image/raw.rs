//! Raw images through the commit pipeline.
//!
//! Checks: which host ranges zeros and discards ask for; findings of the simulator that are about images
//! without tables; what is raw when nobody says the format.

use quod_states::{
    Error, Event, Fault, Flags, Foreign, Format, Image, Io, IoOp, Machine, Opening, Options, Outcome,
    Request, RequestKind,
};

fn submit(image: &mut Image, kind: RequestKind, len: u64, user: u64) -> Option<Io> {
    image.submit(Request { kind, offset: 0, len, flags: Flags::empty(), user }).unwrap();
    image.poll_io()
}

/// Seed 23 of the simulator: a quiesce that a flush joined outlasts its own round, and has no tables to wait
/// for.
#[test]
fn a_quiesce_that_a_flush_joins_waits_for_no_tables() {
    let mut image = Image::raw(4096, &Options::default());
    let write = submit(&mut image, RequestKind::Write, 512, 1).unwrap();
    let sync = submit(&mut image, RequestKind::Quiesce, 0, 2).unwrap();
    assert!(matches!(sync.op, IoOp::Sync));
    image.handle_completion(write.id, Outcome::Done);
    assert!(submit(&mut image, RequestKind::Flush, 0, 3).is_none(), "one sync at a time");
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

/// What one request alone asks for, until it ends.
fn asked(align: u32, kind: RequestKind, offset: u64, len: u64, flags: Flags) -> Vec<IoOp> {
    let mut image = Image::raw(1 << 20, &Options::default().align(align));
    image.submit(Request { kind, offset, len, flags, user: 0 }).unwrap();
    let mut ops = Vec::new();
    while let Some(io) = image.poll_io() {
        ops.push(io.op);
        image.handle_completion(io.id, Outcome::Done);
    }
    assert!(matches!(image.poll_event(), Some(Event::Done { result: Ok(()), .. })));
    ops
}

#[test]
fn a_discard_punches_whole_blocks() {
    let hole = |host, len| IoOp::ZeroRange { host, len, unmap: true };
    for (align, offset, len, expected) in [
        (1, 0, 4096, Some((0, 4096))),
        (1, 512, 512, Some((512, 512))),
        (1, 100, 5000, Some((512, 4096))),
        (4096, 100, 9000, Some((4096, 4096))),
        (4096, 4096, 8192, Some((4096, 8192))),
        (4096, 5000, 4096, None),
        (1, 100, 400, None),
        (1, 512, 511, None),
    ] {
        let ops = asked(align, RequestKind::Discard, offset, len, Flags::empty());
        let expected: Vec<IoOp> = expected.map(|(host, len)| hole(host, len)).into_iter().collect();
        assert_eq!(ops, expected, "{len} bytes at {offset}, blocks of {align}");
    }
}

#[test]
fn zeros_are_ranges_of_blocks_and_parts_of_blocks_are_written() {
    // byte ranges: what is zeroed by the host, and what is written
    let ranges = |align, offset, len, flags| {
        let (mut zeroed, mut written) = (vec![], vec![]);
        for op in asked(align, RequestKind::WriteZeroes, offset, len, flags) {
            match op {
                IoOp::ZeroRange { host, len, unmap } => {
                    assert_eq!(unmap, flags == Flags::MAY_UNMAP);
                    zeroed.push((host, host + len));
                }
                IoOp::WriteData { host, len, zero: true, .. } => written.push((host, host + len)),
                IoOp::ReadFill { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        written.sort_unstable();
        (zeroed, written)
    };
    for flags in [Flags::empty(), Flags::MAY_UNMAP] {
        assert_eq!(ranges(1, 100, 5000, flags), (vec![(100, 5100)], vec![]));
        assert_eq!(ranges(512, 512, 1024, flags), (vec![(512, 1536)], vec![]));
        assert_eq!(ranges(512, 100, 5000, flags), (vec![(512, 4608)], vec![(100, 512), (4608, 5100)]));
        assert_eq!(ranges(4096, 5000, 512, flags), (vec![], vec![(5000, 5512)]));
        assert_eq!(ranges(4096, 5000, 4096, flags), (vec![], vec![(5000, 9096)]));
    }
}

#[test]
fn the_last_sector_is_whole_whatever_the_length_of_the_file() {
    for (len, size) in [(0, 0), (1, 512), (512, 512), (1000, 1024), (1 << 40, 1 << 40)] {
        assert_eq!(Image::raw(len, &Options::default()).virtual_size(), size);
    }
    let mut image = Image::raw(1000, &Options::default());
    let request = |kind, offset, len| Request { kind, offset, len, flags: Flags::empty(), user: 0 };
    for kind in [RequestKind::Read, RequestKind::Write, RequestKind::WriteZeroes, RequestKind::Discard] {
        assert!(image.submit(request(kind, 1000, 24)).is_ok());
        assert!(image.submit(request(kind, 1000, 25)).is_err());
    }
    // a length that is no whole number of sectors is one that a file may have
    let mut image = Image::raw(4096, &Options::default());
    image.submit(request(RequestKind::Resize { size: 1000 }, 0, 0)).unwrap();
    let io = image.poll_io().unwrap();
    assert_eq!(io.op, IoOp::SetLen { len: 1000 });
    image.handle_completion(io.id, Outcome::Done);
    assert_eq!(image.virtual_size(), 1024);
}

/// What an opening reads, and what the file is.
fn opened(file: &[u8], format: Option<Format>) -> (Vec<(u64, u32)>, Result<Format, Error>) {
    let options = Options::default().read_only(true);
    let mut opening = Opening::new(format, file.len() as u64, options);
    let mut reads = Vec::new();
    loop {
        if let Some(result) = opening.poll_result() {
            return (reads, result.map(|opened| opened.info.format));
        }
        let io = opening.poll_io().unwrap();
        let IoOp::ReadTable { offset, len } = io.op else { panic!("{:?}", io.op) };
        reads.push((offset, len));
        let bytes = (offset..offset + u64::from(len)).map(|at| file.get(at as usize).copied().unwrap_or(0));
        opening.handle_completion(io.id, Outcome::Table(&bytes.collect::<Vec<u8>>()));
    }
}

#[test]
fn what_has_a_signature_is_not_raw() {
    let with = |at: usize, bytes: &[u8], len: usize| {
        let mut file = vec![0x5a; len];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let koly = b"koly\0\0\0\x04\0\0\x02\0";
    for (file, foreign) in [
        (with(0, b"KDMV", 4096), Foreign::Vmdk),
        (with(0, b"KDMV", 4), Foreign::Vmdk),
        (with(0x40, b"\x7f\x10\xda\xbe", 4096), Foreign::Vdi),
        (with(0, b"QFI\xfb\0\0\0\x01", 4096), Foreign::Qcow),
        (with(4096, koly, 4608), Foreign::Dmg),
        (with(777, koly, 777 + 512), Foreign::Dmg),
    ] {
        assert_eq!(opened(&file, None).1, Err(Error::Foreign(foreign)));
        let raw = (vec![], Ok(Format::Raw));
        assert_eq!(opened(&file, Some(Format::Raw)), raw, "its bytes, if somebody says so");
        assert!(matches!(opened(&file, Some(Format::Qed)).1, Err(Error::Corrupt(_))));
    }
    // shorter than its header, and still no disk
    assert!(matches!(opened(b"QED\0", None).1, Err(Error::Corrupt(Fault::QedHeader { .. }))));
    assert!(matches!(opened(b"QFI\xfb", None).1, Err(Error::Corrupt(_) | Error::Unsupported(_))));
}

#[test]
fn the_end_is_read_only_if_it_is_not_the_begin() {
    let all = |len: usize| opened(&vec![1; len], None);
    assert_eq!(all(0), (vec![(0, 512)], Ok(Format::Raw)));
    assert_eq!(all(512), (vec![(0, 512)], Ok(Format::Raw)));
    assert_eq!(all(513), (vec![(0, 512), (1, 512)], Ok(Format::Raw)));
    assert_eq!(all(1 << 20), (vec![(0, 512), ((1 << 20) - 512, 512)], Ok(Format::Raw)));
}
