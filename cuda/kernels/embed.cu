// Rows of the embedding, into the residual stream.
#include "common.cuh"
#include "step.cuh"

struct EmbedParams {
    Step step;
    const void* table;  // [vocab][width] of T
    float* out;         // [T][width]
    int32_t width;      // a multiple of 8
    int32_t unused;
};
static_assert(sizeof(EmbedParams) == 104, "mirrored in src/small_kernels.rs");

// Grid: a block a token.
template <class T> DEVICE void embed(const EmbedParams& p) {
    const T* row = static_cast<const T*>(p.table) + (int64_t)p.step.token_ids[blockIdx.x] * p.width;
    float* out = p.out + (int64_t)blockIdx.x * p.width;
    for (int i = 8 * threadIdx.x; i < p.width; i += 8 * blockDim.x) {
        float x[8];
        load8(row + i, x);
        store8(out + i, x);
    }
}

#define DEFINE(T, name) \
    KERNEL(embed_##name, EmbedParams) { embed<T>(p); }
FOR_EACH_TYPE(DEFINE)
