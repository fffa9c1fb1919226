// Memory that reports its misuse: every allocation is a mapping of its own between inaccessible pages, full of 0xff
// (a NaN in every float type), checked for writes just past its end, and inaccessible again once it is freed. A fault
// is reported with the kernel, the thread and the nearest allocation.

#include "host.h"

#include <iterator>
#include <map>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace emulator {
namespace {

constexpr size_t PAGE = 4096;
constexpr size_t ALIGNMENT = 256;
constexpr unsigned char CANARY = 0xa5;

struct Allocation {
    size_t bytes;
    const char* kind;
    size_t number;
    void* mapping;
    size_t mapping_bytes;
    bool live;
};

// By start. Freed ones stay, with their addresses reserved, so that use after freeing is told apart.
std::map<uintptr_t, Allocation>& allocations() {
    static std::map<uintptr_t, Allocation> all;
    return all;
}
size_t allocations_made;

size_t slack_of(const Allocation& a) { return (ALIGNMENT - a.bytes % ALIGNMENT) % ALIGNMENT; }

void check(uintptr_t start, const Allocation& a) {
    const unsigned char* end = (const unsigned char*)start + a.bytes;
    for (size_t i = 0; i < slack_of(a); i++)
        if (end[i] != CANARY) fail("a write %s", guarded_describe(end + i));
}

void on_fault(int signal, siginfo_t* info, void*) {
    // Not safe in general in a handler, but this one ends the process.
    fail("%s, %s", signal == SIGSEGV || signal == SIGBUS ? "access to memory that is not there" : "illegal instruction",
         guarded_describe(info->si_addr));
}

} // namespace

void* guarded_allocate(size_t bytes, const char* kind) {
    size_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t inner = (rounded + PAGE - 1) / PAGE * PAGE;
    char* mapping = (char*)mmap(nullptr, inner + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED || (inner && mprotect(mapping + PAGE, inner, PROT_READ | PROT_WRITE)))
        fail("no memory for %zu bytes of %s", bytes, kind);
    unsigned char* start = (unsigned char*)mapping + PAGE + inner - rounded;
    memset(start, 0xff, bytes);
    memset(start + bytes, CANARY, rounded - bytes);
    allocations()[(uintptr_t)start] = {bytes, kind, allocations_made++, mapping, inner + 2 * PAGE, true};
    return start;
}

bool guarded_free(void* start, const char* kind) {
    auto found = allocations().find((uintptr_t)start);
    if (found == allocations().end() || !found->second.live || strcmp(found->second.kind, kind)) return false;
    Allocation& a = found->second;
    check(found->first, a);
    a.live = false;
    // Gives the memory back and keeps the addresses.
    if (mmap(a.mapping, a.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
        MAP_FAILED)
        fail("freeing memory failed");
    return true;
}

void guarded_check() {
    for (auto& [start, allocation] : allocations())
        if (allocation.live) check(start, allocation);
}

bool guarded_contains(const void* start, size_t bytes) {
    auto after = allocations().upper_bound((uintptr_t)start);
    if (after == allocations().begin()) return false;
    auto found = std::prev(after);
    return found->second.live && (uintptr_t)start + bytes <= found->first + found->second.bytes;
}

const char* guarded_describe(const void* address) {
    static char text[256];
    uintptr_t at = (uintptr_t)address;
    auto after = allocations().upper_bound(at);
    // The nearest of the one that starts at or before the address and the one after it.
    auto nearest = allocations().end();
    if (after != allocations().begin()) nearest = std::prev(after);
    if (after != allocations().end() &&
        (nearest == allocations().end() || after->first - at < at - (nearest->first + nearest->second.bytes)))
        if (nearest == allocations().end() || at >= nearest->first + nearest->second.bytes) nearest = after;
    if (nearest == allocations().end()) {
        snprintf(text, sizeof text, "at %p", address);
        return text;
    }
    const Allocation& a = nearest->second;
    uintptr_t start = nearest->first, end = start + a.bytes;
    char place[64];
    if (at < start) snprintf(place, sizeof place, "%zu bytes before", size_t(start - at));
    else if (at >= end) snprintf(place, sizeof place, "%zu bytes past the end of", size_t(at - end));
    else snprintf(place, sizeof place, "at byte %zu of", size_t(at - start));
    snprintf(text, sizeof text, "%s %zu bytes of %s%s at %p (allocation %zu); the address is %p", place, a.bytes,
             a.live ? "" : "freed ", a.kind, (void*)start, a.number, address);
    return text;
}

void catch_faults() {
    static bool done = false;
    if (done) return;
    done = true;
    // A stack that has run out needs another one for the report.
    static char stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESETHAND;
    for (int signal : {SIGSEGV, SIGBUS, SIGILL}) sigaction(signal, &action, nullptr);
}

} // namespace emulator
