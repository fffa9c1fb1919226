//! The [`Backend`](quire_model::Backend) of a machine without an accelerator, and the oracle for those with.
//!
//! Weights stay as stored (f32, bf16 or f16); activations and sums are f32. Every element of
//! every result is computed in an order that depends only on its own request, and on no instruction set: the
//! same request gives the same bits in any batch, on any machine.

mod activation;
mod attention;
mod attention_kernels;
mod attention_step;
mod backend;
mod device;
mod elementwise;
mod integer;
mod kv_cache;
mod lanes;
mod latent;
mod linear;
mod lora;
mod moe;
mod pool;
mod pooling;
mod router;
mod shared;
mod weight;
mod zeroed;

pub use device::{CpuBackend, CpuOptions};
pub use kv_cache::CpuKvCache;
pub use lanes::Isa;
pub use weight::CpuWeight;
