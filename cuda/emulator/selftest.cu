// Kernels that show what the emulation catches: one that is right, and one for each kind of mistake. This
// file alone is compiled without watching each load and store, which would catch some of them first.

#include "../kernels/hardware.cuh"

struct SelftestParams {
    const float* in;
    float* out;
    int64_t count; // of `in` and `out`
};
static_assert(sizeof(SelftestParams) == 24, "mirrored in tests/emulator.rs");

DEVICE float selftest_warp_sum(float value) {
    for (int bits = 16; bits; bits /= 2) value += __shfl_xor_sync(FULL_MASK, value, bits);
    return value;
}

// out[i] = in[i] + the sum of the block's part of `in`.
KERNEL_BOUNDS(selftest_add_sum, SelftestParams, 256, 1) {
    float* sums = (float*)shared_memory();
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float own = i < p.count ? p.in[i] : 0, sum = selftest_warp_sum(own);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += sums[warp];
    if (i < p.count) p.out[i] = own + sum;
}

KERNEL(selftest_missing_barrier, SelftestParams) {
    float* values = (float*)shared_memory();
    values[threadIdx.x] = p.in[threadIdx.x];
    p.out[threadIdx.x] = values[threadIdx.x ^ 32];
}

KERNEL(selftest_divergent_barrier, SelftestParams) {
    if (threadIdx.x < 40) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    p.out[threadIdx.x] = 1;
}

KERNEL(selftest_barrier_after_return, SelftestParams) {
    if (threadIdx.x == 7) return;
    __syncthreads();
    p.out[threadIdx.x] = 1;
}

KERNEL(selftest_lonely_shuffle, SelftestParams) {
    float value = p.in[threadIdx.x];
    if (threadIdx.x % 2) value = selftest_warp_sum(value);
    __syncthreads();
    p.out[threadIdx.x] = value;
}

// Each thread reads what it copied itself, but before it waits.
KERNEL(selftest_early_read, SelftestParams) {
    float4* tile = (float4*)shared_memory();
    cp_async16(&tile[threadIdx.x], (const float4*)p.in + threadIdx.x);
    cp_async_commit();
    float4 value = tile[threadIdx.x];
    cp_async_wait<0>();
    ((float4*)p.out)[threadIdx.x] = value;
}

KERNEL(selftest_shared_overrun, SelftestParams) {
    float* values = (float*)shared_memory();
    values[threadIdx.x + 1] = p.in[threadIdx.x];
}

// Launched with `count` bytes of shared memory. The byte behind them is within the 16 bytes to which they are
// rounded up: found when the block ends.
KERNEL(selftest_shared_overrun_by_a_byte, SelftestParams) {
    shared_memory()[p.count] = 0;
    p.out[threadIdx.x] = 1;
}

KERNEL(selftest_misaligned_copy, SelftestParams) {
    cp_async16(shared_memory() + 4, p.in);
    cp_async_wait<0>();
}

KERNEL(selftest_misaligned_ldmatrix, SelftestParams) {
    uint32_t r[4];
    ldmatrix_x4(r, shared_memory() + threadIdx.x * 8);
    p.out[threadIdx.x] = __uint_as_float(r[0]);
}

KERNEL(selftest_misaligned_load, SelftestParams) {
    ((float4*)p.out)[threadIdx.x] = *(const float4*)(p.in + 1);
}

// Past the end by more than what the alignment of allocations leaves.
KERNEL(selftest_out_of_bounds, SelftestParams) {
    __syncthreads();
    p.out[p.count + 64 + threadIdx.x] = 1;
}

// Past the end by one element: found at the next wait.
KERNEL(selftest_out_of_bounds_by_one, SelftestParams) { p.out[threadIdx.x + 1] = p.in[threadIdx.x]; }

KERNEL(selftest_stack_overflow, SelftestParams) {
    volatile float values[1 << 18];
    values[threadIdx.x] = 1;
    p.out[threadIdx.x] = values[threadIdx.x];
}
