//! Small scenarios: an image, what stands in it, and two to four requests.
//!
//! Knows: the families. Must never know: what they are about.

mod bitmaps;
mod cancel;
mod data_file;
mod device;
mod edges;
mod packed;
mod qcow2;
mod qed;
mod rules;
mod setting;
mod snapshots;

pub(crate) use setting::stale_files;
pub use setting::{CLUSTER, Prepared, Scenario};

/// All, small ones first.
pub fn all() -> Vec<Scenario> {
    let families = [
        qed::all,
        qcow2::all,
        packed::all,
        edges::all,
        data_file::all,
        device::all,
        rules::all,
        cancel::all,
        bitmaps::all,
        snapshots::all,
    ];
    families.into_iter().flat_map(|family| family()).collect()
}
