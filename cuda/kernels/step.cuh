// Where the metadata of the step lies on the device. `prepare_step` fills the arrays before any other kernel of
// the step runs; their addresses never change. Mirrored by `StepPointers` in src/step.rs.
#pragma once

#include "hardware.cuh"

enum StepCount { NUM_TOKENS = 0, NUM_ROWS = 1, NUM_LOGITS = 2 };

struct Step {
    const uint32_t* counts;         // [8], by StepCount
    const uint32_t* token_ids;      // [T], placeholders resolved
    const uint32_t* positions;      // [T]
    const uint32_t* token_slots;    // [T]
    const uint32_t* row_slots;      // [R]
    const uint32_t* row_starts;     // [R + 1]: row r has the tokens row_starts[r] .. row_starts[r + 1]
    const uint32_t* row_positions;  // [R]: position of the row's first token
    const uint32_t* logits_tokens;  // [L]
    const uint32_t* block_tables;   // [slots + 1][block_table_stride]; the last slot is padding, all block 0
    int64_t block_table_stride;
};
static_assert(sizeof(Step) == 80, "mirrored in src/step.rs");
