//! [`CudaBuffer`]: a flat array on the device.

use std::sync::Arc;

use quire_model::{BackendError, BufferRole, Dtype};

use crate::driver::{Context, DeviceMemory, Stream};

/// Elements of one type.
#[derive(Debug)]
pub struct CudaBuffer {
    memory: DeviceMemory,
    dtype: Dtype,
}

/// What an element of a buffer is, when activations are of type `activation`: what many numbers are added up in
/// is f32, the rest is what products take and give.
pub(crate) fn element_type(role: BufferRole, activation: Dtype) -> Dtype {
    match role {
        BufferRole::Activation => activation,
        BufferRole::Residual | BufferRole::Logits => Dtype::F32,
    }
}

impl CudaBuffer {
    /// `len` zeros.
    pub(crate) fn zeroed(
        context: &Arc<Context>,
        stream: &Stream,
        dtype: Dtype,
        len: usize,
    ) -> Result<Self, BackendError> {
        let memory = DeviceMemory::alloc(context, len * dtype.bytes())?;
        stream.fill(memory.address(), 0, memory.len())?;
        Ok(Self { memory, dtype })
    }

    /// Where it begins.
    pub fn address(&self) -> u64 {
        self.memory.address()
    }

    /// What its elements are.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Elements.
    #[allow(clippy::len_without_is_empty, reason = "an empty buffer has no use")]
    pub fn len(&self) -> usize {
        self.memory.len() / self.dtype.bytes()
    }
}
