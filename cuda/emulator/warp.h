// The threads of a warp as the scheduler and the warp's operations see them.
#pragma once

#include <vector>

#include "emulator.h"
#include "fiber.h"

namespace emulator {

struct AsyncCopy {
    void* shared;
    const void* global; // null: zeros
};

struct Thread {
    Fiber fiber;
    uint3 index;
    uint32_t lane;
    Warp* warp;
    Site site = Site(nullptr, 0); // where it waits, or waited last
    uint32_t mask;
    void* operand;
    std::vector<AsyncCopy> copies;
    std::vector<size_t> groups; // for each committed group, the number of copies up to its end
};

struct Warp {
    Thread threads[32];
    unsigned number;
    uint32_t existing;   // lanes that the block has
    uint32_t ready;      // can run
    uint32_t arrived;    // wait for other lanes
    uint32_t at_barrier; // wait for the block
    uint32_t done;       // have returned
};

// The running thread; null while none runs.
extern Thread* current;

// Of the running block.
extern size_t shared_bytes;
// At random from 0 to limit - 1.
uint32_t random_below(size_t limit);

// Waits for all lanes of `mask`; the last one does `run`.
void exchange(uint32_t mask, Exchange run, void* operand, Site);

} // namespace emulator
