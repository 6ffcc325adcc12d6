//! QED files: header, where the tables are, where the data ends.
//!
//! Knows: header and tables, through `quod-states`. Must never know: what the guest wrote.

use quod_backend::sim::Sim;
use quod_bench::contract::{Checked, Failure};
use quod_states::qed::Header;

pub(super) fn header(sim: &Sim, path: &str) -> Checked<Header> {
    let len = sim.file_len(path).unwrap_or(0);
    Header::parse(&sim.file_range(path, 0, 512), len).map_err(|error| Failure(format!("{path}: {error}")))
}

/// Bytes of a cluster of a QED image.
pub fn cluster(sim: &Sim, path: &str) -> Checked<u64> {
    header(sim, path).map(|header| u64::from(header.cluster_size))
}

pub(super) fn tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
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

/// First byte behind all that an image of QED refers to.
pub(super) fn end(sim: &Sim, path: &str) -> Checked<u64> {
    let cluster = u64::from(header(sim, path)?.cluster_size);
    let tables = tables(sim, path)?;
    let mut end = tables.iter().map(|(_, end)| *end).max().unwrap_or(0);
    for (start, behind) in tables.into_iter().skip(1) {
        let table = sim.file_range(path, start, (behind - start) as usize);
        let entries = table.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
        end = entries.filter(|entry| *entry > 1).map(|entry| entry + cluster).fold(end, u64::max);
    }
    Ok(end)
}
