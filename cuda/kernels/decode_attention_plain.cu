// Attention of rows of one token over their paged keys and values, as it is written down: one block a row and
// query head, f32 throughout, any head dimension up to 256 and any block size. The tuned kernel of
// decode_attention.cu is checked against this one, and it serves whatever that one is not made for.
#include "common.cuh"
#include "step.cuh"

namespace {

constexpr uint32_t PLAIN_THREADS = 256;

struct DecodeAttentionPlainParams {
    Step step;
    const void* qkv;         // [T][q heads | k heads | v heads][head_dim]; only queries are read
    const void* kv_cache;    // [block][K | V][kv head][token in block][head_dim], by the strides
    void* out;               // [T][heads][head_dim]
    int64_t qkv_stride;      // this and the others: in elements
    int64_t out_stride;
    int64_t block_stride;
    int64_t plane_stride;    // from keys to values
    int64_t head_stride;
    int64_t token_stride;
    uint64_t window;         // tokens that a token sees, itself included
    uint32_t heads_per_group;
    uint32_t head_dim;
    uint32_t block_size;
    float scale;
    float softcap;           // 0: none
    uint32_t unused;
};
static_assert(sizeof(DecodeAttentionPlainParams) == 184, "mirrored in src/decode_attention.rs");

// The greatest of a block, in every thread; `shared` has a float a warp, and may be used again.
DEVICE float block_max(float x, float* shared) {
    x = warp_max(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    for (uint32_t w = 0; w < PLAIN_THREADS / 32; w++) x = fmaxf(x, shared[w]);
    __syncthreads();
    return x;
}

// A block is (row, query head). For 256 tokens at a time each thread scores one token, then each adds up one
// column of the values.
template <class T> DEVICE void decode_attention_plain(const DecodeAttentionPlainParams& p) {
    uint32_t r = blockIdx.x, head = blockIdx.y, thread = threadIdx.x;
    if (r >= p.step.counts[NUM_ROWS] || p.step.row_starts[r + 1] - p.step.row_starts[r] != 1) return;
    float* scratch = (float*)shared_memory();     // [PLAIN_THREADS / 32]
    float* weights = scratch + PLAIN_THREADS / 32;  // [PLAIN_THREADS]
    float* query = weights + PLAIN_THREADS;         // [head_dim]
    uint32_t token = p.step.row_starts[r], end = p.step.row_positions[r] + 1;
    uint32_t begin = end > p.window ? (uint32_t)(end - p.window) : 0;
    const uint32_t* table = p.step.block_tables + p.step.row_slots[r] * p.step.block_table_stride;
    const T* keys = (const T*)p.kv_cache + head / p.heads_per_group * p.head_stride;
    const T* q = (const T*)p.qkv + token * p.qkv_stride + head * p.head_dim;
    if (thread < p.head_dim) query[thread] = to_float(q[thread]);
    __syncthreads();
    float most = -INFINITY_F, sum = 0, out = 0;
    for (uint32_t first = begin; first < end; first += PLAIN_THREADS) {
        uint32_t position = first + thread;
        float score = -INFINITY_F;
        if (position < end) {
            const T* key = keys + table[position / p.block_size] * p.block_stride +
                           position % p.block_size * p.token_stride;
            score = 0;
            for (uint32_t i = 0; i < p.head_dim; i++) score = fmaf(query[i], to_float(key[i]), score);
            score *= p.scale;
            if (p.softcap != 0) score = p.softcap * tanhf(score / p.softcap);
        }
        float most_before = most;
        most = fmaxf(most, block_max(score, scratch));
        float weight = expf(score - most), factor = expf(most_before - most);
        weights[thread] = weight;
        sum = sum * factor + block_sum(weight, scratch);  // its barrier is also the one for `weights`
        if (thread < p.head_dim) {
            out *= factor;
            for (uint32_t i = 0; i < min(PLAIN_THREADS, end - first); i++) {
                const T* value = keys + p.plane_stride + table[(first + i) / p.block_size] * p.block_stride +
                                 (first + i) % p.block_size * p.token_stride;
                out = fmaf(weights[i], to_float(value[thread]), out);
            }
        }
        __syncthreads();
    }
    if (thread < p.head_dim) {
        ((T*)p.out)[token * p.out_stride + head * p.head_dim + thread] = from_float<T>(out / sum);
    }
}

}  // namespace

#define DECODE_ATTENTION_PLAIN(T, name)                                                          \
    KERNEL_BOUNDS(decode_attention_plain_##name, DecodeAttentionPlainParams, PLAIN_THREADS, 1) { \
        decode_attention_plain<T>(p);                                                            \
    }
FOR_EACH_TYPE(DECODE_ATTENTION_PLAIN)
