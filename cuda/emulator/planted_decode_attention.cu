// The decode attention kernels with a mistake in their page walk, each under its name with "planted_" before it: tests
// of those kernels must find it.
#include "../kernels/hardware.cuh"

#define PLANTED_PAGE_WALK_BUG
#undef KERNEL_BOUNDS
#define KERNEL_BOUNDS(name, Params, threads, blocks_per_sm) EMULATOR_KERNEL(planted_##name, Params, threads)

#include "../kernels/decode_attention.cu"
