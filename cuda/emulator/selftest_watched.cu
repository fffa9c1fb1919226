// Kernels that are right in some order of threads or by luck, and are caught because each load and store is
// watched (see accesses.cc).

#include "../kernels/hardware.cuh"

struct SelftestParams {
    const float* in;
    float* out;
    int64_t count; // of `in` and `out`
};

// Right: what orders accesses, and what need not be ordered.
KERNEL(selftest_watched_ordered, SelftestParams) {
    float* values = (float*)shared_memory();
    int* total = (int*)(values + blockDim.x);
    if (threadIdx.x == 0) *total = 0;
    values[threadIdx.x] = p.in[threadIdx.x];
    __syncwarp();
    float neighbour = values[threadIdx.x ^ 1];
    __syncthreads();
    atomicAdd(total, 1);
    neighbour += values[0]; // all threads read the same
    __syncthreads();
    values[threadIdx.x] = neighbour + (float)*total;
    p.out[threadIdx.x] = values[threadIdx.x];
}

// Each warp reads what the next one may not have replaced yet.
KERNEL(selftest_watched_read_race, SelftestParams) {
    float* values = (float*)shared_memory();
    values[threadIdx.x] = p.in[threadIdx.x];
    __syncthreads();
    float other = values[threadIdx.x ^ 32];
    values[threadIdx.x] = other;
}

// A shuffle is no barrier for memory.
KERNEL(selftest_watched_shuffle_race, SelftestParams) {
    float* values = (float*)shared_memory();
    values[threadIdx.x] = p.in[threadIdx.x];
    float sum = __shfl_xor_sync(FULL_MASK, p.in[threadIdx.x], 1);
    p.out[threadIdx.x] = sum + values[threadIdx.x ^ 1];
}

KERNEL(selftest_watched_atomic_race, SelftestParams) {
    int* total = (int*)shared_memory();
    if (threadIdx.x == 0) *total = 0;
    atomicAdd(total, 1);
    __syncthreads();
    p.out[threadIdx.x] = (float)*total;
}

// Reads past the end, where the allocation's alignment leaves bytes.
KERNEL(selftest_watched_out_of_bounds, SelftestParams) { p.out[0] = p.in[p.count]; }
