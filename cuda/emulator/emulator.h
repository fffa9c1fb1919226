// What kernels see of the emulated machine: the other half of kernels/hardware.cuh, plus those CUDA built-ins
// that our kernels use. Kernels are compiled as plain C++; each CUDA thread is a fiber (emulator.cc) which
// gives way only at barriers and at operations of a whole warp. README.md says what this shows and what it
// cannot show.
//
// Every call that waits for other threads carries its file and line, so that a report can name them.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// As a parameter's default this is the caller's file and line.
#define EMULATOR_HERE emulator::Site site = emulator::Site(__builtin_FILE(), __builtin_LINE())

// Always inlined, as on the GPU: two .cu files may then use one name for different functions.
#define DEVICE inline __attribute__((always_inline))

struct alignas(8) uint2 {
    unsigned x, y;
};
struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
DEVICE uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
DEVICE float2 make_float2(float x, float y) { return {x, y}; }
DEVICE float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

namespace emulator {

struct Warp;
struct Thread;

// A place in the kernels' sources.
struct Site {
    const char* file;
    unsigned line;
    constexpr Site(const char* file, unsigned line) : file(file), line(line) {}
};

// An operation of the lanes in `mask`: run once, by the lane that arrives last, on the operands of all.
typedef void (*Exchange)(Thread* lanes, uint32_t mask, uint32_t existing);

// The place of the thread that runs now, and its block's shared memory.
extern uint3 thread_index, block_index, block_size, grid_size;
extern uint32_t lane;
extern unsigned char* shared;

void sync_threads(Site);
// How many threads of the block came with a true `predicate`.
int sync_threads_count(int predicate, Site);
void sync_warp(uint32_t mask, Site);
uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t source, Site);
uint32_t ballot(uint32_t mask, bool predicate, Site);
void async_copy16(void* shared, const void* global, bool valid, Site);
void async_commit();
void async_wait(int pending, Site);
void load_matrices(uint32_t (&r)[4], const void* row, bool transposed, Site);
void multiply_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site);
void multiply_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site);

// With -fsanitize=thread every load and store is watched (accesses.cc); what happens while an Atomic lives is
// one atomic access.
void accesses_begin_atomic(const void* address, size_t bytes);
void accesses_end_atomic();
#if defined(__SANITIZE_THREAD__)
constexpr bool ACCESSES_WATCHED = true;
struct Atomic {
    DEVICE Atomic(const void* address, size_t bytes) { accesses_begin_atomic(address, bytes); }
    DEVICE ~Atomic() { accesses_end_atomic(); }
};
#else
constexpr bool ACCESSES_WATCHED = false;
struct Atomic {
    DEVICE Atomic(const void*, size_t) {}
};
#endif

// Adds a kernel to those that can be launched by name.
struct Registration {
    Registration(const char* name, size_t params_bytes, unsigned threads_max, bool accesses_watched,
                 void (*run)(const void*));
};

template <class T> DEVICE uint64_t to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take values of 4 or 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <class T> DEVICE T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

} // namespace emulator

#define EMULATOR_KERNEL(name, Params, threads_max)                                                           \
    static void emulated_##name(const Params& p);                                                            \
    static const emulator::Registration registered_##name(                                                   \
        #name, sizeof(Params), threads_max, emulator::ACCESSES_WATCHED,                                      \
        [](const void* p) { emulated_##name(*(const Params*)p); });                                          \
    static void emulated_##name([[maybe_unused]] const Params& p)
#define KERNEL(name, Params) EMULATOR_KERNEL(name, Params, 1024)
#define KERNEL_BOUNDS(name, Params, threads, blocks_per_sm) EMULATOR_KERNEL(name, Params, threads)

#define threadIdx (emulator::thread_index)
#define blockIdx (emulator::block_index)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

DEVICE void __syncthreads(EMULATOR_HERE) { emulator::sync_threads(site); }
DEVICE int __syncthreads_or(int x, EMULATOR_HERE) { return emulator::sync_threads_count(x, site) != 0; }
DEVICE void __syncwarp(uint32_t mask = ~0u, EMULATOR_HERE) { emulator::sync_warp(mask, site); }
DEVICE uint32_t __ballot_sync(uint32_t mask, int x, EMULATOR_HERE) { return emulator::ballot(mask, x, site); }
DEVICE int __any_sync(uint32_t mask, int x, EMULATOR_HERE) { return emulator::ballot(mask, x, site) != 0; }
DEVICE int __all_sync(uint32_t mask, int x, EMULATOR_HERE) { return emulator::ballot(mask, !x, site) == 0; }

// Shuffles: a source outside of the lane's group of `width` means the lane's own value.
template <class T> DEVICE T __shfl_sync(uint32_t mask, T value, int lane, int width = 32, EMULATOR_HERE) {
    uint32_t source = (emulator::lane & ~uint32_t(width - 1)) | (uint32_t(lane) & uint32_t(width - 1));
    return emulator::from_bits<T>(emulator::shuffle(mask, emulator::to_bits(value), source, site));
}
template <class T> DEVICE T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, EMULATOR_HERE) {
    uint32_t lane = emulator::lane, source = lane ^ uint32_t(bits);
    // A lane may read from groups before its own, but not after.
    if (source / uint32_t(width) > lane / uint32_t(width)) source = lane;
    return emulator::from_bits<T>(emulator::shuffle(mask, emulator::to_bits(value), source, site));
}
template <class T>
DEVICE T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
    uint32_t lane = emulator::lane, place = lane & uint32_t(width - 1);
    uint32_t source = place + delta < uint32_t(width) ? lane + delta : lane;
    return emulator::from_bits<T>(emulator::shuffle(mask, emulator::to_bits(value), source, site));
}
template <class T>
DEVICE T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, EMULATOR_HERE) {
    uint32_t lane = emulator::lane, place = lane & uint32_t(width - 1);
    uint32_t source = place >= delta ? lane - delta : lane;
    return emulator::from_bits<T>(emulator::shuffle(mask, emulator::to_bits(value), source, site));
}

DEVICE unsigned char* shared_memory() { return emulator::shared; }

DEVICE void cp_async16(void* shared, const void* global, EMULATOR_HERE) {
    emulator::async_copy16(shared, global, true, site);
}
DEVICE void cp_async16_or_zero(void* shared, const void* global, bool valid, EMULATOR_HERE) {
    emulator::async_copy16(shared, global, valid, site);
}
DEVICE void cp_async_commit() { emulator::async_commit(); }
template <int pending> DEVICE void cp_async_wait(EMULATOR_HERE) { emulator::async_wait(pending, site); }
DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* shared_row, EMULATOR_HERE) {
    emulator::load_matrices(r, shared_row, false, site);
}
DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* shared_row, EMULATOR_HERE) {
    emulator::load_matrices(r, shared_row, true, site);
}

DEVICE uint32_t __float_as_uint(float x) { return uint32_t(emulator::to_bits(x)); }
DEVICE float __uint_as_float(uint32_t x) { return emulator::from_bits<float>(x); }

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
DEVICE float to_float(f16 x) {
    uint32_t sign = uint32_t(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
    if (magnitude >= 0x7c00) return __uint_as_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // 2^-24 is the unit of subnormal numbers.
    if (magnitude < 0x400) return __uint_as_float(sign | __float_as_uint(float(magnitude) * 0x1p-24f));
    return __uint_as_float(sign | ((magnitude << 13) + (112u << 23)));
}
template <class T> DEVICE T from_float(float x);
template <> DEVICE float from_float<float>(float x) { return x; }
// To nearest, ties to even; a NaN becomes the hardware's one NaN.
template <> DEVICE bf16 from_float<bf16>(float x) {
    uint32_t bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> DEVICE f16 from_float<f16>(float x) {
    uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return {0x7fff};
    if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)}; // 65520 and more round to infinity
    if (magnitude < 0x38800000) {                                  // below 2^-14: subnormal
        // Adding 0.5 leaves the number's multiple of 2^-24, rounded to even, in the lowest bits.
        uint32_t units = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - __float_as_uint(0.5f);
        return {uint16_t(sign | units)};
    }
    return {uint16_t(sign | ((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}
template <class T> DEVICE uint32_t pack2(float low, float high) {
    return uint32_t(from_float<T>(low).bits) | uint32_t(from_float<T>(high).bits) << 16;
}

// Products are exact in f32; the sums are f32 in the order of k.
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, EMULATOR_HERE);
template <>
DEVICE void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               emulator::Site site) {
    emulator::multiply_bf16(d, a, b0, b1, site);
}
template <>
DEVICE void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                              emulator::Site site) {
    emulator::multiply_f16(d, a, b0, b1, site);
}

DEVICE float fast_exp2(float x) { return exp2f(x); }

// Blocks run one after another and fibers never in the middle of one of these, so plain code is atomic.
#define EMULATOR_ATOMIC(T, name, changed)                                                                    \
    DEVICE T name(T* at, T x) {                                                                              \
        [[maybe_unused]] emulator::Atomic one(at, sizeof(T));                                                \
        T old = *at;                                                                                         \
        *at = (T)(changed);                                                                                  \
        return old;                                                                                          \
    }
#define EMULATOR_ATOMICS(T) EMULATOR_ATOMIC(T, atomicAdd, old + x) EMULATOR_ATOMIC(T, atomicExch, x)
#define EMULATOR_INTEGER_ATOMICS(T)                                                                          \
    EMULATOR_ATOMICS(T)                                                                                      \
    EMULATOR_ATOMIC(T, atomicMax, old < x ? x : old)                                                         \
    EMULATOR_ATOMIC(T, atomicMin, x < old ? x : old)                                                         \
    EMULATOR_ATOMIC(T, atomicOr, old | x)                                                                    \
    DEVICE T atomicCAS(T* at, T expected, T x) {                                                             \
        [[maybe_unused]] emulator::Atomic one(at, sizeof(T));                                                \
        T old = *at;                                                                                         \
        *at = old == expected ? x : old;                                                                     \
        return old;                                                                                          \
    }
EMULATOR_INTEGER_ATOMICS(int)
EMULATOR_INTEGER_ATOMICS(unsigned)
EMULATOR_INTEGER_ATOMICS(unsigned long long)
EMULATOR_ATOMICS(float)
DEVICE void __threadfence() {}

DEVICE int __popc(unsigned x) { return __builtin_popcount(x); }
DEVICE int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
DEVICE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEVICE float __fdividef(float a, float b) { return a / b; }
// Rounded each by itself: never fused into one operation.
DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fmul_rn(float a, float b) { return a * b; }
#define EMULATOR_MIN_MAX(A, B, C)                                                                            \
    DEVICE C min(A a, B b) { return (C)a < (C)b ? (C)a : (C)b; }                                             \
    DEVICE C max(A a, B b) { return (C)a < (C)b ? (C)b : (C)a; }
EMULATOR_MIN_MAX(int, int, int)
EMULATOR_MIN_MAX(unsigned, unsigned, unsigned)
EMULATOR_MIN_MAX(int, unsigned, unsigned)
EMULATOR_MIN_MAX(unsigned, int, unsigned)
EMULATOR_MIN_MAX(long, long, long)
EMULATOR_MIN_MAX(unsigned long, unsigned long, unsigned long)
EMULATOR_MIN_MAX(long long, long long, long long)
EMULATOR_MIN_MAX(unsigned long long, unsigned long long, unsigned long long)
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }
DEVICE double min(double a, double b) { return fmin(a, b); }
DEVICE double max(double a, double b) { return fmax(a, b); }
