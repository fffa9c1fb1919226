//! The paged KV cache as bookkeeping: which block belongs to whom, and what it holds.
use crate::request::TokenId;
use std::sync::Arc;

/// A block of the KV cache, `block_size` tokens of one sequence. Block 0 is padding and never given out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct BlockId(pub u32);

/// Identity of a full block's content, given everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

/// What happened in the prefix cache, as data for others to publish (vLLM's KV events).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvEvent {
    /// These blocks, a chain, can be hit from now on.
    Stored {
        /// In order.
        block_hashes: Vec<BlockHash>,
        /// The block before the first; `None` at the start of a sequence.
        parent_block_hash: Option<BlockHash>,
        /// `block_hashes.len() * block_size` tokens.
        token_ids: Vec<TokenId>,
        /// Tokens in a block.
        block_size: u32,
        /// Adapter name, part of the hash.
        adapter: Option<Arc<str>>,
        /// Cache salt, part of the first block's hash.
        cache_salt: Option<Arc<str>>,
    },
    /// These can no longer be hit.
    Removed {
        /// In order of eviction.
        block_hashes: Vec<BlockHash>,
    },
    /// Nothing can be hit any more.
    Cleared,
}
