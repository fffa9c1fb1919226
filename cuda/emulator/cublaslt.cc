// The stand-in for cuBLASLt, libcublasLt.so: matrix products on the stand-in's streams. Column-major matrices of
// bf16, f16 and f32, sums in f32, one bias at most.
//
// Three algorithms, so that choosing one is seen: 0 adds up the products in the order of k; 1, for k a multiple of 32,
// in runs of 32; 2 in four parts that go through the workspace. What one computes for an element does not depend on
// the numbers of rows and columns. Each rounds differently, as NVIDIA's do.

#include <algorithm>
#include <stdio.h>
#include <string.h>
#include <vector>

#include "host.h"
#include "record.h"

extern "C" int emulator_enqueue(void* stream, const char* name, void (*run)(const void*), const void* params,
                                size_t params_bytes);
extern "C" int emulator_is_device_memory(const void* start, size_t bytes);
extern "C" int emulator_is_capturing(void* stream);

namespace {

enum Status { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
enum Type { F32 = 0, F16 = 2, BF16 = 14 };
enum Epilogue { EPILOGUE_NONE = 1, EPILOGUE_BIAS = 4 };
enum Reduction { REDUCTION_NONE = 0, REDUCTION_COMPUTE_TYPE = 2 };
constexpr int COMPUTE_32F = 68;
constexpr uint64_t ALGORITHM_MAGIC = 0x454d554c;
constexpr uint32_t PARTS = 4;
constexpr uint64_t RUN = 32;

struct Handle {
    int open;
};
struct Desc {
    int32_t compute, scale, pointer_mode = 0, transpose_a = 0, transpose_b = 0;
    uint32_t epilogue = EPILOGUE_NONE;
    const void* bias = nullptr;
};
struct Layout {
    uint32_t type;
    uint64_t rows, columns;
    int64_t leading;
};
struct Preference {
    uint64_t workspace_bytes = 0;
    uint32_t reductions = 7;
    uint32_t alignments[4] = {256, 256, 256, 256};
};
struct Algorithm { // cublasLtMatmulAlgo_t
    uint64_t magic;
    uint32_t id, parts, reduction, unused[11];
};
static_assert(sizeof(Algorithm) == 64, "cublasLtMatmulAlgo_t has 64 bytes");
struct Found { // cublasLtMatmulHeuristicResult_t
    Algorithm algorithm;
    size_t workspace_bytes;
    Status state;
    float waves;
    int reserved[4];
};

// One product as it waits in a stream.
struct Product {
    const void *a, *b, *c, *bias;
    void* d;
    float* workspace;
    uint64_t m, n, k;
    int64_t leading_a, leading_b, leading_c, leading_d;
    float alpha, beta;
    uint32_t type_ab, type_c, type_d, transpose_a, transpose_b, algorithm;
};

Status refuse(Status status, const char* call, const char* why) {
    fprintf(stderr, "emulator: %s: %s\n", call, why);
    emulator_record("%s refused=%d %s", call, int(status), why);
    return status;
}

size_t type_bytes(uint32_t type) { return type == F32 ? 4 : 2; }

float get(const void* matrix, uint32_t type, int64_t at) {
    if (type == F32) return ((const float*)matrix)[at];
    return type == BF16 ? to_float(((const bf16*)matrix)[at]) : to_float(((const f16*)matrix)[at]);
}

void put(void* matrix, uint32_t type, int64_t at, float value) {
    if (type == F32) ((float*)matrix)[at] = value;
    else if (type == BF16) ((bf16*)matrix)[at] = from_float<bf16>(value);
    else ((f16*)matrix)[at] = from_float<f16>(value);
}

// Columns of op(matrix) in f32, each `k` long and contiguous.
void unpack(float* to, const void* matrix, uint32_t type, int64_t leading, bool along, uint64_t first, uint64_t count,
            uint64_t k) {
    for (uint64_t i = 0; i < count; i++)
        for (uint64_t j = 0; j < k; j++) {
            int64_t column = int64_t(first + i), row = int64_t(j);
            to[i * k + j] = get(matrix, type, along ? column * leading + row : row * leading + column);
        }
}

constexpr uint64_t TILE = 8;

// sums[i] += the products of row i of `a` with `b`, from k = begin to end. Eight sums at a time hide the latency of
// an addition; each is in the order of k.
void add_products(float* sums, const float* a, const float* b, uint64_t k, uint64_t begin, uint64_t end) {
    float local[TILE];
    memcpy(local, sums, sizeof local);
    for (uint64_t j = begin; j < end; j++)
        for (uint64_t i = 0; i < TILE; i++) local[i] += a[i * k + j] * b[j];
    memcpy(sums, local, sizeof local);
}

void dot(float* sums, const Product& p, const float* a, const float* b, uint64_t column) {
    std::fill_n(sums, TILE, 0.0f);
    if (p.algorithm == 0) return add_products(sums, a, b, p.k, 0, p.k);
    uint64_t run = p.algorithm == 1 ? RUN : (p.k + PARTS - 1) / PARTS, part = 0;
    for (uint64_t begin = 0; begin < p.k; begin += run, part++) {
        float partial[TILE] = {};
        add_products(partial, a, b, p.k, begin, std::min(begin + run, p.k));
        // The parts really go through the workspace, so that a missing or shared one shows.
        float* parked = p.algorithm == 2 ? p.workspace + (column * PARTS + part) * TILE : partial;
        if (parked != partial) memcpy(parked, partial, sizeof partial);
        for (uint64_t i = 0; i < TILE; i++) sums[i] += parked[i];
    }
}

void run(const void* params) {
    const Product& p = *(const Product*)params;
    std::vector<float> a(TILE * p.k), b(p.n * p.k);
    unpack(b.data(), p.b, p.type_ab, p.leading_b, !p.transpose_b, 0, p.n, p.k);
    for (uint64_t row = 0; row < p.m; row += TILE) {
        uint64_t rows = std::min(TILE, p.m - row);
        unpack(a.data(), p.a, p.type_ab, p.leading_a, p.transpose_a, row, rows, p.k);
        for (uint64_t column = 0; column < p.n; column++) {
            float sums[TILE];
            dot(sums, p, a.data(), &b[column * p.k], column);
            for (uint64_t i = 0; i < rows; i++) {
                float value = p.alpha * sums[i];
                int64_t at = int64_t(row + i), of = int64_t(column);
                if (p.beta != 0) value += p.beta * get(p.c, p.type_c, of * p.leading_c + at);
                if (p.bias) value += get(p.bias, p.type_d, at);
                put(p.d, p.type_d, of * p.leading_d + at, value);
            }
        }
    }
}

size_t workspace_of(uint32_t algorithm, uint64_t n) { return algorithm == 2 ? n * PARTS * TILE * sizeof(float) : 0; }

// Whether the operation can be done at all, and with its m, n and k.
Status check_shapes(const char* call, const Desc* desc, const Layout* a, const Layout* b, const Layout* c, const Layout* d,
                    Product* p) {
    if (!desc || !a || !b || !c || !d) return refuse(INVALID_VALUE, call, "a null descriptor");
    for (const Layout* layout : {a, b, c, d}) {
        if (layout->type != F32 && layout->type != F16 && layout->type != BF16)
            return refuse(NOT_SUPPORTED, call, "a type other than f32, f16 and bf16");
        if (!layout->rows || !layout->columns || layout->leading < int64_t(layout->rows))
            return refuse(INVALID_VALUE, call, "an empty matrix, or a leading dimension below the rows");
    }
    p->m = desc->transpose_a ? a->columns : a->rows;
    p->k = desc->transpose_a ? a->rows : a->columns;
    p->n = desc->transpose_b ? b->rows : b->columns;
    uint64_t k = desc->transpose_b ? b->columns : b->rows;
    if (k != p->k || d->rows != p->m || d->columns != p->n || c->rows != p->m || c->columns != p->n)
        return refuse(INVALID_VALUE, call, "the shapes do not fit");
    // The table of supported types in the documentation of cublasLtMatmul, for a scale type of f32.
    if (a->type != b->type || c->type != d->type || (d->type != F32 && d->type != a->type))
        return refuse(NOT_SUPPORTED, call, "these types do not go together");
    if (desc->epilogue != EPILOGUE_NONE && desc->epilogue != EPILOGUE_BIAS)
        return refuse(NOT_SUPPORTED, call, "an epilogue other than a bias");
    return SUCCESS;
}

bool can_do(uint32_t algorithm, const Product& p) {
    return algorithm == 0 || (algorithm == 1 && p.k % RUN == 0) || (algorithm == 2 && p.k >= PARTS);
}

Found found(uint32_t algorithm, const Product& p) {
    Found result = {};
    result.algorithm.magic = ALGORITHM_MAGIC;
    result.algorithm.id = algorithm;
    result.algorithm.parts = algorithm == 2 ? PARTS : 1;
    result.algorithm.reduction = algorithm == 2 ? REDUCTION_COMPUTE_TYPE : REDUCTION_NONE;
    result.workspace_bytes = workspace_of(algorithm, p.n);
    result.state = can_do(algorithm, p) ? SUCCESS : NOT_SUPPORTED;
    result.waves = 1;
    return result;
}

bool is_algorithm(const Algorithm* a) {
    uint32_t parts = a->id == 2 ? PARTS : 1;
    return a->magic == ALGORITHM_MAGIC && a->id <= 2 && a->parts == parts;
}

// Sets one attribute of `bytes` bytes.
template <class T> Status set(const char* call, T* to, const void* from, size_t bytes) {
    if (bytes != sizeof(T)) return refuse(INVALID_VALUE, call, "the attribute has another size");
    memcpy(to, from, bytes);
    return SUCCESS;
}

bool in_memory(const void* start, const Layout* layout) {
    uint64_t elements = uint64_t(layout->leading) * (layout->columns - 1) + layout->rows;
    return emulator_is_device_memory(start, elements * type_bytes(layout->type));
}

} // namespace

EXPORT Status cublasLtCreate(Handle** handle) {
    emulator_record_call("cublasLtCreate");
    *handle = new Handle{1};
    return SUCCESS;
}

EXPORT Status cublasLtDestroy(Handle* handle) {
    delete handle;
    return SUCCESS;
}

EXPORT size_t cublasLtGetVersion() { return 130000; }

EXPORT size_t cublasLtGetCudartVersion() { return 13000; }

EXPORT Status cublasLtMatmulDescCreate(Desc** desc, int compute, int scale) {
    if (compute != COMPUTE_32F || scale != F32)
        return refuse(NOT_SUPPORTED, "cublasLtMatmulDescCreate", "only sums and factors in f32");
    *desc = new Desc{compute, scale};
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescDestroy(Desc* desc) {
    delete desc;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescSetAttribute(Desc* desc, int attribute, const void* value, size_t bytes) {
    const char* call = "cublasLtMatmulDescSetAttribute";
    switch (attribute) {
    case 3: return set(call, &desc->transpose_a, value, bytes);
    case 4: return set(call, &desc->transpose_b, value, bytes);
    case 7: return set(call, &desc->epilogue, value, bytes);
    case 8: return set(call, &desc->bias, value, bytes);
    default: return refuse(NOT_SUPPORTED, call, "an attribute that is not known here");
    }
}

EXPORT Status cublasLtMatrixLayoutCreate(Layout** layout, uint32_t type, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = new Layout{type, rows, columns, leading};
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    const char* call = "cublasLtMatrixLayoutSetAttribute";
    switch (attribute) {
    case 0: return set(call, &layout->type, value, bytes);
    case 2: return set(call, &layout->rows, value, bytes);
    case 3: return set(call, &layout->columns, value, bytes);
    case 4: return set(call, &layout->leading, value, bytes);
    default: return refuse(NOT_SUPPORTED, call, "an attribute that is not known here");
    }
}

EXPORT Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    delete preference;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
    const char* call = "cublasLtMatmulPreferenceSetAttribute";
    switch (attribute) {
    case 1: return set(call, &preference->workspace_bytes, value, bytes);
    case 3: return set(call, &preference->reductions, value, bytes);
    case 5: case 6: case 7: case 8: return set(call, &preference->alignments[attribute - 5], value, bytes);
    default: return refuse(NOT_SUPPORTED, call, "an attribute that is not known here");
    }
}

EXPORT Status cublasLtMatmulAlgoGetHeuristic(Handle*, const Desc* desc, const Layout* a, const Layout* b, const Layout* c,
                                             const Layout* d, const Preference* preference, int wanted, Found* results,
                                             int* count) {
    emulator_record_call("cublasLtMatmulAlgoGetHeuristic");
    Product p = {};
    *count = 0;
    if (Status wrong = check_shapes("cublasLtMatmulAlgoGetHeuristic", desc, a, b, c, d, &p)) return wrong;
    // The one with parts first: a caller that must not have it is tempted.
    for (uint32_t algorithm : {2, 0, 1}) {
        Found result = found(algorithm, p);
        bool allowed = result.state == SUCCESS && result.workspace_bytes <= preference->workspace_bytes &&
                       (!result.algorithm.reduction || preference->reductions & result.algorithm.reduction);
        if (allowed && *count < wanted) results[(*count)++] = result;
    }
    return *count ? SUCCESS : NOT_SUPPORTED;
}

EXPORT Status cublasLtMatmulAlgoCheck(Handle*, const Desc* desc, const Layout* a, const Layout* b, const Layout* c,
                                      const Layout* d, const Algorithm* algorithm, Found* result) {
    emulator_record_call("cublasLtMatmulAlgoCheck");
    Product p = {};
    if (Status wrong = check_shapes("cublasLtMatmulAlgoCheck", desc, a, b, c, d, &p)) return wrong;
    if (!is_algorithm(algorithm)) return INVALID_VALUE;
    *result = found(algorithm->id, p);
    return result->state;
}

EXPORT Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int attribute, void* value, size_t bytes,
                                                   size_t* written) {
    const uint32_t* from = attribute == 0   ? &algorithm->id
                           : attribute == 2 ? &algorithm->parts
                           : attribute == 3 ? &algorithm->reduction
                                            : nullptr;
    if (!from || !is_algorithm(algorithm) || bytes < sizeof *from)
        return refuse(INVALID_VALUE, "cublasLtMatmulAlgoConfigGetAttribute", "no algorithm, attribute or room");
    memcpy(value, from, sizeof *from);
    if (written) *written = sizeof *from;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulAlgoConfigSetAttribute(Algorithm* algorithm, int attribute, const void* value, size_t bytes) {
    const char* call = "cublasLtMatmulAlgoConfigSetAttribute";
    switch (attribute) {
    case 2: return set(call, &algorithm->parts, value, bytes);
    case 3: return set(call, &algorithm->reduction, value, bytes);
    default: return refuse(NOT_SUPPORTED, call, "an attribute that is not known here");
    }
}

EXPORT Status cublasLtMatmul(Handle* handle, const Desc* desc, const float* alpha, const void* a, const Layout* layout_a,
                             const void* b, const Layout* layout_b, const float* beta, const void* c,
                             const Layout* layout_c, void* d, const Layout* layout_d, const Algorithm* algorithm,
                             void* workspace, size_t workspace_bytes, void* stream) {
    const char* call = "cublasLtMatmul";
    Product p = {};
    if (!handle || !handle->open) return refuse(NOT_INITIALIZED, call, "the handle is not open");
    if (Status wrong = check_shapes(call, desc, layout_a, layout_b, layout_c, layout_d, &p)) return wrong;
    if (!algorithm || !is_algorithm(algorithm)) return refuse(INVALID_VALUE, call, "no algorithm of this library");
    if (!can_do(algorithm->id, p)) return refuse(NOT_SUPPORTED, call, "the algorithm cannot do this shape");
    size_t needed = workspace_of(algorithm->id, p.n);
    if (needed > workspace_bytes || (needed && !emulator_is_device_memory(workspace, needed)))
        return refuse(INVALID_VALUE, call, "the workspace is too small, or not memory of the device");
    bool biased = desc->epilogue == EPILOGUE_BIAS;
    if (!in_memory(a, layout_a) || !in_memory(b, layout_b) || !in_memory(d, layout_d) ||
        (*beta != 0 && !in_memory(c, layout_c)) ||
        (biased && !emulator_is_device_memory(desc->bias, p.m * type_bytes(layout_d->type))))
        return refuse(INVALID_VALUE, call, "a matrix is not in memory of the device");
    uintptr_t addresses = uintptr_t(a) | uintptr_t(b) | uintptr_t(d) | uintptr_t(biased ? desc->bias : nullptr);
    if (addresses % 16) return refuse(INVALID_VALUE, call, "an address is no multiple of 16");
    p.a = a, p.b = b, p.c = c, p.d = d, p.bias = biased ? desc->bias : nullptr, p.workspace = (float*)workspace;
    p.leading_a = layout_a->leading, p.leading_b = layout_b->leading;
    p.leading_c = layout_c->leading, p.leading_d = layout_d->leading;
    p.alpha = *alpha, p.beta = *beta;
    p.type_ab = layout_a->type, p.type_c = layout_c->type, p.type_d = layout_d->type;
    p.transpose_a = uint32_t(desc->transpose_a), p.transpose_b = uint32_t(desc->transpose_b);
    p.algorithm = algorithm->id;
    emulator_record("cublasLtMatmul m=%llu n=%llu k=%llu algorithm=%u parts=%u workspace=%zu captured=%d",
                    (unsigned long long)p.m, (unsigned long long)p.n, (unsigned long long)p.k, p.algorithm,
                    algorithm->parts, needed, emulator_is_capturing(stream));
    return emulator_enqueue(stream, call, run, &p, sizeof p) ? EXECUTION_FAILED : SUCCESS;
}
