// Prefill attention for any head up to 256 wide, any block size and any element type: simple on purpose, it
// is what the tuned kernels are checked with. It has their invariance, for the same reason.
#include "prefill_attention.cuh"

namespace {

// Where the cache has a token's key, for the key-value head that `cache` points at.
template <class T>
DEVICE const T* find_key(const PrefillAttentionParams& p, const T* cache, const uint32_t* table,
                         uint32_t position) {
    return cache + table[position / p.block_size] * p.block_stride + position % p.block_size * p.token_stride;
}

// One warp for a (token, head): tiles of 32 keys, one for each lane. Grid: [T, heads].
template <class T> DEVICE void attend_plainly(const PrefillAttentionParams& p) {
    constexpr uint32_t LANE_DIMS = 256 / 32;
    uint32_t lane = threadIdx.x, token = blockIdx.x, head = blockIdx.y;
    uint32_t row = 0;
    for (uint32_t end = p.step.counts[NUM_ROWS]; end - row > 1;) {
        uint32_t middle = (row + end) / 2;
        if (p.step.row_starts[middle] <= token) row = middle;
        else end = middle;
    }
    if (p.step.row_starts[row + 1] - p.step.row_starts[row] < p.min_q_len) return;
    const uint32_t* table = p.step.block_tables + p.step.row_slots[row] * p.step.block_table_stride;
    const T* query = (const T*)p.qkv + token * p.qkv_stride + head * p.head_dim;
    const T* cache = (const T*)p.kv_cache + head / (p.num_heads / p.num_kv_heads) * p.head_stride;
    uint32_t position = p.step.row_positions[row] + token - p.step.row_starts[row];
    uint32_t begin = first_seen(position, p.window);
    float* weights = (float*)shared_memory();
    float* shared_query = weights + 32;
    for (uint32_t i = lane; i < p.head_dim; i += 32) shared_query[i] = to_float(query[i]);
    __syncwarp();

    float greatest = -INFINITY_F, sum = 0.0f, out[LANE_DIMS] = {};
    for (uint32_t first_key = begin / 32 * 32; first_key <= position; first_key += 32) {
        uint32_t mine = first_key + lane;
        float score = -INFINITY_F;
        if (mine >= begin && mine <= position) {
            const T* key = find_key(p, cache, table, mine);
            score = 0.0f;
            for (uint32_t i = 0; i < p.head_dim; i++) score = fmaf(shared_query[i], to_float(key[i]), score);
            if (p.tanh_factor != 0.0f) score = tanhf(score * p.tanh_factor);
        }
        // Each tile has a key that is seen, so this is finite.
        float before = greatest;
        greatest = fmaxf(greatest, score);
        for (int mask = 16; mask > 0; mask /= 2)
            greatest = fmaxf(greatest, __shfl_xor_sync(FULL_MASK, greatest, mask));
        float correction = fast_exp2((before - greatest) * p.exp2_factor);
        __syncwarp();
        weights[lane] = fast_exp2((score - greatest) * p.exp2_factor);
        __syncwarp();
        sum *= correction;
        for (uint32_t d = 0; d < LANE_DIMS; d++) out[d] *= correction;
        for (uint32_t i = 0; i < 32; i++) {
            uint32_t key = first_key + i;
            if (key < begin || key > position) continue;
            const T* value = find_key(p, cache, table, key) + p.plane_stride;
            sum += weights[i];
            for (uint32_t d = 0; d < LANE_DIMS; d++) {
                if (lane + 32 * d >= p.head_dim) continue;
                out[d] = fmaf(weights[i], to_float(value[lane + 32 * d]), out[d]);
            }
        }
    }
    T* to = (T*)p.out + token * p.out_stride + head * p.head_dim;
    for (uint32_t d = 0; d < LANE_DIMS; d++) {
        if (lane + 32 * d < p.head_dim) to[lane + 32 * d] = from_float<T>(out[d] / sum);
    }
}

} // namespace

KERNEL_BOUNDS(prefill_attention_plain_bf16, PrefillAttentionParams, 32, 1) { attend_plainly<bf16>(p); }
KERNEL_BOUNDS(prefill_attention_plain_f16, PrefillAttentionParams, 32, 1) { attend_plainly<f16>(p); }
KERNEL_BOUNDS(prefill_attention_plain_f32, PrefillAttentionParams, 32, 1) { attend_plainly<float>(p); }
