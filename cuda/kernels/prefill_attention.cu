// Attention of rows of several tokens over the paged KV cache: whole prompts, chunks of them and prompts
// whose beginning is cached are one and the same thing here, a run of new tokens at some position.
//
// A tile is 128 pairs (token, query head of one group), token by token, of one row and one key-value head. So
// the heads that share keys share their loads, and a row of few tokens fills a tile with its heads.
// FlashAttention-2 otherwise: scores and the output stay in registers, the softmax is online, keys and values
// come through two stages of shared memory, their blocks looked up one tile ahead.
//
// Invariance: tiles of keys begin at absolute multiples of their size, are walked from the first to the last,
// and a tile that a pair does not see leaves its state as it was, bit for bit. So a pair's result does not
// depend on the other pairs of the tile, on where its token stands in the row, or on how the prompt was cut.
#include "prefill_attention.cuh"

namespace {

constexpr uint32_t WARPS = 4;
constexpr uint32_t THREADS = 32 * WARPS;
// Block sizes are multiples of this: tokens whose keys lie one after the other.
constexpr uint32_t SEGMENT = 16;

// How a CTA cuts its work. 32 rows a warp halve the shared memory traffic of 16, which would otherwise be the
// limit; a head of 256 leaves no registers for that, and its tiles are done in two halves by two CTAs.
template <int HEAD_DIM> struct Tiling {
    static constexpr uint32_t FRAGMENTS = HEAD_DIM <= 128 ? 2 : 1;  // of 16 pairs, a warp
    static constexpr uint32_t WARP_PAIRS = 16 * FRAGMENTS;
    static constexpr uint32_t PAIRS = WARPS * WARP_PAIRS;
    static constexpr uint32_t PARTS = TILE_PAIRS / PAIRS;
    static constexpr uint32_t KEYS = HEAD_DIM <= 128 ? 64 : 32;
    static constexpr uint32_t SEGMENTS = KEYS / SEGMENT;
    // A row of shared memory in chunks of 16 bytes. The eight rows that ldmatrix reads at once must lie in
    // different banks: by exchanging chunks where a row is a multiple of all banks, else by an odd number of
    // chunks.
    static constexpr uint32_t CHUNKS = HEAD_DIM / 8;
    static constexpr bool SWIZZLED = CHUNKS % 8 == 0;
    static constexpr uint32_t ROW_BYTES = 16 * (SWIZZLED ? CHUNKS : CHUNKS + 1);
    static constexpr uint32_t STAGE_BYTES = 2 * KEYS * ROW_BYTES;
    // Threads that copy a row together, a whole cache line where possible, and the rows that all copy at
    // once.
    static constexpr uint32_t ROW_THREADS = SWIZZLED ? 8 : 4;
    static constexpr uint32_t PASS_ROWS = THREADS / ROW_THREADS;

    DEVICE static uint32_t chunk(uint32_t row, uint32_t chunk) {
        return row * ROW_BYTES + 16 * (SWIZZLED ? chunk ^ (row % 8) : chunk);
    }
    // The place of chunk c + `even`, from that of c = 0 or 1: one operation with a constant.
    DEVICE static uint32_t further(uint32_t place, uint32_t even) {
        return SWIZZLED ? (place ^ 16 * (even % 8)) + 16 * (even / 8 * 8) : place + 16 * even;
    }
};

// What a CTA works on. In shared memory, as registers are scarce.
struct Work {
    PrefillTile tile;
    uint32_t first_pair, end_pair;  // this CTA's
    uint32_t group, kv_head;
    uint32_t kv_begin, kv_end;      // positions that any of the pairs sees

    DEVICE uint32_t position(uint32_t pair) const { return tile.position + pair / group; }
};

template <int HEAD_DIM> struct SharedMemory {
    using Tile = Tiling<HEAD_DIM>;
    unsigned char* start;

    DEVICE unsigned char* queries() const { return start; }
    DEVICE unsigned char* keys(uint32_t stage) const {
        return start + Tile::PAIRS * Tile::ROW_BYTES + stage * Tile::STAGE_BYTES;
    }
    DEVICE unsigned char* values(uint32_t stage) const { return keys(stage) + Tile::STAGE_BYTES / 2; }
    // Where the segments of a stage's tile begin in the cache.
    DEVICE int64_t* offsets(uint32_t stage) const { return (int64_t*)keys(2) + stage * Tile::SEGMENTS; }
    // Of the pairs' tokens.
    DEVICE uint32_t* positions() const { return (uint32_t*)offsets(2); }
    DEVICE Work* work() const { return (Work*)(positions() + Tile::PAIRS); }
};

// Looks up where a tile's segments lie; tokens that nobody sees may have no block.
template <int HEAD_DIM>
DEVICE void find_segments(const PrefillAttentionParams& p, const Work& work, uint32_t kv_tile,
                          int64_t* offsets) {
    using Tile = Tiling<HEAD_DIM>;
    if (threadIdx.x >= Tile::SEGMENTS) return;
    uint32_t position = kv_tile * Tile::KEYS + threadIdx.x * SEGMENT;
    int64_t offset = 0;
    if (position < work.kv_end) {
        const uint32_t* table = p.step.block_tables + work.tile.slot * p.step.block_table_stride;
#ifdef PLANTED_PAGE_WALK_BUG
        uint32_t index = (position - (position > 0)) / p.block_size;
#else
        uint32_t index = position / p.block_size;
#endif
        offset = table[index] * p.block_stride + position % p.block_size * p.token_stride;
    }
    offsets[threadIdx.x] = offset;
}

// Starts copying a tile's keys and values. Tokens that nobody sees become zeros: whatever their memory holds,
// NaN times a weight of 0 must not get into a sum.
template <class T, int HEAD_DIM>
DEVICE void load_kv(const PrefillAttentionParams& p, const Work& work, uint32_t kv_tile,
                    SharedMemory<HEAD_DIM> shared) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t stage = kv_tile % 2, lane = threadIdx.x % Tile::ROW_THREADS;
    const T* keys = (const T*)p.kv_cache + work.kv_head * p.head_stride;
#pragma unroll
    for (uint32_t first_row = 0; first_row < Tile::KEYS; first_row += Tile::PASS_ROWS) {
        uint32_t row = first_row + threadIdx.x / Tile::ROW_THREADS, position = kv_tile * Tile::KEYS + row;
        bool seen = position >= work.kv_begin && position < work.kv_end;
        const T* key = keys + shared.offsets(stage)[row / SEGMENT] + row % SEGMENT * p.token_stride;
#pragma unroll
        for (uint32_t first = 0; first < Tile::CHUNKS; first += Tile::ROW_THREADS) {
            uint32_t chunk = first + lane;
            uint32_t place = Tile::chunk(row, chunk);
            cp_async16_or_zero(shared.keys(stage) + place, key + chunk * 8, seen);
            cp_async16_or_zero(shared.values(stage) + place, key + chunk * 8 + p.plane_stride, seen);
        }
    }
}

// Starts copying the queries; pairs past the row's end are zeros.
template <class T, int HEAD_DIM>
DEVICE void load_queries(const PrefillAttentionParams& p, const Work& work, SharedMemory<HEAD_DIM> shared) {
    using Tile = Tiling<HEAD_DIM>;
    for (uint32_t index = threadIdx.x; index < Tile::PAIRS * Tile::CHUNKS; index += THREADS) {
        uint32_t row = index / Tile::CHUNKS, chunk = index % Tile::CHUNKS;
        bool valid = work.first_pair + row < work.end_pair;
        uint32_t pair = valid ? work.first_pair + row : work.first_pair;
        uint32_t token = work.tile.first_token + pair / work.group;
        uint32_t head = work.kv_head * work.group + pair % work.group;
        const T* query = (const T*)p.qkv + token * p.qkv_stride + head * HEAD_DIM + chunk * 8;
        cp_async16_or_zero(shared.queries() + Tile::chunk(row, chunk), query, valid);
    }
}

// A warp's pairs. In the fragments of mma, a thread holds two rows of each (`half`: row lane / 4, and 8
// further), and of these in each eight columns the two from lane % 4 * 2 on.
template <int HEAD_DIM> struct WarpState {
    using Tile = Tiling<HEAD_DIM>;
    float out[Tile::FRAGMENTS][HEAD_DIM / 8][4];
    float greatest[Tile::FRAGMENTS][2];
    float sum[Tile::FRAGMENTS][2];  // of this thread's columns

    DEVICE void start() {
#pragma unroll
        for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
#pragma unroll
            for (uint32_t n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) out[m][n][i] = 0.0f;
            }
#pragma unroll
            for (uint32_t half = 0; half < 2; half++) {
                greatest[m][half] = -INFINITY_F;
                sum[m][half] = 0.0f;
            }
        }
    }
};

template <int HEAD_DIM> using Scores = float[Tiling<HEAD_DIM>::FRAGMENTS][Tiling<HEAD_DIM>::KEYS / 8][4];

// q.k of a warp's pairs and a tile's keys.
template <class T, int HEAD_DIM>
DEVICE void multiply_keys(Scores<HEAD_DIM>& scores, const unsigned char* queries, uint32_t first_row,
                          const unsigned char* keys) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
#pragma unroll
        for (uint32_t n = 0; n < Tile::KEYS / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) scores[m][n][i] = 0.0f;
        }
    }
    uint32_t query = Tile::chunk(first_row + lane % 16, lane / 16);
    uint32_t key = Tile::chunk(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t k = 0; k < HEAD_DIM / 16; k++) {
        uint32_t a[Tile::FRAGMENTS][4];
#pragma unroll
        for (uint32_t m = 0; m < Tile::FRAGMENTS; m++)
            ldmatrix_x4(a[m], queries + Tile::further(query, 2 * k) + m * 16 * Tile::ROW_BYTES);
#pragma unroll
        for (uint32_t n = 0; n < Tile::KEYS / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, keys + Tile::further(key, 2 * k) + n * 8 * Tile::ROW_BYTES);
#pragma unroll
            for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
                mma_m16n8k16<T>(scores[m][n], a[m], b[0], b[1]);
                mma_m16n8k16<T>(scores[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// x = tanh(factor * x), without cancellation for large arguments; the error near 0 is absolute, some 1e-7.
template <int HEAD_DIM> DEVICE void cap_scores(Scores<HEAD_DIM>& scores, float factor) {
    using Tile = Tiling<HEAD_DIM>;
    const float two_log2_e = 2.885390082f;
#pragma unroll
    for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
#pragma unroll
        for (uint32_t n = 0; n < Tile::KEYS / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                float power = fast_exp2(scores[m][n][i] * factor * two_log2_e);
                scores[m][n][i] = 1.0f - __fdividef(2.0f, power + 1.0f);
            }
        }
    }
}

template <int HEAD_DIM>
DEVICE void mask_scores(Scores<HEAD_DIM>& scores, const uint32_t* positions, uint32_t first_key,
                        uint32_t window) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            uint32_t distance = positions[m * 16 + half * 8 + lane / 4] - (first_key + lane % 4 * 2);
#pragma unroll
            for (uint32_t n = 0; n < Tile::KEYS / 8; n++) {
                // Later tokens are 2^31 and more away, modulo 2^32.
                if (distance - n * 8 >= window) scores[m][n][2 * half] = -INFINITY_F;
                if (distance - n * 8 - 1 >= window) scores[m][n][2 * half + 1] = -INFINITY_F;
            }
        }
    }
}

// Replaces scores by their softmax numerators, after bringing the state to the new greatest score. For a pair
// that sees nothing of the tile all numerators are 0, and its state is multiplied by exactly 1.
template <int HEAD_DIM>
DEVICE void exponentiate(Scores<HEAD_DIM>& scores, WarpState<HEAD_DIM>& state, float exp2_factor) {
    using Tile = Tiling<HEAD_DIM>;
#pragma unroll
    for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
        float correction[2], base[2];
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float greatest = state.greatest[m][half];
#pragma unroll
            for (uint32_t n = 0; n < Tile::KEYS / 8; n++)
                greatest = fmaxf(greatest, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
            greatest = fmaxf(greatest, __shfl_xor_sync(FULL_MASK, greatest, 1));
            greatest = fmaxf(greatest, __shfl_xor_sync(FULL_MASK, greatest, 2));
            // A pair that has seen nothing yet: minus infinity minus itself would be NaN.
            float finite = greatest == -INFINITY_F ? 0.0f : greatest;
            correction[half] = fast_exp2((state.greatest[m][half] - finite) * exp2_factor);
            base[half] = finite * exp2_factor;
            state.greatest[m][half] = greatest;
        }
        // Mostly nothing changes after the first tiles.
        if (__any_sync(FULL_MASK, correction[0] != 1.0f || correction[1] != 1.0f)) {
            state.sum[m][0] *= correction[0];
            state.sum[m][1] *= correction[1];
#pragma unroll
            for (uint32_t n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) state.out[m][n][i] *= correction[i / 2];
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < Tile::KEYS / 8; n++) {
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                scores[m][n][i] = fast_exp2(fmaf(scores[m][n][i], exp2_factor, -base[i / 2]));
                state.sum[m][i / 2] += scores[m][n][i];
            }
        }
    }
}

template <class T, int HEAD_DIM>
DEVICE void add_values(WarpState<HEAD_DIM>& state, const Scores<HEAD_DIM>& weights,
                       const unsigned char* values) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t lane = threadIdx.x % 32, value = Tile::chunk(lane % 16, lane / 16);
#pragma unroll
    for (uint32_t k = 0; k < Tile::KEYS / 16; k++) {
        uint32_t a[Tile::FRAGMENTS][4];
#pragma unroll
        for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
            a[m][0] = pack2<T>(weights[m][2 * k][0], weights[m][2 * k][1]);
            a[m][1] = pack2<T>(weights[m][2 * k][2], weights[m][2 * k][3]);
            a[m][2] = pack2<T>(weights[m][2 * k + 1][0], weights[m][2 * k + 1][1]);
            a[m][3] = pack2<T>(weights[m][2 * k + 1][2], weights[m][2 * k + 1][3]);
        }
#pragma unroll
        for (uint32_t n = 0; n < HEAD_DIM / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, values + Tile::further(value, n) + k * 16 * Tile::ROW_BYTES);
#pragma unroll
            for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
                mma_m16n8k16<T>(state.out[m][n], a[m], b[0], b[1]);
                mma_m16n8k16<T>(state.out[m][n + 1], a[m], b[2], b[3]);
            }
        }
    }
}

// Divides by the sums and writes a warp's rows, through its own rows of the queries' memory.
template <class T, int HEAD_DIM>
DEVICE void store(const PrefillAttentionParams& p, const Work& work, WarpState<HEAD_DIM>& state,
                  uint32_t first_row, unsigned char* staging) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t lane = threadIdx.x % 32;
    __syncwarp();
#pragma unroll
    for (uint32_t m = 0; m < Tile::FRAGMENTS; m++) {
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float sum = state.sum[m][half];
            sum += __shfl_xor_sync(FULL_MASK, sum, 1);
            sum += __shfl_xor_sync(FULL_MASK, sum, 2);
            float factor = 1.0f / sum;
            uint32_t row = first_row + m * 16 + half * 8 + lane / 4;
#pragma unroll
            for (uint32_t n = 0; n < HEAD_DIM / 8; n++) {
                // The sign of a zero is all that tiles not seen may change: + 0 drops it.
                float low = state.out[m][n][2 * half] * factor + 0.0f;
                float high = state.out[m][n][2 * half + 1] * factor + 0.0f;
                *(uint32_t*)(staging + Tile::chunk(row, n) + lane % 4 * 4) = pack2<T>(low, high);
            }
        }
    }
    __syncwarp();
    for (uint32_t index = lane; index < Tile::WARP_PAIRS * Tile::CHUNKS; index += 32) {
        uint32_t row = first_row + index / Tile::CHUNKS, chunk = index % Tile::CHUNKS;
        uint32_t pair = work.first_pair + row;
        if (pair >= work.end_pair) break;
        uint32_t token = work.tile.first_token + pair / work.group;
        uint32_t head = work.kv_head * work.group + pair % work.group;
        T* out = (T*)p.out + token * p.out_stride + head * HEAD_DIM + chunk * 8;
        *(uint4*)out = *(const uint4*)(staging + Tile::chunk(row, chunk));
    }
}

// A warp's share of one tile of keys, if it sees any.
template <class T, int HEAD_DIM>
DEVICE void attend_tile(const PrefillAttentionParams& p, WarpState<HEAD_DIM>& state, uint32_t first_row,
                        uint32_t kv_tile, SharedMemory<HEAD_DIM> shared) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t first_key = kv_tile * Tile::KEYS, stage = kv_tile % 2;
    const uint32_t* positions = shared.positions() + first_row;
    uint32_t first = positions[0], last = positions[Tile::WARP_PAIRS - 1];
    if (first_key > last || first_key + Tile::KEYS <= first_seen(first, p.window)) return;
    Scores<HEAD_DIM> scores;
    multiply_keys<T, HEAD_DIM>(scores, shared.queries(), first_row, shared.keys(stage));
    if (p.tanh_factor != 0.0f) cap_scores<HEAD_DIM>(scores, p.tanh_factor);
    bool seen_by_all = first_key + Tile::KEYS - 1 <= first && first_key >= first_seen(last, p.window);
    if (!seen_by_all) mask_scores<HEAD_DIM>(scores, positions, first_key, p.window);
    exponentiate<HEAD_DIM>(scores, state, p.exp2_factor);
    add_values<T, HEAD_DIM>(state, scores, shared.values(stage));
}

// Finds this CTA's work; false if there is none.
template <int HEAD_DIM> DEVICE bool find_work(const PrefillAttentionParams& p, Work& work) {
    using Tile = Tiling<HEAD_DIM>;
    uint32_t part = blockIdx.x / p.num_kv_heads;
    if (part / Tile::PARTS >= *p.num_tiles) return false;
    work.tile = p.tiles[part / Tile::PARTS];
    work.kv_head = blockIdx.x % p.num_kv_heads;
    work.group = p.num_heads / p.num_kv_heads;
    work.first_pair = work.tile.first_pair + part % Tile::PARTS * Tile::PAIRS;
    work.end_pair = min(work.first_pair + Tile::PAIRS, work.tile.num_pairs);
    if (work.first_pair >= work.end_pair) return false;
    work.kv_begin = first_seen(work.position(work.first_pair), p.window);
    work.kv_end = work.position(work.end_pair - 1) + 1;
    return true;
}

// Starts the loads of queries and of the first tile of keys and values, and fills the rest of shared memory.
template <class T, int HEAD_DIM>
DEVICE void start(const PrefillAttentionParams& p, const Work& work, SharedMemory<HEAD_DIM> shared) {
    using Tile = Tiling<HEAD_DIM>;
    load_queries<T, HEAD_DIM>(p, work, shared);
    uint32_t first_tile = work.kv_begin / Tile::KEYS;
    find_segments<HEAD_DIM>(p, work, first_tile, shared.offsets(first_tile % 2));
    find_segments<HEAD_DIM>(p, work, first_tile + 1, shared.offsets((first_tile + 1) % 2));
    for (uint32_t row = threadIdx.x; row < Tile::PAIRS; row += THREADS)
        shared.positions()[row] = work.position(min(work.first_pair + row, work.end_pair - 1));
    if (threadIdx.x == 0) *shared.work() = work;
    __syncthreads();
    load_kv<T, HEAD_DIM>(p, work, first_tile, shared);
    cp_async_commit();
}

template <class T, int HEAD_DIM> DEVICE void attend(const PrefillAttentionParams& p) {
    using Tile = Tiling<HEAD_DIM>;
    SharedMemory<HEAD_DIM> shared = {shared_memory()};
    {
        Work found;
        if (!find_work<HEAD_DIM>(p, found)) return;
        start<T, HEAD_DIM>(p, found, shared);
    }
    const Work& work = *shared.work();
    uint32_t first_row = threadIdx.x / 32 * Tile::WARP_PAIRS;
    bool has_pairs = work.first_pair + first_row < work.end_pair;
    WarpState<HEAD_DIM> state;
    state.start();
    for (uint32_t kv_tile = work.kv_begin / Tile::KEYS; kv_tile * Tile::KEYS < work.kv_end; kv_tile++) {
        cp_async_wait<0>();
        // The tile is there for all, and all are done with the one before: its stage is free.
        __syncthreads();
        if ((kv_tile + 1) * Tile::KEYS < work.kv_end) load_kv<T, HEAD_DIM>(p, work, kv_tile + 1, shared);
        cp_async_commit();
        find_segments<HEAD_DIM>(p, work, kv_tile + 2, shared.offsets(kv_tile % 2));
        if (has_pairs) attend_tile<T, HEAD_DIM>(p, state, first_row, kv_tile, shared);
    }
    if (has_pairs) store<T, HEAD_DIM>(p, work, state, first_row, shared.queries());
}

} // namespace

// Grid: [tiles * parts of a tile * key-value heads]; shared memory: `Tiling::shared_bytes` in Rust.
#define PREFILL_ATTENTION(T, HEAD_DIM)                                                                   \
    KERNEL_BOUNDS(prefill_attention_##T##_d##HEAD_DIM, PrefillAttentionParams, THREADS, 2) {             \
        attend<T, HEAD_DIM>(p);                                                                          \
    }
PREFILL_ATTENTION(bf16, 32)
PREFILL_ATTENTION(bf16, 64)
PREFILL_ATTENTION(bf16, 96)
PREFILL_ATTENTION(bf16, 128)
PREFILL_ATTENTION(bf16, 256)
PREFILL_ATTENTION(f16, 32)
PREFILL_ATTENTION(f16, 64)
PREFILL_ATTENTION(f16, 96)
PREFILL_ATTENTION(f16, 128)
PREFILL_ATTENTION(f16, 256)
