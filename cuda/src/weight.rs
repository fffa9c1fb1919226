//! [`CudaWeight`]: a tensor of the model on the device, and how it gets there.

use std::sync::Arc;

use quire_model::{BackendError, DUMMY_HALF_WIDTH, Dtype, TensorData, TensorView};

use crate::driver::{Context, DeviceMemory, PinnedMemory, Stream};
use crate::refusal::refusal;
use crate::ring::PinnedRing;
use crate::small_kernels::{FillDummyParams, SmallKernels};

/// A matrix `[rows][columns]`, or a vector as one row; row-major.
#[derive(Debug)]
pub struct CudaWeight {
    memory: DeviceMemory,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl CudaWeight {
    /// Where its elements begin.
    pub(crate) fn address(&self) -> u64 {
        self.memory.address()
    }
}

/// Bytes that are copied to the device at a time: large enough for the bus's full speed, small enough that
/// reading the file and copying overlap from the start.
const STAGING_BYTES: usize = 8 << 20;

/// Brings weights to the device through pinned memory, so that reading a file and copying overlap.
#[derive(Debug)]
pub(crate) struct Loader {
    context: Arc<Context>,
    ring: PinnedRing,
    dtype: Dtype,
}

impl Loader {
    /// `dtype` is the type of all elements on the device.
    pub(crate) fn new(context: &Arc<Context>, dtype: Dtype) -> Result<Self, BackendError> {
        Ok(Self { context: context.clone(), ring: PinnedRing::new(context, STAGING_BYTES)?, dtype })
    }

    /// Stacks tensors along their first dimension.
    pub(crate) fn load(
        &mut self,
        stream: &Stream,
        kernels: &SmallKernels,
        parts: &[TensorView<'_>],
    ) -> Result<CudaWeight, BackendError> {
        let first = parts.first().ok_or_else(|| refusal("a weight of no parts".into()))?;
        let inner = first.shape.get(1..).unwrap_or_default();
        if !(1..=2).contains(&first.shape.len())
            || parts.iter().any(|part| part.shape.get(1..) != Some(inner))
        {
            let shapes: Vec<_> = parts.iter().map(|part| &part.shape).collect();
            return Err(refusal(format!("tensors that do not stack: {shapes:?}")));
        }
        let rows = parts.iter().map(|part| part.shape[0]).sum();
        let (rows, columns) = match inner.first() {
            Some(columns) => (rows, *columns),
            None => (1, rows),
        };
        let memory = DeviceMemory::alloc(&self.context, rows * columns * self.dtype.bytes())?;
        let mut to = memory.address();
        for part in parts {
            let len: usize = part.shape.iter().product();
            match &part.data {
                TensorData::Dummy(dummy) => kernels.fill_dummy(
                    stream,
                    &FillDummyParams {
                        out: to,
                        count: len as i64,
                        seed_low: dummy.seed as u32,
                        seed_high: (dummy.seed >> 32) as u32,
                        centre: dummy.centre,
                        half_width: DUMMY_HALF_WIDTH,
                    },
                )?,
                TensorData::Stored(_) => self.copy(stream, to, &part.bytes_as(self.dtype))?,
            }
            to += (len * self.dtype.bytes()) as u64;
        }
        Ok(CudaWeight { memory, rows, columns })
    }

    /// A table that stays f32.
    pub(crate) fn load_table(
        &mut self,
        stream: &Stream,
        values: &[f32],
        columns: usize,
    ) -> Result<CudaWeight, BackendError> {
        let memory = DeviceMemory::alloc(&self.context, size_of_val(values))?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.copy(stream, memory.address(), &bytes)?;
        Ok(CudaWeight { memory, rows: values.len() / columns, columns })
    }

    fn copy(&mut self, stream: &Stream, to: u64, bytes: &[u8]) -> Result<(), BackendError> {
        for (index, piece) in bytes.chunks(STAGING_BYTES).enumerate() {
            let entry: &mut PinnedMemory = self.ring.next()?;
            entry.bytes_mut()[..piece.len()].copy_from_slice(piece);
            stream.copy_to_device(to + (index * STAGING_BYTES) as u64, entry, 0..piece.len())?;
            self.ring.copied(stream)?;
        }
        Ok(())
    }
}
