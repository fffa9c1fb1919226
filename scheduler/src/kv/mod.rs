//! The paged KV cache as bookkeeping: which block belongs to whom, and what it holds.
//!
//! * [`BlockPool`]: every block, its reference count, the free list and the map from content to block.
//! * [`BlockTable`]: the blocks of one sequence, in order.
//! * [`BlockHash`]: what a full block holds, given everything before it.
//! * [`KvCacheManager`]: the operations that the scheduler thinks in (look up, admit, grow, register, free).
//!
//! No KV data is here; the runner owns that. A block is a number.

mod event;
mod free_list;
mod hash;
mod manager;
mod pool;
mod table;

pub use event::KvEvent;
pub use free_list::FreeList;
pub use hash::{BlockHash, ExtraKey, hash_block};
pub use manager::{KvCacheManager, Sequence};
pub use pool::BlockPool;
pub(crate) use pool::LeadingBytes;
pub use table::BlockTable;

/// A block of the KV cache, `block_size` tokens of one sequence. Block 0 is padding and never given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BlockId(pub u32);
