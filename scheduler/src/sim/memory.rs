//! [`SimMemory`]: a KV cache that knows what should be in it.
//!
//! An entry is the hash of the sequence up to its token, which is what a real entry depends on, and of the group
//! of layers it is for. Reading it through a block table and comparing finds any block that was overwritten too
//! early, given back too early, hit by mistake or never filled.

use super::rng::fold;
use crate::kv::{BlockId, KvGroup};

/// Nothing hashes to it, for all that matters.
const GARBAGE: u64 = 0;

/// See the module's text.
#[derive(Debug)]
pub(super) struct SimMemory {
    entries: Vec<u64>,
    block_size: usize,
    groups: Vec<KvGroup>,
}

impl SimMemory {
    pub(super) fn new(num_blocks: u32, block_size: u32, groups: Vec<KvGroup>) -> Self {
        let block_size = block_size as usize;
        Self { entries: vec![GARBAGE; num_blocks as usize * block_size], block_size, groups }
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.entries.len() / self.block_size
    }

    /// What the layers of all groups keep of the token at `position`; `table` is `[block][group]`.
    pub(super) fn write(&mut self, table: &[BlockId], position: usize, hash: u64) -> Result<(), String> {
        for group in 0..self.groups.len() {
            let at = self.address(table, group, position)?;
            self.entries[at] = entry(hash, group);
        }
        Ok(())
    }

    pub(super) fn spoil(&mut self, table: &[BlockId], position: usize) -> Result<(), String> {
        for group in 0..self.groups.len() {
            let at = self.address(table, group, position)?;
            self.entries[at] = GARBAGE;
        }
        Ok(())
    }

    /// Checks what the tokens of a row that begins at `start` see: the positions up to `prefix.len()`, from the
    /// first that `start` sees.
    pub(super) fn verify(&self, table: &[BlockId], start: u32, prefix: &[u64]) -> Result<(), String> {
        for (group, kind) in self.groups.iter().enumerate() {
            let first = kind.first_visible(start) as usize;
            for (position, &hash) in prefix.iter().enumerate().skip(first) {
                let at = self.address(table, group, position)?;
                if self.entries[at] != entry(hash, group) {
                    let block = at / self.block_size;
                    return Err(format!("block {block} does not hold position {position} for group {group}"));
                }
            }
        }
        Ok(())
    }

    fn address(&self, table: &[BlockId], group: usize, position: usize) -> Result<usize, String> {
        let block = table.get(position / self.block_size * self.groups.len() + group);
        let block = block.filter(|block| !block.is_null());
        let block = block.ok_or_else(|| format!("position {position} has no block in group {group}"))?;
        Ok(block.0 as usize * self.block_size + position % self.block_size)
    }
}

fn entry(hash: u64, group: usize) -> u64 {
    fold(hash, group as u64)
}
