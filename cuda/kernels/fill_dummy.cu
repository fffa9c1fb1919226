// Weights that nobody trained, by the rule of DummyTensor in the crate `model`.
#include "common.cuh"
#include "philox.cuh"

struct FillDummyParams {
    void* out;     // [count] of T
    int64_t count;
    uint32_t seed_low;
    uint32_t seed_high;
    float centre;
    float half_width;
};
static_assert(sizeof(FillDummyParams) == 32, "mirrored in src/small_kernels.rs");

// Grid: any number of blocks.
template <class T> DEVICE void fill_dummy(const FillDummyParams& p) {
    int64_t stride = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; 4 * i < p.count; i += stride) {
        uint32_t word[4] = {(uint32_t)i, (uint32_t)(i >> 32), 0, 0};
        philox4x32(word, p.seed_low, p.seed_high);
        for (int j = 0; j < 4 && 4 * i + j < p.count; j++) {
            float unit = (float)(word[j] >> 8) / 8388608.0f - 1.0f;
            static_cast<T*>(p.out)[4 * i + j] = from_float<T>(fmaf(unit, p.half_width, p.centre));
        }
    }
}

#define DEFINE(T, name) \
    KERNEL(fill_dummy_##name, FillDummyParams) { fill_dummy<T>(p); }
FOR_EACH_TYPE(DEFINE)
