//! The paged KV cache as bookkeeping: which block belongs to whom, and what it holds.
//!
//! * [`BlockPool`]: every block, its reference count, the free list and the map from content to block.
//! * [`BlockTable`]: the blocks of one sequence, in order, for each group of layers.
//! * [`BlockHash`]: what a full block holds, given everything before it.
//! * [`KvGroup`]: layers that keep the same tokens; each has block tables of its own.
//! * [`KvCacheManager`]: the operations that the scheduler thinks in (look up, admit, grow, register, free).
//!
//! No KV data is here; the runner owns that. A block is a number.

mod event;
mod free_list;
mod group;
mod hash;
mod manager;
mod pool;
mod table;

pub use event::KvEvent;
pub use free_list::FreeList;
pub use group::{KvGroup, MAX_KV_GROUPS};
pub use hash::{BlockHash, BlockKey, ExtraKey, hash_block};
pub use manager::{KvCacheConfig, KvCacheManager, Sequence};
pub use pool::BlockPool;
pub(crate) use pool::LeadingBytes;
pub use table::BlockTable;

/// A block of the KV cache, `block_size` tokens of one sequence in the layers of one group. Block 0 is padding
/// and never given out; in a block table it stands where a block has been given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The padding block.
    pub const NULL: Self = Self(0);

    /// Whether this is the padding block.
    pub fn is_null(self) -> bool {
        self == Self::NULL
    }
}
