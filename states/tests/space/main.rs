//! Clusters: which requests may have them, from when on, and where metadata lies.

mod clusters;
mod dangling;
mod device;
mod free_end;
mod large;
mod overlap;
mod overlap_edges;
mod packed;
mod quarantine;
mod refcount_blocks;
mod table_copies;
mod zeros_on_metadata;
