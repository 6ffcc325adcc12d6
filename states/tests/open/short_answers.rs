//! An embedder that answers a read of an opening with fewer bytes than were asked for.
//!
//! Checks: the opening ends with an error instead of asking for the same bytes again, without end.

use quod_states::qcow2::CreateOptions;
use quod_states::{Error, IoOp, Machine, Opening, Options, Outcome};
use quod_states_tests::qcow2::{header, qcow2_file, snapshot};

/// How an opening ends whose read of `len` bytes at `offset` is answered with `got` of them.
fn ended(file: &[u8], (offset, len): (u64, u32), got: usize) -> Result<(), Error> {
    let mut opening = Opening::new(None, file.len() as u64, Options::default());
    for _ in 0..20 {
        if let Some(result) = opening.poll_result() {
            return result.map(|_| ());
        }
        let io = opening.poll_io().expect("it wants something");
        let IoOp::ReadTable { offset: at, len: wanted } = io.op else { panic!("{:?}", io.op) };
        let len = if (at, wanted) == (offset, len) { got } else { wanted as usize };
        let bytes = (at as usize..at as usize + len).map(|at| file.get(at).copied().unwrap_or(0));
        opening.handle_completion(io.id, Outcome::Table(&bytes.collect::<Vec<u8>>()));
    }
    panic!("it asks for ever");
}

fn with_snapshot() -> Vec<u8> {
    let create = CreateOptions { size: 1 << 20, cluster_size: 4096, ..CreateOptions::default() };
    let mut file = qcow2_file(&create);
    snapshot(&mut file);
    file
}

/// Its entry is read in two steps: how long it is, and all 58 bytes of it.
#[test]
fn a_snapshots_entry_that_is_cut_off_is_not_asked_for_again() {
    let file = with_snapshot();
    let table = header(&file).snapshots_offset;
    let short = Err(Error::Misuse("a table read was completed with too few bytes"));
    for (len, got, expected) in [
        (40, 0, short.clone()),
        (40, 39, short.clone()),
        (40, 40, Ok(())),
        (58, 0, short.clone()),
        (58, 39, short.clone()),
        (58, 40, short.clone()),
        (58, 57, short),
        (58, 58, Ok(())),
    ] {
        assert_eq!(ended(&file, (table, len), got), expected, "{got} of {len} bytes");
    }
}

/// What has an entry at least is taken, and the rest asked for.
#[test]
fn a_refcount_table_is_not_asked_for_again_without_an_entry_of_it() {
    let file = with_snapshot();
    let table = header(&file).reftable_offset;
    let misuse = Err(Error::Misuse("a completion that was not asked for"));
    for (got, expected) in
        [(0, misuse.clone()), (1, misuse.clone()), (7, misuse), (8, Ok(())), (4088, Ok(()))]
    {
        assert_eq!(ended(&file, (table, 4096), got), expected, "{got} bytes");
    }
}
