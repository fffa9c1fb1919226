// What several families of kernels need: reductions in a fixed order, and loads of eight elements at a time.
#pragma once

#include "hardware.cuh"

#define FOR_EACH_TYPE(MACRO) MACRO(float, f32) MACRO(bf16, bf16) MACRO(f16, f16)

// The sum over a warp, in every lane. The order is a fixed tree.
DEVICE float warp_sum(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(FULL_MASK, x, offset);
    return x;
}

// The greatest of a warp, in every lane.
DEVICE float warp_max(float x) {
    for (int offset = 16; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, offset));
    return x;
}

// The sum over a block of full warps, in every thread; `shared` has a float a warp. Ends with a barrier, so that
// the caller may use `shared` again.
DEVICE float block_sum(float x, float* shared) {
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += shared[warp];
    __syncthreads();
    return sum;
}

// Eight neighbours, at an address that is a multiple of their size.
DEVICE void load8(const float* from, float (&to)[8]) {
    float4 low = reinterpret_cast<const float4*>(from)[0], high = reinterpret_cast<const float4*>(from)[1];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}
template <class T> DEVICE T from_bits(uint32_t bits) {
    T x;
    x.bits = (uint16_t)bits;
    return x;
}
template <class T> DEVICE void load8(const T* from, float (&to)[8]) {
    uint4 words = *reinterpret_cast<const uint4*>(from);
    uint32_t w[4] = {words.x, words.y, words.z, words.w};
    for (int i = 0; i < 4; i++) {
        to[2 * i] = to_float(from_bits<T>(w[i]));
        to[2 * i + 1] = to_float(from_bits<T>(w[i] >> 16));
    }
}
DEVICE void store8(float* to, const float (&from)[8]) {
    reinterpret_cast<float4*>(to)[0] = float4{from[0], from[1], from[2], from[3]};
    reinterpret_cast<float4*>(to)[1] = float4{from[4], from[5], from[6], from[7]};
}
template <class T> DEVICE void store8(T* to, const float (&from)[8]) {
    *reinterpret_cast<uint4*>(to) = uint4{pack2<T>(from[0], from[1]), pack2<T>(from[2], from[3]),
                                          pack2<T>(from[4], from[5]), pack2<T>(from[6], from[7])};
}
