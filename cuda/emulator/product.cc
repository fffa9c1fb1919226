// Matrix products in plain C++, fast enough to serve a small model: f32 in registers, 16 lanes, four rows at a time.
// How an element is summed depends on the order that is asked for, and on nothing else: not on the number of
// rows, nor on the place of a row among them.

#include "product.h"

#include <string.h>
#include <time.h>
#include <vector>

#include "emulator.h"

#if defined(__x86_64__)
// The widest vectors that the processor has; chosen when the library is loaded.
#define FOR_EVERY_PROCESSOR __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EVERY_PROCESSOR
#endif

namespace product {

namespace {

constexpr int LANES = 16, ROWS = 4;
typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));

FOR_EVERY_PROCESSOR void widen(const bf16* from, int64_t count, float* to) {
    typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2)));
    typedef uint32_t Words __attribute__((vector_size(4 * LANES), aligned(4)));
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES)
        *(Words*)(to + i) = __builtin_convertvector(*(const Halves*)(from + i), Words) << 16;
    for (; i < count; i++) to[i] = to_float(from[i]);
}

void widen(const f16* from, int64_t count, float* to) {
    for (int64_t i = 0; i < count; i++) to[i] = to_float(from[i]);
}

// Elements first..first + count of a column, as f32, with zeros up to `padded`.
void load(Type type, const void* column, int64_t first, int64_t count, int64_t padded, float* to) {
    switch (type) {
    case F32: memcpy(to, (const float*)column + first, count * 4); break;
    case BF16: widen((const bf16*)column + first, count, to); break;
    case F16: widen((const f16*)column + first, count, to); break;
    }
    for (int64_t i = count; i < padded; i++) to[i] = 0;
}

float get(Type type, const void* at, int64_t i) {
    switch (type) {
    case F32: return ((const float*)at)[i];
    case BF16: return to_float(((const bf16*)at)[i]);
    case F16: return to_float(((const f16*)at)[i]);
    }
    __builtin_trap();
}

void put(Type type, void* at, int64_t i, float value) {
    switch (type) {
    case F32: ((float*)at)[i] = value; return;
    case BF16: ((bf16*)at)[i] = from_float<bf16>(value); return;
    case F16: ((f16*)at)[i] = from_float<f16>(value); return;
    }
}

float rounded(Type type, float value) {
    float kept;
    put(type, &kept, 0, value);
    return get(type, &kept, 0);
}

DEVICE float sum_of(const Lanes& lanes) {
    float parts[LANES];
    memcpy(parts, &lanes, sizeof parts);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) parts[i] += parts[i + width];
    return parts[0];
}

// sums[r] = weight · x[r * stride], k a multiple of 16. Each row is summed as if it were alone.
template <int COUNT>
DEVICE void dot(const float* weight, const float* x, int64_t stride, int64_t k, int64_t chunk, float* sums) {
    for (int r = 0; r < COUNT; r++) sums[r] = 0;
    for (int64_t begin = 0; begin < k; begin += chunk) {
        int64_t end = begin + chunk < k ? begin + chunk : k;
        Lanes lanes[COUNT] = {};
        for (int64_t i = begin; i < end; i += LANES) {
            Lanes w = *(const Lanes*)(weight + i);
#pragma GCC unroll 8
            for (int r = 0; r < COUNT; r++) lanes[r] += w * *(const Lanes*)(x + r * stride + i);
        }
        for (int r = 0; r < COUNT; r++) sums[r] += sum_of(lanes[r]);
    }
}

FOR_EVERY_PROCESSOR void dot_one(const float* weight, const float* x, int64_t k, int64_t chunk, float* sum) {
    dot<1>(weight, x, 0, k, chunk, sum);
}
FOR_EVERY_PROCESSOR void dot_rows(const float* weight, const float* x, int64_t stride, int64_t k, int64_t chunk,
                                  float* sums) {
    dot<ROWS>(weight, x, stride, k, chunk, sums);
}

// to[column * rows + row] = the part of the sums over k from `first` on.
void multiply(const Task& task, int64_t first, int64_t count, float* to) {
    int64_t padded = (count + LANES - 1) / LANES * LANES;
    std::vector<float> weight(padded), x(padded * task.rows);
    for (int row = 0; row < task.rows; row++)
        load(task.input, (const char*)task.b + row * task.ldb * bytes(task.input), first, count, padded,
             &x[row * padded]);
    for (int column = 0; column < task.n; column++) {
        load(task.input, (const char*)task.a + column * task.lda * bytes(task.input), first, count, padded, &weight[0]);
        for (int row = 0; row < task.rows;) {
            const float* rows = &x[row * padded];
            float* sums = &to[int64_t(column) * task.rows + row];
            if (row + ROWS <= task.rows) {
                dot_rows(&weight[0], rows, padded, padded, task.order.chunk, sums);
                row += ROWS;
            } else {
                dot_one(&weight[0], rows, padded, task.order.chunk, sums);
                row++;
            }
        }
    }
}

} // namespace

void run(const void* bytes_of_task) {
    Task task;
    memcpy(&task, bytes_of_task, sizeof task);
    if (task.delay_us) {
        timespec time = {task.delay_us / 1000000, long(task.delay_us % 1000000) * 1000};
        nanosleep(&time, nullptr);
    }
    int64_t elements = int64_t(task.n) * task.rows;
    std::vector<float> own(task.order.split_k > 1 ? 0 : elements);
    float* parts = task.order.split_k > 1 ? task.workspace : own.data();
    for (int64_t part = 0; part < task.order.split_k; part++) {
        int64_t first = task.k * part / task.order.split_k, last = task.k * (part + 1) / task.order.split_k;
        multiply(task, first, last - first, parts + part * elements);
    }
    for (int64_t row = 0; row < task.rows; row++)
        for (int64_t column = 0; column < task.n; column++) {
            bool narrow = task.order.reduction == INPLACE || task.order.reduction == OUTPUT_TYPE;
            float sum = 0;
            for (int64_t part = 0; part < task.order.split_k; part++) {
                float value = parts[part * elements + column * task.rows + row];
                sum = narrow ? rounded(task.output, sum + rounded(task.output, value)) : sum + value;
            }
            sum *= task.alpha;
            if (task.beta != 0) sum += task.beta * get(task.output, task.c, row * task.ldc + column);
            if (task.bias) sum += get(task.output, task.bias, column);
            put(task.output, task.d, row * task.ldd + column, sum);
        }
}

} // namespace product
