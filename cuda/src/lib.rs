//! The CUDA backend: [`quire_model::Backend`] on NVIDIA GPUs of compute capability 8.0 and up.
//!
//! The driver, cuBLASLt and NVRTC are opened at run time: the crate compiles, and the program starts, on
//! machines that have none of them.

mod arch;
mod cublaslt;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gemm;
pub mod image;
mod image_file;
mod kernels;
pub mod linear_plain;
mod nvrtc;
pub mod prefill_attention;
mod ring;
mod small_kernels;
mod step;

pub use kernels::{KernelError, Kernels};
pub use step::StepPointers;
