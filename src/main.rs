//! The `quire` program. Everything is in the library; this only picks the allocator.

use std::process::ExitCode;

/// Many small allocations on many threads, for years: mimalloc is faster there and gives memory back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    quire::cli::run()
}
