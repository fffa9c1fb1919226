// Sampling, second half: one block a row chooses the token, or takes the prompt's, and its log-probability.
// sampling.cu comes before it.

#include "philox.cuh"
#include "preference.cuh"

// The whole part of `total` times the number in [0, 1) that decides the output token at `output_position`:
// the same 53 random bits as `uniform` in model/src/philox.rs, here the upper ones of 64.
DEVICE uint64_t draw(uint32_t output_position, uint64_t seed, uint64_t total) {
    uint32_t words[4] = {output_position, 0, 0, 0};
    philox4x32(words, (uint32_t)seed, (uint32_t)(seed >> 32));
    return __umul64hi(wide(words[1], words[0]) >> 11 << 11, total);
}

// Joins the parts of the row; done by the first warp.
DEVICE void join_parts(const PartSummary* parts, uint32_t num_parts, bool wants_logprobs, ChooseShared& s) {
    float max = -INFINITY_F, raw_max = -INFINITY_F;
    uint32_t best_id = NO_TOKEN, not_finite = 0;
    // Parts in ascending order, so that a later one must be higher.
    for (uint32_t i = threadIdx.x; i < num_parts; i += 32) {
        raw_max = fmaxf(raw_max, parts[i].raw_max);
        not_finite |= parts[i].not_finite;
        if (parts[i].best > max) {
            max = parts[i].best;
            best_id = parts[i].best_id;
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        float other_max = __shfl_xor_sync(FULL_MASK, max, step);
        uint32_t other_id = __shfl_xor_sync(FULL_MASK, best_id, step);
        raw_max = fmaxf(raw_max, __shfl_xor_sync(FULL_MASK, raw_max, step));
        not_finite |= __shfl_xor_sync(FULL_MASK, not_finite, step);
        if (other_max > max || (other_max == max && other_id < best_id)) {
            max = other_max;
            best_id = other_id;
        }
    }
    double sum = 0.0;
    if (wants_logprobs) {
        for (uint32_t i = threadIdx.x; i < num_parts; i += 32) {
            sum += parts[i].raw_sum * exp((double)parts[i].raw_max - (double)raw_max);
        }
        for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, step);
    }
    if (threadIdx.x == 0) {
        s.max = max;
        s.best_id = best_id;
        s.raw_max = raw_max;
        s.not_finite = not_finite;
        s.log_sum = wants_logprobs ? (double)raw_max + log(sum) : 0.0;
    }
}

// Draws from what min-p, top-k and top-p leave, by inverse CDF in order of preference.
DEVICE uint32_t draw_filtered(const Weighted& row, const SlotParams& how, uint32_t output_position,
                              ChooseShared& s) {
    fill_bins(row, s);
    uint64_t mass = wide(s.total_low, s.total_high);
    Selected selected = {mass, 0};
    enum { TOP_K, TOP_P, DRAW };
#pragma unroll 1
    for (int step = TOP_K; step <= DRAW; step++) {
        uint64_t wanted = how.top_k;
        if (step == TOP_K) {
            if (how.top_k == 0 || how.top_k >= s.total_count) continue;
        } else if (step == TOP_P) {
            if (how.top_p >= 1.0f) continue;
            double wanted_mass = (double)how.top_p * (double)mass;
            wanted = (uint64_t)wanted_mass;
            if ((double)wanted < wanted_mass) wanted++;
            wanted = min(max(wanted, (uint64_t)1), mass);
        } else {
            wanted = draw(output_position, how.seed, mass) + 1;
        }
        selected = select(row, step == TOP_K, wanted, s);
        mass = selected.weight;
    }
    return token_of(selected.candidate);
}

// Draws by inverse CDF in the order of ids. Each warp weighs whole segments of the row; the segment in which
// the draw falls is gone through once more.
DEVICE uint32_t draw_unfiltered(const Weighted& row, const SlotParams& how, uint32_t output_position,
                                ChooseShared& s) {
    const uint32_t vocab = row.view.vocab, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    const uint32_t segments = (vocab + SEGMENT_LOGITS - 1) / SEGMENT_LOGITS;
    float four[4];
#pragma unroll 4
    for (uint32_t segment = threadIdx.x / 32; segment < segments; segment += warps) {
        read_logits(row.view, segment * SEGMENT_LOGITS + 4 * lane, vocab, four);
        uint64_t weight = 0;
        for (int i = 0; i < 4; i++) weight += row.weight(row.place(four[i]));
        weight = warp_sum(weight);
        if (lane == 0) s.segment_weights[segment] = weight;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        uint64_t total = 0;
        for (uint32_t i = lane; i < segments; i += 32) total += s.segment_weights[i];
        uint64_t wanted = draw(output_position, how.seed, warp_sum(total)) + 1, before = 0;
        uint32_t segment = 0;
        for (uint32_t base = 0; base < segments; base += 32) {
            uint64_t weight = base + lane < segments ? s.segment_weights[base + lane] : 0;
            uint64_t sums = before + warp_prefix_sum(weight);
            uint32_t reached = __ballot_sync(FULL_MASK, sums >= wanted);
            if (reached) {
                int first = __ffs((int)reached) - 1;
                segment = base + first;
                before = __shfl_sync(FULL_MASK, sums - weight, first);
                break;
            }
            before = __shfl_sync(FULL_MASK, sums, 31);
        }
        uint32_t first = segment * SEGMENT_LOGITS + 4 * lane;
        read_logits(row.view, first, vocab, four);
        uint64_t weights[4], own = 0;
        for (int i = 0; i < 4; i++) own += weights[i] = row.weight(row.place(four[i]));
        uint64_t sum = before + warp_prefix_sum(own) - own;
        for (uint32_t i = 0; i < 4; i++) {
            if (sum < wanted && sum + weights[i] >= wanted) s.token = first + i;
            sum += weights[i];
        }
    }
    __syncthreads();
    return s.token;
}

DEVICE uint32_t choose(const SampleParams& p, const SamplingRow& row, const SlotParams& how,
                       ChooseShared& s) {
    if (how.temperature == 0.0f) return s.best_id;
    Weighted weighted = {processed_view(p, blockIdx.x, row, how), s.max, how.temperature, how.min_p};
    bool filtered = (how.top_k > 0 && how.top_k < p.arrays.vocab) || how.top_p < 1.0f;
    return filtered ? draw_filtered(weighted, how, row.output_position, s)
                    : draw_unfiltered(weighted, how, row.output_position, s);
}

// Makes the row what the model gave: the opposite of `apply_rules`.
DEVICE void restore_logits(const SampleParams& p, const SamplingRow& row, uint32_t num_rules, float* logits) {
    const TokenRule* rules = p.arrays.rules + (int64_t)row.slot * p.arrays.rules_per_slot;
    const float* kept = p.arrays.kept_logits + (int64_t)blockIdx.x * p.arrays.rules_per_slot;
    for (uint32_t i = threadIdx.x; i < num_rules; i += blockDim.x) {
        if (i == 0 || rules[i - 1].token != rules[i].token) logits[rules[i].token] = kept[i];
    }
    __syncthreads();
}

// The number of raw logits above `logit`.
DEVICE uint32_t count_higher(const Ranked& row, float logit, ChooseShared& s) {
    if (threadIdx.x == 0) s.num_higher = 0;
    __syncthreads();
    uint32_t higher = 0;
    for_each_logit(row, [&](float place, uint32_t) { higher += place > logit; });
    __syncwarp();
    higher = (uint32_t)warp_sum(higher);
    if (threadIdx.x % 32 == 0) atomicAdd(&s.num_higher, higher);
    __syncthreads();
    return s.num_higher;
}

// Writes the `count` best of the raw row, best first.
DEVICE void write_top(const Ranked& row, uint32_t count, TopEntry* out, ChooseShared& s) {
    fill_bins(row, s);
    uint64_t last = select(row, true, count, s).candidate;
    if (threadIdx.x == 0) s.num_top = 0;
    __syncthreads();
    auto take = [&](float, uint64_t candidate) {
        if (candidate <= last) s.top[atomicAdd(&s.num_top, 1u)] = candidate;
    };
    const bool all_listed = s.first_listed_bin == 0 && s.end_listed_bin > 0;
    if (all_listed) {
        for_each_listed(s, take);
    } else {
        for_each_in_bins(row, 0, NUM_BINS, take);
    }
    __syncthreads();
    if (threadIdx.x < count) {
        uint64_t own = s.top[threadIdx.x];
        uint32_t rank = 0;
        for (uint32_t i = 0; i < count; i++) rank += s.top[i] < own;
        double logit = (double)from_preference_key((uint32_t)(own >> 32));
        out[rank] = {token_of(own), (float)(logit - s.log_sum)};
    }
}

// Grid: one block a row of the launch.
KERNEL_BOUNDS(sampling_choose, SampleParams, 1024, 1) {
    ChooseShared& s = *(ChooseShared*)shared_memory();
    const SamplingArrays& a = p.arrays;
    const SamplingRow& row = a.rows[p.first_row + blockIdx.x];
    const SlotParams& how = a.slots[row.slot];
    const bool is_prompt = row.flags & IS_PROMPT, wants_logprobs = row.flags & WANTS_LOGPROBS;
    if (threadIdx.x < 32) {
        join_parts(a.parts + (int64_t)blockIdx.x * p.num_parts, p.num_parts, wants_logprobs, s);
    }
    __syncthreads();
    SamplingResult result = {0, 0.0f, 0, NO_FAILURE};
    if (s.not_finite) {
        result.failure = NOT_FINITE;
    } else if (!is_prompt && s.best_id == NO_TOKEN) {
        result.failure = NOTHING_ALLOWED;
    } else {
        result.token = is_prompt ? row.prompt_token : choose(p, row, how, s);
    }
    if (wants_logprobs && result.failure == NO_FAILURE) {
        Ranked ranked = {raw_view(p, blockIdx.x), s.raw_max};
        if (!is_prompt) restore_logits(p, row, how.num_rules, ranked.view.logits);
        float own = ranked.view.logits[result.token];
        result.logprob = (float)((double)own - s.log_sum);
        result.rank = 1 + count_higher(ranked, own, s);
        if (row.num_top > 0) write_top(ranked, min(row.num_top, a.vocab), a.top + row.first_top, s);
    }
    if (threadIdx.x != 0) return;
    a.results[p.first_row + blockIdx.x] = result;
    if (is_prompt) return;
    // A row that failed has no token; what follows it must still be in the vocabulary.
    a.last_tokens[row.slot] = result.token;
    if (how.flags & HAS_PENALTIES) a.counts[(int64_t)row.slot * a.vocab + result.token]++;
}
