// The matrix product in its plainest form: one thread an element of the output, one sum in the order of k. It is
// what cuBLASLt's products are checked with on the GPU; no model runs on it.
#include "common.cuh"

struct LinearPlainParams {
    const void* x;       // [rows][k] of T
    const void* weight;  // [n][k] of T
    const void* bias;    // [n] of Out; null for none
    void* out;           // [rows][n] of Out
    int32_t n;
    int32_t k;
};
static_assert(sizeof(LinearPlainParams) == 40, "mirrored in src/linear_plain.rs");

// Grid: (rows, n / threads, rounded up).
template <class T, class Out> DEVICE void linear_plain(const LinearPlainParams& p) {
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= p.n) return;
    const T* x = static_cast<const T*>(p.x) + (int64_t)blockIdx.x * p.k;
    const T* weight = static_cast<const T*>(p.weight) + (int64_t)column * p.k;
    float sum = 0;
    for (int i = 0; i < p.k; i++) sum = fmaf(to_float(x[i]), to_float(weight[i]), sum);
    if (p.bias != nullptr) sum += to_float(static_cast<const Out*>(p.bias)[column]);
    static_cast<Out*>(p.out)[(int64_t)blockIdx.x * p.n + column] = from_float<Out>(sum);
}

KERNEL(linear_plain_bf16_bf16, LinearPlainParams) { linear_plain<bf16, bf16>(p); }
KERNEL(linear_plain_bf16_f32, LinearPlainParams) { linear_plain<bf16, float>(p); }
KERNEL(linear_plain_f16_f16, LinearPlainParams) { linear_plain<f16, f16>(p); }
KERNEL(linear_plain_f16_f32, LinearPlainParams) { linear_plain<f16, float>(p); }
KERNEL(linear_plain_f32_f32, LinearPlainParams) { linear_plain<float, float>(p); }
