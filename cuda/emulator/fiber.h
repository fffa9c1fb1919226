// A stack of its own and the way to it: the smallest thing that can be left in the middle and gone on with
// later. x86-64 switches by hand, everything else by ucontext (which makes two system calls a switch, and is
// that much slower).
#pragma once

#include <stddef.h>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

class Fiber {
  public:
    // `entry` must never return. `number` spreads the stacks over the sets of the caches.
    void make(void (*entry)(), size_t stack_bytes, unsigned number);
    // Whether the address is in the pages below the stack.
    bool is_below(const void* address) const;
    // Whether the address is on the stack.
    bool is_on_stack(const void* address) const {
        return stack <= address && (const char*)address < stack + bytes;
    }
    // Leaves this fiber, which must be the running one, for `next`.
    void switch_to(Fiber& next);

  private:
    const char* stack = nullptr;
    size_t bytes = 0;
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

#if defined(__x86_64__)
extern "C" void emulator_switch(void** save, void* load);
inline void Fiber::switch_to(Fiber& next) { emulator_switch(&stack_pointer, next.stack_pointer); }
#else
inline void Fiber::switch_to(Fiber& next) { swapcontext(&context, &next.context); }
#endif

} // namespace emulator
