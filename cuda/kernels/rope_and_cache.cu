// From the fused projection to attention: norms of query and key heads where the model has them, rotation of both
// in place, and the write of keys and values into the paged cache. One warp a head.
#include "common.cuh"
#include "step.cuh"

struct RopeParams {
    Step step;
    void* qkv;             // [T][q heads | k heads | v heads][head_dim] of T
    void* kv_cache;        // of T
    const float* table;    // [positions][cosines: head_dim / 2 | sines: head_dim / 2]
    const void* q_weight;  // [head_dim] of T; null if heads are not normalised
    const void* k_weight;  // [head_dim] of T
    int64_t block_stride;  // of the cache, in elements; so are the next three
    int64_t plane_stride;  // from keys to values
    int64_t head_stride;
    int64_t token_stride;
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;  // a multiple of 4
    int32_t block_size;
    float eps;
    int32_t unused;
};
static_assert(sizeof(RopeParams) == 176, "mirrored in src/small_kernels.rs");

DEVICE void load2(const float* from, float& a, float& b) {
    float2 x = *reinterpret_cast<const float2*>(from);
    a = x.x, b = x.y;
}
template <class T> DEVICE void load2(const T* from, float& a, float& b) {
    uint32_t word = *reinterpret_cast<const uint32_t*>(from);
    a = to_float(from_bits<T>(word)), b = to_float(from_bits<T>(word >> 16));
}
DEVICE void store2(float* to, float a, float b) { *reinterpret_cast<float2*>(to) = float2{a, b}; }
template <class T> DEVICE void store2(T* to, float a, float b) {
    *reinterpret_cast<uint32_t*>(to) = pack2<T>(a, b);
}

template <class T> DEVICE float inverse_rms(const T* head, int head_dim, float eps, int lane) {
    float squares = 0;
    for (int i = 2 * lane; i < head_dim; i += 64) {
        float a, b;
        load2(head + i, a, b);
        squares += a * a + b * b;
    }
    return rsqrtf(warp_sum(squares) / head_dim + eps);
}

// Normalises and rotates a head from and to `head`, and to `cached` too if that is not null.
template <class T>
DEVICE void rotate(const RopeParams& p, T* head, const void* weights, uint32_t position, T* cached, int lane) {
    int half = p.head_dim / 2;
    const float* cosines = p.table + (int64_t)position * p.head_dim;
    const T* weight = static_cast<const T*>(weights);
    float scale = weight != nullptr ? inverse_rms(head, p.head_dim, p.eps, lane) : 1;
    for (int i = 2 * lane; i < half; i += 64) {
        float low[2], high[2], c[2], s[2];
        load2(head + i, low[0], low[1]);
        load2(head + half + i, high[0], high[1]);
        load2(cosines + i, c[0], c[1]);
        load2(cosines + half + i, s[0], s[1]);
        if (weight != nullptr) {
            float w[2], v[2];
            load2(weight + i, w[0], w[1]);
            load2(weight + half + i, v[0], v[1]);
            for (int j = 0; j < 2; j++) low[j] *= scale * w[j], high[j] *= scale * v[j];
        }
        float a[2], b[2];
        for (int j = 0; j < 2; j++) {
            a[j] = low[j] * c[j] - high[j] * s[j];
            b[j] = high[j] * c[j] + low[j] * s[j];
        }
        store2(head + i, a[0], a[1]);
        store2(head + half + i, b[0], b[1]);
        if (cached != nullptr) {
            store2(cached + i, a[0], a[1]);
            store2(cached + half + i, b[0], b[1]);
        }
    }
}

// Grid: (tokens, all heads / warps of a block, rounded up).
template <class T> DEVICE void rope_and_cache(const RopeParams& p) {
    int lane = threadIdx.x % 32, token = blockIdx.x;
    int head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32;
    if (head >= p.num_heads + 2 * p.num_kv_heads) return;
    T* row = static_cast<T*>(p.qkv) + (int64_t)token * (p.num_heads + 2 * p.num_kv_heads) * p.head_dim;
    T* own = row + (int64_t)head * p.head_dim;
    uint32_t position = p.step.positions[token];
    if (head < p.num_heads) return rotate<T>(p, own, p.q_weight, position, nullptr, lane);
    const uint32_t* blocks = p.step.block_tables + p.step.token_slots[token] * p.step.block_table_stride;
    int key_head = (head - p.num_heads) % p.num_kv_heads;
    T* cached = static_cast<T*>(p.kv_cache) + blocks[position / p.block_size] * p.block_stride +
                key_head * p.head_stride + position % p.block_size * p.token_stride;
    if (head < p.num_heads + p.num_kv_heads) return rotate<T>(p, own, p.k_weight, position, cached, lane);
    for (int i = 2 * lane; i < p.head_dim; i += 64) {
        float a, b;
        load2(own + i, a, b);
        store2(cached + p.plane_stride + i, a, b);
    }
}

#define DEFINE(T, name) \
    KERNEL(rope_and_cache_##name, RopeParams) { rope_and_cache<T>(p); }
FOR_EACH_TYPE(DEFINE)
