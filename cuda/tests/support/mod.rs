//! What tests of the CUDA backend share: the backend over the stand-in driver, and numbers as its types hold them.

#![allow(dead_code, unused_imports)] // Each test program uses its part.

#[path = "../../../cpu/tests/support/mod.rs"]
mod plans;

use half::{bf16, f16};
use quire_cuda::{CudaBackend, CudaOptions, open_gpu};
use quire_model::Dtype;

pub(crate) use plans::*;

/// Element types that there are kernels for.
pub(crate) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::F16];

/// A backend over the stand-in driver.
pub(crate) fn open(options: CudaOptions) -> CudaBackend {
    quire_cuda::emulator::use_stand_in();
    CudaBackend::new(&open_gpu(0).unwrap(), options).unwrap()
}

/// Ordinary options but for the timing of products, which shows nothing here and takes long.
pub(crate) fn options(dtype: Dtype) -> CudaOptions {
    CudaOptions { tune_products: false, ..CudaOptions::new(dtype) }
}

/// The nearest value of that type.
pub(crate) fn round(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F32 => value,
        Dtype::Bf16 => bf16::from_f32(value).to_f32(),
        Dtype::F16 => f16::from_f32(value).to_f32(),
    }
}

/// The elements as the type's little-endian bytes.
pub(crate) fn to_bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    }
}

/// What rounding to the type changes at most, relative to the value; of f32, which is not rounded, nothing.
pub(crate) fn unit_roundoff(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F32 => 0.0,
        Dtype::Bf16 => 1.0 / 256.0,
        Dtype::F16 => 1.0 / 2048.0,
    }
}
