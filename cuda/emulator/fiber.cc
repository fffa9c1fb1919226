// Making fibers, and the switch for x86-64.

#include "fiber.h"

#include <stdint.h>
#include <sys/mman.h>

#include "host.h"

#if defined(__x86_64__)
// The registers that a callee must keep go on the stack that is left, and come from the one gone to.
asm(R"(
.text
.globl emulator_switch
.hidden emulator_switch
.type emulator_switch,@function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#endif

namespace emulator {

constexpr size_t GUARD_BYTES = 4 << 20;

bool Fiber::is_below(const void* address) const {
    const char* at = (const char*)address;
    return stack && stack - GUARD_BYTES <= at && at < stack;
}

void Fiber::make(void (*entry)(), size_t stack_bytes, unsigned number) {
    void* mapped = mmap(nullptr, stack_bytes + GUARD_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    // A stack that grows too far is a fault; the guard is wide, as one step may be.
    if (mapped == MAP_FAILED || mprotect(mapped, GUARD_BYTES, PROT_NONE)) fail("no memory for stacks");
    stack = (char*)mapped + GUARD_BYTES;
    bytes = stack_bytes;
    // Stacks a power of two apart would all use the same few sets of the first cache.
    stack_bytes -= number % 61 * 64;
#if defined(__x86_64__)
    void** top = (void**)((char*)mapped + GUARD_BYTES + stack_bytes);
    *--top = nullptr; // keeps the stack aligned as a call leaves it
    *--top = (void*)entry;
    for (int saved = 0; saved < 6; saved++) *--top = nullptr;
    stack_pointer = top;
#else
    getcontext(&context);
    context.uc_stack.ss_sp = (char*)mapped + GUARD_BYTES;
    context.uc_stack.ss_size = stack_bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
#endif
}

} // namespace emulator
