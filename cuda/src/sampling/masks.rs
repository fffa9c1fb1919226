//! [`MaskUpload`]: what the grammars of a step's rows allow, in one copy. It follows the step's packet by as long as
//! the grammars take, so that they work while the device computes the logits.

use std::sync::Arc;

use quire_model::{LogitsRow, Slot, StepLimits};

use super::slot_state::has_mask;
use crate::driver::{Context, CudaError, Stream};
use crate::ring::PinnedRing;

/// The ring, and whose masks the step needs.
#[derive(Debug)]
pub(super) struct MaskUpload {
    ring: PinnedRing,
    /// Device address of `[max_num_seqs][words]`.
    masks: u64,
    /// Of one mask.
    words: usize,
    /// Slots of the step's rows with a grammar, in the order of the rows.
    slots: Vec<u32>,
}

impl MaskUpload {
    /// Masks are at the device address `masks`.
    pub(super) fn new(context: &Arc<Context>, limits: &StepLimits, masks: u64) -> Result<Self, CudaError> {
        Ok(Self {
            ring: PinnedRing::new(context, 4 * Self::max_words(limits))?,
            masks,
            words: limits.vocab_size.div_ceil(32),
            slots: Vec::with_capacity(limits.max_num_seqs),
        })
    }

    /// Words of the masks of a step at most: every slot samples once.
    pub(super) fn max_words(limits: &StepLimits) -> usize {
        limits.max_num_seqs * limits.vocab_size.div_ceil(32)
    }

    /// Remembers whose masks the step needs.
    pub(super) fn begin(&mut self, rows: &[LogitsRow], slots: &[Slot]) {
        let masked = rows.iter().filter(|row| has_mask(row, &slots[row.slot as usize]));
        self.slots.clear();
        self.slots.extend(masked.map(|row| row.slot));
    }

    /// Enqueues their copy. A slot with a grammar and no mask may have every token.
    pub(super) fn send(&mut self, stream: &Stream, slots: &[Slot]) -> Result<(), CudaError> {
        if self.slots.is_empty() {
            return Ok(());
        }
        let entry = self.ring.next()?.words_mut();
        for (slot, words) in self.slots.iter().zip(entry.chunks_exact_mut(self.words)) {
            match slots[*slot as usize].mask() {
                Some(mask) => words.copy_from_slice(mask),
                None => words.fill(u32::MAX),
            }
        }
        let bytes = 4 * self.words * self.slots.len();
        stream.copy_to_device(self.masks, self.ring.current(), 0..bytes)?;
        self.ring.copied(stream)
    }
}
