//! The CUDA backend: [`quire_model::Backend`] on NVIDIA GPUs of compute capability 8.0 and up.
//!
//! The driver, cuBLASLt and NVRTC are opened at run time: the crate compiles, and the program starts, on
//! machines that have none of them.

pub mod driver;
mod step;

pub use step::StepPointers;
