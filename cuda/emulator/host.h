// What the host's side sees of the emulated machine: launching kernels by name, and guarded memory.
#pragma once

#include "emulator.h"

namespace emulator {

struct Kernel {
    const char* name;
    size_t params_bytes;
    unsigned threads_max;
    bool accesses_watched;
    void (*run)(const void* params);
};

// The kernel of that name, or null.
const Kernel* find_kernel(const char* name);
// Runs all blocks of the grid, in random order, to their end. `params` is the kernel's parameter struct.
void launch(const Kernel&, uint3 grid, uint3 block, size_t shared_bytes, const void* params);
// Orders of blocks, warps and lanes follow from this (first: environment QUIRE_EMULATOR_SEED, or 1).
void set_seed(uint64_t seed);

// For tests of kernels without a driver: launches with a parameter struct, or fails if there is no such
// kernel.
void launch_named(const char* name, uint3 grid, uint3 block, size_t shared_bytes, const void* params);
template <class Params>
void launch(const char* name, uint3 grid, unsigned threads, size_t shared_bytes, const Params& params) {
    launch_named(name, grid, {threads, 1, 1}, shared_bytes, &params);
}

// Says what is wrong, where the running kernel is (if one is), and aborts.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_at(Site, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Bytes in a mapping of their own, full of 0xff, with inaccessible pages before and after; the end is as near
// to the page after as the alignment, a power of two up to 4096, allows. `kind` is kept as it is.
void* guarded_allocate(size_t bytes, const char* kind, size_t alignment = 256);
// Checks the bytes between the end and the page after, and makes all inaccessible: later use is a fault.
// Returns false if it is not the start of a live allocation of that kind.
bool guarded_free(void* start, const char* kind);
// Fails if something was written just past the end of any allocation.
void guarded_check();
// The kind of the live allocation that holds all these bytes, or null.
const char* guarded_kind(const void* start, size_t bytes);
// The live allocation that holds all these bytes, from its start to its end; false if there is none.
bool guarded_extent(const void* start, size_t bytes, const char** first, const char** end);
// Whether the address belongs to an allocation that was freed.
bool guarded_is_freed(const void* address);
// Whether the address belongs to an allocation, live or freed, or to the inaccessible pages around it.
bool guarded_is_near(const void* address);
// "12 bytes past the end of 4096 bytes of device memory at 0x7f.. (allocation 7)"; good until the next call.
const char* guarded_describe(const void* address);

// If the address is around the block's shared memory or below the running thread's stack, says so.
bool describe_place(const void* address, char* text, size_t text_bytes);
// Whether a kernel is running.
bool running();

// Writes file and line of an address in the kernels' code to standard error, if they can be found.
void print_source(const void* code);

// From here on a fault in a kernel is reported with kernel, block and thread.
void catch_faults();

} // namespace emulator
