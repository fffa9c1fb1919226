// The scheduler: one fiber for each thread of a block. A fiber runs until it must wait for others; then
// another lane, now and then of another warp, goes on, chosen at random from a seed. Blocks run one after
// another in random order.
//
// Switching is a few instructions and no system call, and a fiber gives way directly to the next one: a
// served model needs some ten million switches a second. Fibers and their stacks are kept for the next block.

#include "host.h"

#include <map>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "accesses.h"
#include "fiber.h"
#include "warp.h"

namespace emulator {

uint3 thread_index, block_index, block_size, grid_size;
uint32_t lane;
unsigned char* shared;
Thread* current;
size_t shared_bytes;

namespace {

constexpr unsigned THREADS_MAX = 1024;
constexpr size_t STACK_BYTES = 256 << 10;
constexpr size_t SHARED_BYTES_MAX = 256 << 10;
constexpr size_t SHARED_GUARD_BYTES = 1 << 20;
constexpr unsigned char CANARY = 0xa5;

Warp warps[THREADS_MAX / 32];
Fiber scheduler;
unsigned fibers_made;
uint32_t ready_warps; // bit w: some lane of warp w can run

struct Block {
    unsigned threads, waiting, done;
    int count, counting;
} block;

unsigned char* shared_area;

const Kernel* kernel;
const void* kernel_params;
uint64_t random_state = 0;

uint32_t random_bits() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return uint32_t(random_state >> 33);
}

std::map<std::string, Kernel>& registry() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

unsigned pick_bit(uint32_t bits) {
    uint32_t turn = random_bits() & 31;
    return (unsigned(__builtin_ctz(bits >> turn | bits << (-turn & 31))) + turn) & 31;
}

void enter(Thread* thread) {
    current = thread;
    thread_index = thread->index;
    lane = thread->lane;
}

// Gives way to any thread that can run; to the scheduler if there is none.
void give_way() {
    Thread* self = current;
    Warp* warp = self->warp;
    if (!warp->ready || (random_bits() & 15) == 0) {
        if (!ready_warps) {
            current = nullptr;
            self->fiber.switch_to(scheduler);
            return;
        }
        warp = &warps[pick_bit(ready_warps)];
    }
    Thread* next = &warp->threads[pick_bit(warp->ready)];
    warp->ready &= ~(1u << next->lane);
    if (!warp->ready) ready_warps &= ~(1u << warp->number);
    enter(next);
    if (next != self) self->fiber.switch_to(next->fiber);
}

void make_ready(Warp* warp, uint32_t lanes) {
    warp->ready |= lanes;
    ready_warps |= 1u << warp->number;
}

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !strcmp(a.file, b.file)); }

void print_waiting() {
    unsigned shown = 0;
    for (unsigned w = 0; w * 32 < block.threads; w++)
        for (Thread& t : warps[w].threads) {
            if (!(warps[w].existing >> t.lane & 1) || shown == 40) continue;
            shown++;
            uint32_t bit = 1u << t.lane;
            const char* state = warps[w].done & bit         ? "has returned"
                                : warps[w].at_barrier & bit ? "waits for its block"
                                : warps[w].arrived & bit    ? "waits for its warp"
                                                            : "can go on";
            fprintf(stderr, "  thread (%u, %u, %u) %s", t.index.x, t.index.y, t.index.z, state);
            if (t.site.file) fprintf(stderr, ", after %s:%u", t.site.file, t.site.line);
            fprintf(stderr, "\n");
        }
    if (shown == 40) fprintf(stderr, "  (more threads are not shown)\n");
}

void release_block() {
    Thread& first = warps[0].threads[0];
    if (block.done) {
        print_waiting();
        fail_at(first.site, "a barrier of the block, but some threads have returned");
    }
    for (unsigned w = 0; w * 32 < block.threads; w++) {
        for (Thread& t : warps[w].threads)
            if (warps[w].existing >> t.lane & 1 && !same(t.site, first.site)) {
                print_waiting();
                fail_at(t.site, "divergent barriers: thread (0, 0, 0) is at %s:%u", first.site.file,
                        first.site.line);
            }
        warps[w].at_barrier = 0;
        make_ready(&warps[w], warps[w].existing);
    }
    accesses_order_block();
    block.waiting = 0;
    block.count = block.counting;
    block.counting = 0;
}

void run_thread() {
    for (;;) {
        Thread* self = current;
        kernel->run(kernel_params);
        self->copies.clear();
        self->groups.clear();
        self->warp->done |= 1u << self->lane;
        block.done++;
        if (block.waiting && block.waiting + block.done == block.threads) release_block();
        give_way();
    }
}

void make_fibers(unsigned threads) {
    for (; fibers_made < threads; fibers_made++) {
        Thread& thread = warps[fibers_made / 32].threads[fibers_made % 32];
        thread.warp = &warps[fibers_made / 32];
        thread.warp->number = fibers_made / 32;
        thread.lane = fibers_made % 32;
        thread.fiber.make(run_thread, STACK_BYTES, fibers_made);
    }
}

// Shared memory ends where inaccessible pages begin, but for its alignment.
unsigned char* place_shared(size_t bytes) {
    if (!shared_area) {
        void* made = mmap(nullptr, SHARED_BYTES_MAX + 2 * SHARED_GUARD_BYTES, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (made == MAP_FAILED ||
            mprotect((char*)made + SHARED_GUARD_BYTES, SHARED_BYTES_MAX, PROT_READ | PROT_WRITE))
            fail("no memory for shared memory");
        shared_area = (unsigned char*)made + SHARED_GUARD_BYTES;
    }
    if (bytes > SHARED_BYTES_MAX)
        fail("%zu bytes of shared memory; a block can have %zu", bytes, SHARED_BYTES_MAX);
    return shared_area + SHARED_BYTES_MAX - (bytes + 15) / 16 * 16;
}

void run_block(uint3 index) {
    accesses_order_block();
    block_index = index;
    unsigned char* end = shared + shared_bytes;
    size_t slack = -shared_bytes & 15;
    memset(shared, 0xff, shared_bytes); // a NaN, whatever the type
    memset(end, CANARY, slack);
    block = {block.threads, 0, 0, 0, 0};
    for (unsigned w = 0; w * 32 < block.threads; w++) {
        Warp& warp = warps[w];
        unsigned lanes = block.threads - w * 32;
        warp.existing = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        warp.arrived = warp.at_barrier = warp.done = 0;
        make_ready(&warp, warp.existing);
        for (Thread& thread : warp.threads) thread.site = Site(nullptr, 0);
    }
    while (ready_warps) {
        Warp& warp = warps[pick_bit(ready_warps)];
        Thread* next = &warp.threads[pick_bit(warp.ready)];
        warp.ready &= ~(1u << next->lane);
        if (!warp.ready) ready_warps &= ~(1u << warp.number);
        enter(next);
        scheduler.switch_to(next->fiber);
    }
    if (block.done != block.threads) {
        print_waiting();
        fail("a barrier or an operation of a warp was not reached by all its threads");
    }
    for (size_t i = 0; i < slack; i++)
        if (end[i] != CANARY) fail("shared memory was written past its end of %zu bytes", shared_bytes);
}

} // namespace

Registration::Registration(const char* name, size_t params_bytes, unsigned threads_max, bool accesses_watched,
                           void (*run)(const void*)) {
    if (!registry().insert({name, Kernel{name, params_bytes, threads_max, accesses_watched, run}}).second)
        fail("two kernels are named %s", name);
}

const Kernel* find_kernel(const char* name) {
    auto found = registry().find(name);
    return found == registry().end() ? nullptr : &found->second;
}

bool running() { return kernel != nullptr; }

bool describe_place(const void* address, char* text, size_t text_bytes) {
    if (current && current->fiber.is_below(address)) {
        snprintf(text, text_bytes, "memory past the end of the thread's stack of %zu bytes", STACK_BYTES);
        return true;
    }
    const unsigned char* at = (const unsigned char*)address;
    if (!shared_area || at < shared_area - SHARED_GUARD_BYTES ||
        at >= shared_area + SHARED_BYTES_MAX + SHARED_GUARD_BYTES)
        return false;
    snprintf(text, text_bytes, "byte %td of the block's %zu bytes of shared memory", at - shared,
             shared_bytes);
    return true;
}

uint32_t random_below(size_t limit) { return uint32_t(random_bits() % limit); }

void set_seed(uint64_t seed) { random_state = seed * 0x9e3779b97f4a7c15u + 1; }

void launch(const Kernel& launched, uint3 grid, uint3 size, size_t shared_size, const void* params) {
    if (!random_state) {
        const char* seed = getenv("QUIRE_EMULATOR_SEED");
        set_seed(seed ? strtoull(seed, nullptr, 10) : 1);
    }
    catch_faults();
    size_t threads = size_t(size.x) * size.y * size.z, blocks = size_t(grid.x) * grid.y * grid.z;
    kernel = &launched;
    kernel_params = params;
    accesses_begin_launch(launched.accesses_watched, params, launched.params_bytes);
    if (threads == 0 || threads > THREADS_MAX || threads > launched.threads_max)
        fail("%zu threads a block; %u are allowed", threads, launched.threads_max);
    make_fibers(unsigned(threads));
    block.threads = unsigned(threads);
    block_size = size;
    grid_size = grid;
    shared_bytes = shared_size;
    shared = place_shared(shared_size);
    for (unsigned i = 0; i < threads; i++)
        warps[i / 32].threads[i % 32].index = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    // A step with no divisor in common with the number of blocks visits each of them once.
    size_t step = random_bits() | 1, at = random_bits();
    auto common = [](size_t a, size_t b) {
        while (b) {
            size_t rest = a % b;
            a = b;
            b = rest;
        }
        return a;
    };
    while (blocks && common(step, blocks) != 1) step += 2;
    for (size_t i = 0; i < blocks; i++, at += step) {
        size_t b = at % blocks;
        run_block({unsigned(b % grid.x), unsigned(b / grid.x % grid.y), unsigned(b / grid.x / grid.y)});
    }
    kernel = nullptr;
}

void launch_named(const char* name, uint3 grid, uint3 size, size_t shared_size, const void* params) {
    const Kernel* found = find_kernel(name);
    if (!found) fail("there is no kernel %s", name);
    launch(*found, grid, size, shared_size, params);
}

void sync_threads(Site site) {
    Thread* self = current;
    self->site = site;
    self->warp->at_barrier |= 1u << self->lane;
    if (++block.waiting + block.done == block.threads) release_block();
    give_way();
}

int sync_threads_count(int predicate, Site site) {
    block.counting += predicate != 0;
    sync_threads(site);
    return block.count;
}

void exchange(uint32_t mask, Exchange run, void* operand, Site site) {
    Thread* self = current;
    Warp* warp = self->warp;
    uint32_t bit = 1u << self->lane, lanes = mask & warp->existing;
    self->site = site;
    self->mask = mask;
    self->operand = operand;
    if (!(mask & bit)) fail_at(site, "the lane is not in its own mask %08x", mask);
    if (warp->done & lanes) {
        print_waiting();
        fail_at(site, "an operation of lanes %08x, but lanes %08x have returned", mask, warp->done & lanes);
    }
    warp->arrived |= bit;
    if ((warp->arrived & lanes) == lanes) {
        for (uint32_t rest = lanes; rest; rest &= rest - 1) {
            Thread& other = warp->threads[__builtin_ctz(rest)];
            if (other.mask != mask || !same(other.site, site)) {
                print_waiting();
                fail_at(site,
                        "lanes meet at different operations: lane %u is at %s:%u with mask %08x, lane %u has "
                        "%08x",
                        other.lane, other.site.file, other.site.line, other.mask, self->lane, mask);
            }
        }
        run(warp->threads, lanes, warp->existing);
        warp->arrived &= ~lanes;
        make_ready(warp, lanes);
    }
    give_way();
}

[[noreturn]] static void report(Site site, const char* format, va_list arguments) {
    if (kernel)
        fprintf(stderr, "emulator: kernel %s, block (%u, %u, %u)", kernel->name, block_index.x, block_index.y,
                block_index.z);
    if (kernel && current) {
        Site at = site.file ? site : current->site;
        fprintf(stderr, ", thread (%u, %u, %u)", current->index.x, current->index.y, current->index.z);
        if (at.file) fprintf(stderr, ", %s %s:%u", site.file ? "at" : "after", at.file, at.line);
        else fprintf(stderr, ", before its first barrier");
    }
    fprintf(stderr, "%s", kernel ? "\n" : "");
    fprintf(stderr, "emulator: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    abort();
}

void fail_at(Site site, const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(site, format, arguments);
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    report(Site(nullptr, 0), format, arguments);
}

} // namespace emulator
