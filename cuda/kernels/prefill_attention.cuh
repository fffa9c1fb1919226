// What the kernels of prefill attention and their plan share.
#pragma once

#include "hardware.cuh"
#include "step.cuh"

// One piece of work for all key-value heads: pairs [first_pair, first_pair + 128) of a row's `num_pairs`.
struct PrefillTile {
    uint32_t slot;
    uint32_t first_token;  // of the row, among the step's
    uint32_t position;     // of that token
    uint32_t num_pairs;
    uint32_t first_pair;
};
static_assert(sizeof(PrefillTile) == 20, "mirrored in src/prefill_attention.rs");

struct PrefillAttentionParams {
    Step step;
    const void* qkv;        // [T][q heads | k heads | v heads][head_dim]; only queries are read
    const void* kv_cache;   // [block][K | V][kv head][token in block][head_dim], by the strides
    void* out;              // [T][heads][head_dim]
    const PrefillTile* tiles;
    const uint32_t* num_tiles;
    int64_t qkv_stride, out_stride;  // all strides in elements
    int64_t block_stride, plane_stride, head_stride, token_stride;
    float exp2_factor;      // softmax weights are 2^(exp2_factor * x), with x as follows
    float tanh_factor;      // x = tanh(tanh_factor * q.k), or q.k if this is 0
    uint32_t window;        // tokens that a token sees, itself included; below 2^31
    uint32_t block_size, num_heads, num_kv_heads;
    uint32_t head_dim, min_q_len;  // for the plain kernel
};
static_assert(sizeof(PrefillAttentionParams) == 200, "mirrored in src/prefill_attention.rs");

struct PlanPrefillParams {
    Step step;
    PrefillTile* tiles;
    uint32_t* num_tiles;
    uint32_t heads_per_group;
    uint32_t min_q_len;  // shorter rows are not ours
};
static_assert(sizeof(PlanPrefillParams) == 104, "mirrored in src/prefill_attention.rs");

// Pairs of (token, query head of a group) in a tile.
constexpr uint32_t TILE_PAIRS = 128;

// The first position that a token sees.
DEVICE uint32_t first_seen(uint32_t position, uint32_t window) {
    return position + 1 > window ? position + 1 - window : 0;
}
