//! Memory full of random numbers: with zeros a chip draws less power, and runs faster than it ever will in use.

use quire_cuda::driver::Stream;
use quire_cuda::{CudaBackend, CudaBuffer};
use quire_model::{
    Backend, BackendError, BufferRole, DUMMY_HALF_WIDTH, Dtype, DummyTensor, TensorData, TensorView,
};

/// Elements made by the host and repeated.
const PATTERN_LEN: usize = 1 << 16;

/// Fills `len` bytes with elements of `dtype` as of dummy weights.
pub(crate) fn fill_random(
    stream: &Stream,
    address: u64,
    len: usize,
    dtype: Dtype,
) -> Result<(), BackendError> {
    fill(stream, address, len, dtype, &|unit| unit * DUMMY_HALF_WIDTH)
}

/// A buffer of random elements.
pub(crate) fn random_buffer(
    backend: &mut CudaBackend,
    role: BufferRole,
    len: usize,
) -> Result<CudaBuffer, BackendError> {
    let buffer = backend.alloc(role, len)?;
    let bytes = len * buffer.dtype().bytes();
    fill_random(backend.stream(), buffer.address(), bytes, buffer.dtype())?;
    Ok(buffer)
}

/// Logits of which a few are much larger than the others, as a trained model's are.
pub(crate) fn random_logits(backend: &mut CudaBackend, len: usize) -> Result<CudaBuffer, BackendError> {
    let buffer = backend.alloc(BufferRole::Logits, len)?;
    let bytes = len * buffer.dtype().bytes();
    fill(backend.stream(), buffer.address(), bytes, buffer.dtype(), &|unit| 15.0 * unit.powi(3))?;
    Ok(buffer)
}

/// Repeats a pattern of elements made of numbers in [-1, 1).
fn fill(
    stream: &Stream,
    address: u64,
    len: usize,
    dtype: Dtype,
    element: &dyn Fn(f32) -> f32,
) -> Result<(), BackendError> {
    let count = PATTERN_LEN.min(len / dtype.bytes());
    let units = DummyTensor::new("pattern").values(count).map(|value| value / DUMMY_HALF_WIDTH);
    let bytes: Vec<u8> = units.flat_map(|unit| element(unit).to_le_bytes()).collect();
    let wide = TensorView { dtype: Dtype::F32, shape: vec![count], data: TensorData::Stored(bytes.into()) };
    let pattern = wide.bytes_as(dtype);
    stream.write_bytes(address, &pattern)?;
    let mut done = pattern.len();
    while done < len {
        let more = done.min(len - done);
        stream.copy_on_device(address + done as u64, address, more)?;
        done += more;
    }
    Ok(())
}
