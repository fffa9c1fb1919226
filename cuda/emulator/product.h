// The arithmetic of the stand-in for cuBLASLt.
#pragma once

#include <stdint.h>

namespace product {

// With CUDA's numbers (cudaDataType_t).
enum Type : int32_t { F32 = 0, F16 = 2, BF16 = 14 };

// How the parts of a sum over k are added; with cuBLASLt's numbers (cublasLtReductionScheme_t).
enum Reduction : uint32_t { NONE = 0, INPLACE = 1, COMPUTE_TYPE = 2, OUTPUT_TYPE = 4 };

// The order of a sum over k. Two orders give different bits.
struct Order {
    uint32_t chunk;   // so many elements of k are summed in 16 lanes, the lanes added, then the chunks; a multiple of 16
    uint32_t split_k; // parts computed apart
    Reduction reduction;
};

// d[n * rows] = alpha * a[k * n]ᵀ b[k * rows] + beta * c[n * rows] (+ bias[n]), columns first. All sums are in f32.
// Copied into streams and graphs as bytes: addresses are the device's, 8-byte members come first.
struct Task {
    const void *a, *b, *c, *bias; // bias may be null
    void* d;
    float* workspace; // split_k * rows * n, if split_k > 1
    int64_t lda, ldb, ldc, ldd;
    float alpha, beta;
    int32_t n, k, rows;
    Type input, output; // a and b; c, d and bias
    Order order;
    uint32_t delay_us; // of sleep
};

// Does a Task. Takes a pointer to nothing in particular, for streams.
void run(const void* task);

inline int64_t bytes(Type type) { return type == F32 ? 4 : 2; }

} // namespace product
