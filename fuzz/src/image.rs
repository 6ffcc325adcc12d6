//! QED image files on the simulated disk: making them, and looking at them without the driver.
//!
//! Knows: the QED header and tables, through `quod-states`. Must never know: requests, the model.

use crate::{Checked, Failure, fail};
use quod_backend::sim::Sim;
use quod_states::qed::{Check, CreateOptions, Header};
use quod_states::{IoOp, Machine, Outcome, Report};

/// What an image shall be.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Bytes of a cluster.
    pub cluster: u32,
    /// Clusters of a table.
    pub table: u32,
    /// Bytes of the guest disk.
    pub size: u64,
    /// Name of the backing file, and whether it is raw.
    pub backing: Option<(String, bool)>,
}

/// A new image.
pub fn create(shape: &Shape) -> Checked<Vec<u8>> {
    let options = CreateOptions {
        size: shape.size,
        cluster_size: shape.cluster,
        table_size: shape.table,
        backing: shape.backing.as_ref().map(|(name, _)| name.as_bytes()),
        backing_raw: shape.backing.as_ref().is_some_and(|(_, raw)| *raw),
    };
    let header = Header::create(&options).map_err(|error| Failure(format!("{shape:?}: {error}")))?;
    let mut bytes = vec![0; shape.cluster as usize * (1 + shape.table as usize)];
    bytes[..64].copy_from_slice(&header.encode());
    if let Some((name, _)) = &shape.backing {
        bytes[64..64 + name.len()].copy_from_slice(name.as_bytes());
    }
    Ok(bytes)
}

/// Reads and validates the header of a file.
pub fn header(sim: &Sim, path: &str) -> Checked<Header> {
    let len = sim.file_len(path).unwrap_or(0);
    Header::parse(&sim.file_range(path, 0, 512), len).map_err(|error| Failure(format!("{path}: {error}")))
}

/// Checks a file as it is visible now, without repair.
pub fn check(sim: &Sim, path: &str) -> Checked<Report> {
    let mut check = Check::new(header(sim, path)?, sim.file_len(path).unwrap_or(0), None);
    loop {
        if let Some(report) = check.poll_result() {
            return report.map_err(|error| Failure(format!("{path}: the check failed: {error}")));
        }
        match check.poll_io() {
            Some(io) => {
                let IoOp::ReadTable { offset, len } = io.op else {
                    return fail("a check without repair writes");
                };
                let bytes = sim.file_range(path, offset, len as usize);
                check.handle_completion(io.id, Outcome::Table(&bytes));
            }
            None => return fail("the check wants nothing and has not ended"),
        }
    }
}

/// A check that finds no corruption.
pub fn sound(sim: &Sim, path: &str, when: &str) -> Checked<Report> {
    let report = check(sim, path)?;
    match report.is_sound() {
        true => Ok(report),
        false => fail(format!("{when}: {} corruptions: {:?}", report.corruptions, report.problems)),
    }
}

/// Byte ranges of the file that hold tables: the L1 table, and every L2 table that it refers to as it is
/// visible now.
pub fn tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
    let header = header(sim, path)?;
    let bytes = header.table_bytes();
    let l1 = sim.file_range(path, header.l1_table_offset, bytes as usize);
    let mut tables = vec![(header.l1_table_offset, header.l1_table_offset + bytes)];
    for entry in l1.as_chunks::<8>().0 {
        let entry = u64::from_le_bytes(*entry);
        if entry != 0 {
            tables.push((entry, entry + bytes));
        }
    }
    Ok(tables)
}

/// Does this first block of a file have the need-check bit set? None: all zeros, which no header is.
pub fn need_check(block: &[u8]) -> bool {
    block.get(16).is_some_and(|byte| byte & 2 != 0)
}
