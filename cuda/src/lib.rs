//! The CUDA backend: [`quire_model::Backend`] on NVIDIA GPUs of compute capability 8.0 and up.
//!
//! The driver, cuBLASLt and NVRTC are opened at run time: the crate compiles, and the program starts, on
//! machines that have none of them.

mod arch;
mod cublaslt;
pub mod driver;
pub mod gemm;
pub mod image;
mod image_file;
mod kernels;
mod nvrtc;
mod step;

pub use kernels::{KernelError, Kernels};
pub use step::StepPointers;
