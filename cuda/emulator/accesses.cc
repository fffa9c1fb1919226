// Each load and store of a kernel, checked: the address lies in an allocation, byte for byte, and no other thread
// uses the same byte of shared memory in a way that nothing orders. So a missing barrier is found whether or not the
// order of this run makes a wrong value of it.
//
// The compiler calls these functions before every access of code compiled with -fsanitize=thread, whose runtime
// library is not used. What orders accesses: __syncthreads, and __syncwarp between lanes of a warp. Shuffles and
// votes do not: CUDA does not promise it. Accesses of global memory by different threads are not compared.

#include "accesses.h"

#include <stdio.h>

#include "host.h"
#include "warp.h"

// The image of this library, by the linker.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[], _end[];

namespace emulator {

bool accesses_checked;

namespace {

constexpr size_t SHARED_BYTES_MAX = 256 << 10;

// Who used a byte last, and when: the numbers of the barriers before.
struct Stamp {
    uint32_t block_epoch;
    uint32_t warp_epoch;
    uint16_t thread;
    bool many;       // other lanes of the warp, too
    bool many_warps; // other warps, too
    bool atomic;
    const void* place;
};

struct Byte {
    Stamp written, read;
};

Byte bytes_of_shared[SHARED_BYTES_MAX];
uint32_t block_epoch = 1;
uint32_t warp_epochs[32];
const char* params;
size_t params_size;
struct Extent {
    const char *start, *end;
};
Extent known[8]; // allocations found lately
unsigned known_next, known_last; // where the next one goes, and the last one that was hit
bool atomic_now;

uint32_t warp_of(uint32_t thread) { return thread / 32; }

uint32_t this_thread() { return current->warp->number * 32 + current->lane; }

[[noreturn]] void report_race(const char* first, const char* second, const Stamp& other, size_t at, const void* place) {
    fprintf(stderr, "emulator: %s byte %zu of shared memory:\n", second, at);
    print_source(place);
    fprintf(stderr, "emulator: and nothing orders it after thread %u %s it:\n", other.thread, first);
    print_source(other.place);
    fail("a race");
}

// Whether something of this block may have been at the same time as the running thread's access now.
bool races(const Stamp& other, uint32_t thread) {
    if (other.block_epoch != block_epoch) return false;
    if (other.many_warps) return true;
    if (warp_of(other.thread) != warp_of(thread)) return true;
    return other.warp_epoch == warp_epochs[warp_of(thread)] && (other.many || other.thread != thread);
}

void touch_shared(size_t at, size_t count, bool write, const void* place) {
    uint32_t thread = this_thread(), warp = warp_of(thread);
    Stamp now = {block_epoch, warp_epochs[warp], uint16_t(thread), false, false, atomic_now, place};
    for (Byte* byte = &bytes_of_shared[at]; count; byte++, at++, count--) {
        if (races(byte->written, thread) && !(atomic_now && byte->written.atomic))
            report_race("wrote", write ? "writes" : "reads", byte->written, at, place);
        if (write) {
            if (races(byte->read, thread) && !(atomic_now && byte->read.atomic))
                report_race("read", "writes", byte->read, at, place);
            byte->written = now;
            continue;
        }
        Stamp& read = byte->read;
        bool same_epoch = read.block_epoch == block_epoch;
        now.many_warps = same_epoch && (read.many_warps || warp_of(read.thread) != warp);
        now.many = same_epoch && read.warp_epoch == now.warp_epoch && (read.many || read.thread != thread);
        read = now;
    }
}

void touch(const void* address, size_t count, bool write, const void* place) {
    const char* at = (const char*)address;
    size_t in_shared = size_t((const unsigned char*)at - shared);
    if (in_shared < shared_bytes_of_block() && in_shared + count <= shared_bytes_of_block()) return touch_shared(in_shared, count, write, place);
    if (known[known_last].start <= at && at + count <= known[known_last].end) return;
    for (unsigned i = 0; i < 8; i++)
        if (known[i].start <= at && at + count <= known[i].end) {
            known_last = i;
            return;
        }
    if (current->fiber.is_on_stack(at)) return;
    if (!write && params <= at && at + count <= params + params_size) return;
    if (!write && __ehdr_start <= at && at + count <= _end) return;
    Extent& found = known[known_next];
    if (guarded_extent(at, count, &found.start, &found.end)) {
        known_next = (known_next + 1) % 8;
        return;
    }
    char text[256];
    print_source(place);
    if (describe_place(address, text, sizeof text)) fail("%s of %zu bytes: %s", write ? "store" : "load", count, text);
    fail("%s of %zu bytes, %s", write ? "store" : "load", count, guarded_describe(address));
}

} // namespace

void accesses_begin_launch(bool checked, const void* of_kernel, size_t size) {
    accesses_checked = checked;
    params = (const char*)of_kernel;
    params_size = size;
    for (Extent& extent : known) extent = {};
}

void accesses_order_block() { block_epoch++; }

void accesses_order_warp(unsigned warp) { warp_epochs[warp]++; }

void accesses_touch(const void* address, size_t count, bool write, const void* place) {
    if (accesses_checked) touch(address, count, write, place);
}

void accesses_begin_atomic(const void* address, size_t count) {
    atomic_now = true;
    // It reads and writes; what other threads did as one is no conflict.
    touch(address, count, false, __builtin_return_address(0));
    touch(address, count, true, __builtin_return_address(0));
}

void accesses_end_atomic() { atomic_now = false; }

} // namespace emulator

#define WATCH(bytes)                                                                                             \
    extern "C" void __tsan_read##bytes(const void* address) {                                                    \
        if (!emulator::atomic_now) emulator::touch(address, bytes, false, __builtin_return_address(0));          \
    }                                                                                                            \
    extern "C" void __tsan_write##bytes(const void* address) {                                                   \
        if (!emulator::atomic_now) emulator::touch(address, bytes, true, __builtin_return_address(0));           \
    }                                                                                                            \
    extern "C" void __tsan_unaligned_read##bytes(const void* address) { __tsan_read##bytes(address); }           \
    extern "C" void __tsan_unaligned_write##bytes(const void* address) { __tsan_write##bytes(address); }
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
extern "C" void __tsan_read_range(const void* address, size_t bytes) {
    emulator::touch(address, bytes, false, __builtin_return_address(0));
}
extern "C" void __tsan_write_range(const void* address, size_t bytes) {
    emulator::touch(address, bytes, true, __builtin_return_address(0));
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(const void*) {}
extern "C" void __tsan_func_exit() {}
