//! [`BlockTable`]: the blocks of one sequence, in order.

use super::BlockId;

/// Maps position `p` of a sequence to a block in each group of layers: number `p / block_size`. All groups have
/// the same number of blocks, but in one with a window the first ones are replaced by [`BlockId::NULL`] when
/// nobody can see them any more. Append-only but for that: the runner keeps a copy on the device, so a block is
/// never swapped for another of the same content.
#[derive(Debug, Default)]
pub struct BlockTable {
    /// `[len][groups]`.
    pub(super) blocks: Vec<BlockId>,
    pub(super) len: usize,
    /// Leading blocks whose content is known to the prefix cache (or is a duplicate of one that is).
    pub(super) num_registered: usize,
    /// Leading blocks that came from the prefix cache; the others were computed by this sequence.
    pub(super) num_hit: usize,
}

impl BlockTable {
    /// The blocks in order of position, those of all groups side by side: `[len][groups]`.
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// Number of blocks in each group.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the sequence has no block.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many leading blocks have been registered in the prefix cache.
    pub fn num_registered(&self) -> usize {
        self.num_registered
    }
}
