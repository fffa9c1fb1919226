//! [`LinearPlain`]: the matrix product in its plainest form, to check cuBLASLt's with on the same GPU.

use crate::driver::{CudaError, Function, Stream};
use crate::gemm::{GemmShape, Operands, dtype_name};
use crate::kernels::{KernelError, Kernels};

/// Products of one [`GemmShape`] by a kernel without any art: one thread an element, one sum in the order of `k`.
#[derive(Debug)]
pub struct LinearPlain {
    function: Function,
    shape: GemmShape,
}

/// Mirror of kernels/linear_plain.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct LinearPlainParams {
    x: u64,
    weight: u64,
    bias: u64,
    out: u64,
    n: i32,
    k: i32,
}

const _: () = assert!(size_of::<LinearPlainParams>() == 40);

const THREADS: u32 = 128;

impl LinearPlain {
    /// The kernel for the shape's types; `rows_max` is of no account.
    pub fn new(kernels: &Kernels, shape: &GemmShape) -> Result<Self, KernelError> {
        let name = format!("linear_plain_{}_{}", dtype_name(shape.input), dtype_name(shape.output));
        Ok(Self { function: kernels.function(&name)?, shape: *shape })
    }

    /// Enqueues the product of so many rows, at least 1.
    pub fn run(&self, stream: &Stream, rows: u32, operands: &Operands) -> Result<(), CudaError> {
        let Operands { x, weight, bias, out } = *operands;
        let GemmShape { n, k, .. } = self.shape;
        let params = LinearPlainParams { x, weight, bias: bias.unwrap_or(0), out, n: n as i32, k: k as i32 };
        stream.launch(&self.function, [rows, n.div_ceil(THREADS), 1], THREADS, 0, &params)
    }
}
