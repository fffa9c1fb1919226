// Spreads the packed words of a step (StepInputs in the crate `model`) into the arrays that the other kernels
// read, and pads a decode step to the size of a recorded graph.
#include "step.cuh"

struct PrepareStepParams {
    const uint32_t* words;        // token_ids[T] positions[T] token_rows[T] row_slots[R] row_ends[R]
                                  // logits_tokens[L] block_writes[W][slot, index, block]
    const uint32_t* last_tokens;  // [slots + 1]
    Step step;                    // written here
    uint32_t num_tokens;
    uint32_t num_rows;
    uint32_t num_logits;
    uint32_t num_block_writes;
    uint32_t padded_rows;   // rows of a decode step with its padding; num_rows if there is none
    uint32_t padding_slot;  // the last one; its block table is all block 0
};
static_assert(sizeof(PrepareStepParams) == 120, "mirrored in src/step.rs");

// Set in a token that is the one last sampled in the slot given by the other bits.
#define PLACEHOLDER_BIT 0x80000000u

DEVICE uint32_t* writable(const uint32_t* array) { return const_cast<uint32_t*>(array); }

DEVICE void write_tokens(const PrepareStepParams& p, const uint32_t* row_slots) {
    const uint32_t *token_ids = p.words, *positions = token_ids + p.num_tokens, *rows = positions + p.num_tokens;
    for (uint32_t i = threadIdx.x; i < p.num_tokens; i += blockDim.x) {
        uint32_t word = token_ids[i];
        bool known = (word & PLACEHOLDER_BIT) == 0;
        writable(p.step.token_ids)[i] = known ? word : p.last_tokens[word & ~PLACEHOLDER_BIT];
        writable(p.step.positions)[i] = positions[i];
        writable(p.step.token_slots)[i] = row_slots[rows[i]];
    }
}

DEVICE void write_rows(const PrepareStepParams& p, const uint32_t* row_slots) {
    const uint32_t *row_ends = row_slots + p.num_rows, *positions = p.words + p.num_tokens;
    for (uint32_t i = threadIdx.x; i < p.num_rows; i += blockDim.x) {
        uint32_t start = i == 0 ? 0 : row_ends[i - 1];
        writable(p.step.row_slots)[i] = row_slots[i];
        writable(p.step.row_starts)[i] = start;
        writable(p.step.row_positions)[i] = positions[start];
    }
    const uint32_t* logits_tokens = row_ends + p.num_rows;
    for (uint32_t i = threadIdx.x; i < p.num_logits; i += blockDim.x) {
        writable(p.step.logits_tokens)[i] = logits_tokens[i];
    }
}

// Only decode steps are padded, in which row, token and row of logits have one number.
DEVICE void write_padding(const PrepareStepParams& p) {
    for (uint32_t i = p.num_rows + threadIdx.x; i < p.padded_rows; i += blockDim.x) {
        writable(p.step.token_ids)[i] = 0;
        writable(p.step.positions)[i] = 0;
        writable(p.step.token_slots)[i] = p.padding_slot;
        writable(p.step.row_slots)[i] = p.padding_slot;
        writable(p.step.row_starts)[i] = i;
        writable(p.step.row_positions)[i] = 0;
        writable(p.step.logits_tokens)[i] = i;
    }
}

// `writes` is [count][slot, index, block].
DEVICE void write_blocks(const Step& step, const uint32_t* writes, uint32_t count) {
    for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
        const uint32_t* write = writes + 3 * i;
        writable(step.block_tables)[write[0] * step.block_table_stride + write[1]] = write[2];
    }
}

// Grid: one block.
KERNEL(prepare_step, PrepareStepParams) {
    const uint32_t* row_slots = p.words + 3 * p.num_tokens;
    const uint32_t* block_writes = row_slots + 2 * p.num_rows + p.num_logits;
    write_tokens(p, row_slots);
    write_rows(p, row_slots);
    write_padding(p);
    write_blocks(p.step, block_writes, p.num_block_writes);
    if (threadIdx.x == 0) {
        uint32_t padding = p.padded_rows - p.num_rows;
        writable(p.step.counts)[NUM_TOKENS] = p.num_tokens + padding;
        writable(p.step.counts)[NUM_ROWS] = p.padded_rows;
        writable(p.step.counts)[NUM_LOGITS] = p.num_logits + padding;
        writable(p.step.row_starts)[p.padded_rows] = p.num_tokens + padding;
    }
}

struct WriteBlocksParams {
    Step step;
    const uint32_t* writes;
    uint32_t count;
    uint32_t unused;
};
static_assert(sizeof(WriteBlocksParams) == 96, "mirrored in src/step.rs");

// Entries of block tables beyond what one packed step has room for. Grid: one block.
KERNEL(write_blocks, WriteBlocksParams) { write_blocks(p.step, p.writes, p.count); }
