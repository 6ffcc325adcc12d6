//! Random reads and writes on two files, through a backend and through the standard library: the files end up
//! equal, and every read sees the same.

mod common;
use common::*;
use proptest::prelude::*;
use quod_backend::*;
use std::os::unix::fs::FileExt;
use std::time::Duration;

const LEN: u64 = 256 << 10;
const DEPTH: u32 = 16;

#[derive(Clone, Debug)]
struct Step {
    file: usize,
    write: bool,
    offset: u64,
    len: usize,
    cuts: Vec<usize>,
    fill: u8,
    /// Inside the registered buffer.
    fixed: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let cuts = prop_oneof![3 => Just(vec![]), 2 => prop::collection::vec(0..9000usize, 0..7)];
    (0..2usize, any::<bool>(), 0..LEN + 5000, 0..20_000usize, cuts, any::<u8>(), any::<bool>()).prop_map(
        |(file, write, offset, len, cuts, fill, fixed)| Step { file, write, offset, len, cuts, fill, fixed },
    )
}

/// Rounded to what O_DIRECT takes.
fn aligned(step: &Step) -> Step {
    let mut step = step.clone();
    step.offset = step.offset / 4096 * 4096;
    step.len = step.len.div_ceil(4096) * 4096;
    step.cuts.iter_mut().for_each(|cut| *cut = *cut / 4096 * 4096);
    step
}

fn overlap(a: &Step, b: &Step) -> bool {
    a.file == b.file && a.offset < b.offset + b.len as u64 && b.offset < a.offset + a.len as u64
}

/// Reads are compared at the end; the file may grow under them, so they run apart from writes.
struct Pending {
    step: Step,
    buffer: Buffer,
    segments: Segments,
}

fn fill(bytes: &mut [u8], seed: u8) {
    bytes.iter_mut().enumerate().for_each(|(i, b)| *b = (i as u8).wrapping_mul(7) ^ seed);
}

/// Runs a batch without conflicts, all in flight together; compares with the twin.
fn run_batch(b: &mut dyn Backend, files: &[FileId; 2], twins: &[std::fs::File; 2], batch: &mut Vec<Pending>) {
    for (token, pending) in batch.iter().enumerate() {
        let (file, offset) = (files[pending.step.file], pending.step.offset);
        let segments = pending.segments.clone();
        let op = match pending.step.write {
            true => Op::Write { file, offset, segments },
            false => Op::Read { file, offset, segments },
        };
        b.push(Token(token as u64), op).unwrap();
    }
    let mut out = Vec::new();
    while out.len() < batch.len() {
        b.wait(Some(Duration::from_secs(20))).unwrap();
        b.reap(&mut out);
    }
    for done in out {
        let pending = &batch[done.token.0 as usize];
        let (step, twin) = (&pending.step, &twins[pending.step.file]);
        let bytes: Vec<u8> = pending
            .segments
            .iter()
            // SAFETY: our buffers, and nothing is in flight any more.
            .flat_map(|s| unsafe { std::slice::from_raw_parts(s.address(), s.len()) }.to_vec())
            .collect();
        if step.write {
            assert_eq!(done.result, Ok(Output::Bytes(step.len as u64)), "{step:?}");
            twin.write_all_at(&bytes, step.offset).unwrap();
        } else {
            let mut want = vec![0; step.len];
            let mut len = 0;
            while len < step.len {
                match twin.read_at(&mut want[len..], step.offset + len as u64).unwrap() {
                    0 => break,
                    n => len += n,
                }
            }
            assert_eq!(done.result, Ok(Output::Bytes(len as u64)), "{step:?}");
            assert!(bytes[..len] == want[..len], "{step:?}");
        }
    }
    batch.clear();
}

/// Gives back the memory that it registered, which must outlive the backend.
fn check(b: &mut dyn Backend, steps: &[Step], direct: bool) -> Buffer {
    let dir = temp_dir();
    let mut arena = Buffer::zeroed(1 << 20);
    // SAFETY: `twin` drops it after the backend.
    let _ = b.register_memory(unsafe { arena.segment(0, 1 << 20) });
    let paths = ["a", "b"].map(|name| dir.path().join(name));
    let twin_paths = ["c", "d"].map(|name| dir.path().join(name));
    paths
        .iter()
        .chain(&twin_paths)
        .for_each(|path| std::fs::write(path, vec![0x55; LEN as usize / 2]).unwrap());
    let files = [0, 1].map(|i| open(b, &paths[i], true, direct));
    let twins =
        [0, 1].map(|i| std::fs::OpenOptions::new().read(true).write(true).open(&twin_paths[i]).unwrap());
    let mut batch: Vec<Pending> = Vec::new();
    for step in steps {
        let step = if direct { aligned(step) } else { step.clone() };
        let conflict = |other: &Pending| {
            overlap(&step, &other.step) || (step.file == other.step.file && step.write != other.step.write)
        };
        if batch.len() == DEPTH as usize || batch.iter().any(conflict) {
            run_batch(b, &files, &twins, &mut batch);
        }
        let slot = batch.len();
        let mut buffer = Buffer::zeroed(step.len);
        let segments = if step.fixed {
            fill(&mut arena.as_mut_slice()[slot * 32768..][..step.len], step.fill);
            // SAFETY: slots do not overlap.
            Segments::from_slice(&[unsafe { arena.segment(slot * 32768, step.len) }])
        } else {
            fill(buffer.as_mut_slice(), step.fill);
            segments(&mut buffer, &step.cuts)
        };
        batch.push(Pending { step, buffer, segments });
    }
    run_batch(b, &files, &twins, &mut batch);
    for (path, twin) in paths.iter().zip(&twin_paths) {
        assert!(std::fs::read(path).unwrap() == std::fs::read(twin).unwrap());
    }
    for file in files {
        assert_eq!(run(b, Op::Close { file }), Ok(Output::Done));
    }
    assert!(batch.iter().all(|p| !p.buffer.as_slice().is_empty()));
    arena
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn twin(steps in prop::collection::vec(step(), 1..400), direct in any::<bool>()) {
        for mut backend in backends(DEPTH) {
            let arena = check(&mut *backend, &steps, direct);
            drop(backend);
            drop(arena);
        }
    }
}
