// The activation of a gated MLP: silu(gate) * up.
#include "common.cuh"

struct SiluMulParams {
    const void* gate_up;  // [rows][gate: width | up: width] of T
    void* out;            // [rows][width] of T
    int32_t width;        // a multiple of 8
    int32_t unused;
};
static_assert(sizeof(SiluMulParams) == 24, "mirrored in src/small_kernels.rs");

// Grid: (rows, width / (8 * threads), rounded up).
template <class T> DEVICE void silu_mul(const SiluMulParams& p) {
    int i = 8 * (blockIdx.y * blockDim.x + threadIdx.x);
    if (i >= p.width) return;
    const T* gate = static_cast<const T*>(p.gate_up) + (int64_t)blockIdx.x * 2 * p.width + i;
    float g[8], u[8];
    load8(gate, g);
    load8(gate + p.width, u);
    for (int j = 0; j < 8; j++) g[j] = g[j] / (1 + expf(-g[j])) * u[j];
    store8(static_cast<T*>(p.out) + (int64_t)blockIdx.x * p.width + i, g);
}

#define DEFINE(T, name) \
    KERNEL(silu_mul_##name, SiluMulParams) { silu_mul<T>(p); }
FOR_EACH_TYPE(DEFINE)
