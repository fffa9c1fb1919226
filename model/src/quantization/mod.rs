//! Quantised weights: what `quantization_config` of config.json says ([`Quantization`]), how each tool stores its
//! tensors (a file a format), and the few forms that all of them have in memory ([`PackedMatrix`]).
//!
//! Weights stay packed in memory and activations stay f32: what a checkpoint says of the rounding of activations
//! (static or dynamic scales) is for kernels that multiply integers or 8-bit floats, and is not applied.

mod at_load;
mod awq;
mod bitsandbytes;
mod codebook;
mod compressed_tensors;
mod config;
mod float8;
mod fp8;
mod ggml;
mod gptq;
mod integer_form;
mod integers;
mod mxfp4;
mod packed;
mod plain;
mod read;
mod scales;
pub(crate) mod small_float;
mod stored;

pub use at_load::{AtLoad, quantize};
pub use config::Quantization;
pub use ggml::GgmlRows;
pub use integer_form::{IntegerForm, IntegerRow};
pub use mxfp4::read_experts;
pub use packed::{DECODE_ALIGNMENT, PackedMatrix, PackedRows};
pub use plain::PlainRows;
pub use read::{MatrixView, read_matrix};
