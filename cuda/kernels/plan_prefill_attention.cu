// The tiles of a step's rows of several tokens, listed once for all layers, the longest first: see
// prefill_attention.cu.
#include "prefill_attention.cuh"

namespace {

constexpr uint32_t PLAN_THREADS = 512;
// The size of the tiles of keys, by which work is counted.
constexpr uint32_t PLAN_KEYS = 64;

// Sum of `x` over the threads before this one; `total` becomes the sum over all. `warp_sums`: shared.
DEVICE uint32_t sum_before(uint32_t x, uint32_t* warp_sums, uint32_t& total) {
    uint32_t lane = threadIdx.x % 32, inclusive = x;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint32_t other = __shfl_up_sync(FULL_MASK, inclusive, distance);
        if (lane >= distance) inclusive += other;
    }
    __syncthreads();
    if (lane == 31) warp_sums[threadIdx.x / 32] = inclusive;
    __syncthreads();
    uint32_t before = 0;
    total = 0;
    for (uint32_t warp = 0; warp < PLAN_THREADS / 32; warp++) {
        if (warp == threadIdx.x / 32) before = total;
        total += warp_sums[warp];
    }
    return before + inclusive - x;
}

// A row of the step, to the planner.
struct PlanRow {
    uint32_t first_tile;  // in the order of rows
    uint32_t position;
    uint32_t num_pairs;   // 0 if the row is not ours

    DEVICE uint32_t num_tiles() const { return (num_pairs + TILE_PAIRS - 1) / TILE_PAIRS; }
    // Number of tiles with a token at position `reached` or later: those from that token's first pair on.
    DEVICE uint32_t tiles_reaching(uint32_t reached, uint32_t group) const {
        if (reached <= position) return num_tiles();
        uint32_t tokens = reached - position;
        if (tokens * group >= num_pairs) return 0;
        return num_tiles() - tokens * group / TILE_PAIRS;
    }
};

} // namespace

// Lists the step's tiles, those with the most keys first (so that no long one is left to the end), else in
// the order of rows and of tokens. A tile's place follows from counting those before it: of any row, the
// tiles that reach a position are known without looking at them. One CTA.
KERNEL_BOUNDS(plan_prefill_attention, PlanPrefillParams, PLAN_THREADS, 1) {
    uint32_t* warp_sums = (uint32_t*)shared_memory();
    PlanRow* rows = (PlanRow*)(warp_sums + PLAN_THREADS / 32);
    uint32_t num_rows = p.step.counts[NUM_ROWS], num_tiles = 0;
    for (uint32_t first = 0; first < num_rows; first += PLAN_THREADS) {
        uint32_t r = first + threadIdx.x, total;
        PlanRow row = {0, 0, 0};
        if (r < num_rows) {
            uint32_t len = p.step.row_starts[r + 1] - p.step.row_starts[r];
            row.position = p.step.row_positions[r];
            row.num_pairs = len < p.min_q_len ? 0 : len * p.heads_per_group;
        }
        row.first_tile = num_tiles + sum_before(row.num_tiles(), warp_sums, total);
        if (r < num_rows) rows[r] = row;
        num_tiles += total;
    }
    __syncthreads();
    if (threadIdx.x == 0) *p.num_tiles = num_tiles;
    for (uint32_t tile = threadIdx.x; tile < num_tiles; tile += PLAN_THREADS) {
        uint32_t r = 0;
        for (uint32_t end = num_rows; end - r > 1;) {
            uint32_t middle = (r + end) / 2;
            if (rows[middle].first_tile <= tile) r = middle;
            else end = middle;
        }
        uint32_t first_pair = (tile - rows[r].first_tile) * TILE_PAIRS;
        uint32_t last_pair = min(first_pair + TILE_PAIRS, rows[r].num_pairs) - 1;
        // Tiles go by the number of their tiles of keys; this one's keys end in the tile that begins here.
        uint32_t reached = (rows[r].position + last_pair / p.heads_per_group) / PLAN_KEYS * PLAN_KEYS;
        uint32_t place = 0;
        for (uint32_t other = 0; other < num_rows; other++) {
            uint32_t least = other < r ? reached : reached + PLAN_KEYS;
            place += rows[other].tiles_reaching(least, p.heads_per_group);
        }
        uint32_t first_equal = rows[r].num_tiles() - rows[r].tiles_reaching(reached, p.heads_per_group);
        place += tile - rows[r].first_tile - first_equal;
        p.tiles[place] = {p.step.row_slots[r], p.step.row_starts[r], rows[r].position, rows[r].num_pairs,
                          first_pair};
    }
}
