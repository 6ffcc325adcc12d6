//! Space in the file: where new clusters come from, and how those that nothing points to any more come back.
//!
//! `append.rs` hands out what lies behind everything else, and has the file grow. The rest is qcow2's: counts
//! (`counts.rs`, `allocate.rs`; of compressed ones `packed.rs`), clusters on their way back (`quarantine.rs`,
//! whose kinds are types: `kind.rs`), free ones that were there before (`reclaim.rs`), where metadata lies
//! (`metadata_map.rs`, `overlaps.rs`, `owners.rs`, `places.rs`), and copies of shared tables (`copies.rs`).
//!
//! Knows: host clusters, counts. Must never know: requests, but that some wait; what clusters hold.

pub(crate) mod allocate;
pub(crate) mod append;
pub(crate) mod copies;
pub(crate) mod counts;
pub(crate) mod kind;
pub(crate) mod metadata_map;
pub(crate) mod overlaps;
pub(crate) mod owners;
pub(crate) mod packed;
mod places;
pub(crate) mod quarantine;
pub(crate) mod reclaim;
pub(crate) mod tracking;

use crate::base::geometry::Geometry;
use crate::options::Options;
use crate::outbox::Outbox;
use crate::tables::cache::TableCache;
use append::Append;

/// What counting works with.
pub(crate) struct Cx<'a> {
    pub(crate) append: &'a mut Append,
    pub(crate) tables: &'a mut TableCache,
    pub(crate) out: &'a mut Outbox,
    pub(crate) geometry: &'a Geometry,
    pub(crate) options: &'a Options,
    /// The commit window that is open.
    pub(crate) window: u64,
    /// Data of windows up to this one is durable; 0: nothing of this session is.
    pub(crate) durable: u64,
    /// Nothing changes any more: a failure, or a corruption.
    pub(crate) halted: bool,
}
