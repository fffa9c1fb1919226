// Watching each load and store of kernels; see accesses.cc.
#pragma once

#include "emulator.h"

namespace emulator {

// The running kernel was compiled for it.
extern bool accesses_checked;

// The parameter struct of the launch that begins, and whether its kernel's accesses are watched.
void accesses_begin_launch(bool checked, const void* params, size_t params_bytes);
// What all threads of the block did before is ordered before what they do from now on.
void accesses_order_block();
// The same for the lanes of a warp.
void accesses_order_warp(unsigned warp);
// An access by an operation of the emulation's own, such as ldmatrix. `place` is a code address for the
// report.
void accesses_touch(const void* address, size_t bytes, bool write, const void* place);

} // namespace emulator
