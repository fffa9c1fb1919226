// Selection in order of preference (higher logit first, then lower id) without sorting, for one block and one
// row.
//
// A candidate's weight is a whole number, so that sums of weights are exact and do not depend on the order in
// which threads add them: the choice is the same every time and in every batch. Candidates are counted and
// weighed into bins of a 64th of a nat below the best, once; a selection finds the bin in which a prefix
// reaches what is wanted and then narrows it by digits of (logit, id).
#pragma once

#include "sampling.cuh"

// Bins of the distance to the best logit: 32 nats of a 64th each.
const uint32_t NUM_BINS = 2048;
const float BINS_PER_NAT = 64.0f;
const uint32_t NUM_DIGITS = 256;
// Candidates that are listed, so that narrowing need not read the row again.
const uint32_t MAX_LISTED = 2048;
// Segments of SEGMENT_LOGITS in the largest vocabulary, 2^19: what one warp reads at once.
const uint32_t SEGMENT_LOGITS = 128;
const uint32_t MAX_SEGMENTS = 4096;
// The weight of the best candidate. Sums of 2^19 weights are below 2^64.
const float WEIGHT_ONE = 17592186044416.0f;  // 2^44

struct Histogram {
    uint32_t* counts;
    uint32_t* low;   // of the weights
    uint32_t* high;
};

// Where a prefix of the candidates ends: in this bin or digit, which is not empty.
struct Found {
    uint64_t weight_before;
    uint64_t weight;
    uint32_t count_before;
    uint32_t count;
    uint32_t index;
};

struct ChooseShared {
    union {
        struct {
            uint32_t bin_counts[NUM_BINS];
            uint32_t bin_low[NUM_BINS];
            uint32_t bin_high[NUM_BINS];
            uint32_t digit_counts[NUM_DIGITS];
            uint32_t digit_low[NUM_DIGITS];
            uint32_t digit_high[NUM_DIGITS];
            uint64_t listed[MAX_LISTED];
        };
        uint64_t segment_weights[MAX_SEGMENTS];
    };
    uint64_t top[TOP_MAX];
    Found found;
    uint64_t selected;
    double log_sum;
    float max;
    float raw_max;
    uint32_t best_id;
    uint32_t not_finite;
    uint32_t num_listed;
    // The candidates of these bins are in `listed`.
    uint32_t first_listed_bin;
    uint32_t end_listed_bin;
    uint32_t total_count;
    uint32_t total_low;
    uint32_t total_high;
    uint32_t num_higher;
    uint32_t num_top;
    uint32_t token;
};
// Less than the 48 KiB that every GPU gives a block without asking.
static_assert(sizeof(ChooseShared) == 44648, "CHOOSE_SHARED_BYTES in src/sampling.rs");

// `low` and `high` are the halves of a sum in shared memory, where the hardware adds 32-bit words only.
DEVICE void add_wide(uint32_t* low, uint32_t* high, uint64_t value) {
    uint32_t value_low = (uint32_t)value, value_high = (uint32_t)(value >> 32);
    if (value_low) value_high += atomicAdd(low, value_low) > 0xffffffffu - value_low;
    if (value_high) atomicAdd(high, value_high);
}

DEVICE uint64_t wide(uint32_t low, uint32_t high) { return (uint64_t)high << 32 | low; }

// Ascending in order of preference: the higher number first. Not for NaN.
DEVICE uint32_t preference_key(float x) {
    uint32_t bits = __float_as_uint(x);
    return bits >> 31 ? bits : ~(bits | 0x80000000u);
}

DEVICE float from_preference_key(uint32_t key) {
    return __uint_as_float(key >> 31 ? key : ~key & 0x7fffffffu);
}

// A row whose candidates are drawn from: their preference is by the logit below the best, over the
// temperature.
struct Weighted {
    RowView view;
    float max;
    float temperature;
    float min_p;

    DEVICE float place(float logit) const { return (logit - max) / temperature; }
    DEVICE uint64_t weight(float place) const {
        // e^-32 * 2^44 is below 1.
        if (!(place > -32.0f)) return 0;
        float weight = expf(place);
        return weight >= min_p ? (uint64_t)(weight * WEIGHT_ONE) : 0;
    }
    // Candidates without weight can neither be drawn nor change a mass.
    DEVICE bool is_candidate(float, uint64_t weight) const { return weight > 0; }
    DEVICE uint32_t bin(float place) const { return (uint32_t)(place * -BINS_PER_NAT); }
};

// A row of raw logits, all of which count and weigh nothing.
struct Ranked {
    RowView view;
    float max;

    // Adding zero makes one of the two zeros.
    DEVICE float place(float logit) const { return logit + 0.0f; }
    DEVICE uint64_t weight(float) const { return 0; }
    DEVICE bool is_candidate(float, uint64_t) const { return true; }
    DEVICE uint32_t bin(float place) const {
        return (uint32_t)fminf((max - place) * BINS_PER_NAT, (float)(NUM_BINS - 1));
    }
};

// Calls `body(place, id)` for every logit of the row, from any thread of the block. Not unrolled: the block's
// warps together have enough reads on their way, and the bodies are long.
template <class Row, class Body> DEVICE void for_each_logit(const Row& row, Body body) {
    const uint32_t vocab = row.view.vocab;
#pragma unroll 1
    for (uint32_t first = 4 * threadIdx.x; first < vocab; first += 4 * blockDim.x) {
        float four[4];
        read_logits(row.view, first, vocab, four);
        for (uint32_t i = 0; i < 4; i++) {
            if (first + i < vocab) body(row.place(four[i]), first + i);
        }
    }
}

DEVICE uint64_t warp_sum(uint64_t x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
    return x;
}

DEVICE uint64_t warp_prefix_sum(uint64_t x) {
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t before = __shfl_up_sync(FULL_MASK, x, step);
        if (threadIdx.x % 32 >= step) x += before;
    }
    return x;
}

// Counts and weighs all candidates into the bins, and in total. The last bin has no upper end: it is counted
// in registers, since a row may have nearly all its logits there.
template <class Row> DEVICE void fill_bins(const Row& row, ChooseShared& s) {
    for (uint32_t i = threadIdx.x; i < NUM_BINS; i += blockDim.x) {
        s.bin_counts[i] = s.bin_low[i] = s.bin_high[i] = 0;
    }
    if (threadIdx.x == 0) {
        s.total_count = s.total_low = s.total_high = 0;
        s.first_listed_bin = s.end_listed_bin = 0;
    }
    __syncthreads();
    uint64_t total = 0;
    uint32_t count = 0, far = 0;
    for_each_logit(row, [&](float place, uint32_t) {
        uint64_t weight = row.weight(place);
        if (!row.is_candidate(place, weight)) return;
        count++;
        total += weight;
        uint32_t bin = row.bin(place);
        if (bin == NUM_BINS - 1) {
            far++;
            return;
        }
        atomicAdd(s.bin_counts + bin, 1u);
        add_wide(s.bin_low + bin, s.bin_high + bin, weight);
    });
    __syncwarp();
    total = warp_sum(total);
    uint64_t counts = warp_sum((uint64_t)count << 32 | far);
    if (threadIdx.x % 32 == 0) {
        add_wide(&s.total_low, &s.total_high, total);
        atomicAdd(&s.total_count, (uint32_t)(counts >> 32));
        atomicAdd(s.bin_counts + NUM_BINS - 1, (uint32_t)counts);
    }
    __syncthreads();
}

// The first entry at which the sum of counts, or of weights, reaches `wanted` (at least 1, at most the
// total).
DEVICE Found find_entry(const Histogram& histogram, uint32_t entries, bool by_count, uint64_t wanted,
                        ChooseShared& s) {
    if (threadIdx.x < 32) {
        uint64_t weight_before = 0, count_before = 0;
        // Nearly always the first bins suffice: the best are there.
        for (uint32_t base = 0; base < entries; base += 32) {
            uint32_t i = base + threadIdx.x;
            uint64_t count = histogram.counts[i], weight = wide(histogram.low[i], histogram.high[i]);
            uint64_t counts = count_before + warp_prefix_sum(count);
            uint64_t weights = weight_before + warp_prefix_sum(weight);
            uint32_t reached = __ballot_sync(FULL_MASK, (by_count ? counts : weights) >= wanted);
            if (reached) {
                if (threadIdx.x == (uint32_t)__ffs((int)reached) - 1) {
                    s.found = {weights - weight, weight, (uint32_t)(counts - count), (uint32_t)count, i};
                }
                break;
            }
            count_before = __shfl_sync(FULL_MASK, counts, 31);
            weight_before = __shfl_sync(FULL_MASK, weights, 31);
        }
    }
    __syncthreads();
    return s.found;
}

// A candidate, and the weight of all up to and with it in order of preference.
struct Selected {
    uint64_t weight;
    uint64_t candidate;  // preference key and id
};

DEVICE uint32_t token_of(uint64_t candidate) { return (uint32_t)candidate; }

// Calls `body(place, candidate)` for the candidates of the bins `first` .. `end`.
template <class Row, class Body>
DEVICE void for_each_in_bins(const Row& row, uint32_t first, uint32_t end, Body body) {
    for_each_logit(row, [&](float place, uint32_t id) {
        if (!row.is_candidate(place, row.weight(place))) return;
        uint32_t bin = row.bin(place);
        if (bin >= first && bin < end) body(place, (uint64_t)preference_key(place) << 32 | id);
    });
}

template <class Body> DEVICE void for_each_listed(const ChooseShared& s, Body body) {
    for (uint32_t i = threadIdx.x; i < s.num_listed; i += blockDim.x) {
        uint64_t candidate = s.listed[i];
        body(from_preference_key((uint32_t)(candidate >> 32)), candidate);
    }
}

// Whether the candidates of the bin are listed. Lists them if they are not too many, and with them those of
// all bins before, among which the next selections will be.
template <class Row> DEVICE bool list_bin(const Row& row, const Found& found, ChooseShared& s) {
    const uint32_t bin = found.index;
    if (bin >= s.first_listed_bin && bin < s.end_listed_bin) return true;
    if (found.count > MAX_LISTED) return false;
    const uint32_t first = found.count_before + found.count <= MAX_LISTED ? 0 : bin;
    __syncthreads();
    if (threadIdx.x == 0) {
        s.num_listed = 0;
        s.first_listed_bin = first;
        s.end_listed_bin = bin + 1;
    }
    __syncthreads();
    for_each_in_bins(row, first, bin + 1, [&](float, uint64_t candidate) {
        s.listed[atomicAdd(&s.num_listed, 1u)] = candidate;
    });
    __syncthreads();
    return true;
}

// Calls `body(place, candidate)` for the candidates of one bin.
template <class Row, class Body>
DEVICE void for_each_in_bin(const Row& row, uint32_t bin, bool listed, const ChooseShared& s, Body body) {
    if (listed) {
        for_each_listed(s, [&](float place, uint64_t candidate) {
            if (row.bin(place) == bin) body(place, candidate);
        });
    } else {
        for_each_in_bins(row, bin, bin + 1, body);
    }
}

// Lowest bit of each digit of a candidate: four of the key, then three that cover ids below 2^24.
DEVICE int digit_shift(int level) { return level < 4 ? 56 - 8 * level : 48 - 8 * level; }

// The first candidate in order of preference at which the count, or weight, of all so far reaches `wanted`,
// which is at least 1 and at most the total of the bins.
template <class Row> DEVICE Selected select(const Row& row, bool by_count, uint64_t wanted, ChooseShared& s) {
    Found found = find_entry({s.bin_counts, s.bin_low, s.bin_high}, NUM_BINS, by_count, wanted, s);
    const uint32_t bin = found.index;
    const bool listed = list_bin(row, found, s);
    uint64_t weight_before = found.weight_before, digits = 0;
    uint64_t left = wanted - (by_count ? found.count_before : found.weight_before);
    int level = 0;
    for (; level < 7 && found.count > 1; level++) {
        for (uint32_t i = threadIdx.x; i < NUM_DIGITS; i += blockDim.x) {
            s.digit_counts[i] = s.digit_low[i] = s.digit_high[i] = 0;
        }
        __syncthreads();
        const int shift = digit_shift(level);
        for_each_in_bin(row, bin, listed, s, [&](float place, uint64_t candidate) {
            if (level > 0 && candidate >> digit_shift(level - 1) != digits) return;
            uint32_t digit = candidate >> shift & (NUM_DIGITS - 1);
            atomicAdd(s.digit_counts + digit, 1u);
            add_wide(s.digit_low + digit, s.digit_high + digit, row.weight(place));
        });
        __syncthreads();
        found = find_entry({s.digit_counts, s.digit_low, s.digit_high}, NUM_DIGITS, by_count, left, s);
        left -= by_count ? found.count_before : found.weight_before;
        weight_before += found.weight_before;
        const int previous = level > 0 ? digit_shift(level - 1) : 64;
        digits = (previous < 64 ? digits << (previous - shift) : 0) | found.index;
    }
    // The digits so far belong to one candidate.
    for_each_in_bin(row, bin, listed, s, [&](float, uint64_t candidate) {
        if (level == 0 || candidate >> digit_shift(level - 1) == digits) s.selected = candidate;
    });
    __syncthreads();
    Selected selected = {weight_before + found.weight, s.selected};
    // The next selection writes what this one was read from.
    __syncthreads();
    return selected;
}
