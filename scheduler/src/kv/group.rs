//! [`KvGroup`]: layers that see equally far back, and so keep the same tokens of a sequence.
//!
//! A model's layers are sorted into groups of equal size, and each sequence has a block table for each group.
//! Memory is shared: the n-th layers of all groups live in one buffer, and a block belongs to one group at a
//! time, so one [`super::BlockPool`] serves all groups and memory goes where it is needed. In a group with a
//! window, the blocks that no token to come can see are given back while the sequence goes on.

/// Most groups that a model's layers are sorted into.
pub const MAX_KV_GROUPS: usize = 64;

/// Some of a model's layers, all with the same attention span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KvGroup {
    /// `Some(w)`: a token sees itself and the `w - 1` before it, `w` at least 1. `None`: all before it.
    pub sliding_window: Option<u32>,
}

impl KvGroup {
    /// A group whose tokens see all before them.
    pub const FULL: Self = Self { sliding_window: None };

    /// Position of the first token that the token at `position` sees.
    pub fn first_visible(&self, position: u32) -> u32 {
        self.sliding_window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Leading blocks that no token from position `num_computed` on can see.
    pub fn num_skipped_blocks(&self, num_computed: u32, block_size: u32) -> usize {
        (self.first_visible(num_computed) / block_size) as usize
    }

    /// Blocks before a block boundary that the token behind it sees, if there are so many; `None`: all.
    pub fn num_visible_blocks(&self, block_size: u32) -> Option<usize> {
        self.sliding_window.map(|window| (window - 1).div_ceil(block_size) as usize)
    }

    /// The most blocks that a sequence of `num_tokens` tokens ever holds at a time in this group, when a step
    /// computes at most `step_tokens` of them: for those tokens and the window before them, which need not
    /// begin at a block boundary.
    pub fn max_blocks(&self, num_tokens: u32, step_tokens: u32, block_size: u32) -> usize {
        let all = num_tokens.div_ceil(block_size) as usize;
        let Some(window) = self.sliding_window else { return all };
        let visible = u64::from(window - 1) + u64::from(step_tokens.min(num_tokens));
        all.min(visible.div_ceil(u64::from(block_size)) as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the definition: block by block, and token by token.
    #[test]
    fn what_is_skipped_is_what_nobody_sees() {
        for window in 1..12 {
            let group = KvGroup { sliding_window: Some(window) };
            for block_size in 1..6 {
                for num_computed in 0..40 {
                    let skipped = group.num_skipped_blocks(num_computed, block_size) as u32;
                    let seen = |block: u32| {
                        (block * block_size..(block + 1) * block_size)
                            .any(|position| position + window > num_computed)
                    };
                    let case = format!("window {window}, block {block_size}, {num_computed} computed");
                    assert!((0..skipped).all(|block| !seen(block)), "{case}");
                    assert!(seen(skipped), "{case}");
                }
            }
        }
    }

    #[test]
    fn a_sequence_never_holds_more_than_its_most() {
        for window in 1..12u32 {
            let group = KvGroup { sliding_window: Some(window) };
            for (block_size, step_tokens) in [(1, 1), (1, 5), (3, 1), (3, 4), (4, 9), (16, 3)] {
                let num_tokens = 50;
                let most = group.max_blocks(num_tokens, step_tokens, block_size);
                for start in 0..num_tokens {
                    let end = num_tokens.min(start + step_tokens).div_ceil(block_size) as usize;
                    let held = end - group.num_skipped_blocks(start, block_size);
                    assert!(held <= most, "window {window}: {held} of {most} blocks at {start}");
                }
            }
        }
        assert_eq!(KvGroup::FULL.max_blocks(50, 4, 16), 4);
        assert_eq!(KvGroup::FULL.num_skipped_blocks(50, 4), 0);
    }
}
