//! What happened in the prefix cache, as data for others to publish.

use std::sync::Arc;

use super::BlockHash;
use crate::request::TokenId;

/// A change of the set of blocks that can be hit (vLLM's KV events).
///
/// A hash held by two blocks of a group is stored once and removed when the last of them goes.
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
        /// Name of the adapter; what it is, is part of the hash.
        adapter: Option<Arc<str>>,
        /// Cache salt, part of the first block's hash.
        cache_salt: Option<Arc<str>>,
        /// Of layers: which keys and values these blocks hold.
        group: u32,
        /// The group's window, if it has one.
        sliding_window: Option<u32>,
    },
    /// These can no longer be hit.
    Removed {
        /// In order of eviction.
        block_hashes: Vec<BlockHash>,
        /// Of layers; the same hashes may still be hit in other groups.
        group: u32,
    },
    /// Nothing can be hit any more.
    Cleared,
}
