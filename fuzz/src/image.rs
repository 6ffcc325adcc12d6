//! Image files on the simulated disk: making them, and looking at them without the driver.
//!
//! Knows: headers and tables, through `quod-states`. Must never know: requests, the model.

mod check;
mod create;
mod edit;
mod form;
mod head;
mod maps;
mod qcow2;
mod qed;
mod start;

pub use check::{check, leaks, repaired, sound, survived, used};
pub use create::create;
pub use edit::Editor;
pub(crate) use edit::STALE;
pub use form::{DATA, Data, Form, Qcow2, Shape};
pub use head::{autoclear, is_marked, probe};
pub use maps::{Map, MapChange, maps};
pub use qed::cluster as qed_cluster;
pub use start::{Part, Start, start};

use quod_backend::sim::Sim;
use quod_bench::contract::hash::{hash_bytes, hash_words};
use quod_bench::contract::{Checked, fail};
use quod_states::Format;

/// Byte ranges of the file that hold metadata, as it is visible now; the header aside, which begins the file.
pub fn tables(sim: &Sim, path: &str) -> Checked<Vec<(u64, u64)>> {
    match probe(sim, path) {
        Format::Raw => Ok(Vec::new()),
        Format::Qed => qed::tables(sim, path),
        Format::Qcow2 => qcow2::tables(sim, path),
    }
}

/// QE12: an image of QED that says it is clean has no space behind its data, but for so many clusters. (On a
/// device there always is some, and the tables say where it begins.)
pub fn ends_with_data(sim: &Sim, path: &str, known: u64) -> Checked {
    let marked = is_marked(&sim.file_range(path, 0, 512));
    if probe(sim, path) != Format::Qed || marked || sim.is_device(path) {
        return Ok(());
    }
    let cluster = u64::from(qed::header(sim, path)?.cluster_size);
    let (end, len) = (qed::end(sim, path)?, sim.file_len(path).unwrap_or(0));
    match len.saturating_sub(end).div_ceil(cluster) <= known {
        true => Ok(()),
        false => fail(format!("the bit is clear, the file has {len} bytes, its data ends at {end}")),
    }
}

/// Is it a QED image that an opening for writing refuses though it says that it is clean (QE7)?
pub fn is_refused(sim: &Sim, path: &str) -> Checked<bool> {
    if probe(sim, path) != Format::Qed || is_marked(&sim.file_range(path, 0, 512)) {
        return Ok(false);
    }
    let (cluster, len) = (qed::header(sim, path)?.cluster_size, sim.file_len(path).unwrap_or(0));
    Ok(!len.is_multiple_of(cluster.into()) && !check(sim, path)?.is_sound())
}

/// What an opening of a QED image can depend on: all but the bytes that nothing refers to, which are the same
/// to it whatever they are. None: of this image everything.
pub fn essence(sim: &Sim, path: &str) -> Option<u128> {
    let len = sim.file_len(path)?;
    if probe(sim, path) != Format::Qed {
        return None;
    }
    let end = qed::end(sim, path).ok()?.min(len);
    Some(hash_words(hash_bytes(0, &sim.file_range(path, 0, end as usize)), [len, end]))
}

/// The identifiers of its snapshots.
pub fn snapshot_ids(sim: &Sim, path: &str) -> Checked<Vec<Vec<u8>>> {
    qcow2::snapshot_ids(sim, path)
}

/// How many snapshots its header says that it has; of qcow2 alone.
pub fn snapshots(header: &[u8]) -> usize {
    header.get(60..64).and_then(<[u8]>::first_chunk).map_or(0, |count| u32::from_be_bytes(*count) as usize)
}

/// The copy of an image in which the disk is that of a snapshot.
pub fn as_snapshot(sim: &Sim, path: &str, index: usize) -> Checked<Vec<u8>> {
    qcow2::as_snapshot(sim, path, index)
}
