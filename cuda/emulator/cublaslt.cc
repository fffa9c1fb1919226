// A stand-in for libcublasLt: the functions that the CUDA backend calls, over products computed by the host
// (product.cc) in the streams of the stand-in for the driver.
//
// It is stricter than the original: what NVIDIA's documentation forbids, or leaves open, is refused, with the
// reason in the log. And it is as awkward as the original may be: it proposes algorithms that sum in different
// orders (so a change of algorithm shows in the bits), that need workspace, that refuse some numbers of rows, and
// one that looks fit for batch-invariant use and is not.

#include <initializer_list>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "product.h"
#include "record.h"

using product::Order;
using product::Task;

// The stand-in driver's: counts the call; does `run` with a copy of the bytes when the stream comes to it, once for
// each launch of a graph that recorded it.
extern "C" int emulator_enqueue(void* stream, const char* call, void (*run)(const void*), const void* params,
                                size_t params_bytes);
extern "C" int emulator_is_device_memory(const void* start, size_t bytes);
extern "C" int cuCtxGetCurrent(void** context);

namespace {

// The members of cublasStatus_t that are used.
enum Status {
    SUCCESS = 0,
    NOT_INITIALIZED = 1,
    INVALID_VALUE = 7,
    EXECUTION_FAILED = 13,
    NOT_SUPPORTED = 15,
};

Status refuse(Status status, const char* call, const char* format, ...) __attribute__((format(printf, 3, 4)));
Status refuse(Status status, const char* call, const char* format, ...) {
    char why[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    emulator_record("%s refused=%d %s", call, status, why);
    fprintf(stderr, "emulator: %s: %s\n", call, why);
    return status;
}

// First word of everything that a handle points to; cleared when destroyed.
enum Magic : uint64_t { HANDLE = 0x51a0'0001, DESC, LAYOUT, PREFERENCE, ALGORITHM };

struct Handle {
    uint64_t magic = HANDLE;
};

struct Desc {
    uint64_t magic = DESC;
    int32_t compute, scale;
    int32_t transposed_a = 0, transposed_b = 0;
    uint32_t epilogue = 1; // DEFAULT
    const void* bias = nullptr;
};

struct Layout {
    uint64_t magic = LAYOUT;
    int32_t type;
    uint64_t rows, columns;
    int64_t leading;
};

struct Preference {
    uint64_t magic = PREFERENCE;
    uint64_t workspace_bytes = 0;
    uint32_t reductions = 7;
    uint32_t alignment[4] = {256, 256, 256, 256};
};

// cublasLtMatmulAlgo_t: 64 bytes that may be stored.
struct Algorithm {
    uint64_t magic;
    uint32_t id, split_k, reduction, n, k, types, alignment, unused;
    uint64_t checksum;
    uint64_t unused_too[2];
};
static_assert(sizeof(Algorithm) == 64);

struct HeuristicResult {
    Algorithm algorithm;
    size_t workspace_bytes;
    int32_t state;
    float waves;
    int32_t reserved[4];
};

// What an algorithm is, besides its number.
struct Kind {
    const char* name;
    Order order;
    int32_t rows_min, rows_max;
    bool odd_rows;
};
constexpr int32_t ANY = INT32_MAX;
constexpr Kind KINDS[] = {
    // Looks as fit for batch-invariant use as any, but chunk_of() below changes its order with the rows.
    {"drifting", {128, 1, product::NONE}, 1, ANY, true},
    {"split in four", {128, 4, product::COMPUTE_TYPE}, 1, ANY, true},
    {"few rows", {64, 1, product::NONE}, 1, 128, true},
    {"many rows", {512, 1, product::NONE}, 16, ANY, true},
    {"even rows", {32, 1, product::NONE}, 1, ANY, false},
    {"plain", {256, 1, product::NONE}, 1, ANY, true},
    {"split in two", {256, 2, product::COMPUTE_TYPE}, 1, ANY, true},
    {"in place", {256, 2, product::INPLACE}, 1, ANY, true},
    {"in the output's type", {256, 2, product::OUTPUT_TYPE}, 1, ANY, true},
};
constexpr uint32_t KINDS_COUNT = sizeof KINDS / sizeof *KINDS;

// What tests changed.
struct Change {
    int32_t rows_min = 1, rows_max = ANY;
    uint32_t delay_us = 0;
    bool fails = false;
};
Change changes[KINDS_COUNT];

uint32_t chunk_of(uint32_t id, int32_t rows) { return id == 0 && rows > 8 ? 1024 : KINDS[id].order.chunk; }

bool is_split(const Algorithm& algorithm) { return algorithm.split_k > 1; }

uint64_t checksum(const Algorithm& algorithm) {
    uint64_t sum = 0;
    for (uint64_t word : {uint64_t(algorithm.id), uint64_t(algorithm.split_k), uint64_t(algorithm.reduction),
                          uint64_t(algorithm.n), uint64_t(algorithm.k), uint64_t(algorithm.types),
                          uint64_t(algorithm.alignment)})
        sum = (sum ^ word) * 0x100000001b3 + 1;
    return sum;
}

template <class T> bool is(const T* object, Magic magic) { return object && object->magic == magic; }

// One product, all descriptors checked.
struct Problem {
    const Desc* desc;
    const Layout *a, *b, *c, *d;

    int32_t n() const { return int32_t(d->rows); }
    int32_t rows() const { return int32_t(d->columns); }
    int32_t k() const { return int32_t(a->rows); }
    uint32_t types() const { return uint32_t(a->type) << 8 | uint32_t(d->type); }
    size_t workspace_bytes(const Algorithm& algorithm) const {
        return is_split(algorithm) ? size_t(algorithm.split_k) * n() * rows() * 4 : 0;
    }
};

bool is_type(int32_t type) { return type == product::F32 || type == product::F16 || type == product::BF16; }

// Fails unless it is D[n x rows] = A[k x n]ᵀ B[k x rows] of types that cuBLASLt's table of types allows.
Status check(const Problem& problem, const char* call) {
    const auto& [desc, a, b, c, d] = problem;
    if (!is(desc, DESC)) return refuse(INVALID_VALUE, call, "no operation descriptor");
    for (const Layout* layout : {a, b, c, d}) {
        if (!is(layout, LAYOUT)) return refuse(INVALID_VALUE, call, "no layout");
        if (!is_type(layout->type)) return refuse(NOT_SUPPORTED, call, "type %d", layout->type);
        if (layout->rows == 0 || layout->columns == 0) return refuse(INVALID_VALUE, call, "a matrix of no elements");
        if (layout->leading < int64_t(layout->rows))
            return refuse(INVALID_VALUE, call, "leading dimension %ld of %lu rows", layout->leading, layout->rows);
        if (layout->rows > INT32_MAX || layout->columns > INT32_MAX) return refuse(NOT_SUPPORTED, call, "too large");
    }
    if (desc->compute != 68 || desc->scale != 0) return refuse(NOT_SUPPORTED, call, "not COMPUTE_32F with R_32F");
    if (desc->transposed_a != 1 || desc->transposed_b != 0) return refuse(NOT_SUPPORTED, call, "not A transposed");
    if (a->rows != b->rows || a->columns != d->rows || b->columns != d->columns)
        return refuse(INVALID_VALUE, call, "A %lux%lu (transposed), B %lux%lu and D %lux%lu do not fit", a->rows,
                      a->columns, b->rows, b->columns, d->rows, d->columns);
    if (c->type != d->type || c->rows != d->rows || c->columns != d->columns)
        return refuse(INVALID_VALUE, call, "C is not like D");
    if (a->type != b->type) return refuse(NOT_SUPPORTED, call, "A and B of different types");
    if (d->type != a->type && d->type != product::F32) return refuse(NOT_SUPPORTED, call, "D neither like A nor f32");
    if (desc->epilogue != 1 && desc->epilogue != 4) return refuse(NOT_SUPPORTED, call, "epilogue %u", desc->epilogue);
    if (desc->epilogue == 4 && !desc->bias) return refuse(INVALID_VALUE, call, "the epilogue's bias is null");
    return SUCCESS;
}

// Whether these are the bytes of an algorithm that was made for the problem and can do so many rows.
Status check(const Algorithm& algorithm, const Problem& problem) {
    if (algorithm.magic != ALGORITHM || algorithm.id >= KINDS_COUNT || algorithm.checksum != checksum(algorithm))
        return INVALID_VALUE;
    if (int32_t(algorithm.n) != problem.n() || int32_t(algorithm.k) != problem.k() || algorithm.types != problem.types())
        return INVALID_VALUE;
    const Kind& kind = KINDS[algorithm.id];
    int32_t rows = problem.rows();
    const Change& change = changes[algorithm.id];
    bool can = rows >= kind.rows_min && rows <= kind.rows_max && (kind.odd_rows || rows % 2 == 0);
    return can && rows >= change.rows_min && rows <= change.rows_max ? SUCCESS : NOT_SUPPORTED;
}

int64_t bytes_of(const Layout& layout) {
    int64_t elements = layout.leading * int64_t(layout.columns - 1) + int64_t(layout.rows);
    return elements * product::bytes(product::Type(layout.type));
}

Status set(void* field, size_t field_bytes, const void* from, size_t bytes, const char* call) {
    if (!from || bytes != field_bytes)
        return refuse(INVALID_VALUE, call, "%zu bytes for an attribute of %zu", bytes, field_bytes);
    memcpy(field, from, bytes);
    return SUCCESS;
}

} // namespace

// For tests of the choice between algorithms: the one of that number refuses other numbers of rows from now on, and
// takes so many microseconds longer.
EXPORT void emulator_cublaslt_change(uint32_t algorithm, int32_t rows_min, int32_t rows_max, uint32_t delay_us) {
    if (algorithm < KINDS_COUNT) changes[algorithm] = {rows_min, rows_max, delay_us, false};
}
// The one of that number is refused by cublasLtMatmul, though cublasLtMatmulAlgoCheck accepts it: a success of that
// "doesn't fully guarantee that the algo will run".
EXPORT void emulator_cublaslt_fail(uint32_t algorithm) {
    if (algorithm < KINDS_COUNT) changes[algorithm].fails = true;
}
EXPORT void emulator_cublaslt_reset() {
    for (Change& change : changes) change = {};
}

EXPORT size_t cublasLtGetVersion() { return 130000; }

EXPORT Status cublasLtCreate(Handle** handle) {
    emulator_record_call("cublasLtCreate");
    void* context = nullptr;
    if (cuCtxGetCurrent(&context) || !context) return refuse(NOT_INITIALIZED, "cublasLtCreate", "no current context");
    *handle = new Handle;
    return SUCCESS;
}

EXPORT Status cublasLtDestroy(Handle* handle) {
    emulator_record_call("cublasLtDestroy");
    if (!is(handle, HANDLE)) return refuse(INVALID_VALUE, "cublasLtDestroy", "no handle");
    handle->magic = 0;
    delete handle;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescCreate(Desc** desc, int32_t compute, int32_t scale) {
    emulator_record_call("cublasLtMatmulDescCreate");
    *desc = new Desc;
    (*desc)->compute = compute;
    (*desc)->scale = scale;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescSetAttribute(Desc* desc, int32_t attribute, const void* from, size_t bytes) {
    const char* call = "cublasLtMatmulDescSetAttribute";
    emulator_record_call(call);
    if (!is(desc, DESC)) return refuse(INVALID_VALUE, call, "no operation descriptor");
    switch (attribute) {
    case 3: return set(&desc->transposed_a, sizeof desc->transposed_a, from, bytes, call);
    case 4: return set(&desc->transposed_b, sizeof desc->transposed_b, from, bytes, call);
    case 7: return set(&desc->epilogue, sizeof desc->epilogue, from, bytes, call);
    case 8: return set(&desc->bias, sizeof desc->bias, from, bytes, call);
    }
    return refuse(NOT_SUPPORTED, call, "attribute %d", attribute);
}

EXPORT Status cublasLtMatmulDescDestroy(Desc* desc) {
    if (!is(desc, DESC)) return refuse(INVALID_VALUE, "cublasLtMatmulDescDestroy", "no operation descriptor");
    desc->magic = 0;
    delete desc;
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutCreate(Layout** layout, int32_t type, uint64_t rows, uint64_t columns,
                                         int64_t leading) {
    emulator_record_call("cublasLtMatrixLayoutCreate");
    *layout = new Layout;
    (*layout)->type = type;
    (*layout)->rows = rows;
    (*layout)->columns = columns;
    (*layout)->leading = leading;
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int32_t attribute, const void* from, size_t bytes) {
    const char* call = "cublasLtMatrixLayoutSetAttribute";
    if (!is(layout, LAYOUT)) return refuse(INVALID_VALUE, call, "no layout");
    switch (attribute) {
    case 2: return set(&layout->rows, sizeof layout->rows, from, bytes, call);
    case 3: return set(&layout->columns, sizeof layout->columns, from, bytes, call);
    case 4: return set(&layout->leading, sizeof layout->leading, from, bytes, call);
    }
    return refuse(NOT_SUPPORTED, call, "attribute %d", attribute);
}

EXPORT Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    if (!is(layout, LAYOUT)) return refuse(INVALID_VALUE, "cublasLtMatrixLayoutDestroy", "no layout");
    layout->magic = 0;
    delete layout;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceCreate(Preference** preference) {
    *preference = new Preference;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(Preference* preference, int32_t attribute, const void* from,
                                                   size_t bytes) {
    const char* call = "cublasLtMatmulPreferenceSetAttribute";
    if (!is(preference, PREFERENCE)) return refuse(INVALID_VALUE, call, "no preference");
    switch (attribute) {
    case 1: return set(&preference->workspace_bytes, sizeof preference->workspace_bytes, from, bytes, call);
    case 3: return set(&preference->reductions, sizeof preference->reductions, from, bytes, call);
    case 5:
    case 6:
    case 7:
    case 8: return set(&preference->alignment[attribute - 5], sizeof *preference->alignment, from, bytes, call);
    }
    return refuse(NOT_SUPPORTED, call, "attribute %d", attribute);
}

EXPORT Status cublasLtMatmulPreferenceDestroy(Preference* preference) {
    if (!is(preference, PREFERENCE)) return refuse(INVALID_VALUE, "cublasLtMatmulPreferenceDestroy", "no preference");
    preference->magic = 0;
    delete preference;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulAlgoGetHeuristic(Handle* handle, const Desc* desc, const Layout* a, const Layout* b,
                                             const Layout* c, const Layout* d, const Preference* preference,
                                             int32_t wanted, HeuristicResult* results, int32_t* found) {
    const char* call = "cublasLtMatmulAlgoGetHeuristic";
    emulator_record_call(call);
    *found = 0;
    if (!is(handle, HANDLE)) return refuse(NOT_INITIALIZED, call, "no handle");
    if (!is(preference, PREFERENCE) || wanted < 1) return refuse(INVALID_VALUE, call, "no preference, or none wanted");
    Problem problem = {desc, a, b, c, d};
    if (Status wrong = check(problem, call)) return wrong;
    uint32_t alignment = 256;
    for (uint32_t each : preference->alignment)
        if (each < alignment) alignment = each;
    for (uint32_t id = 0; id < KINDS_COUNT && *found < wanted; id++) {
        const Order& order = KINDS[id].order;
        Algorithm algorithm = {};
        algorithm.magic = ALGORITHM;
        algorithm.id = id;
        algorithm.split_k = order.split_k;
        algorithm.reduction = order.reduction;
        algorithm.n = uint32_t(problem.n());
        algorithm.k = uint32_t(problem.k());
        algorithm.types = problem.types();
        algorithm.alignment = alignment;
        algorithm.checksum = checksum(algorithm);
        if (order.reduction & ~preference->reductions) continue;
        if (problem.workspace_bytes(algorithm) > preference->workspace_bytes) continue;
        if (order.split_k > uint32_t(problem.k())) continue;
        if (check(algorithm, problem)) continue;
        results[(*found)++] = {algorithm, problem.workspace_bytes(algorithm), SUCCESS, 1.0f, {}};
    }
    return *found ? SUCCESS : NOT_SUPPORTED;
}

EXPORT Status cublasLtMatmulAlgoCheck(Handle* handle, const Desc* desc, const Layout* a, const Layout* b,
                                      const Layout* c, const Layout* d, const Algorithm* algorithm,
                                      HeuristicResult* result) {
    const char* call = "cublasLtMatmulAlgoCheck";
    emulator_record_call(call);
    if (!is(handle, HANDLE)) return refuse(NOT_INITIALIZED, call, "no handle");
    Problem problem = {desc, a, b, c, d};
    if (Status wrong = check(problem, call)) return wrong;
    if (Status wrong = check(*algorithm, problem)) return wrong;
    *result = {*algorithm, problem.workspace_bytes(*algorithm), SUCCESS, 1.0f, {}};
    return SUCCESS;
}

EXPORT Status cublasLtMatmulAlgoConfigGetAttribute(const Algorithm* algorithm, int32_t attribute, void* to,
                                                   size_t bytes, size_t* written) {
    const char* call = "cublasLtMatmulAlgoConfigGetAttribute";
    emulator_record_call(call);
    if (algorithm->magic != ALGORITHM || bytes != 4 || !to) return refuse(INVALID_VALUE, call, "no algorithm, or size");
    switch (attribute) {
    case 0: memcpy(to, &algorithm->id, 4); break;
    case 2: memcpy(to, &algorithm->split_k, 4); break;
    case 3: memcpy(to, &algorithm->reduction, 4); break;
    default: return refuse(NOT_SUPPORTED, call, "attribute %d", attribute);
    }
    if (written) *written = 4;
    return SUCCESS;
}

EXPORT Status cublasLtMatmul(Handle* handle, const Desc* desc, const float* alpha, const void* a_start, const Layout* a,
                             const void* b_start, const Layout* b, const float* beta, const void* c_start,
                             const Layout* c, void* d_start, const Layout* d, const Algorithm* algorithm,
                             void* workspace, size_t workspace_bytes, void* stream) {
    const char* call = "cublasLtMatmul";
    if (!is(handle, HANDLE)) return refuse(NOT_INITIALIZED, call, "no handle");
    Problem problem = {desc, a, b, c, d};
    if (Status wrong = check(problem, call)) return wrong;
    if (!algorithm) return refuse(INVALID_VALUE, call, "no algorithm: the original would search for one at every call");
    if (Status wrong = check(*algorithm, problem))
        return refuse(wrong, call, "these 64 bytes are no algorithm of the problem, or not for %d rows", problem.rows());
    if (changes[algorithm->id].fails) return refuse(NOT_SUPPORTED, call, "as the test wants it");
    if (problem.workspace_bytes(*algorithm) > workspace_bytes)
        return refuse(INVALID_VALUE, call, "algorithm '%s' needs %zu bytes of workspace, not %zu",
                      KINDS[algorithm->id].name, problem.workspace_bytes(*algorithm), workspace_bytes);
    const void* bias = desc->epilogue == 4 ? desc->bias : nullptr;
    const struct {
        const char* name;
        const void* start;
        int64_t bytes;
        uint32_t alignment;
    } operands[] = {
        {"A", a_start, bytes_of(*a), algorithm->alignment},
        {"B", b_start, bytes_of(*b), algorithm->alignment},
        {"C", c_start, bytes_of(*c), algorithm->alignment},
        {"D", d_start, bytes_of(*d), algorithm->alignment},
        {"the bias", bias, bias ? product::bytes(product::Type(d->type)) * problem.n() : 0, algorithm->alignment},
        {"the workspace", workspace, int64_t(workspace_bytes), 256},
    };
    for (const auto& [name, start, bytes, alignment] : operands) {
        if (!bytes) continue;
        if (uintptr_t(start) % alignment)
            return refuse(INVALID_VALUE, call, "%s is at %p, alignment %u was promised", name, start, alignment);
        if (!emulator_is_device_memory(start, bytes))
            return refuse(EXECUTION_FAILED, call, "%s: %ld bytes at %p are not all the device's", name, bytes, start);
    }
    emulator_record("%s n=%d k=%d rows=%d algorithm=%u", call, problem.n(), problem.k(), problem.rows(), algorithm->id);
    Task task = {};
    task.a = a_start, task.b = b_start, task.c = c_start, task.bias = bias, task.d = d_start;
    task.workspace = is_split(*algorithm) ? (float*)workspace : nullptr;
    task.lda = a->leading, task.ldb = b->leading, task.ldc = c->leading, task.ldd = d->leading;
    task.alpha = *alpha, task.beta = *beta;
    task.n = problem.n(), task.k = problem.k(), task.rows = problem.rows();
    task.input = product::Type(a->type), task.output = product::Type(d->type);
    task.order = {chunk_of(algorithm->id, task.rows), algorithm->split_k, product::Reduction(algorithm->reduction)};
    task.delay_us = changes[algorithm->id].delay_us;
    if (emulator_enqueue(stream, call, product::run, &task, sizeof task))
        return refuse(EXECUTION_FAILED, call, "the driver refused");
    return SUCCESS;
}
