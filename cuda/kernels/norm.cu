// RMSNorm and LayerNorm of rows, with the addition to the residual stream fused in. One block computes one row,
// always in the same order, so a row's result does not depend on its company.
#include "common.cuh"

struct NormParams {
    const void* x;       // [rows][width] of T, to be added to the residual; null if there is nothing to add
    float* residual;     // [rows][width], updated in place
    const void* weight;  // [width] of T
    const void* bias;    // [width] of T, of LayerNorm; null for none
    void* out;           // [rows][width] of T
    int32_t width;       // a multiple of 8
    float eps;
};
static_assert(sizeof(NormParams) == 48, "mirrored in src/small_kernels.rs");

// Adds, keeps the sums in shared memory, and gives their total.
template <class T> DEVICE float add_to_residual(const NormParams& p, float* row) {
    const T* x = static_cast<const T*>(p.x);
    int64_t first = (int64_t)blockIdx.x * p.width;
    float total = 0;
    for (int i = 8 * threadIdx.x; i < p.width; i += 8 * blockDim.x) {
        float sum[8], added[8];
        load8(p.residual + first + i, sum);
        if (x != nullptr) {
            load8(x + first + i, added);
            for (int j = 0; j < 8; j++) sum[j] += added[j];
            store8(p.residual + first + i, sum);
        }
        store8(row + i, sum);
        for (int j = 0; j < 8; j++) total += sum[j];
    }
    return total;
}

// Shared memory: a float a warp (32 of them), then the row.
template <class T, bool layer_norm> DEVICE void norm(const NormParams& p) {
    float* partial = reinterpret_cast<float*>(shared_memory());
    float* row = partial + 32;
    float total = add_to_residual<T>(p, row);
    float mean = layer_norm ? block_sum(total, partial) / p.width : 0;
    // Each thread reads back only what it wrote itself, so no barrier is needed here.
    float squares = 0;
    for (int i = 8 * threadIdx.x; i < p.width; i += 8 * blockDim.x) {
        for (int j = 0; j < 8; j++) squares += (row[i + j] - mean) * (row[i + j] - mean);
    }
    float scale = rsqrtf(block_sum(squares, partial) / p.width + p.eps);
    const T *weight = static_cast<const T*>(p.weight), *bias = static_cast<const T*>(p.bias);
    T* out = static_cast<T*>(p.out) + (int64_t)blockIdx.x * p.width;
    for (int i = 8 * threadIdx.x; i < p.width; i += 8 * blockDim.x) {
        float w[8], b[8] = {}, y[8];
        load8(weight + i, w);
        if (layer_norm && bias != nullptr) load8(bias + i, b);
        for (int j = 0; j < 8; j++) y[j] = (row[i + j] - mean) * scale * w[j] + b[j];
        store8(out + i, y);
    }
}

#define DEFINE(T, name)                                                  \
    KERNEL(rms_norm_##name, NormParams) { norm<T, false>(p); }           \
    KERNEL(layer_norm_##name, NormParams) { norm<T, true>(p); }
FOR_EACH_TYPE(DEFINE)
