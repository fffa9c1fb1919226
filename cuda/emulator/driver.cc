// The stand-in for the CUDA driver, libcuda.so: one device whose memory is memory of this process. Streams
// and graphs are in stream.cc. Functions that nobody has needed yet are absent, and cudarc names them when
// they are called.
//
// What the device is can be varied with the environment: QUIRE_EMULATOR_COMPUTE_CAPABILITY
// (8.0, 8.6, 8.9, 9.0, ...), QUIRE_EMULATOR_SMS, QUIRE_EMULATOR_MEMORY_BYTES, QUIRE_EMULATOR_CUDA_VERSION (13000).

#include "driver.h"

#include <algorithm>
#include <map>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>

namespace driver {

const char* const DEVICE_MEMORY = "device memory";
const char* const PINNED_MEMORY = "pinned memory";

namespace {

constexpr size_t SHARED_BYTES_WITHOUT_LEAVE = 48 << 10;

struct Device {
    int major = 9, minor = 0;
    int sms = 132;
    size_t memory_bytes = size_t(512) << 20;
    int shared_bytes_per_sm, shared_bytes_per_block, threads_per_sm, blocks_per_sm;

    Device() {
        if (const char* text = getenv("QUIRE_EMULATOR_COMPUTE_CAPABILITY"))
            if (sscanf(text, "%d.%d", &major, &minor) != 2)
                emulator::fail("QUIRE_EMULATOR_COMPUTE_CAPABILITY=%s: must be like 9.0", text);
        if (const char* text = getenv("QUIRE_EMULATOR_SMS")) sms = atoi(text);
        if (const char* text = getenv("QUIRE_EMULATOR_MEMORY_BYTES"))
            memory_bytes = strtoull(text, nullptr, 10);
        if (sms < 1) emulator::fail("QUIRE_EMULATOR_SMS: must be at least 1");
        // CUDA C++ Programming Guide, table of technical specifications per compute capability.
        bool small = major == 8 ? minor != 0 && minor != 7 : major >= 12;
        shared_bytes_per_sm = (small ? 100 : major == 8 ? 164 : 228) << 10;
        shared_bytes_per_block = shared_bytes_per_sm - 1024;
        threads_per_sm = small ? 1536 : 2048;
        blocks_per_sm = !small ? 32 : major == 8 && minor == 6 ? 16 : 24;
    }
};

const Device& device() {
    static const Device only;
    return only;
}

thread_local void* current_context;
void* const PRIMARY_CONTEXT = (void*)0x100;
bool initialised;
size_t memory_used;
std::map<void*, size_t>& sizes() { // of device memory
    static auto* all = new std::map<void*, size_t>;
    return *all;
}

bool are_mistakes_planted = false;

// Functions by name; a handle is the address.
std::map<std::string, Function>& functions() {
    static auto* all = new std::map<std::string, Function>;
    return *all;
}

Function* find_function(void* handle) {
    for (auto& [name, function] : functions())
        if (&function == handle) return &function;
    return nullptr;
}

const char* error_name(int result) {
    switch (result) {
    case SUCCESS: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NOT_INITIALIZED: return "CUDA_ERROR_NOT_INITIALIZED";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case INVALID_IMAGE: return "CUDA_ERROR_INVALID_IMAGE";
    case INVALID_CONTEXT: return "CUDA_ERROR_INVALID_CONTEXT";
    case NO_BINARY_FOR_GPU: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case INVALID_HANDLE: return "CUDA_ERROR_INVALID_HANDLE";
    case NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case NOT_READY: return "CUDA_ERROR_NOT_READY";
    case LAUNCH_OUT_OF_RESOURCES: return "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES";
    case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
    case CAPTURE_UNSUPPORTED: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    case CAPTURE_INVALIDATED: return "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED";
    case CAPTURE_UNMATCHED: return "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED";
    case CAPTURE_WRONG_THREAD: return "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD";
    default: return nullptr;
    }
}

} // namespace

Result refuse(Result result, const char* call, const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(stderr, "emulator: %s: %s (%s)\n", call, text, error_name(result));
    emulator_record("%s refused=%d %s", call, int(result), text);
    return result;
}

Result begin(const char* call, bool needs_context) {
    emulator_record_call(call);
    if (!initialised) return refuse(NOT_INITIALIZED, call, "cuInit was not called");
    if (needs_context && !current_context)
        return refuse(INVALID_CONTEXT, call, "this thread has no current context");
    return SUCCESS;
}

} // namespace driver

using namespace driver;
typedef unsigned long long Address;

EXPORT Result cuInit(unsigned) {
    std::lock_guard<std::recursive_mutex> guard(driver::lock);
    emulator_record_call("cuInit");
    initialised = true;
    emulator::catch_faults();
    return SUCCESS;
}

EXPORT Result cuDriverGetVersion(int* version) {
    const char* text = getenv("QUIRE_EMULATOR_CUDA_VERSION");
    *version = text ? atoi(text) : 13000;
    return SUCCESS;
}

EXPORT Result cuGetErrorName(int result, const char** text) {
    *text = error_name(result);
    return *text ? SUCCESS : INVALID_VALUE;
}

EXPORT Result cuGetErrorString(int result, const char** text) { return cuGetErrorName(result, text); }

EXPORT Result cuDeviceGetCount(int* count) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceGetCount")
    *count = 1;
    return SUCCESS;
}

EXPORT Result cuDeviceGet(int* handle, int ordinal) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceGet")
    if (ordinal != 0) return refuse(INVALID_DEVICE, "cuDeviceGet", "there is no device %d", ordinal);
    *handle = 0;
    return SUCCESS;
}

EXPORT Result cuDeviceGetName(char* name, int bytes, int) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceGetName")
    snprintf(name, size_t(bytes), "Emulated GPU %d.%d", device().major, device().minor);
    return SUCCESS;
}

EXPORT Result cuDeviceGetUuid_v2(unsigned char* uuid, int) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceGetUuid")
    memset(uuid, 0xe0, 16);
    return SUCCESS;
}

EXPORT Result cuDeviceTotalMem_v2(size_t* bytes, int) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceTotalMem")
    *bytes = device().memory_bytes;
    return SUCCESS;
}

EXPORT Result cuDeviceGetAttribute(int* value, int attribute, int) {
    BEGIN_WITHOUT_CONTEXT("cuDeviceGetAttribute")
    const Device& d = device();
    // By the numbers of CUdevice_attribute.
    const struct {
        int attribute, value;
    } values[] = {
        {1, 1024},                            // threads per block
        {2, 1024},                            // block x
        {3, 1024},                            // block y
        {4, 64},                              // block z
        {5, 0x7fffffff},                      // grid x
        {6, 65535},                           // grid y
        {7, 65535},                           // grid z
        {8, int(SHARED_BYTES_WITHOUT_LEAVE)}, // shared memory per block
        {10, 32},                             // warp size
        {12, 65536},                          // registers per block
        {13, 1980000},                        // clock, kHz
        {16, d.sms},                          // multiprocessors
        {31, 1},                              // concurrent kernels
        {36, 2619000},                        // memory clock, kHz
        {37, 5120},                           // memory bus, bits
        {38, 50 << 20},                       // level 2 cache, bytes
        {39, d.threads_per_sm},               // threads per multiprocessor
        {41, 1},                              // unified addressing
        {75, d.major},                        // compute capability
        {76, d.minor},
        {81, d.shared_bytes_per_sm},    // shared memory per multiprocessor
        {82, 65536},                    // registers per multiprocessor
        {97, d.shared_bytes_per_block}, // shared memory per block, with leave
        {106, d.blocks_per_sm},         // blocks per multiprocessor
        {111, 1024},                    // shared memory reserved per block
        {115, 0},                       // memory pools
    };
    for (auto& known : values)
        if (known.attribute == attribute) {
            *value = known.value;
            return SUCCESS;
        }
    return refuse(INVALID_VALUE, "cuDeviceGetAttribute", "attribute %d is not known here", attribute);
}

EXPORT Result cuDevicePrimaryCtxRetain(void** context, int) {
    BEGIN_WITHOUT_CONTEXT("cuDevicePrimaryCtxRetain")
    *context = PRIMARY_CONTEXT;
    return SUCCESS;
}

EXPORT Result cuDevicePrimaryCtxRelease_v2(int) {
    BEGIN_WITHOUT_CONTEXT("cuDevicePrimaryCtxRelease")
    finish_everything();
    return SUCCESS;
}

EXPORT Result cuCtxGetCurrent(void** context) {
    BEGIN_WITHOUT_CONTEXT("cuCtxGetCurrent")
    *context = current_context;
    return SUCCESS;
}

EXPORT Result cuCtxSetCurrent(void* context) {
    BEGIN_WITHOUT_CONTEXT("cuCtxSetCurrent")
    if (context && context != PRIMARY_CONTEXT)
        return refuse(INVALID_CONTEXT, "cuCtxSetCurrent", "%p", context);
    current_context = context;
    return SUCCESS;
}

EXPORT Result cuCtxSynchronize() {
    BEGIN_OUTSIDE_CAPTURE("cuCtxSynchronize")
    emulator_record("cuCtxSynchronize");
    finish_everything();
    return SUCCESS;
}

EXPORT Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN("cuMemGetInfo")
    *total = device().memory_bytes;
    *free = device().memory_bytes - memory_used;
    return SUCCESS;
}

EXPORT Result cuMemAlloc_v2(Address* address, size_t bytes) {
    BEGIN_OUTSIDE_CAPTURE("cuMemAlloc")
    if (bytes == 0) return refuse(INVALID_VALUE, "cuMemAlloc", "0 bytes");
    if (bytes > device().memory_bytes - memory_used)
        return refuse(OUT_OF_MEMORY, "cuMemAlloc", "%zu bytes; %zu of %zu are free", bytes,
                      device().memory_bytes - memory_used, device().memory_bytes);
    void* start = emulator::guarded_allocate(bytes, DEVICE_MEMORY);
    memory_used += bytes;
    sizes()[start] = bytes;
    *address = Address(start);
    emulator_record("cuMemAlloc bytes=%zu address=%p", bytes, start);
    return SUCCESS;
}

// Waits for everything, as the driver does.
EXPORT Result cuMemFree_v2(Address address) {
    BEGIN_OUTSIDE_CAPTURE("cuMemFree")
    finish_everything();
    void* start = (void*)address;
    if (!emulator::guarded_free(start, DEVICE_MEMORY))
        return refuse(INVALID_VALUE, "cuMemFree", "%p: %s", start, emulator::guarded_describe(start));
    memory_used -= sizes()[start];
    sizes().erase(start);
    emulator_record("cuMemFree address=%p", start);
    return SUCCESS;
}

EXPORT Result cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    BEGIN_OUTSIDE_CAPTURE("cuMemHostAlloc")
    if (bytes == 0) return refuse(INVALID_VALUE, "cuMemHostAlloc", "0 bytes");
    *address = emulator::guarded_allocate(bytes, PINNED_MEMORY, 4096);
    emulator_record("cuMemHostAlloc bytes=%zu address=%p", bytes, *address);
    return SUCCESS;
}

EXPORT Result cuMemFreeHost(void* address) {
    BEGIN_OUTSIDE_CAPTURE("cuMemFreeHost")
    finish_everything();
    if (!emulator::guarded_free(address, PINNED_MEMORY))
        return refuse(INVALID_VALUE, "cuMemFreeHost", "%p: %s", address, emulator::guarded_describe(address));
    emulator_record("cuMemFreeHost address=%p", address);
    return SUCCESS;
}

namespace {

enum class Route { TO_DEVICE, TO_HOST, ON_DEVICE };

Result copy(const char* call, Route route, void* to, const void* from, size_t bytes, void* handle) {
    std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, call, "%p is no stream", handle);
    if (bytes == 0) return SUCCESS;
    Work work(Work::COPY);
    work.to = to;
    work.from = from;
    work.bytes = bytes;
    work.to_host = route == Route::TO_HOST;
    work.from_host = route == Route::TO_DEVICE;
    emulator_record("%s bytes=%zu to=%p from=%p stream=%u captured=%d", call, bytes, to, from, stream->number,
                    stream->capture != Capture::NONE);
    return stream->enqueue(std::move(work), call);
}

Result fill(const char* call, Address address, unsigned char value, size_t bytes, void* handle) {
    std::shared_ptr<Stream> stream = find_stream(handle);
    if (!stream) return refuse(INVALID_HANDLE, call, "%p is no stream", handle);
    if (bytes == 0) return SUCCESS;
    Work work(Work::FILL);
    work.to = (void*)address;
    work.bytes = bytes;
    work.value = value;
    emulator_record("%s bytes=%zu to=%p value=%u stream=%u captured=%d", call, bytes, work.to, value,
                    stream->number, stream->capture != Capture::NONE);
    return stream->enqueue(std::move(work), call);
}

} // namespace

EXPORT Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyHtoDAsync")
    return copy("cuMemcpyHtoDAsync", Route::TO_DEVICE, (void*)to, from, bytes, stream);
}

EXPORT Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyDtoHAsync")
    return copy("cuMemcpyDtoHAsync", Route::TO_HOST, to, (const void*)from, bytes, stream);
}

EXPORT Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* stream) {
    BEGIN("cuMemcpyDtoDAsync")
    return copy("cuMemcpyDtoDAsync", Route::ON_DEVICE, (void*)to, (const void*)from, bytes, stream);
}

EXPORT Result cuMemsetD8Async(Address address, unsigned char value, size_t bytes, void* stream) {
    BEGIN("cuMemsetD8Async")
    return fill("cuMemsetD8Async", address, value, bytes, stream);
}

// The synchronous ones go through the null stream, which does not wait for streams made as non-blocking.
EXPORT Result cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    BEGIN_OUTSIDE_CAPTURE("cuMemcpyHtoD")
    Result result = copy("cuMemcpyHtoD", Route::TO_DEVICE, (void*)to, from, bytes, nullptr);
    finish_null_stream();
    return result;
}

EXPORT Result cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    BEGIN_OUTSIDE_CAPTURE("cuMemcpyDtoH")
    Result result = copy("cuMemcpyDtoH", Route::TO_HOST, to, (const void*)from, bytes, nullptr);
    finish_null_stream();
    return result;
}

EXPORT Result cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    BEGIN_OUTSIDE_CAPTURE("cuMemcpyDtoD")
    Result result = copy("cuMemcpyDtoD", Route::ON_DEVICE, (void*)to, (const void*)from, bytes, nullptr);
    finish_null_stream();
    return result;
}

EXPORT Result cuMemsetD8_v2(Address address, unsigned char value, size_t bytes) {
    BEGIN_OUTSIDE_CAPTURE("cuMemsetD8")
    Result result = fill("cuMemsetD8", address, value, bytes, nullptr);
    finish_null_stream();
    return result;
}

// What the image holds cannot be known here: a module has all kernels that were compiled into this library.
EXPORT Result cuModuleLoadData(void** module, const void* image) {
    BEGIN_OUTSIDE_CAPTURE("cuModuleLoadData")
    // ELF (a cubin), a fatbin, a fatbin's wrapper, or what the stand-in for NVRTC makes.
    static const unsigned char KNOWN[4][4] = {
        {0x7f, 'E', 'L', 'F'}, {0x50, 0xed, 0x55, 0xba}, {0xb1, 0x43, 0x62, 0x46}, {'E', 'M', 'U', 'L'}};
    bool known =
        image && std::any_of(KNOWN, KNOWN + 4, [&](auto& magic) { return !memcmp(image, magic, 4); });
    if (!known) return refuse(INVALID_IMAGE, "cuModuleLoadData", "no cubin and no fatbin");
    int architecture;
    if (sscanf((const char*)image, "EMULATED %d", &architecture) == 1 &&
        (architecture / 10 != device().major || architecture % 10 > device().minor))
        return refuse(NO_BINARY_FOR_GPU, "cuModuleLoadData", "the image is for sm_%d, the device has %d.%d",
                      architecture, device().major, device().minor);
    static uintptr_t loaded = 0x200;
    *module = (void*)(loaded += 16);
    emulator_record("cuModuleLoadData module=%p", *module);
    return SUCCESS;
}

EXPORT Result cuModuleUnload(void*) {
    BEGIN_OUTSIDE_CAPTURE("cuModuleUnload")
    finish_everything();
    return SUCCESS;
}

// From here on functions are those with a mistake, where there is one (emulator/planted.cu), or the right
// ones again.
EXPORT void emulator_plant_mistakes(int on) { are_mistakes_planted = on != 0; }

EXPORT Result cuModuleGetFunction(void** handle, void*, const char* name) {
    BEGIN("cuModuleGetFunction")
    // Not finding one is an answer, and no reason for a report.
    std::string planted = std::string("planted_") + name;
    const emulator::Kernel* kernel = are_mistakes_planted ? emulator::find_kernel(planted.c_str()) : nullptr;
    if (kernel) name = kernel->name;
    else kernel = emulator::find_kernel(name);
    if (!kernel) return NOT_FOUND;
    auto [at, added] = functions().insert({name, {kernel, SHARED_BYTES_WITHOUT_LEAVE}});
    *handle = &at->second;
    return SUCCESS;
}

namespace {

Result find_function(const char* call, void* handle, Function** function) {
    *function = driver::find_function(handle);
    return *function ? SUCCESS : refuse(INVALID_HANDLE, call, "%p is no function", handle);
}

} // namespace

EXPORT Result cuFuncSetAttribute(void* handle, int attribute, int value) {
    BEGIN("cuFuncSetAttribute")
    Function* function;
    if (Result wrong = find_function("cuFuncSetAttribute", handle, &function)) return wrong;
    if (attribute == 9) return SUCCESS; // how the cache is shared: a wish
    if (attribute != 8)
        return refuse(INVALID_VALUE, "cuFuncSetAttribute", "attribute %d is not known here", attribute);
    if (value < 0 || value > device().shared_bytes_per_block)
        return refuse(INVALID_VALUE, "cuFuncSetAttribute", "%d bytes of shared memory for %s; at most %d",
                      value, function->kernel->name, device().shared_bytes_per_block);
    function->shared_bytes_max = std::max(size_t(value), SHARED_BYTES_WITHOUT_LEAVE);
    emulator_record("cuFuncSetAttribute kernel=%s shared_bytes=%d", function->kernel->name, value);
    return SUCCESS;
}

EXPORT Result cuFuncLoad(void* handle) {
    BEGIN("cuFuncLoad")
    Function* function;
    return find_function("cuFuncLoad", handle, &function);
}

EXPORT Result cuFuncGetAttribute(int* value, int attribute, void* handle) {
    BEGIN("cuFuncGetAttribute")
    Function* function;
    if (Result wrong = find_function("cuFuncGetAttribute", handle, &function)) return wrong;
    switch (attribute) {
    case 0: *value = int(function->kernel->threads_max); break; // threads per block
    case 1: *value = 0; break;                                  // static shared memory
    case 8: *value = int(function->shared_bytes_max); break;
    default: return refuse(INVALID_VALUE, "cuFuncGetAttribute", "attribute %d is not known here", attribute);
    }
    return SUCCESS;
}

// Registers, which a compiler for the host cannot know, are left out of it.
EXPORT Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads,
                                                          size_t shared_bytes) {
    BEGIN("cuOccupancyMaxActiveBlocksPerMultiprocessor")
    Function* function;
    if (Result wrong = find_function("cuOccupancyMaxActiveBlocksPerMultiprocessor", handle, &function))
        return wrong;
    if (threads < 1)
        return refuse(INVALID_VALUE, "cuOccupancyMaxActiveBlocksPerMultiprocessor", "%d threads", threads);
    int by_threads = device().threads_per_sm / ((threads + 31) / 32 * 32);
    int by_shared = int(size_t(device().shared_bytes_per_sm) / (shared_bytes + 1024));
    *blocks = shared_bytes > function->shared_bytes_max || threads > int(function->kernel->threads_max)
                  ? 0
                  : std::min({by_threads, by_shared, device().blocks_per_sm});
    return SUCCESS;
}

namespace {

Result launch(const char* call, void* handle, uint3 grid, uint3 block, unsigned shared_bytes,
              void* stream_handle, void** params) {
    std::shared_ptr<Stream> stream = find_stream(stream_handle);
    if (!stream) return refuse(INVALID_HANDLE, call, "%p is no stream", stream_handle);
    Function* function;
    if (Result wrong = find_function(call, handle, &function)) return wrong;
    const emulator::Kernel& kernel = *function->kernel;
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffff || grid.y > 65535 || grid.z > 65535)
        return refuse(INVALID_VALUE, call, "%s: a grid of (%u, %u, %u)", kernel.name, grid.x, grid.y, grid.z);
    size_t threads = size_t(block.x) * block.y * block.z;
    if (!threads || threads > 1024 || block.z > 64)
        return refuse(INVALID_VALUE, call, "%s: a block of (%u, %u, %u)", kernel.name, block.x, block.y,
                      block.z);
    if (threads > kernel.threads_max)
        return refuse(LAUNCH_OUT_OF_RESOURCES, call, "%s: %zu threads; its KERNEL_BOUNDS say %u", kernel.name,
                      threads, kernel.threads_max);
    if (shared_bytes > function->shared_bytes_max)
        return refuse(INVALID_VALUE, call,
                      "%s: %u bytes of shared memory; it is allowed %zu (cuFuncSetAttribute)", kernel.name,
                      shared_bytes, function->shared_bytes_max);
    if (!params || !params[0]) return refuse(INVALID_VALUE, call, "%s: no parameter", kernel.name);
    Work work(Work::KERNEL);
    work.function = function;
    work.grid = grid;
    work.block = block;
    work.shared_bytes = shared_bytes;
    const unsigned char* bytes = (const unsigned char*)params[0];
    work.params.assign(bytes, bytes + kernel.params_bytes);
    emulator_record("%s kernel=%s grid=%u,%u,%u block=%u,%u,%u shared_bytes=%u stream=%u captured=%d", call,
                    kernel.name, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes,
                    stream->number, stream->capture != Capture::NONE);
    return stream->enqueue(std::move(work), call);
}

} // namespace

EXPORT Result cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                             unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared_bytes,
                             void* stream, void** params, void** extra) {
    BEGIN("cuLaunchKernel")
    if (extra) return refuse(NOT_SUPPORTED, "cuLaunchKernel", "parameters by `extra`");
    return launch("cuLaunchKernel", function, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z},
                  shared_bytes, stream, params);
}

struct LaunchConfig { // CUlaunchConfig
    uint3 grid, block;
    unsigned shared_bytes;
    void* stream;
    void* attributes;
    unsigned attributes_count;
};

EXPORT Result cuLaunchKernelEx(const LaunchConfig* config, void* function, void** params, void** extra) {
    BEGIN("cuLaunchKernelEx")
    if (extra || config->attributes_count)
        return refuse(NOT_SUPPORTED, "cuLaunchKernelEx", "attributes, or parameters by `extra`");
    return launch("cuLaunchKernelEx", function, config->grid, config->block, config->shared_bytes,
                  config->stream, params);
}

// For the stand-in libraries beside this one: work of a library's own, `run` with a copy of `params`. Checked
// like a kernel's parameter. `name` is for the log.
EXPORT int emulator_enqueue(void* stream_handle, const char* name, void (*run)(const void*),
                            const void* params, size_t params_bytes) {
    BEGIN(name)
    std::shared_ptr<Stream> stream = find_stream(stream_handle);
    if (!stream) return refuse(INVALID_HANDLE, name, "%p is no stream", stream_handle);
    Work work(Work::LIBRARY);
    work.run = run;
    work.params.assign((const unsigned char*)params, (const unsigned char*)params + params_bytes);
    return stream->enqueue(std::move(work), name);
}

// Whether all these bytes are in one live allocation of the device.
EXPORT int emulator_is_device_memory(const void* start, size_t bytes) {
    std::lock_guard<std::recursive_mutex> guard(driver::lock);
    return emulator::guarded_kind(start, bytes) == DEVICE_MEMORY;
}
