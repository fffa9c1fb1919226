//! [`BlockTable`]: the blocks of one sequence, in order.

use super::BlockId;

/// Maps position `p` of a sequence to block `blocks[p / block_size]`. Append-only while the sequence runs:
/// the runner keeps a copy on the device, so a block is never swapped for another of the same content.
#[derive(Debug, Default)]
pub struct BlockTable {
    pub(super) blocks: Vec<BlockId>,
    /// Leading blocks whose content is known to the prefix cache (or is a duplicate of one that is).
    pub(super) num_registered: usize,
    /// Leading blocks that came from the prefix cache; the others were computed by this sequence.
    pub(super) num_hit: usize,
}

impl BlockTable {
    /// The blocks in order of position.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the sequence holds no block.
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// How many leading blocks have been registered in the prefix cache.
    pub fn num_registered(&self) -> usize {
        self.num_registered
    }
}
