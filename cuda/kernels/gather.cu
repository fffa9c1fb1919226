// Copies of rows: hidden states of the tokens that need logits, and whole blocks of the KV cache.
#include "step.cuh"

struct GatherParams {
    Step step;
    const void* x;      // [T][row_bytes]
    void* out;          // [rows][row_bytes]
    int32_t first_row;  // among the step's L rows of logits
    int32_t row_bytes;  // a multiple of 16
};
static_assert(sizeof(GatherParams) == 104, "mirrored in src/small_kernels.rs");

DEVICE void copy_row(void* to, const void* from, int64_t bytes) {
    for (int64_t i = threadIdx.x; i < bytes / 16; i += blockDim.x) {
        static_cast<uint4*>(to)[i] = static_cast<const uint4*>(from)[i];
    }
}

// Grid: a block a row.
KERNEL(gather, GatherParams) {
    int64_t from = p.step.logits_tokens[p.first_row + blockIdx.x], bytes = p.row_bytes;
    copy_row(static_cast<char*>(p.out) + blockIdx.x * bytes, static_cast<const char*>(p.x) + from * bytes, bytes);
}

struct CopyBlocksParams {
    const uint32_t* pairs;  // [copies][from, to]; no block is both, so the order does not matter
    void* kv_cache;         // of one layer
    int64_t block_bytes;    // a multiple of 16
};
static_assert(sizeof(CopyBlocksParams) == 24, "mirrored in src/small_kernels.rs");

// Grid: a block of threads a copy.
KERNEL(copy_blocks, CopyBlocksParams) {
    int64_t from = p.pairs[2 * blockIdx.x], to = p.pairs[2 * blockIdx.x + 1];
    char* cache = static_cast<char*>(p.kv_cache);
    copy_row(cache + to * p.block_bytes, cache + from * p.block_bytes, p.block_bytes);
}
