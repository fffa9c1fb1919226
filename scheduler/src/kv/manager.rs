//! [`KvCacheManager`]: the operations on blocks that the scheduler thinks in.
//!
//! Blocks are registered in the prefix cache when a step that fills them with known tokens is PLANNED, not
//! when it is done. That is right because steps are computed in the order of planning and every layer
//! writes its KV before it attends: any row that hits the block, even one of the same plan, is computed
//! after the write. If the step then fails, the scheduler unregisters them.

use std::sync::Arc;

use super::{BlockHash, BlockId, BlockPool, BlockTable, ExtraKey, KvEvent, hash_block};
use crate::adapter::Adapter;
use crate::request::TokenId;

/// The known content of a sequence, as far as its blocks are concerned.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// Tokens generated so far that the host knows.
    pub output: &'a [TokenId],
    /// Adapter whose weights apply.
    pub adapter: Option<&'a Adapter>,
    /// Isolates the prefix cache.
    pub cache_salt: Option<&'a Arc<str>>,
}

impl Sequence<'_> {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.prompt.len() + self.output.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends to `hashes` those of the blocks that are full and not hashed yet, up to `num_blocks` of them.
    pub fn extend_hashes(&self, hashes: &mut Vec<BlockHash>, num_blocks: usize, block_size: usize) {
        while hashes.len() < num_blocks.min(self.len() / block_size) {
            let start = hashes.len() * block_size;
            let mut keys = [ExtraKey::Adapter(""); 2];
            let mut num_keys = 0;
            if let Some(adapter) = self.adapter {
                keys[num_keys] = ExtraKey::Adapter(adapter.key());
                num_keys += 1;
            }
            if let (Some(salt), true) = (self.cache_salt, hashes.is_empty()) {
                keys[num_keys] = ExtraKey::CacheSalt(salt);
                num_keys += 1;
            }
            let tokens = (start..start + block_size).map(|i| self.token(i));
            let hash = hash_block(hashes.last(), &keys[..num_keys], tokens);
            hashes.push(hash);
        }
    }

    fn token(&self, position: usize) -> TokenId {
        match position.checked_sub(self.prompt.len()) {
            None => self.prompt[position],
            Some(i) => self.output[i],
        }
    }
}

/// The blocks of a device and the prefix cache over them.
#[derive(Debug)]
pub struct KvCacheManager {
    pool: BlockPool,
    block_size: u32,
    enable_prefix_caching: bool,
}

impl KvCacheManager {
    /// `num_blocks` includes the padding block; `block_size` is in tokens, at least 1.
    pub fn new(num_blocks: u32, block_size: u32, enable_prefix_caching: bool, record_events: bool) -> Self {
        let pool = BlockPool::new(num_blocks, record_events && enable_prefix_caching);
        Self { pool, block_size, enable_prefix_caching }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Whether blocks are hashed and can be hit.
    pub fn enable_prefix_caching(&self) -> bool {
        self.enable_prefix_caching
    }

    /// Blocks that `num_tokens` tokens fill, the last perhaps in part.
    pub fn blocks_for(&self, num_tokens: u32) -> usize {
        num_tokens.div_ceil(self.block_size) as usize
    }

    /// Fraction of the blocks that sequences hold, 0..=1.
    pub fn usage(&self) -> f64 {
        1.0 - f64::from(self.pool.num_free()) / f64::from(self.pool.num_total().max(1))
    }

    /// Puts into `hits` the blocks that hold the longest cached prefix of a sequence of `num_tokens` tokens.
    /// Never all of it: the last token is always computed, for there is nothing to sample from otherwise.
    pub fn find_hits(&self, hashes: &[BlockHash], num_tokens: u32, hits: &mut Vec<BlockId>) {
        hits.clear();
        let most = num_tokens.saturating_sub(1) / self.block_size;
        hits.extend(hashes.iter().take(most as usize).map_while(|hash| self.pool.get(hash)));
    }

    /// How many blocks a sequence of `num_tokens` tokens with these hits takes out of the free list: new
    /// ones, and hits that nobody else holds.
    pub fn num_blocks_taken(&self, hits: &[BlockId], num_tokens: u32) -> usize {
        let free_hits = hits.iter().filter(|&&block| self.pool.ref_count(block) == 0).count();
        self.blocks_for(num_tokens) - hits.len() + free_hits
    }

    /// Starts an empty table with the blocks of a hit.
    pub fn adopt(&mut self, table: &mut BlockTable, hits: &[BlockId]) {
        assert!(table.is_empty(), "a sequence that holds blocks cannot be admitted");
        hits.iter().for_each(|&block| self.pool.touch(block));
        table.blocks.extend_from_slice(hits);
        table.num_hit = hits.len();
        table.num_registered = hits.len();
    }

    /// Makes room for `num_tokens` tokens in all; new blocks are also appended to `new_blocks`. If too few
    /// are free it changes nothing and says false.
    pub fn grow(&mut self, table: &mut BlockTable, num_tokens: u32, new_blocks: &mut Vec<BlockId>) -> bool {
        let num_new = self.blocks_for(num_tokens).saturating_sub(table.len());
        if num_new > self.pool.num_free() as usize {
            return false;
        }
        for _ in 0..num_new {
            let block = self.pool.allocate().expect("enough blocks are free");
            table.blocks.push(block);
            new_blocks.push(block);
        }
        true
    }

    /// Registers the table's blocks up to `num_full`, whose hashes are known; returns which were new to
    /// the table (as indexes into it). `hashes` must cover them.
    pub fn register(
        &mut self,
        table: &mut BlockTable,
        num_full: usize,
        hashes: &[BlockHash],
        sequence: &Sequence<'_>,
    ) -> std::ops::Range<usize> {
        let fresh = table.num_registered..num_full.max(table.num_registered);
        table.num_registered = fresh.end;
        let mut run_start = fresh.start;
        for i in fresh.clone() {
            if !self.pool.register(table.blocks[i], hashes[i]) {
                self.record_stored(run_start..i, hashes, sequence);
                run_start = i + 1;
            }
        }
        self.record_stored(run_start..fresh.end, hashes, sequence);
        fresh
    }

    /// See [`BlockPool::unregister`].
    pub fn unregister(&mut self, block: BlockId, hash: &BlockHash) {
        self.pool.unregister(block, hash);
    }

    /// Nothing that this sequence computed can be hit any more.
    pub fn unregister_computed(&mut self, table: &BlockTable) {
        for &block in &table.blocks[table.num_hit..] {
            if let Some(hash) = self.pool.hash(block).copied() {
                self.pool.unregister(block, &hash);
            }
        }
    }

    /// Gives back all blocks of a table, last first. What is registered can still be hit.
    ///
    /// A freed block may be given out at once although steps in flight still read or write it: steps are
    /// computed in order, so whatever its next holder writes comes after them.
    pub fn free(&mut self, table: &mut BlockTable) {
        while let Some(block) = table.blocks.pop() {
            self.pool.release(block);
        }
        table.num_registered = 0;
        table.num_hit = 0;
    }

    /// Forgets all cached content, if no sequence holds a block; else does nothing and says false.
    pub fn reset_prefix_cache(&mut self) -> bool {
        self.pool.reset_cache()
    }

    /// The events since the last call, in order; always empty if nobody listens.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        self.pool.take_events()
    }

    fn record_stored(&mut self, blocks: std::ops::Range<usize>, hashes: &[BlockHash], seq: &Sequence<'_>) {
        if blocks.is_empty() || !self.pool.records_events() {
            return;
        }
        let size = self.block_size as usize;
        self.pool.record(KvEvent::Stored {
            block_hashes: hashes[blocks.clone()].to_vec(),
            parent_block_hash: blocks.start.checked_sub(1).map(|i| hashes[i]),
            token_ids: (blocks.start * size..blocks.end * size).map(|i| seq.token(i)).collect(),
            block_size: self.block_size,
            adapter: seq.adapter.map(|adapter| adapter.name().clone()),
            cache_salt: seq.cache_salt.cloned(),
        });
    }
}
