//! [`BlockHash`]: the identity of a full block's content, given everything before it; and [`BlockKey`],
//! with the layers it is for.
//!
//! Blocks of different tenants are told apart by this hash alone, so it is a cryptographic one (SHA-256):
//! nobody can craft a prompt that hits another's blocks. Every part of the input has a tag or a length, so
//! that no two different inputs are the same bytes (an adapter named like a salt, say).

use sha2::{Digest, Sha256};

use crate::request::TokenId;

/// Identity of a full block's content, given everything before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash(pub [u8; 32]);

/// What the prefix cache knows a block by: the same tokens have a block in each group of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockKey {
    /// What it holds.
    pub hash: BlockHash,
    /// For the layers of which group.
    pub group: u32,
}

/// What makes two blocks differ though their tokens are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtraKey<'a> {
    /// Weights that change the KV of every block: [`crate::Adapter::key`].
    Adapter(&'a str),
    /// Goes into the first block only: the others inherit it through their parent.
    CacheSalt(&'a str),
}

/// Hash of one block: `SHA-256(parent, keys, tokens)`.
///
/// In bytes: `0` or `1` and the parent's 32; for each key its tag (`1` adapter, `2` salt), length (u32) and
/// text; tag `0`; number of tokens (u32); the tokens (u32 each). All integers little endian.
pub fn hash_block(
    parent: Option<&BlockHash>,
    keys: &[ExtraKey<'_>],
    tokens: impl ExactSizeIterator<Item = TokenId>,
) -> BlockHash {
    let mut hasher = Sha256::new();
    match parent {
        None => hasher.update([0]),
        Some(parent) => {
            hasher.update([1]);
            hasher.update(parent.0);
        }
    }
    for key in keys {
        let (tag, text) = match key {
            ExtraKey::Adapter(name) => (1u8, name),
            ExtraKey::CacheSalt(salt) => (2u8, salt),
        };
        hasher.update([tag]);
        hasher.update((text.len() as u32).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.update([0]);
    hasher.update((tokens.len() as u32).to_le_bytes());
    // Fed in pieces of 16 tokens: a call for each token costs more than the hash itself.
    let mut piece = [0u8; 64];
    let mut filled = 0;
    for token in tokens {
        piece[filled..filled + 4].copy_from_slice(&token.to_le_bytes());
        filled += 4;
        if filled == piece.len() {
            hasher.update(piece);
            filled = 0;
        }
    }
    hasher.update(&piece[..filled]);
    BlockHash(hasher.finalize().into())
}
