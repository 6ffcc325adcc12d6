//! Refcounts of single clusters, as entries are told that lead to them.
//!
//! Knows: where a cluster's count lies, a bounded cache of pieces of refcount blocks. Must never know: what
//! the count should be.
//!
//! Invariant: a cluster whose count cannot be found has none, and nothing is said of it.

use crate::host::Host;
use quod::Error;
use quod_states::qcow2::Shape;
use quod_states::qcow2::refcount::BlockShape;

/// Bytes of a piece, and pieces that are kept.
const PIECE: u64 = 4096;
const PIECES: u64 = 1024;

/// The counts of an image.
pub(super) struct Counts {
    shape: BlockShape,
    /// Where each block lies; 0: there is none, or nobody knows.
    blocks: Vec<u64>,
    /// Pieces by where they lie in the file.
    kept: Vec<Option<(u64, Vec<u8>)>>,
}

impl Counts {
    /// Nothing is known yet.
    pub(super) fn new(shape: BlockShape) -> Counts {
        Counts { shape, blocks: Vec::new(), kept: vec![None; PIECES as usize] }
    }

    /// The next entry of the refcount table, and the block that it leads to if it is one.
    pub(super) fn add_block(&mut self, entry: u64, shape: Shape, len: u64) {
        let block = shape.decode_reftable(0, entry).ok().flatten().filter(|block| *block < len);
        self.blocks.push(block.unwrap_or(0));
    }

    /// The blocks by the entries that lead to them: 0 for none.
    pub(super) fn blocks(&self) -> &[u64] {
        &self.blocks
    }

    /// The count of a cluster.
    pub(super) fn of(&mut self, host: &mut Host, cluster: u64) -> Result<Option<u64>, Error> {
        let index = usize::try_from(self.shape.table_index(cluster)).unwrap_or(usize::MAX);
        let Some(block) = self.blocks.get(index).copied() else {
            // the table is too short to count it
            return Ok((!self.blocks.is_empty()).then_some(0));
        };
        if block == 0 {
            return Ok(None);
        }
        let bit = self.shape.block_index(cluster) << self.shape.order;
        let piece = PIECE.min(1 << self.shape.cluster_bits);
        let at = block + bit / 8 / piece * piece;
        let slot = usize::try_from(at / piece % PIECES).unwrap_or(0);
        let kept = &mut self.kept[slot];
        if kept.as_ref().is_none_or(|(kept, _)| *kept != at) {
            *kept = Some((at, host.read(at, piece as usize)?));
        }
        let bytes = kept.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        Ok(Some(self.shape.get(bytes, (bit % (piece * 8)) >> self.shape.order)))
    }
}
