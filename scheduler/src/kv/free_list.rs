//! The free blocks, in the order in which they will be given out again.
//!
//! An intrusive doubly linked list: a block can leave from the middle (a prefix-cache hit) in constant
//! time, and nothing is ever allocated. Blocks enter at the back when their content may be hit again and
//! at the front when it cannot, so the order is also that of least recent use: the front is evicted first.

use super::BlockId;

/// Block 0 is padding and never free, so its links serve as both ends of the list.
const ENDS: usize = 0;

#[derive(Debug, Clone, Copy)]
struct Link {
    prev: u32,
    next: u32,
}

/// An ordered set of blocks out of `1..num_blocks`.
#[derive(Debug)]
pub struct FreeList {
    /// A block that is not in the list links to itself.
    links: Vec<Link>,
    len: u32,
}

impl FreeList {
    /// An empty list over blocks `1..num_blocks`.
    pub fn new(num_blocks: u32) -> Self {
        Self { links: (0..num_blocks.max(1)).map(|i| Link { prev: i, next: i }).collect(), len: 0 }
    }

    /// Number of blocks in the list.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether no block is in the list.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the block is in the list.
    pub fn contains(&self, block: BlockId) -> bool {
        block.0 as usize != ENDS && self.links[block.0 as usize].next != block.0
    }

    /// Takes the block that has been free for longest.
    pub fn pop_front(&mut self) -> Option<BlockId> {
        let first = BlockId(self.links[ENDS].next);
        (first.0 as usize != ENDS).then(|| {
            self.remove(first);
            first
        })
    }

    /// Adds a block to be given out next. It must not be in the list.
    pub fn push_front(&mut self, block: BlockId) {
        self.link(block, ENDS as u32, self.links[ENDS].next);
    }

    /// Adds a block to be given out last. It must not be in the list.
    pub fn push_back(&mut self, block: BlockId) {
        self.link(block, self.links[ENDS].prev, ENDS as u32);
    }

    /// Takes a block from wherever it is. It must be in the list.
    pub fn remove(&mut self, block: BlockId) {
        assert!(self.contains(block), "block {} is not free", block.0);
        let Link { prev, next } = self.links[block.0 as usize];
        self.links[prev as usize].next = next;
        self.links[next as usize].prev = prev;
        self.links[block.0 as usize] = Link { prev: block.0, next: block.0 };
        self.len -= 1;
    }

    /// The blocks from front to back.
    pub fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let after = |i: u32| Some(self.links[i as usize].next).filter(|&n| n as usize != ENDS);
        std::iter::successors(after(ENDS as u32), move |&i| after(i)).map(BlockId)
    }

    fn link(&mut self, block: BlockId, prev: u32, next: u32) {
        assert!(block.0 as usize != ENDS && !self.contains(block), "block {} is free already", block.0);
        self.links[block.0 as usize] = Link { prev, next };
        self.links[prev as usize].next = block.0;
        self.links[next as usize].prev = block.0;
        self.len += 1;
    }
}
