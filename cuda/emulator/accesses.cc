// Each load and store of a kernel, checked: the address lies in an allocation, byte for byte, and no other
// thread uses the same byte of shared memory in a way that nothing orders. So a missing barrier is found
// whether or not the order of this run makes a wrong value of it.
//
// The compiler calls these functions before every access of code compiled with -fsanitize=thread, whose
// runtime library is not used. What orders accesses: __syncthreads, and __syncwarp between lanes of a warp.
// Shuffles and votes do not: CUDA does not promise it. Accesses of global memory by different threads are not
// compared.

#include "accesses.h"

#include <initializer_list>
#include <stdio.h>

#include "host.h"
#include "warp.h"

// The image of this library, by the linker.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start[], _end[];

namespace emulator {

bool accesses_checked;

namespace {

constexpr size_t SHARED_BYTES_MAX = 256 << 10;
// Two bytes, the size of the smallest elements, are watched as one; single bytes are not watched.
constexpr size_t UNIT = 2;

// Who used a unit last, when and where, in one word:
// block epoch (18 bits) | warp epoch (9) | thread (10) | many | many_warps | atomic | place (24).
typedef uint64_t Stamp;
constexpr unsigned PLACE_BITS = 24, THREAD_AT = 27, WARP_EPOCH_AT = 37, BLOCK_EPOCH_AT = 46;
constexpr Stamp ATOMIC = Stamp(1) << 24;     // by an atomic operation
constexpr Stamp MANY_WARPS = Stamp(1) << 25; // in this block epoch by other warps, too
constexpr Stamp MANY = Stamp(1) << 26;       // in this warp epoch by other lanes, too
constexpr uint32_t BLOCK_EPOCHS = 1 << 18, WARP_EPOCHS = 1 << 9;

Stamp written[SHARED_BYTES_MAX / UNIT], read[SHARED_BYTES_MAX / UNIT];
uint32_t block_epoch;
uint32_t warp_epochs[32];
struct Extent {
    const char *start, *end;
};
Extent params;
// The allocation that an instruction used last, which most often it uses again; by a part of its address.
Extent known[256];
bool atomic_now;

uint32_t thread_of(Stamp stamp) { return uint32_t(stamp >> THREAD_AT) & 1023; }

[[noreturn]] void report_race(const char* first, const char* second, Stamp other, size_t at,
                              const void* place) {
    fprintf(stderr, "emulator: %s byte %zu of shared memory:\n", second, at);
    print_source(place);
    fprintf(stderr, "emulator: and nothing orders it after thread %u %s it:\n", thread_of(other), first);
    print_source(__ehdr_start + (other & ((1 << PLACE_BITS) - 1)));
    fail("a race");
}

// Whether something of this block may have been at the same time as an access with the stamp `now`. Two
// atomic operations may.
DEVICE bool races(Stamp other, Stamp now) {
    if (other >> BLOCK_EPOCH_AT != now >> BLOCK_EPOCH_AT || (other & now & ATOMIC)) return false;
    if (other & MANY_WARPS || thread_of(other) / 32 != thread_of(now) / 32) return true;
    return other >> WARP_EPOCH_AT == now >> WARP_EPOCH_AT &&
           (other & MANY || thread_of(other) != thread_of(now));
}

// The stamp of a read, given that of the last one: it must still tell of that one what may race.
DEVICE Stamp merged(Stamp last, Stamp now) {
    if (last >> BLOCK_EPOCH_AT != now >> BLOCK_EPOCH_AT) return now;
    if (thread_of(last) / 32 != thread_of(now) / 32) now |= MANY_WARPS;
    if (last >> WARP_EPOCH_AT == now >> WARP_EPOCH_AT) {
        now |= last & MANY;
        if (thread_of(last) != thread_of(now)) now |= MANY;
    }
    if (!(last & ATOMIC)) now &= ~ATOMIC;
    return now | (last & MANY_WARPS);
}

bool same_block_epoch(Stamp a, Stamp b) { return (a ^ b) >> BLOCK_EPOCH_AT == 0; }

__attribute__((noinline)) void touch_shared(size_t at, size_t count, bool write, const void* place) {
    uint32_t thread = current->warp->number * 32 + current->lane;
    Stamp now = Stamp(block_epoch) << BLOCK_EPOCH_AT | Stamp(warp_epochs[thread / 32]) << WARP_EPOCH_AT |
                Stamp(thread) << THREAD_AT | (atomic_now ? ATOMIC : 0) |
                Stamp((const char*)place - __ehdr_start);
    for (size_t unit = at / UNIT; unit < (at + count) / UNIT; unit++) {
        if (same_block_epoch(written[unit], now) && races(written[unit], now))
            report_race("wrote", write ? "writes" : "reads", written[unit], unit * UNIT, place);
        if (!write) {
            // What several warps have read cannot become worse.
            Stamp last = read[unit];
            if (!same_block_epoch(last, now) || (last & (MANY_WARPS | ATOMIC)) != MANY_WARPS)
                read[unit] = merged(last, now);
            continue;
        }
        if (same_block_epoch(read[unit], now) && races(read[unit], now))
            report_race("read", "writes", read[unit], unit * UNIT, place);
        written[unit] = now;
    }
}

Extent& known_to(const void* place) { return known[(uintptr_t(place) ^ uintptr_t(place) >> 8) & 255]; }

DEVICE bool holds(const Extent& extent, const char* at, size_t count) {
    return extent.start <= at && at + count <= extent.end;
}

// For global memory that is not where the instruction was before.
__attribute__((noinline)) void find(const char* at, size_t count, bool write, const void* place) {
    if (current->fiber.is_on_stack(at)) return;
    Extent& found = known_to(place);
    for (const Extent& constant : {params, Extent{__ehdr_start, _end}})
        if (!write && holds(constant, at, count)) {
            found = constant;
            return;
        }
    if (guarded_extent(at, count, &found.start, &found.end)) return;
    char text[256];
    print_source(place);
    if (describe_place(at, text, sizeof text))
        fail("%s of %zu bytes: %s", write ? "store" : "load", count, text);
    fail("%s of %zu bytes, %s", write ? "store" : "load", count, guarded_describe(at));
}

DEVICE void touch(const void* address, size_t count, bool write, const void* place) {
    const char* at = (const char*)address;
    size_t in_shared = size_t((const unsigned char*)at - shared);
    if (in_shared < shared_bytes && in_shared + count <= shared_bytes)
        return touch_shared(in_shared, count, write, place);
    if (!holds(known_to(place), at, count)) find(at, count, write, place);
}

} // namespace

void accesses_begin_launch(bool checked, const void* of_kernel, size_t size) {
    accesses_checked = checked;
    params = {(const char*)of_kernel, (const char*)of_kernel + size};
    for (Extent& extent : known) extent = {};
}

void accesses_order_block() {
    if (++block_epoch == BLOCK_EPOCHS) {
        // Numbers begin anew; what is old must not look new.
        memset(written, 0, sizeof written);
        memset(read, 0, sizeof read);
        block_epoch = 1;
    }
    memset(warp_epochs, 0, sizeof warp_epochs);
}

void accesses_order_warp(unsigned warp) { warp_epochs[warp] = (warp_epochs[warp] + 1) % WARP_EPOCHS; }

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

#define WATCH(bytes)                                                                                         \
    extern "C" void __tsan_read##bytes(const void* address) {                                                \
        if (!emulator::atomic_now) emulator::touch(address, bytes, false, __builtin_return_address(0));      \
    }                                                                                                        \
    extern "C" void __tsan_write##bytes(const void* address) {                                               \
        if (!emulator::atomic_now) emulator::touch(address, bytes, true, __builtin_return_address(0));       \
    }                                                                                                        \
    extern "C" void __tsan_unaligned_read##bytes(const void* address) { __tsan_read##bytes(address); }       \
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
