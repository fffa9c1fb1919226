//! What the GPU itself can do: the rates that all others are shares of.

use quire_cuda::CudaBackend;
use quire_cuda::driver::DeviceMemory;
use quire_cuda::gemm::{Gemm, GemmOptions, GemmShape, Operands};
use quire_model::{BackendError, Dtype};
use serde_json::json;

use crate::Result;
use crate::random::fill_random;
use crate::report::{Ceilings, Report};
use crate::sizes::Sizes;
use crate::timer::Timer;

/// Measures a large copy and a large product.
pub(crate) fn measure(backend: &mut CudaBackend, sizes: Sizes, report: &mut Report) -> Result<Ceilings> {
    let timer = Timer::new(backend, sizes)?;
    let copy_us = copy_us(backend, &timer, sizes.copy_bytes)?;
    let bytes_per_s = 2.0 * sizes.copy_bytes as f64 / copy_us * 1e6;
    let product_us = product_us(backend, &timer, sizes.square)?;
    let flops_per_s = 2.0 * (sizes.square as f64).powi(3) / product_us * 1e6;
    report.heading("ceilings", "what                                           us       rate");
    println!(
        "copy of {:<11} bytes           {copy_us:>14.1} {:>7.3} TB/s",
        sizes.copy_bytes,
        bytes_per_s / 1e12
    );
    println!(
        "bf16 product of {0} x {0} x {0}  {product_us:>14.1} {1:>7.1} TFLOP/s",
        sizes.square,
        flops_per_s / 1e12
    );
    report.line(json!({
        "piece": "ceilings", "what": "copy", "bytes": 2 * sizes.copy_bytes, "us": copy_us,
        "bytes_per_s": bytes_per_s, "formula": "2 * length: read and written",
    }))?;
    report.line(json!({
        "piece": "ceilings", "what": "product", "size": sizes.square, "us": product_us,
        "flops_per_s": flops_per_s, "formula": "2 * size^3, random elements",
    }))?;
    Ok(Ceilings { bytes_per_s, flops_per_s })
}

fn copy_us(backend: &mut CudaBackend, timer: &Timer, len: usize) -> Result<f64> {
    let context = backend.stream().context().clone();
    let (from, to) = (DeviceMemory::alloc(&context, len)?, DeviceMemory::alloc(&context, len)?);
    fill_random(backend.stream(), from.address(), len, Dtype::Bf16)?;
    Ok(timer.time_us(backend, &mut |backend, _| {
        Ok(backend.stream().copy_on_device(to.address(), from.address(), len)?)
    })?)
}

fn product_us(backend: &mut CudaBackend, timer: &Timer, size: usize) -> Result<f64> {
    let shape = GemmShape {
        n: size as u32,
        k: size as u32,
        input: Dtype::Bf16,
        output: Dtype::Bf16,
        bias: false,
        rows_max: size as u32,
    };
    let (mut gemm, _) = Gemm::new(backend.stream(), &[shape], &GemmOptions::default())?;
    let id = gemm.find(&shape).expect("it was just prepared");
    let context = backend.stream().context().clone();
    let len = size * size * Dtype::Bf16.bytes();
    let matrices = [0; 3].map(|_| DeviceMemory::alloc(&context, len));
    let [x, weight, out] = matrices;
    let (x, weight, out) = (x?, weight?, out?);
    for matrix in [&x, &weight] {
        fill_random(backend.stream(), matrix.address(), len, Dtype::Bf16)?;
    }
    let operands = Operands { x: x.address(), weight: weight.address(), bias: None, out: out.address() };
    Ok(timer.time_us(backend, &mut |backend, _| {
        gemm.run(backend.stream(), id, size as u32, &operands).map_err(BackendError::from)
    })?)
}
