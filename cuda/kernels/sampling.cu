// Sampling, first half: brings requests into slots, and processes logits with as many blocks as a row has
// parts, so that one row keeps the whole GPU busy. sampling_choose.cu does the rest.

#include "sampling.cuh"

enum UpdateFlag { SETS_PARAMS = 1, CLEARS_COUNTS = 2 };

// News of one slot. Its words follow one another: rules (3 each), allowed, prompt tokens, output tokens.
struct SlotUpdate {
    SlotParams params;  // if SETS_PARAMS
    uint32_t slot;
    uint32_t flags;  // UpdateFlag
    uint32_t first_word;
    uint32_t num_rules;
    uint32_t num_allowed_words;
    uint32_t num_prompt_tokens;
    uint32_t num_output_tokens;
    uint32_t reserved;
};
static_assert(sizeof(SlotUpdate) == 80, "mirrored in src/sampling/upload.rs");

struct AdmitParams {
    SamplingArrays arrays;
    const SlotUpdate* updates;
    const uint32_t* words;
};
static_assert(sizeof(AdmitParams) == 112, "mirrored in src/sampling/upload.rs");

// Grid: one block an update; no two updates of a launch have one slot.
KERNEL_BOUNDS(sampling_admit, AdmitParams, 256, 1) {
    const SlotUpdate update = p.updates[blockIdx.x];
    const SamplingArrays& a = p.arrays;
    const uint32_t* words = p.words + update.first_word;
    if ((update.flags & SETS_PARAMS) && threadIdx.x == 0) a.slots[update.slot] = update.params;

    uint32_t* rules = (uint32_t*)(a.rules + (int64_t)update.slot * a.rules_per_slot);
    for (uint32_t i = threadIdx.x; i < 3 * update.num_rules; i += blockDim.x) rules[i] = words[i];
    words += 3 * update.num_rules;

    uint32_t* allowed = a.allowed + (int64_t)update.slot * ((a.vocab + 31) / 32);
    for (uint32_t i = threadIdx.x; i < update.num_allowed_words; i += blockDim.x) allowed[i] = words[i];
    words += update.num_allowed_words;

    uint32_t* counts = a.counts + (int64_t)update.slot * a.vocab;
    if (update.flags & CLEARS_COUNTS) {
        for (uint32_t i = threadIdx.x; i < a.vocab; i += blockDim.x) counts[i] = 0;
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < update.num_prompt_tokens; i += blockDim.x) {
        atomicOr(counts + words[i], IN_PROMPT);
    }
    words += update.num_prompt_tokens;
    for (uint32_t i = threadIdx.x; i < update.num_output_tokens; i += blockDim.x) {
        atomicAdd(counts + words[i], 1u);
    }
}

// Best logit so far; the lower id among equals.
struct Best {
    float logit;
    uint32_t id;
};

DEVICE Best better(Best a, Best b) {
    bool second = b.logit > a.logit || (b.logit == a.logit && b.id < a.id);
    return second ? b : a;
}

struct RawScan {
    float max;
    bool not_finite;
    Best best;
};

DEVICE RawScan scan(const RowView& view, uint32_t begin, uint32_t end) {
    RawScan found = {-INFINITY_F, false, {-INFINITY_F, NO_TOKEN}};
#pragma unroll 4
    for (uint32_t first = begin + 4 * threadIdx.x; first < end; first += 4 * PROCESS_THREADS) {
        float four[4];
        read_logits(view, first, end, four);
        for (uint32_t i = 0; i < 4; i++) {
            if (first + i >= end) continue;
            found.max = fmaxf(found.max, four[i]);
            found.not_finite |= !isfinite(four[i]);
            if (four[i] > found.best.logit) found.best = {four[i], first + i};
        }
    }
    return found;
}

// NaN, or infinite in the direction that no mask gives.
DEVICE bool overflows(float logit) { return !(logit < INFINITY_F); }

DEVICE RawScan scan_processed(const RowView& view, uint32_t begin, uint32_t end) {
    RawScan found = {-INFINITY_F, false, {-INFINITY_F, NO_TOKEN}};
    for (uint32_t first = begin + 4 * threadIdx.x; first < end; first += 4 * PROCESS_THREADS) {
        float four[4];
        read_logits(view, first, end, four);
        for (uint32_t i = 0; i < 4; i++) {
            if (first + i >= end) continue;
            found.not_finite |= overflows(four[i]);
            if (four[i] > found.best.logit) found.best = {four[i], first + i};
        }
    }
    return found;
}

// Every thread gets the maximum over the block. `shared` has room for a value of each warp.
DEVICE float block_max(float x, float* shared) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    for (uint32_t warp = 0; warp < PROCESS_THREADS / 32; warp++) x = fmaxf(x, shared[warp]);
    return x;
}

// The same order for every part of every row: thread by its elements, warp by halves, warps one by one.
DEVICE double block_sum(double x, double* shared) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0.0;
    for (uint32_t warp = 0; warp < PROCESS_THREADS / 32; warp++) sum += shared[warp];
    return sum;
}

DEVICE Best block_best(Best best, Best* shared) {
    for (int step = 16; step > 0; step /= 2) {
        Best other = {__shfl_xor_sync(FULL_MASK, best.logit, step),
                      __shfl_xor_sync(FULL_MASK, best.id, step)};
        best = better(best, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t warp = 0; warp < PROCESS_THREADS / 32; warp++) best = better(best, shared[warp]);
    return best;
}

// Changes the logits of the part that the rules name. Rules of one token are neighbours: the thread of the
// first does them all in their order.
DEVICE void apply_rules(const SampleParams& p, const SamplingRow& row, const SlotParams& how, float* logits,
                        uint32_t begin, uint32_t end) {
    const SamplingArrays& a = p.arrays;
    const TokenRule* rules = a.rules + (int64_t)row.slot * a.rules_per_slot;
    float* kept = a.kept_logits + (int64_t)blockIdx.y * a.rules_per_slot;
    uint32_t last_token = a.last_tokens[row.slot];
    for (uint32_t i = threadIdx.x; i < how.num_rules; i += PROCESS_THREADS) {
        uint32_t token = rules[i].token;
        if (token < begin || token >= end || (i > 0 && rules[i - 1].token == token)) continue;
        float logit = logits[token];
        kept[i] = logit;
        for (uint32_t j = i; j < how.num_rules && rules[j].token == token; j++) {
            TokenRule rule = rules[j];
            if (!applies(rule, row, how, last_token)) continue;
            logit = (rule.kind & 0xff) == RULE_BIAS ? logit + __uint_as_float(rule.argument) : -INFINITY_F;
        }
        logits[token] = logit;
    }
}

DEVICE double sum_of_weights(const RowView& view, uint32_t begin, uint32_t end, float max) {
    float sum = 0.0f;
    for (uint32_t first = begin + 4 * threadIdx.x; first < end; first += 4 * PROCESS_THREADS) {
        float four[4];
        read_logits(view, first, end, four);
        for (uint32_t i = 0; i < 4; i++) sum += expf(four[i] - max);
    }
    return (double)sum;
}

// Grid: (parts of a row, rows of the launch).
KERNEL_BOUNDS(sampling_process, SampleParams, 256, 4) {
    const SamplingArrays& a = p.arrays;
    const SamplingRow& row = a.rows[p.first_row + blockIdx.y];
    const SlotParams& how = a.slots[row.slot];
    uint32_t begin = blockIdx.x * PART_LOGITS, end = min(begin + PART_LOGITS, a.vocab);
    unsigned char* shared = shared_memory();

    RowView raw = raw_view(p, blockIdx.y);
    RawScan found = scan(raw, begin, end);
    bool not_finite = found.not_finite;
    PartSummary summary;
    summary.raw_sum = 0.0;
    summary.raw_max = block_max(found.max, (float*)shared);
    if (row.flags & WANTS_LOGPROBS) {
        summary.raw_sum = block_sum(sum_of_weights(raw, begin, end, summary.raw_max), (double*)shared);
    }
    bool changes = how.num_rules > 0 || (how.flags & (HAS_PENALTIES | HAS_ALLOWED)) || row.mask != NO_MASK;
    if (!(row.flags & IS_PROMPT) && changes) {
        // Nobody may still be reading what the rules change.
        __syncthreads();
        apply_rules(p, row, how, raw.logits, begin, end);
        __syncthreads();
        RowView view = processed_view(p, blockIdx.y, row, how);
        found = scan_processed(view, begin, end);
        not_finite |= found.not_finite;
    }
    Best best = block_best(found.best, (Best*)shared);
    int anywhere = __syncthreads_or(not_finite);
    if (threadIdx.x == 0) {
        summary.best = best.logit;
        summary.best_id = best.id;
        summary.not_finite = anywhere != 0;
        a.parts[(int64_t)blockIdx.y * p.num_parts + blockIdx.x] = summary;
    }
}
