// What the kernels of sampling share: the state by slot, the rows of a step, and how a logit is read.
//
// A row of logits stays as the model gave it, apart from the few logits that the request's rules change;
// their raw values are kept aside, so that log-probabilities can be taken of the raw distribution afterwards.
// Masks and penalties of the whole vocabulary are applied whenever a logit is read.
#pragma once

#include "hardware.cuh"

// Logits that one block of `sampling_process` works on. Fixed, so that sums do not depend on the batch.
const uint32_t PART_LOGITS = 8192;
const uint32_t PROCESS_THREADS = 256;
// Alternatives that a row can have; the host does rows that ask for more.
const uint32_t TOP_MAX = 64;
// Words of more than one token that can be forbidden to one request: bits of SamplingRow::armed_words.
const uint32_t ARMED_WORDS = 4;
// No best one: all are masked.
const uint32_t NO_TOKEN = 0xffffffffu;
// No grammar.
const uint32_t NO_MASK = 0xffffffffu;
// In a word of `counts`: the token is in the prompt. The other bits count it in the output.
const uint32_t IN_PROMPT = 1u << 31;

enum SlotFlag { HAS_PENALTIES = 1, HAS_ALLOWED = 2 };
enum RowFlag { IS_PROMPT = 1, WANTS_LOGPROBS = 2, LAST_TOKEN_UNKNOWN = 4 };
enum RuleKind { RULE_BIAS = 0, RULE_STOP = 1, RULE_WORD = 2 };
enum Failure { NO_FAILURE = 0, NOT_FINITE = 1, NOTHING_ALLOWED = 2 };

// How the tokens of a slot's request are chosen.
struct SlotParams {
    uint64_t seed;
    float temperature;  // 0 = greedy
    float top_p;
    float min_p;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t top_k;
    uint32_t min_tokens;
    uint32_t num_rules;
    uint32_t flags;  // SlotFlag
};
static_assert(sizeof(SlotParams) == 48, "mirrored in src/sampling/slot_state.rs");

// A change of one logit, sorted by token in a slot's list.
struct TokenRule {
    uint32_t token;
    uint32_t kind;      // RuleKind in the lowest byte; for RULE_WORD the number of the word above it
    uint32_t argument;  // RULE_BIAS: bits of the f32, -inf to mask; RULE_WORD: the token that comes before
};
static_assert(sizeof(TokenRule) == 12, "mirrored in src/sampling/slot_state.rs");

// One row of logits and what it is for.
struct SamplingRow {
    uint32_t slot;
    uint32_t output_position;
    uint32_t prompt_token;  // if IS_PROMPT
    uint32_t flags;         // RowFlag
    uint32_t num_top;       // at most TOP_MAX
    uint32_t first_top;     // where its alternatives go among those of the step
    uint32_t mask;          // which of the step's masks says what its grammar allows; NO_MASK if none does
    uint32_t armed_words[ARMED_WORDS];  // bit per word: all of it that the host can know has come to pass
};
static_assert(sizeof(SamplingRow) == 44, "mirrored in src/sampling/slot_state.rs");

struct SamplingResult {
    uint32_t token;
    float logprob;
    uint32_t rank;
    uint32_t failure;  // Failure
};
static_assert(sizeof(SamplingResult) == 16, "mirrored in src/sampling/results.rs");

struct TopEntry {
    uint32_t token;
    float logprob;
};

// What `sampling_process` found in one part of a row.
struct PartSummary {
    double raw_sum;  // of exp(logit - raw_max); only if log-probabilities are wanted
    float raw_max;
    float best;  // highest logit after processing; -inf if all are masked
    uint32_t best_id;
    uint32_t not_finite;  // raw, or after processing
};
static_assert(sizeof(PartSummary) == 24, "PART_SUMMARY_BYTES in src/sampling.rs");

// Arrays by slot and by row; the addresses never change.
struct SamplingArrays {
    SlotParams* slots;        // [S]
    TokenRule* rules;         // [S][rules_per_slot]
    uint32_t* counts;         // [S][vocab]
    uint32_t* allowed;        // [S][ceil(vocab / 32)], a bit per token
    const uint32_t* masks;    // [masks of the step][ceil(vocab / 32)], a bit per token
    uint32_t* last_tokens;    // [S]
    const SamplingRow* rows;  // [rows of the step]
    PartSummary* parts;       // [rows of a launch][parts of a row]
    float* kept_logits;       // [rows of a launch][rules_per_slot]: raw values of what the rules changed
    SamplingResult* results;  // [rows of the step]
    TopEntry* top;            // [alternatives of the step]
    uint32_t vocab;
    uint32_t rules_per_slot;
};
static_assert(sizeof(SamplingArrays) == 96, "mirrored in src/sampling/slot_state.rs");

struct SampleParams {
    SamplingArrays arrays;
    float* logits;  // [rows of the launch][vocab]
    uint32_t first_row;
    uint32_t num_parts;
};
static_assert(sizeof(SampleParams) == 112, "mirrored in src/sampling/slot_state.rs");

struct alignas(16) Float4 {
    float v[4];
};
struct alignas(16) Uint4 {
    uint32_t v[4];
};

// A row of logits as its request wants it read.
struct RowView {
    float* logits;
    const uint32_t* counts;   // null: no penalties
    const uint32_t* allowed;  // null: all are
    const uint32_t* masks;    // of the step: a parameter of the launch, which takes no register
    uint32_t mask_start;      // the first word of the row's own; NO_MASK: the grammar, if any, allows all
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t vocab;
    // Rows begin at multiples of 16 bytes.
    bool aligned;
};

DEVICE RowView raw_view(const SampleParams& p, uint32_t launch_row) {
    RowView view;
    view.logits = p.logits + (int64_t)launch_row * p.arrays.vocab;
    view.counts = nullptr;
    view.allowed = nullptr;
    view.masks = p.arrays.masks;
    view.mask_start = NO_MASK;
    view.repetition_penalty = 1.0f;
    view.frequency_penalty = 0.0f;
    view.presence_penalty = 0.0f;
    view.vocab = p.arrays.vocab;
    view.aligned = p.arrays.vocab % 4 == 0;
    return view;
}

DEVICE RowView processed_view(const SampleParams& p, uint32_t launch_row, const SamplingRow& row,
                              const SlotParams& how) {
    RowView view = raw_view(p, launch_row);
    const SamplingArrays& a = p.arrays;
    const int64_t mask_words = (a.vocab + 31) / 32;
    if (how.flags & HAS_PENALTIES) view.counts = a.counts + (int64_t)row.slot * a.vocab;
    if (how.flags & HAS_ALLOWED) view.allowed = a.allowed + row.slot * mask_words;
    if (row.mask != NO_MASK) view.mask_start = row.mask * (uint32_t)mask_words;
    view.repetition_penalty = how.repetition_penalty;
    view.frequency_penalty = how.frequency_penalty;
    view.presence_penalty = how.presence_penalty;
    return view;
}

// Each operation is rounded by itself, as on the host: products must not be fused into the sums.
DEVICE float penalised(const RowView& view, float logit, uint32_t count) {
    if (count == 0) return logit;
    logit = logit > 0.0f ? logit / view.repetition_penalty : __fmul_rn(logit, view.repetition_penalty);
    uint32_t occurrences = count & ~IN_PROMPT;
    if (occurrences == 0) return logit;
    float penalty = __fadd_rn(__fmul_rn(view.frequency_penalty, (float)occurrences), view.presence_penalty);
    return __fadd_rn(logit, -penalty);
}

// The logits `first` .. `first + 4`, processed; -inf beyond `end`.
DEVICE void read_logits(const RowView& view, uint32_t first, uint32_t end, float (&out)[4]) {
    uint32_t counts[4] = {0, 0, 0, 0};
    if (view.aligned && first + 4 <= end) {
        Float4 four = *(const Float4*)(view.logits + first);
        for (int i = 0; i < 4; i++) out[i] = four.v[i];
        if (view.counts) {
            Uint4 words = *(const Uint4*)(view.counts + first);
            for (int i = 0; i < 4; i++) counts[i] = words.v[i];
        }
    } else {
        for (int i = 0; i < 4; i++) {
            bool inside = first + i < end;
            out[i] = inside ? view.logits[first + i] : -INFINITY_F;
            if (view.counts && inside) counts[i] = view.counts[first + i];
        }
    }
    if (view.counts) {
        for (int i = 0; i < 4; i++) out[i] = penalised(view, out[i], counts[i]);
    }
    // `first` is a multiple of 4, so the four bits are in one word.
    const bool masked = view.mask_start != NO_MASK;
    if ((view.allowed || masked) && first < end) {
        uint32_t bits = view.allowed ? view.allowed[first / 32] : 0xffffffffu;
        if (masked) bits &= view.masks[view.mask_start + first / 32];
        bits >>= first % 32;
        for (int i = 0; i < 4; i++) {
            if (!(bits >> i & 1)) out[i] = -INFINITY_F;
        }
    }
}

// Whether a rule is in force for this row.
DEVICE bool applies(const TokenRule& rule, const SamplingRow& row, const SlotParams& how,
                    uint32_t last_token) {
    switch (rule.kind & 0xff) {
    case RULE_BIAS: return true;
    case RULE_STOP: return row.output_position < how.min_tokens;
    default: break;
    }
    uint32_t word = rule.kind >> 8;
    if (!(row.armed_words[word / 32] >> (word % 32) & 1)) return false;
    return !(row.flags & LAST_TOKEN_UNKNOWN) || rule.argument == last_token;
}
