//! [`SimMemory`]: a KV cache that knows what should be in it.
//!
//! An entry is the hash of the sequence up to its token, which is what a real entry depends on. Reading it
//! through a block table and comparing finds any block that was overwritten too early, hit by mistake or
//! never filled.

use crate::kv::BlockId;

/// Nothing hashes to it, for all that matters.
const GARBAGE: u64 = 0;

/// See the module's text.
#[derive(Debug)]
pub(super) struct SimMemory {
    entries: Vec<u64>,
    block_size: usize,
}

impl SimMemory {
    pub(super) fn new(num_blocks: u32, block_size: u32) -> Self {
        let block_size = block_size as usize;
        Self { entries: vec![GARBAGE; num_blocks as usize * block_size], block_size }
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.entries.len() / self.block_size
    }

    pub(super) fn write(&mut self, table: &[BlockId], position: usize, hash: u64) -> Result<(), String> {
        let at = self.address(table, position)?;
        self.entries[at] = hash;
        Ok(())
    }

    pub(super) fn spoil(&mut self, table: &[BlockId], position: usize) -> Result<(), String> {
        self.write(table, position, GARBAGE)
    }

    /// Checks that positions `0..prefix.len()` hold what they should.
    pub(super) fn verify(&self, table: &[BlockId], prefix: &[u64]) -> Result<(), String> {
        for (i, expected) in prefix.chunks(self.block_size).enumerate() {
            let at = self.address(table, i * self.block_size)?;
            if self.entries[at..at + expected.len()] != *expected {
                let from = i * self.block_size;
                return Err(format!("block {} does not hold positions {from}..", table[i].0));
            }
        }
        Ok(())
    }

    fn address(&self, table: &[BlockId], position: usize) -> Result<usize, String> {
        let block = table.get(position / self.block_size);
        let block = block.ok_or_else(|| format!("position {position} has no block"))?;
        Ok(block.0 as usize * self.block_size + position % self.block_size)
    }
}
