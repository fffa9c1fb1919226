// The compiler's check of alignment, reported our way. On the GPU an access must be aligned to its size, and
// is an error if it is not; on the host nothing would show. -fsanitize=alignment calls this function; the
// struct is that of libubsan's interface, which GCC and Clang share.

#include "host.h"

namespace {

struct TypeMismatch {
    const char* file;
    unsigned line, column;
    const void* type;
    unsigned char log_alignment, kind;
};

} // namespace

extern "C" void __ubsan_handle_type_mismatch_v1_abort(TypeMismatch* found, void* address) {
    emulator::fail_at(emulator::Site(found->file, found->line),
                      "access to %p, which is no multiple of %u: %s", address, 1u << found->log_alignment,
                      emulator::guarded_describe(address));
}
