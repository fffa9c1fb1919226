// Memory that reports its misuse: every allocation is a mapping of its own between inaccessible pages, full
// of 0xff (a NaN in every float type), checked for writes just past its end, and inaccessible again once it
// is freed. A fault is reported with the kernel, the thread and the nearest allocation.

#include "host.h"

#include <deque>
#include <dlfcn.h>
#include <iterator>
#include <map>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

namespace emulator {
namespace {

constexpr size_t PAGE = 4096;
constexpr unsigned char CANARY = 0xa5;

struct Allocation {
    size_t bytes;
    const char* kind;
    size_t number;
    size_t slack; // between the end and the page after
    char* mapping;
    size_t mapping_bytes;
    bool live;
};

// By start. Freed ones stay, with their addresses reserved, so that use after freeing is told apart.
std::map<uintptr_t, Allocation>& allocations() {
    static std::map<uintptr_t, Allocation> all;
    return all;
}
size_t allocations_made;

constexpr size_t FREED_MAX = 4096;
std::deque<uintptr_t> freed; // the oldest first

void check(uintptr_t start, const Allocation& a) {
    const unsigned char* end = (const unsigned char*)start + a.bytes;
    for (size_t i = 0; i < a.slack; i++)
        if (end[i] != CANARY) fail("a write %s", guarded_describe(end + i));
}

// The allocation whose pages, with those around it, hold the address; or the end.
std::map<uintptr_t, Allocation>::iterator find_near(const void* address) {
    auto after = allocations().upper_bound((uintptr_t)address);
    auto holds = [address](const Allocation& a) {
        return a.mapping <= (const char*)address && (const char*)address < a.mapping + a.mapping_bytes;
    };
    if (after != allocations().begin() && holds(std::prev(after)->second)) return std::prev(after);
    return after != allocations().end() && holds(after->second) ? after : allocations().end();
}

struct sigaction previous[3];
constexpr int SIGNALS[3] = {SIGSEGV, SIGBUS, SIGILL};

void on_fault(int signal, siginfo_t* info, [[maybe_unused]] void* context) {
    // A fault of somebody else is his: the instruction is tried again under his handler.
    if (!running() && find_near(info->si_addr) == allocations().end()) {
        for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &previous[i], nullptr);
        return;
    }
    // What follows is not safe in a handler in general, but this one ends the process.
    char text[256];
#if defined(__x86_64__) && defined(__linux__)
    print_source((const void*)((ucontext_t*)context)->uc_mcontext.gregs[REG_RIP]);
#endif
    if (signal == SIGILL) fail("illegal instruction at %p", info->si_addr);
    if (describe_place(info->si_addr, text, sizeof text)) fail("access to %s", text);
    fail("access to memory that is not there: %s", guarded_describe(info->si_addr));
}

} // namespace

void* guarded_allocate(size_t bytes, const char* kind, size_t alignment) {
    size_t rounded = (bytes + alignment - 1) / alignment * alignment;
    size_t inner = (rounded + PAGE - 1) / PAGE * PAGE;
    char* mapping =
        (char*)mmap(nullptr, inner + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED || (inner && mprotect(mapping + PAGE, inner, PROT_READ | PROT_WRITE)))
        fail("no memory for %zu bytes of %s", bytes, kind);
    unsigned char* start = (unsigned char*)mapping + PAGE + inner - rounded;
    memset(start, 0xff, bytes);
    memset(start + bytes, CANARY, rounded - bytes);
    allocations()[(uintptr_t)start] = {
        bytes, kind, allocations_made++, rounded - bytes, mapping, inner + 2 * PAGE, true};
    return start;
}

bool guarded_free(void* start, const char* kind) {
    auto found = allocations().find((uintptr_t)start);
    if (found == allocations().end() || !found->second.live || found->second.kind != kind) return false;
    Allocation& a = found->second;
    check(found->first, a);
    a.live = false;
    // Gives the memory back and keeps the addresses for a while.
    if (mmap(a.mapping, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED)
        fail("freeing memory failed");
    freed.push_back(found->first);
    if (freed.size() > FREED_MAX) {
        auto oldest = allocations().find(freed.front());
        munmap(oldest->second.mapping, oldest->second.mapping_bytes);
        allocations().erase(oldest);
        freed.pop_front();
    }
    return true;
}

void guarded_check() {
    for (auto& [start, allocation] : allocations())
        if (allocation.live) check(start, allocation);
}

const char* guarded_kind(const void* start, size_t bytes) {
    auto after = allocations().upper_bound((uintptr_t)start);
    if (after == allocations().begin()) return nullptr;
    auto found = std::prev(after);
    const Allocation& a = found->second;
    return a.live && (uintptr_t)start + bytes <= found->first + a.bytes ? a.kind : nullptr;
}

bool guarded_extent(const void* start, size_t bytes, const char** first, const char** end) {
    auto after = allocations().upper_bound((uintptr_t)start);
    if (!guarded_kind(start, bytes)) return false;
    auto found = std::prev(after);
    *first = (const char*)found->first;
    *end = (const char*)found->first + found->second.bytes;
    return true;
}

bool guarded_is_freed(const void* address) {
    auto found = find_near(address);
    return found != allocations().end() && !found->second.live;
}

bool guarded_is_near(const void* address) { return find_near(address) != allocations().end(); }

const char* guarded_describe(const void* address) {
    static char text[256];
    uintptr_t at = (uintptr_t)address;
    auto nearest = find_near(address);
    if (nearest == allocations().end()) {
        snprintf(text, sizeof text, "at %p, near no allocation", address);
        return text;
    }
    const Allocation& a = nearest->second;
    uintptr_t start = nearest->first, end = start + a.bytes;
    char place[64];
    if (at < start) snprintf(place, sizeof place, "%zu bytes before", size_t(start - at));
    else if (at >= end) snprintf(place, sizeof place, "%zu bytes past the end of", size_t(at - end));
    else snprintf(place, sizeof place, "at byte %zu of", size_t(at - start));
    snprintf(text, sizeof text, "%s %zu bytes of %s%s at %p (allocation %zu); the address is %p", place,
             a.bytes, a.live ? "" : "freed ", a.kind, (void*)start, a.number, address);
    return text;
}

// By addr2line, which needs the object file and the address in it. Without it nothing is written.
void print_source(const void* code) {
    Dl_info object;
    if (!dladdr(code, &object) || !object.dli_fname) return;
    char offset[32];
    // The instruction before a return address is the one meant; for a fault that is near enough.
    snprintf(offset, sizeof offset, "%zx", size_t((const char*)code - (const char*)object.dli_fbase) - 1);
    const char* arguments[] = {"addr2line", "-pie", object.dli_fname, offset, nullptr};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, 2, 1);
    pid_t child;
    if (posix_spawnp(&child, "addr2line", &actions, nullptr, (char* const*)arguments, environ) == 0)
        waitpid(child, nullptr, 0);
}

void catch_faults() {
    static thread_local char* stack;
    if (!stack) {
        // A stack that has run out needs another one for the report. As long as the process: a thread may end
        // late.
        constexpr size_t BYTES = 64 << 10;
        stack_t alternative = {};
        alternative.ss_sp = stack = (char*)malloc(BYTES);
        alternative.ss_size = BYTES;
        sigaltstack(&alternative, nullptr);
    }
    static bool done = false;
    if (done) return;
    done = true;
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 3; i++) sigaction(SIGNALS[i], &action, &previous[i]);
}

} // namespace emulator
