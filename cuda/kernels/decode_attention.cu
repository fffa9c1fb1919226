// Attention of rows of one token over their paged keys and values.
//
// Decoding is bound by memory, so three things decide its speed: every key and value is read once for all
// query heads that share it (they are the 16 rows of an mma tile), enough bytes are under way at any time
// (each warp streams tiles of 16 tokens through a ring of its own in shared memory, and waits for nobody),
// and every block of the grid reads the same number of bytes.
//
// The work of a layer is one line of units: row after row, in a row head after head, in a head tile after
// tile of 64 tokens. Each block takes an equal stretch of the line, whatever rows and heads it crosses; so
// the grid is fixed, and no choice of a split length has to suit short and long rows alike. A (row, head)
// that lies across several stretches leaves a partial softmax in scratch for each of them, and the block that
// finishes last merges these in the order of the tokens: the result does not depend on which one that is.
//
// The plan, made once a step (and window), is the prefix sum that finds a unit's row. A sliding window only
// shortens the rows' ranges there: tiles outside of it do not exist.
#include "common.cuh"
#include "step.cuh"

namespace {

// Tokens of a unit of work.
constexpr uint32_t TILE_TOKENS = 64;
// Tokens that a warp handles at a time: k of the second product, and a divisor of every block size.
constexpr uint32_t SUB_TOKENS = 16;
// Query heads in a tile: m of the products.
constexpr uint32_t TILE_HEADS = 16;
// Partial results of one (row, head) at most: one for each lane of the warp that weighs them.
constexpr uint32_t MAX_PARTS = 32;
constexpr int STAGES = 3;
constexpr uint32_t PLAN_THREADS = 256;

// A row of one token, and the positions that it sees.
struct alignas(16) DecodeRow {
    uint32_t token;
    uint32_t slot;
    uint32_t begin;
    uint32_t end;
};

struct DecodePlan {
    uint32_t* counts;       // [3]: rows of one token, tiles of all of them, and of the one that has most
    uint32_t* tile_starts;  // [rows + 1]: tiles of the rows before
    DecodeRow* rows;
};

struct PlanDecodeAttentionParams {
    Step step;
    DecodePlan plan;
    uint64_t window;  // positions that a token sees, itself included
};
static_assert(sizeof(PlanDecodeAttentionParams) == 112, "mirrored in src/decode_attention.rs");

struct DecodeAttentionParams {
    DecodePlan plan;
    const void* qkv;       // [T][q heads | k heads | v heads][head_dim]; only queries are read
    const void* kv_cache;  // [block][K | V][kv head][token in block][head_dim], by the strides
    void* out;             // [T][heads][head_dim]
    const uint32_t* block_tables;
    float* partials;       // [blocks of the grid][2]: see `partial_of`
    uint32_t* arrivals;    // [blocks of the grid]: all 0 between launches
    int64_t block_table_stride;
    int64_t qkv_stride;    // this and the others below: in elements
    int64_t out_stride;
    int64_t block_stride;
    int64_t plane_stride;  // from keys to values
    int64_t head_stride;
    int64_t token_stride;  // below 2^27
    uint32_t num_kv_heads;
    uint32_t heads_per_group;
    uint32_t head_tiles;   // ceil(heads_per_group / TILE_HEADS)
    uint32_t block_size;   // a multiple of SUB_TOKENS
    float power_factor;    // with a cap: 2^(power_factor q.k) is e^(2 x) for x = scale q.k / cap
    float exp2_factor;     // the softmax's exponents of 2 are this times q.k, or times tanh(x) with a cap
};
static_assert(sizeof(DecodeAttentionParams) == 152, "mirrored in src/decode_attention.rs");

DEVICE uint32_t ceil_div(uint32_t a, uint32_t b) { return (a + b - 1) / b; }

// ---- The plan ----

// Sum of `x` over the threads before this one; `total` becomes that over all. `shared` has a word for each
// warp.
DEVICE uint32_t exclusive_scan(uint32_t x, uint32_t* shared, uint32_t& total) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, sum = x;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint32_t below = __shfl_up_sync(FULL_MASK, sum, distance);
        if (lane >= distance) sum += below;
    }
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t w = 0; w < PLAN_THREADS / 32; w++) {
        if (w < warp) before += shared[w];
        total += shared[w];
    }
    __syncthreads();
    return before + sum - x;
}

}  // namespace

// One block. Lists the rows of one token in the order of the step.
KERNEL_BOUNDS(plan_decode_attention, PlanDecodeAttentionParams, PLAN_THREADS, 1) {
    uint32_t* shared = (uint32_t*)shared_memory();
    uint32_t num_rows = p.step.counts[NUM_ROWS];
    uint32_t listed = 0, tiles_before = 0, most_tiles = 0;
    for (uint32_t first = 0; first < num_rows; first += PLAN_THREADS) {
        uint32_t r = first + threadIdx.x, tiles = 0;
        DecodeRow row = {0, 0, 0, 0};
        if (r < num_rows && p.step.row_starts[r + 1] - p.step.row_starts[r] == 1) {
            row.token = p.step.row_starts[r];
            row.slot = p.step.row_slots[r];
            row.end = p.step.row_positions[r] + 1;
            row.begin = row.end > p.window ? (uint32_t)(row.end - p.window) : 0;
            tiles = ceil_div(row.end, TILE_TOKENS) - row.begin / TILE_TOKENS;
        }
        uint32_t rows_here, tiles_here;
        uint32_t index = listed + exclusive_scan(tiles != 0, shared, rows_here);
        uint32_t start = tiles_before + exclusive_scan(tiles, shared, tiles_here);
        if (tiles != 0) {
            p.plan.rows[index] = row;
            p.plan.tile_starts[index] = start;
        }
        listed += rows_here;
        tiles_before += tiles_here;
        most_tiles = max(most_tiles, tiles);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
        most_tiles = max(most_tiles, __shfl_xor_sync(FULL_MASK, most_tiles, offset));
    }
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = most_tiles;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < PLAN_THREADS / 32; w++) most_tiles = max(most_tiles, shared[w]);
        p.plan.tile_starts[listed] = tiles_before;
        p.plan.counts[0] = listed;
        p.plan.counts[1] = tiles_before;
        p.plan.counts[2] = most_tiles;
    }
}

namespace {

// ---- The tuned kernel ----

// What follows from the head dimension D.
template <int D> struct Layout {
    // A warp of D = 256 keeps twice the sums in registers, and streams twice the bytes a token.
    static constexpr int WARPS = D <= 128 ? 4 : 2;
    static constexpr int THREADS = 32 * WARPS;
    static constexpr int BLOCKS_PER_SM = D <= 64 ? 4 : 2;
    // Pieces of 16 bytes in a token's key.
    static constexpr int CHUNKS = D / 8;
    // Bytes of one stage of a warp's ring: keys, then values.
    static constexpr int PLANE_BYTES = SUB_TOKENS * D * 2;
    static constexpr int STAGE_BYTES = 2 * PLANE_BYTES;
    // Floats in a state (see below), of one head and of all.
    static constexpr int STATE_STRIDE = D + 4;
    static constexpr int STATE_LEN = TILE_HEADS * STATE_STRIDE;
    static_assert(STATE_LEN * 4 <= STAGES * STAGE_BYTES, "a warp's state takes the place of its ring");

    // Where a chunk of a token lies in its plane. The eight rows of a matrix that ldmatrix reads lie in
    // different banks: rows of a multiple of 128 bytes are told apart by three bits of the token, those of an
    // odd multiple of 64 already alternate between two halves and need two.
    DEVICE static uint32_t offset(uint32_t token, uint32_t chunk) {
        uint32_t twist = D % 64 == 0 ? token % 8 : token / 2 % 4;
        return token * (D * 2) + ((chunk ^ twist) * 16);
    }
};

// A state is what attention over some of the tokens leaves: for each query head of the tile D sums of
// weighted values, the greatest score m (times log2 e) that the weights 2^(score - m) are relative to, and
// the sum of the weights; `Layout::STATE_STRIDE` floats a head.

// Part of the work of a block: tiles of one head of one row.
struct Segment {
    uint32_t kv_head;
    uint32_t first_query_head;
    uint32_t num_query_heads;
    uint32_t begin;        // positions
    uint32_t end;
    uint32_t first_block;  // of the grid, among those that work on this row and head
    uint32_t parts;        // how many these are
};

// The last row whose tiles begin at or before `tile`. All lanes look at 32 rows at a time.
DEVICE uint32_t find_row(const DecodePlan& plan, uint32_t num_rows, uint32_t tile) {
    uint32_t lane = threadIdx.x % 32, first = 0, count = num_rows;
    while (count > 1) {
        uint32_t step = ceil_div(count, 32);
        bool before = lane * step < count && plan.tile_starts[first + lane * step] <= tile;
        uint32_t steps = (uint32_t)__popc(__ballot_sync(FULL_MASK, before)) - 1;
        first += steps * step;
        count = min(step, count - steps * step);
    }
    return first;
}

// What a warp keeps while it streams its share of a segment.
template <class T, int D> struct Warp {
    using L = Layout<D>;
    float out[D / 8][4];  // sums of weighted values, as mma's d: heads lane / 4 and lane / 4 + 8
    float greatest[2];
    float sum[2];  // of this lane's weights
    uint32_t q[D / 16][4];
    unsigned char* ring;

    // Query heads as mma's a, straight from global memory; heads that do not exist are 0.
    DEVICE void load_queries(const T* queries, uint32_t num_heads) {
        uint32_t lane = threadIdx.x % 32, head = lane / 4;
        const uint32_t* row = (const uint32_t*)(queries + head * D) + lane % 4;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            q[k][0] = head < num_heads ? row[k * 8] : 0;
            q[k][1] = head + 8 < num_heads ? row[k * 8 + 4 * D] : 0;
            q[k][2] = head < num_heads ? row[k * 8 + 4] : 0;
            q[k][3] = head + 8 < num_heads ? row[k * 8 + 4 + 4 * D] : 0;
        }
    }

    DEVICE void clear() {
#pragma unroll
        for (int n = 0; n < D / 8; n++) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0;
        greatest[0] = greatest[1] = -INFINITY_F;
        sum[0] = sum[1] = 0;
    }

    // Starts the copies of 16 tokens' keys and values. Tokens not in `begin .. end` become zeros: what lies
    // in memory there may be no numbers, and a weight of zero would not silence them.
    DEVICE void start_copies(int stage, const DecodeAttentionParams& p, const T* keys, uint32_t first_token,
                             uint32_t begin, uint32_t end) {
        unsigned char* to = ring + stage * L::STAGE_BYTES;
#pragma unroll
        for (int i = 0; i < L::CHUNKS / 2; i++) {
            uint32_t chunk = threadIdx.x % 32 + 32 * i, token = chunk / L::CHUNKS;
            chunk %= L::CHUNKS;
            bool valid = first_token + token >= begin && first_token + token < end;
            const T* key = keys + (token * (uint32_t)p.token_stride + chunk * 8);
            uint32_t offset = L::offset(token, chunk);
            cp_async16_or_zero(to + offset, key, valid);
            cp_async16_or_zero(to + L::PLANE_BYTES + offset, key + p.plane_stride, valid);
        }
    }

    // s[n] is mma's d: heads by tokens 8 n .. 8 n + 7.
    DEVICE void score(const unsigned char* keys, float (&s)[2][4]) {
        uint32_t lane = threadIdx.x % 32, token = lane / 16 * 8 + lane % 8;
        s[0][0] = s[0][1] = s[0][2] = s[0][3] = s[1][0] = s[1][1] = s[1][2] = s[1][3] = 0;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t key[4];
            ldmatrix_x4(key, keys + L::offset(token, 2 * k + lane / 8 % 2));
            mma_m16n8k16<T>(s[0], q[k], key[0], key[1]);
            mma_m16n8k16<T>(s[1], q[k], key[2], key[3]);
        }
    }

    // Scores become weights relative to the greatest so far, and what was added before follows.
    DEVICE void weigh(float (&s)[2][4]) {
        float factor[2];
        bool grown = false;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = greatest[half];
#pragma unroll
            for (int n = 0; n < 2; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
            grown |= most > greatest[half];
            factor[half] = fast_exp2(greatest[half] - most);
            greatest[half] = most;
            float weights = 0;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                s[n][2 * half] = fast_exp2(s[n][2 * half] - most);
                s[n][2 * half + 1] = fast_exp2(s[n][2 * half + 1] - most);
                weights += s[n][2 * half] + s[n][2 * half + 1];
            }
            sum[half] = sum[half] * factor[half] + weights;
        }
        // Seldom true after the first few tiles.
        if (__any_sync(FULL_MASK, grown)) {
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                out[n][0] *= factor[0];
                out[n][1] *= factor[0];
                out[n][2] *= factor[1];
                out[n][3] *= factor[1];
            }
        }
    }

    DEVICE void add_values(const unsigned char* values, const float (&s)[2][4]) {
        uint32_t lane = threadIdx.x % 32, token = lane % 16;
        // Pairs of neighbours in mma's d are what its a has in a word.
        uint32_t weights[4] = {pack2<T>(s[0][0], s[0][1]), pack2<T>(s[0][2], s[0][3]),
                               pack2<T>(s[1][0], s[1][1]), pack2<T>(s[1][2], s[1][3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t value[4];
            ldmatrix_x4_trans(value, values + L::offset(token, 2 * n + lane / 16));
            mma_m16n8k16<T>(out[2 * n], weights, value[0], value[1]);
            mma_m16n8k16<T>(out[2 * n + 1], weights, value[2], value[3]);
        }
    }

    DEVICE void store_state(float* state, uint32_t num_heads) {
        uint32_t lane = threadIdx.x % 32;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float all = sum[half] + __shfl_xor_sync(FULL_MASK, sum[half], 1);
            all += __shfl_xor_sync(FULL_MASK, all, 2);
            uint32_t head = lane / 4 + 8 * half;
            if (head >= num_heads) continue;
            float* row = state + head * L::STATE_STRIDE;
#pragma unroll
            for (int n = 0; n < D / 8; n++) {
                *(float2*)(row + n * 8 + lane % 4 * 2) = make_float2(out[n][2 * half], out[n][2 * half + 1]);
            }
            if (lane % 4 == 0) *(float2*)(row + D) = make_float2(greatest[half], all);
        }
    }
};

// Scores become exponents of 2; those of tokens not in `begin .. end` are -inf.
template <bool CAPPED>
DEVICE void scale_and_mask(const DecodeAttentionParams& p, float (&s)[2][4], uint32_t first_token,
                           uint32_t begin, uint32_t end) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if constexpr (CAPPED) {
                // tanh(x) = 1 - 2 / (e^2x + 1), which has the right limits.
                s[n][i] = 1 - __fdividef(2, fast_exp2(s[n][i] * p.power_factor) + 1);
            }
            s[n][i] *= p.exp2_factor;
        }
    }
    if (first_token >= begin && first_token + SUB_TOKENS <= end) return;
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t token = first_token + 8 * n + threadIdx.x % 4 * 2 + i % 2;
            if (token < begin || token >= end) s[n][i] = -INFINITY_F;
        }
    }
}

// This warp's share of a segment: every WARPS-th run of 16 tokens.
template <class T, int D, bool CAPPED>
DEVICE void stream_tokens(const DecodeAttentionParams& p, const DecodeRow& row, const Segment& segment,
                          Warp<T, D>& warp) {
    constexpr uint32_t WARPS = Layout<D>::WARPS;
    const uint32_t* table = p.block_tables + row.slot * p.block_table_stride;
    const T* kv = (const T*)p.kv_cache + segment.kv_head * p.head_stride;
    uint32_t lane = threadIdx.x % 32, subs_per_block = p.block_size / SUB_TOKENS;
    uint32_t first = segment.begin / SUB_TOKENS + threadIdx.x / 32, end = ceil_div(segment.end, SUB_TOKENS);
    uint32_t count = first < end ? ceil_div(end - first, WARPS) : 0;
    uint32_t block = 0;  // that of run `lane` in the present 32 runs

    for (uint32_t i = 0; i < count + STAGES - 1; i++) {
        if (i >= STAGES - 1) {
            cp_async_wait<STAGES - 2>();
            // Now all lanes' copies of the oldest stage are there, and all are done with the one before it.
            __syncwarp();
        }
        if (i < count) {
            if (i % 32 == 0 && i + lane < count) {
                uint32_t sub = first + (i + lane) * WARPS;
#ifdef PLANTED_PAGE_WALK_BUG
                sub -= sub != 0;
#endif
                block = table[sub / subs_per_block];
            }
            uint32_t sub = first + i * WARPS;
            const T* keys = kv + __shfl_sync(FULL_MASK, block, i % 32) * p.block_stride +
                            sub % subs_per_block * SUB_TOKENS * p.token_stride;
            warp.start_copies(i % STAGES, p, keys, sub * SUB_TOKENS, segment.begin, segment.end);
        }
        // Groups are counted, so there is one even when there is nothing to copy.
        cp_async_commit();
        if (i < STAGES - 1) continue;
        uint32_t done = i - (STAGES - 1);
        const unsigned char* keys = warp.ring + done % STAGES * Layout<D>::STAGE_BYTES;
        float s[2][4];
        warp.score(keys, s);
        scale_and_mask<CAPPED>(p, s, (first + done * WARPS) * SUB_TOKENS, segment.begin, segment.end);
        warp.weigh(s);
        warp.add_values(keys + Layout<D>::PLANE_BYTES, s);
    }
    cp_async_wait<0>();
}

DEVICE void add_weighted(float4& sum, float weight, const float* from) {
    float4 x = *(const float4*)from;
    sum = make_float4(sum.x + weight * x.x, sum.y + weight * x.y, sum.z + weight * x.z, sum.w + weight * x.w);
}

template <class T> DEVICE void store4(T* out, float4 x) {
    *(uint2*)out = make_uint2(pack2<T>(x.x, x.y), pack2<T>(x.z, x.w));
}

// One state of the warps' states, which lie in shared memory: the result, or this block's partial one.
template <class T, int D>
DEVICE void merge_warps(const float* states, uint32_t num_heads, T* out, float* partial) {
    using L = Layout<D>;
    for (uint32_t i = threadIdx.x; i < num_heads * (D / 4); i += L::THREADS) {
        uint32_t head = i / (D / 4), column = i % (D / 4) * 4;
        const float* row = states + head * L::STATE_STRIDE;
        float most = -INFINITY_F, weights = 0;
        for (int w = 0; w < L::WARPS; w++) most = fmaxf(most, row[w * L::STATE_LEN + D]);
        float4 sum = make_float4(0, 0, 0, 0);
        for (int w = 0; w < L::WARPS; w++) {
            const float* state = row + w * L::STATE_LEN;
            float weight = fast_exp2(state[D] - most);
            weights += weight * state[D + 1];
            add_weighted(sum, weight, state + column);
        }
        if (partial) {
            *(float4*)(partial + head * L::STATE_STRIDE + column) = sum;
            if (column == 0) *(float2*)(partial + head * L::STATE_STRIDE + D) = make_float2(most, weights);
        } else {
            float inverse = 1 / weights;
            sum = make_float4(sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse);
            store4(out + head * D + column, sum);
        }
    }
}

// A block leaves at most two partial results: of a (row, head) that began in a block before, and of one that
// begins here and does not end here.
template <int D>
DEVICE float* partial_of(const DecodeAttentionParams& p, const Segment& segment, uint32_t part) {
    return p.partials + (2 * (int64_t)(segment.first_block + part) + (part == 0)) * Layout<D>::STATE_LEN;
}

// Whether this block is the last of the segment's; then the others' partial results can be read. One thread's
// fence covers what the whole block wrote before the barrier, and what it reads after the next.
DEVICE bool is_last_to_arrive(const DecodeAttentionParams& p, const Segment& segment) {
    uint32_t* arrived = (uint32_t*)shared_memory();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrivals = p.arrivals + segment.first_block;
        __threadfence();
        *arrived = atomicAdd(arrivals, 1u) + 1;
        __threadfence();
        if (*arrived == segment.parts) *arrivals = 0;
    }
    __syncthreads();
    bool last = *arrived == segment.parts;
    __syncthreads();
    return last;
}

// The result from the partial ones, added in the order of the tokens.
template <class T, int D>
DEVICE void merge_parts(const DecodeAttentionParams& p, const Segment& segment, T* out) {
    using L = Layout<D>;
    float* weights = (float*)shared_memory();  // [TILE_HEADS][MAX_PARTS]
    uint32_t lane = threadIdx.x % 32;
    for (uint32_t head = threadIdx.x / 32; head < segment.num_query_heads; head += L::WARPS) {
        float2 state = make_float2(-INFINITY_F, 0);
        if (lane < segment.parts) {
            state = *(const float2*)(partial_of<D>(p, segment, lane) + head * L::STATE_STRIDE + D);
        }
        float weight = fast_exp2(state.x - warp_max(state.x));
        weights[head * MAX_PARTS + lane] = weight / warp_sum(weight * state.y);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < segment.num_query_heads * (D / 4); i += L::THREADS) {
        uint32_t head = i / (D / 4), column = i % (D / 4) * 4;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 8
        for (uint32_t part = 0; part < segment.parts; part++) {
            const float* row = partial_of<D>(p, segment, part) + head * L::STATE_STRIDE;
            add_weighted(sum, weights[head * MAX_PARTS + part], row + column);
        }
        store4(out + head * D + column, sum);
    }
}

template <class T, int D, bool CAPPED>
DEVICE void attend_segment(const DecodeAttentionParams& p, const DecodeRow& row, const Segment& segment) {
    using L = Layout<D>;
    float* states = (float*)shared_memory();
    uint32_t warp_index = threadIdx.x / 32;
    {
        Warp<T, D> warp;
        warp.ring = shared_memory() + warp_index * (STAGES * L::STAGE_BYTES);
        const T* queries = (const T*)p.qkv + row.token * p.qkv_stride + segment.first_query_head * D;
        warp.load_queries(queries, segment.num_query_heads);
        warp.clear();
        stream_tokens<T, D, CAPPED>(p, row, segment, warp);
        __syncthreads();
        warp.store_state(states + warp_index * L::STATE_LEN, segment.num_query_heads);
    }
    __syncthreads();
    T* out = (T*)p.out + row.token * p.out_stride + segment.first_query_head * D;
    bool whole = segment.parts == 1;
    float* partial = whole ? nullptr : partial_of<D>(p, segment, blockIdx.x - segment.first_block);
    merge_warps<T, D>(states, segment.num_query_heads, out, partial);
    if (!whole && is_last_to_arrive(p, segment)) merge_parts<T, D>(p, segment, out);
    // The next segment's copies go where this one's states are.
    __syncthreads();
}

template <class T, int D, bool CAPPED> DEVICE void decode_attention(const DecodeAttentionParams& p) {
    uint32_t num_rows = p.plan.counts[0], heads = p.num_kv_heads * p.head_tiles;
    uint32_t units = p.plan.counts[1] * heads;
    // Not fewer than lets a row and head have parts in MAX_PARTS blocks at most, wherever it begins.
    uint32_t stretch = max(ceil_div(units, gridDim.x), ceil_div(p.plan.counts[2], MAX_PARTS - 1));
    uint32_t unit = blockIdx.x * stretch, units_end = min(unit + stretch, units);
    if (unit >= units_end) return;
    uint32_t r = find_row(p.plan, num_rows, unit / heads);
    while (unit < units_end) {
        uint32_t row_start = p.plan.tile_starts[r], tiles = p.plan.tile_starts[r + 1] - row_start;
        uint32_t head = (unit - row_start * heads) / tiles;
        if (head >= heads) {
            r++;
            continue;
        }
        uint32_t head_start = row_start * heads + head * tiles;
        uint32_t segment_end = min(head_start + tiles, units_end);
        DecodeRow row = p.plan.rows[r];
        uint32_t first_tile = row.begin / TILE_TOKENS;
        Segment segment;
        segment.kv_head = head / p.head_tiles;
        uint32_t head_in_group = head % p.head_tiles * TILE_HEADS;
        segment.first_query_head = segment.kv_head * p.heads_per_group + head_in_group;
        segment.num_query_heads = min(TILE_HEADS, p.heads_per_group - head_in_group);
        segment.begin = max(row.begin, (first_tile + unit - head_start) * TILE_TOKENS);
        segment.end = min(row.end, (first_tile + segment_end - head_start) * TILE_TOKENS);
        segment.first_block = head_start / stretch;
        segment.parts = (head_start + tiles - 1) / stretch - segment.first_block + 1;
        attend_segment<T, D, CAPPED>(p, row, segment);
        unit = segment_end;
    }
}

}  // namespace

#define DECODE_ATTENTION(T, D)                                                                                \
    KERNEL_BOUNDS(decode_attention_##T##_d##D, DecodeAttentionParams, Layout<D>::THREADS,                     \
                  Layout<D>::BLOCKS_PER_SM) {                                                                 \
        decode_attention<T, D, false>(p);                                                                     \
    }                                                                                                         \
    KERNEL_BOUNDS(decode_attention_softcap_##T##_d##D, DecodeAttentionParams, Layout<D>::THREADS,             \
                  Layout<D>::BLOCKS_PER_SM) {                                                                 \
        decode_attention<T, D, true>(p);                                                                      \
    }
#define DECODE_ATTENTION_FOR(T) \
    DECODE_ATTENTION(T, 32)     \
    DECODE_ATTENTION(T, 64)     \
    DECODE_ATTENTION(T, 96)     \
    DECODE_ATTENTION(T, 128)    \
    DECODE_ATTENTION(T, 256)
DECODE_ATTENTION_FOR(bf16)
DECODE_ATTENTION_FOR(f16)
