//! [`BlockPool`]: every block, who holds it, and what the unheld ones still hold.
//!
//! A block is held (`ref_count > 0`) or free, never both. A free block keeps its content, and can be hit,
//! until it is given out again: eviction happens then and not before.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::{BlockId, BlockKey, FreeList, KvEvent};

/// `same_*` link the blocks of equal content; block 0 has none, so 0 ends the chain.
#[derive(Debug, Default, Clone)]
struct Block {
    ref_count: u32,
    key: Option<BlockKey>,
    same_prev: u32,
    same_next: u32,
}

/// All blocks of a device. See the module's text.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Vec<Block>,
    free: FreeList,
    /// Free blocks that are registered.
    num_free_cached: u32,
    /// The first of the blocks of a content. Only looked up, never walked: its order decides nothing.
    cached: HashMap<BlockKey, BlockId, BuildHasherDefault<LeadingBytes>>,
    record_events: bool,
    events: Vec<KvEvent>,
}

impl BlockPool {
    /// A pool of blocks `1..num_blocks`, all free; they are given out in this order first.
    pub fn new(num_blocks: u32, record_events: bool) -> Self {
        let mut free = FreeList::new(num_blocks);
        (1..num_blocks).for_each(|i| free.push_back(BlockId(i)));
        Self {
            blocks: vec![Block::default(); num_blocks as usize],
            free,
            num_free_cached: 0,
            cached: HashMap::default(),
            record_events,
            events: Vec::new(),
        }
    }

    /// All blocks but the padding block.
    pub fn num_total(&self) -> u32 {
        self.blocks.len() as u32 - 1
    }

    /// Blocks that nobody holds; they may be cached.
    pub fn num_free(&self) -> u32 {
        self.free.len()
    }

    /// Blocks that nobody holds and that can be hit.
    pub fn num_free_cached(&self) -> u32 {
        self.num_free_cached
    }

    /// How many sequences hold the block.
    pub fn ref_count(&self, block: BlockId) -> u32 {
        self.blocks[block.0 as usize].ref_count
    }

    /// What the block is registered as.
    pub fn key(&self, block: BlockId) -> Option<&BlockKey> {
        self.blocks[block.0 as usize].key.as_ref()
    }

    /// A block with this content; the one registered first if there are several.
    pub fn get(&self, key: &BlockKey) -> Option<BlockId> {
        self.cached.get(key).copied()
    }

    /// Number of different keys that can be hit.
    pub fn num_cached(&self) -> usize {
        self.cached.len()
    }

    /// The free blocks in the order in which they will be given out.
    pub fn free_blocks(&self) -> &FreeList {
        &self.free
    }

    /// Gives out the block that has been free for longest, which forgets its content.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        self.forget(block);
        self.blocks[block.0 as usize].ref_count = 1;
        Some(block)
    }

    /// One more sequence holds this block (a prefix-cache hit).
    pub fn touch(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        if entry.ref_count == 0 {
            self.free.remove(block);
            self.num_free_cached -= u32::from(entry.key.is_some());
        }
        entry.ref_count += 1;
    }

    /// One sequence fewer holds this block. Callers release a sequence's last block first, so that the
    /// head of a prefix, which more requests share, outlives its tail.
    pub fn release(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        assert!(entry.ref_count > 0, "block {} is released but nobody holds it", block.0);
        entry.ref_count -= 1;
        if entry.ref_count == 0 {
            if entry.key.is_some() {
                self.free.push_back(block);
                self.num_free_cached += 1;
            } else {
                self.free.push_front(block);
            }
        }
    }

    /// The block, held and not registered, can be hit as `key` from now on. True if nothing could be hit
    /// as that before.
    pub fn register(&mut self, block: BlockId, key: BlockKey) -> bool {
        let entry = &self.blocks[block.0 as usize];
        assert!(entry.ref_count > 0 && entry.key.is_none(), "block {} cannot be registered", block.0);
        self.blocks[block.0 as usize].key = Some(key);
        let Some(&first) = self.cached.get(&key) else {
            self.cached.insert(key, block);
            return true;
        };
        let second = std::mem::replace(&mut self.blocks[first.0 as usize].same_next, block.0);
        let entry = &mut self.blocks[block.0 as usize];
        (entry.same_prev, entry.same_next) = (first.0, second);
        if second != 0 {
            self.blocks[second as usize].same_prev = block.0;
        }
        false
    }

    /// The block can no longer be hit as `key`: what should have been computed into it never was. Does
    /// nothing if it is not registered as that (it may have been given out since).
    pub fn unregister(&mut self, block: BlockId, key: &BlockKey) {
        if self.key(block) != Some(key) {
            return;
        }
        self.forget(block);
        if self.free.contains(block) {
            self.free.remove(block);
            self.free.push_front(block);
        }
    }

    /// Forgets all content, if no block is held; else does nothing and says false.
    pub fn reset_cache(&mut self) -> bool {
        if self.num_free() != self.num_total() {
            return false;
        }
        self.cached.clear();
        self.num_free_cached = 0;
        for block in &mut self.blocks {
            *block = Block::default();
        }
        self.record(KvEvent::Cleared);
        true
    }

    /// Whether [`KvEvent`]s are kept.
    pub fn records_events(&self) -> bool {
        self.record_events
    }

    /// Keeps an event, if anybody listens.
    pub fn record(&mut self, event: KvEvent) {
        if self.record_events {
            self.events.push(event);
        }
    }

    /// The events since the last call, in order.
    pub fn take_events(&mut self) -> Vec<KvEvent> {
        std::mem::take(&mut self.events)
    }

    fn forget(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        let Some(key) = entry.key.take() else { return };
        self.num_free_cached -= u32::from(entry.ref_count == 0);
        let (prev, next) = (std::mem::take(&mut entry.same_prev), std::mem::take(&mut entry.same_next));
        if next != 0 {
            self.blocks[next as usize].same_prev = prev;
        }
        if prev != 0 {
            self.blocks[prev as usize].same_next = next;
        } else if next != 0 {
            self.cached.insert(key, BlockId(next));
        } else {
            self.cached.remove(&key);
            self.record_removed(key);
        }
    }

    fn record_removed(&mut self, BlockKey { hash, group }: BlockKey) {
        if !self.record_events {
            return;
        }
        match self.events.last_mut() {
            Some(KvEvent::Removed { block_hashes, group: of }) if *of == group => block_hashes.push(hash),
            _ => self.events.push(KvEvent::Removed { block_hashes: vec![hash], group }),
        }
    }
}

/// A key has a SHA-256: its first eight bytes are as good a hash as any.
#[derive(Debug, Default)]
pub(crate) struct LeadingBytes(u64);

impl Hasher for LeadingBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(first) = bytes.first_chunk::<8>() {
            self.0 = u64::from_le_bytes(*first);
        }
    }

    /// The group of a [`BlockKey`].
    fn write_u32(&mut self, group: u32) {
        self.0 ^= u64::from(group).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// The length prefix of an array says nothing.
    fn write_usize(&mut self, _: usize) {}
}
