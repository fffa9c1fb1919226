//! [`StepBuffers`]: the metadata of the step on the device, spread by one kernel from the step's packet.

use std::sync::Arc;

use quire_model::{BackendError, StepInputs, StepLimits};

use crate::driver::{Context, CudaError, DeviceMemory, Function, Stream};
use crate::kernels::Kernels;
use crate::packet::Packet;

/// Device addresses of the step's arrays, as kernels take them; the mirror of `Step` in kernels/step.cuh, which
/// says their shapes. They are the same for every step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StepPointers {
    /// `[8]`: tokens `T`, rows `R` and rows of logits `L`, as far as they are used.
    pub counts: u64,
    /// `[T]`, placeholders resolved.
    pub token_ids: u64,
    /// `[T]`.
    pub positions: u64,
    /// `[T]`.
    pub token_slots: u64,
    /// `[R]`.
    pub row_slots: u64,
    /// `[R + 1]`: where the row's tokens begin.
    pub row_starts: u64,
    /// `[R]`: position of the row's first token.
    pub row_positions: u64,
    /// `[L]`.
    pub logits_tokens: u64,
    /// `[slots + 1][block_table_stride]`.
    pub block_tables: u64,
    /// Entries from a slot's table to the next's.
    pub block_table_stride: i64,
}

/// Mirror of kernels/prepare_step.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PrepareStepParams {
    words: u64,
    last_tokens: u64,
    step: StepPointers,
    num_tokens: u32,
    num_rows: u32,
    num_logits: u32,
    num_block_writes: u32,
    padded_rows: u32,
    padding_slot: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct WriteBlocksParams {
    step: StepPointers,
    writes: u64,
    count: u32,
    unused: u32,
}

const _: () = {
    assert!(size_of::<WriteBlocksParams>() == 96);
    assert!(size_of::<StepPointers>() == 80);
    assert!(size_of::<PrepareStepParams>() == 120);
};

/// Words of [`StepPointers::counts`].
const NUM_COUNTS: usize = 8;
const PREPARE_THREADS: u32 = 1024;

/// The arrays.
#[derive(Debug)]
pub(crate) struct StepBuffers {
    /// Holds what `pointers` and `last_tokens` point at.
    _arrays: DeviceMemory,
    last_tokens: u64,
    pointers: StepPointers,
    prepare: Function,
    write_blocks: Function,
    max_block_writes: usize,
    padding_slot: u32,
}

impl StepBuffers {
    /// For steps within `limits`; the block tables point at block 0 until they are written.
    pub(crate) fn new(
        context: &Arc<Context>,
        stream: &Stream,
        kernels: &Kernels,
        limits: &StepLimits,
    ) -> Result<Self, BackendError> {
        let layout = Layout::new(limits);
        let arrays = DeviceMemory::alloc(context, layout.bytes())?;
        stream.fill(arrays.address(), 0, arrays.len())?;
        Ok(Self {
            pointers: layout.pointers(arrays.address(), limits),
            last_tokens: arrays.address() + layout.last_tokens_offset(),
            _arrays: arrays,
            prepare: kernels.function("prepare_step")?,
            write_blocks: kernels.function("write_blocks")?,
            max_block_writes: max_block_writes(limits),
            padding_slot: limits.max_num_seqs as u32,
        })
    }

    /// Bytes on the device for steps within `limits`.
    pub(crate) fn device_bytes(limits: &StepLimits) -> usize {
        Layout::new(limits).bytes()
    }

    /// Words of a packet at most.
    pub(crate) fn max_words(limits: &StepLimits) -> usize {
        4 * limits.max_num_batched_tokens + 2 * limits.max_num_seqs + 3 * max_block_writes(limits)
    }

    /// Where the arrays are.
    pub(crate) fn pointers(&self) -> StepPointers {
        self.pointers
    }

    /// Where the tokens last sampled are, by slot; the last slot is padding.
    pub(crate) fn last_tokens(&self) -> u64 {
        self.last_tokens
    }

    /// Sends the entries of block tables that the step's own packet has no room for, in packets of their own: before
    /// that one is begun. Only steps that admit many long requests have any.
    pub(crate) fn send_excess(
        &self,
        stream: &Stream,
        packet: &mut Packet,
        inputs: &StepInputs,
    ) -> Result<(), CudaError> {
        let writes = inputs.block_writes();
        for writes in writes[writes.len().min(self.max_block_writes)..].chunks(self.max_block_writes) {
            packet.begin()?;
            let (words, address) = packet.push(writes.as_flattened().len());
            words.copy_from_slice(writes.as_flattened());
            packet.send(stream)?;
            let params = WriteBlocksParams {
                step: self.pointers,
                writes: address,
                count: writes.len() as u32,
                unused: 0,
            };
            stream.launch(&self.write_blocks, [1, 1, 1], PREPARE_THREADS, 0, &params)?;
        }
        Ok(())
    }

    /// Adds the last section to the packet, sends it, and enqueues the kernel. A decode step is padded to
    /// `padded_rows` rows; other steps say their own number.
    pub(crate) fn send(
        &self,
        stream: &Stream,
        packet: &mut Packet,
        inputs: &StepInputs,
        padded_rows: usize,
    ) -> Result<(), CudaError> {
        let num_block_writes = inputs.block_writes().len().min(self.max_block_writes);
        let excess = inputs.block_writes()[num_block_writes..].as_flattened().len();
        let words = &inputs.words()[..inputs.words().len() - excess];
        let (section, address) = packet.push(words.len());
        section.copy_from_slice(words);
        packet.send(stream)?;
        let params = PrepareStepParams {
            words: address,
            last_tokens: self.last_tokens,
            step: self.pointers,
            num_tokens: inputs.num_tokens() as u32,
            num_rows: inputs.row_ends().len() as u32,
            num_logits: inputs.logits_tokens().len() as u32,
            num_block_writes: num_block_writes as u32,
            padded_rows: padded_rows as u32,
            padding_slot: self.padding_slot,
        };
        stream.launch(&self.prepare, [1, 1, 1], PREPARE_THREADS, 0, &params)
    }
}

/// Lengths in words of the arrays, in the order of [`StepPointers`]; behind them the tokens last sampled.
struct Layout([usize; 10]);

impl Layout {
    fn new(limits: &StepLimits) -> Self {
        let (tokens, rows) = (limits.max_num_batched_tokens, limits.max_num_seqs);
        let tables = (rows + 1) * limits.max_blocks_per_seq;
        Self(
            [NUM_COUNTS, tokens, tokens, tokens, rows, rows + 1, rows, tokens, tables, rows + 1].map(aligned),
        )
    }

    fn bytes(&self) -> usize {
        4 * self.0.iter().sum::<usize>()
    }

    fn last_tokens_offset(&self) -> u64 {
        4 * self.0[..9].iter().sum::<usize>() as u64
    }

    fn pointers(&self, start: u64, limits: &StepLimits) -> StepPointers {
        let mut next = start;
        let mut place = self.0.iter().map(|words| {
            let address = next;
            next += 4 * *words as u64;
            address
        });
        let mut take = || place.next().expect("one address for each array");
        StepPointers {
            counts: take(),
            token_ids: take(),
            positions: take(),
            token_slots: take(),
            row_slots: take(),
            row_starts: take(),
            row_positions: take(),
            logits_tokens: take(),
            block_tables: take(),
            block_table_stride: limits.max_blocks_per_seq as i64,
        }
    }
}

/// So that every array begins at a multiple of 256 bytes.
fn aligned(words: usize) -> usize {
    words.next_multiple_of(64)
}

/// Every token may open a block, and admitted requests may bring whole tables; more than this many writes go in
/// several pieces.
fn max_block_writes(limits: &StepLimits) -> usize {
    limits.max_num_batched_tokens + limits.max_blocks_per_seq
}

#[cfg(all(test, feature = "emulator"))]
mod tests;
