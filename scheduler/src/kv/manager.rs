//! [`KvCacheManager`]: the operations on blocks that the scheduler thinks in.
//!
//! Blocks are registered in the prefix cache when a step that fills them with known tokens is PLANNED, not
//! when it is done. That is right because steps are computed in the order of planning and every layer
//! writes its KV before it attends: any row that hits the block, even one of the same plan, is computed
//! after the write. If the step then fails, the scheduler unregisters them.

use std::sync::Arc;

use super::{BlockHash, BlockId, BlockKey, BlockPool, BlockTable, ExtraKey, KvEvent, KvGroup, hash_block};
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

/// What a [`KvCacheManager`] manages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvCacheConfig {
    /// The padding block included.
    pub num_blocks: u32,
    /// Tokens in a block, at least 1.
    pub block_size: u32,
    /// The groups of layers, at least one.
    pub groups: Vec<KvGroup>,
    /// Tokens that one sequence computes in a step at most.
    pub max_step_tokens: u32,
    /// Whether blocks are hashed and can be hit.
    pub enable_prefix_caching: bool,
    /// Whether [`KvEvent`]s are kept.
    pub record_events: bool,
}

impl KvCacheConfig {
    /// The most blocks that a sequence of this length ever holds at a time, over all groups.
    pub fn max_blocks(&self, num_tokens: u32) -> usize {
        let of = |group: &KvGroup| group.max_blocks(num_tokens, self.max_step_tokens, self.block_size);
        self.groups.iter().map(of).sum()
    }
}

/// The blocks of a device and the prefix cache over them.
#[derive(Debug)]
pub struct KvCacheManager {
    config: KvCacheConfig,
    pool: BlockPool,
    num_groups: usize,
    /// Whether any group has a window, so that there may be something to give back.
    has_windows: bool,
    /// For [`Self::find_hits`]: by group, where the run of cached blocks begins that is known so far.
    run_starts: Vec<usize>,
}

impl KvCacheManager {
    /// All blocks free, nothing cached.
    pub fn new(config: KvCacheConfig) -> Self {
        Self {
            pool: BlockPool::new(config.num_blocks, config.record_events && config.enable_prefix_caching),
            num_groups: config.groups.len(),
            has_windows: config.groups.iter().any(|group| group.sliding_window.is_some()),
            run_starts: vec![0; config.groups.len()],
            config,
        }
    }

    /// The blocks.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// Tokens in a block.
    pub fn block_size(&self) -> u32 {
        self.config.block_size
    }

    /// The groups of layers.
    pub fn groups(&self) -> &[KvGroup] {
        &self.config.groups
    }

    /// Whether blocks are hashed and can be hit.
    pub fn enable_prefix_caching(&self) -> bool {
        self.config.enable_prefix_caching
    }

    /// Blocks of one group that `num_tokens` tokens fill, the last perhaps in part.
    pub fn blocks_for(&self, num_tokens: u32) -> usize {
        num_tokens.div_ceil(self.config.block_size) as usize
    }

    /// Fraction of the blocks that sequences hold, 0..=1.
    pub fn usage(&self) -> f64 {
        1.0 - f64::from(self.pool.num_free()) / f64::from(self.pool.num_total().max(1))
    }

    /// Whether the content can be hit in every group.
    pub fn is_cached(&self, hash: &BlockHash) -> bool {
        (0..self.num_groups as u32).all(|group| self.pool.get(&BlockKey { hash: *hash, group }).is_some())
    }

    /// Puts into `hits` the blocks that hold the longest cached prefix of a sequence of `num_tokens` tokens, as
    /// [`BlockTable::blocks`] has them, and returns their number in each group. Never all of the sequence: the
    /// last token is always computed, for there is nothing to sample from otherwise.
    ///
    /// A prefix is cached if each group has what the token behind it sees: all of its blocks, or those of the
    /// window before it. What is before the window is [`BlockId::NULL`].
    pub fn find_hits(&mut self, hashes: &[BlockHash], num_tokens: u32, hits: &mut Vec<BlockId>) -> usize {
        hits.clear();
        let most = (num_tokens.saturating_sub(1) / self.config.block_size) as usize;
        let mut num_hits = 0;
        for hash in hashes.iter().take(most) {
            for (group, kind) in self.config.groups.iter().enumerate() {
                let key = BlockKey { hash: *hash, group: group as u32 };
                match kind.sliding_window {
                    None => hits.extend(self.pool.get(&key)),
                    Some(_) => hits.push(BlockId::NULL),
                }
            }
            if hits.len() < (num_hits + 1) * self.num_groups {
                break;
            }
            num_hits += 1;
        }
        if self.has_windows {
            num_hits = self.find_windows(hashes, num_hits, hits);
        }
        hits.truncate(num_hits * self.num_groups);
        num_hits
    }

    /// The longest prefix of at most `end` blocks whose last windows are cached; those go into `hits`.
    ///
    /// Each group looks from the end backwards. What is missing moves the end for all of them, and nothing is
    /// looked up twice.
    fn find_windows(&mut self, hashes: &[BlockHash], mut end: usize, hits: &mut [BlockId]) -> usize {
        self.run_starts.fill(end);
        let (mut group, mut num_content) = (0, 0);
        while num_content < self.num_groups {
            let run_start = &mut self.run_starts[group];
            *run_start = end.min(*run_start);
            num_content += 1;
            let visible = self.config.groups[group].num_visible_blocks(self.config.block_size);
            let first = visible.map_or(end, |visible| end.saturating_sub(visible));
            while *run_start > first {
                *run_start -= 1;
                let key = BlockKey { hash: hashes[*run_start], group: group as u32 };
                let Some(block) = self.pool.get(&key) else {
                    (end, num_content) = (*run_start, 0);
                    break;
                };
                hits[*run_start * self.num_groups + group] = block;
            }
            if num_content > 0 {
                group = (group + 1) % self.num_groups;
            }
        }
        end
    }

    /// How many blocks a sequence of `num_tokens` tokens with these hits takes out of the free list at most at
    /// a time: new ones, and hits that nobody else holds.
    pub fn num_blocks_taken(&self, hits: &[BlockId], num_tokens: u32) -> usize {
        let num_hits = hits.len() / self.num_groups;
        let num_new = self.blocks_for(num_tokens) - num_hits;
        let num_left = num_tokens - num_hits as u32 * self.config.block_size;
        let taken = |(group, kind): (usize, &KvGroup)| {
            let of_group = hits.iter().skip(group).step_by(self.num_groups);
            let is_free = |block: &&BlockId| !block.is_null() && self.pool.ref_count(**block) == 0;
            let num_taken = num_new + of_group.filter(is_free).count();
            match kind.sliding_window {
                None => num_taken,
                Some(_) => num_taken.min(self.max_blocks(kind, num_tokens, num_left)),
            }
        };
        self.config.groups.iter().enumerate().map(taken).sum()
    }

    /// How many more blocks a sequence holds at most at a time until `num_tokens` tokens are computed, of which
    /// `num_computed` are.
    pub fn num_blocks_missing(&self, table: &BlockTable, num_computed: u32, num_tokens: u32) -> usize {
        let num_new = self.blocks_for(num_tokens).saturating_sub(table.len);
        if num_new == 0 || !self.has_windows {
            return num_new * self.num_groups;
        }
        let missing = |group: &KvGroup| {
            let kept =
                table.len.saturating_sub(group.num_skipped_blocks(num_computed, self.config.block_size));
            let most = self.max_blocks(group, num_tokens, num_tokens - num_computed);
            num_new.min(most.saturating_sub(kept))
        };
        self.config.groups.iter().map(missing).sum()
    }

    /// The blocks of all groups with this number in a table.
    pub fn blocks_at<'a>(&self, table: &'a BlockTable, index: usize) -> &'a [BlockId] {
        &table.blocks[index * self.num_groups..][..self.num_groups]
    }

    /// Starts an empty table with the blocks of a hit.
    pub fn adopt(&mut self, table: &mut BlockTable, hits: &[BlockId]) {
        assert!(table.is_empty(), "a sequence that holds blocks cannot be admitted");
        hits.iter().filter(|block| !block.is_null()).for_each(|&block| self.pool.touch(block));
        table.blocks.extend_from_slice(hits);
        table.len = hits.len() / self.num_groups;
        table.num_hit = table.len;
        table.num_registered = table.len;
    }

    /// Makes room for `num_tokens` tokens in all, of which `num_computed` are computed: gives back what none of
    /// the others sees, and takes new blocks, which are also appended to `new_blocks` (`[new][groups]`). If too
    /// few are free it takes none and says false.
    pub fn grow(
        &mut self,
        table: &mut BlockTable,
        num_computed: u32,
        num_tokens: u32,
        new_blocks: &mut Vec<BlockId>,
    ) -> bool {
        if self.has_windows {
            self.release_skipped(table, num_computed);
        }
        let num_new = self.blocks_for(num_tokens).saturating_sub(table.len);
        if num_new * self.num_groups > self.pool.num_free() as usize {
            return false;
        }
        for _ in 0..num_new * self.num_groups {
            let block = self.pool.allocate().expect("enough blocks are free");
            table.blocks.push(block);
            new_blocks.push(block);
        }
        table.len += num_new;
        true
    }

    /// Gives back the blocks that no token from position `num_computed` on sees, last first. Those before the
    /// first one that is gone went before it.
    fn release_skipped(&mut self, table: &mut BlockTable, num_computed: u32) {
        for (group, kind) in self.config.groups.iter().enumerate() {
            let num_skipped = kind.num_skipped_blocks(num_computed, self.config.block_size).min(table.len);
            for at in (0..num_skipped).rev() {
                let block = std::mem::take(&mut table.blocks[at * self.num_groups + group]);
                if block.is_null() {
                    break;
                }
                self.pool.release(block);
            }
        }
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
        for group in 0..self.num_groups {
            let mut run_start = fresh.start;
            for i in fresh.clone() {
                let block = table.blocks[i * self.num_groups + group];
                let key = BlockKey { hash: hashes[i], group: group as u32 };
                // A window may have moved on before the tokens of the block were known.
                if block.is_null() || !self.pool.register(block, key) {
                    self.record_stored(run_start..i, group, hashes, sequence);
                    run_start = i + 1;
                }
            }
            self.record_stored(run_start..fresh.end, group, hashes, sequence);
        }
        fresh
    }

    /// See [`BlockPool::unregister`].
    pub fn unregister(&mut self, block: BlockId, key: &BlockKey) {
        self.pool.unregister(block, key);
    }

    /// Nothing that this sequence computed can be hit any more. Where it has given blocks back, whoever holds
    /// the same content now: nobody knows whose it was. `hashes` are the sequence's.
    pub fn unregister_computed(&mut self, table: &BlockTable, hashes: &[BlockHash]) {
        for (at, &block) in table.blocks.iter().enumerate().skip(table.num_hit * self.num_groups) {
            let (index, group) = (at / self.num_groups, at % self.num_groups);
            if let Some(key) = self.pool.key(block).copied() {
                self.pool.unregister(block, &key);
            } else if let Some(hash) = hashes.get(index).filter(|_| block.is_null()) {
                let key = BlockKey { hash: *hash, group: group as u32 };
                while let Some(block) = self.pool.get(&key) {
                    self.pool.unregister(block, &key);
                }
            }
        }
    }

    /// Gives back all blocks of a table, last first. What is registered can still be hit.
    ///
    /// A freed block may be given out at once although steps in flight still read or write it: steps are
    /// computed in order, so whatever its next holder writes comes after them.
    pub fn free(&mut self, table: &mut BlockTable) {
        while let Some(block) = table.blocks.pop() {
            if !block.is_null() {
                self.pool.release(block);
            }
        }
        table.len = 0;
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

    /// See [`KvGroup::max_blocks`]; `num_left` of the tokens are still to be computed.
    fn max_blocks(&self, group: &KvGroup, num_tokens: u32, num_left: u32) -> usize {
        group.max_blocks(num_tokens, self.config.max_step_tokens.min(num_left), self.config.block_size)
    }

    fn record_stored(
        &mut self,
        blocks: std::ops::Range<usize>,
        group: usize,
        hashes: &[BlockHash],
        seq: &Sequence<'_>,
    ) {
        if blocks.is_empty() || !self.pool.records_events() {
            return;
        }
        let size = self.config.block_size as usize;
        self.pool.record(KvEvent::Stored {
            block_hashes: hashes[blocks.clone()].to_vec(),
            parent_block_hash: blocks.start.checked_sub(1).map(|i| hashes[i]),
            token_ids: (blocks.start * size..blocks.end * size).map(|i| seq.token(i)).collect(),
            block_size: self.config.block_size,
            adapter: seq.adapter.map(|adapter| adapter.name().clone()),
            cache_salt: seq.cache_salt.cloned(),
            group: group as u32,
            sliding_window: self.config.groups[group].sliding_window,
        });
    }
}
