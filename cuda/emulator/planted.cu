// Kernels with a mistake in them, for the tests that must see it: each is named planted_ and then as the right one.
// The stand-in for the driver gives them out after `emulator_plant_mistakes`.

#include "../kernels/common.cuh"
#include "../kernels/step.cuh"

#undef KERNEL_BOUNDS
#define KERNEL_BOUNDS(name, Params, threads, blocks_per_sm) EMULATOR_KERNEL(planted_##name, Params, threads)
#define PLANTED_PAGE_WALK_BUG

namespace decode_attention {
#include "../kernels/decode_attention.cu"
}
namespace prefill_attention {
#include "../kernels/prefill_attention.cu"
}
