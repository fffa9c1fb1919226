//! The CUDA backend: [`quire_model::Backend`] on NVIDIA GPUs of compute capability 8.0 and up.
//!
//! The driver, cuBLASLt and NVRTC are opened at run time: the crate compiles, and the program starts, on
//! machines that have none of them.

mod arch;
mod available;
mod backend;
mod buffer;
mod cublaslt;
pub mod decode_attention;
pub mod driver;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod gemm;
pub mod image;
mod image_file;
mod kernels;
pub mod linear_plain;
mod memory_plan;
mod nvrtc;
mod options;
pub mod packet;
pub mod prefill_attention;
mod refusal;
mod ring;
pub mod sampling;
mod small_kernels;
mod step;
mod supported;
mod weight;

pub use available::{Unavailable, open_gpu};
pub use backend::CudaBackend;
pub use buffer::CudaBuffer;
pub use kernels::{KernelError, Kernels};
pub use memory_plan::MemoryPlan;
pub use options::CudaOptions;
pub use small_kernels::KvStrides;
pub use step::StepPointers;
pub use weight::CudaWeight;
