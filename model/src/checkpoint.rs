//! [`Checkpoint`]: where a model's weights come from. Tensors are handed out as stored, without a copy.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::Path;

use half::{bf16, f16};

use crate::convert::convert;
use crate::dummy::DummyTensor;
use crate::error::ModelError;
use crate::ggml::{GgmlType, decode_row};
use crate::gguf::{GgufFile, GgufTensor, GgufTensors};
use crate::safetensors::{RawTensor, Safetensors, StoredDtype};
use crate::spec::Dtype;

/// A model's tensors by Hugging Face's names.
pub struct Checkpoint {
    source: Source,
    /// What tensors are converted to on their way out; `None` = handed out as stored.
    dtype: Option<Dtype>,
}

enum Source {
    Files(Safetensors),
    Gguf(GgufTensors),
    Dummy(Dtype),
}

/// One stored tensor: row-major, little-endian.
#[derive(Clone)]
pub struct TensorView<'a> {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData<'a>,
}

/// Where a tensor's elements are.
#[derive(Clone)]
pub enum TensorData<'a> {
    /// `shape.product() * dtype.bytes()` bytes, of any alignment.
    Stored(Cow<'a, [u8]>),
    /// Nowhere: a device makes them by this rule.
    Dummy(DummyTensor),
}

impl Checkpoint {
    /// Maps a folder's safetensors files into memory: `model.safetensors`, or those that
    /// `model.safetensors.index.json` lists, or else all there are. They must not be changed while the checkpoint is
    /// open.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        Ok(Self { source: Source::Files(Safetensors::open(dir)?), dtype: None })
    }

    /// A whole safetensors file that is in memory, such as one embedded in the program.
    pub fn from_bytes(file: impl Into<Cow<'static, [u8]>>) -> Result<Self, ModelError> {
        Ok(Self { source: Source::Files(Safetensors::from_bytes(file.into())?), dtype: None })
    }

    /// The tensors of an open GGUF file.
    pub fn from_gguf(file: GgufFile) -> Result<Self, ModelError> {
        Ok(Self { source: Source::Gguf(GgufTensors::new(file)?), dtype: None })
    }

    /// Weights that nobody trained: whatever tensor is asked for exists, with pseudo-random values that
    /// depend on its name only. For measuring speed (`--load-format dummy`).
    pub fn dummy(dtype: Dtype) -> Self {
        Self { source: Source::Dummy(dtype), dtype: None }
    }

    /// The same tensors, each rounded to the nearest value of `dtype` when it is handed out.
    pub fn converted_to(self, dtype: Dtype) -> Self {
        Self { dtype: Some(dtype), ..self }
    }

    /// All names, sorted; empty for a dummy, which has no list.
    pub fn names(&self) -> BTreeSet<String> {
        match &self.source {
            Source::Files(files) => files.names(),
            Source::Gguf(file) => file.names(),
            Source::Dummy(_) => BTreeSet::new(),
        }
    }

    /// Whether a file has a tensor of that name; false for a dummy.
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Files(files) => files.has(name),
            Source::Gguf(file) => file.has(name),
            Source::Dummy(_) => false,
        }
    }

    /// The tensor of that name as it is in its safetensors file, of any type and shape, whatever `converted_to` says.
    /// Others have none.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>, ModelError> {
        let found = match &self.source {
            Source::Files(files) => files.tensor(name),
            Source::Gguf(_) | Source::Dummy(_) => None,
        };
        found.ok_or_else(|| ModelError::MissingTensor { name: name.into() })
    }

    /// The tensor of that name, which must have that shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, ModelError> {
        match &self.source {
            Source::Dummy(dtype) => {
                let data = TensorData::Dummy(DummyTensor::new(name));
                return Ok(TensorView { dtype: *dtype, shape: shape.to_vec(), data });
            }
            Source::Gguf(file) => return self.gguf_tensor(file.get(name)?, name, shape),
            Source::Files(_) => {}
        }
        let raw = self.raw(name)?;
        if raw.shape != shape {
            return Err(ModelError::Shape {
                name: name.into(),
                found: raw.shape.to_vec(),
                expected: shape.to_vec(),
            });
        }
        let dtype = match raw.dtype {
            StoredDtype::F32 => Dtype::F32,
            StoredDtype::BF16 => Dtype::Bf16,
            StoredDtype::F16 => Dtype::F16,
            other => return Err(ModelError::TensorDtype { name: name.into(), found: other.to_string() }),
        };
        let data = TensorData::Stored(Cow::Borrowed(raw.bytes));
        let view = TensorView { dtype, shape: shape.to_vec(), data };
        let Some(wanted) = self.dtype.filter(|wanted| *wanted != dtype) else { return Ok(view) };
        let data = TensorData::Stored(Cow::Owned(view.bytes_as(wanted).into_owned()));
        self.give_back(name);
        Ok(TensorView { dtype: wanted, shape: view.shape, data })
    }

    /// Says that a tensor has been copied: the memory that its pages take goes back to the system. It can still be
    /// read, from the file again.
    pub fn give_back(&self, name: &str) {
        match &self.source {
            Source::Files(files) => files.give_back(name),
            Source::Gguf(file) => file.give_back(name),
            Source::Dummy(_) => {}
        }
    }

    /// The matrix of that name as blocks, if that is how it is stored.
    pub(crate) fn blocks(&self, name: &str) -> Option<GgufTensor<'_>> {
        let Source::Gguf(file) = &self.source else { return None };
        file.get(name).ok().filter(|tensor| tensor.kind.block_len() > 1)
    }

    fn gguf_tensor<'a>(
        &self,
        tensor: GgufTensor<'a>,
        name: &str,
        shape: &[usize],
    ) -> Result<TensorView<'a>, ModelError> {
        if tensor.shape != shape {
            let (found, expected) = (tensor.shape.to_vec(), shape.to_vec());
            return Err(ModelError::Shape { name: name.into(), found, expected });
        }
        let (dtype, bytes) = match tensor.kind {
            GgmlType::F32 => (Dtype::F32, tensor.bytes),
            GgmlType::F16 => (Dtype::F16, tensor.bytes),
            GgmlType::Bf16 => (Dtype::Bf16, tensor.bytes),
            blocks => {
                let mut values = vec![0.0; shape.iter().product()];
                decode_row(blocks, &tensor.bytes, 0..values.len(), &mut values);
                (Dtype::F32, encode(values.into_iter(), Dtype::F32).into())
            }
        };
        let view = TensorView { dtype, shape: shape.to_vec(), data: TensorData::Stored(bytes) };
        let Some(wanted) = self.dtype.filter(|wanted| *wanted != dtype) else { return Ok(view) };
        let data = TensorData::Stored(Cow::Owned(view.bytes_as(wanted).into_owned()));
        Ok(TensorView { dtype: wanted, shape: view.shape, data })
    }
}

impl<'a> TensorView<'a> {
    /// The same with these rows (of its first dimension), in this order.
    pub fn select_rows(self, rows: &[usize]) -> Self {
        let width = self.shape[1..].iter().product::<usize>() * self.dtype.bytes();
        let data = match &self.data {
            TensorData::Dummy(dummy) => TensorData::Dummy(*dummy),
            TensorData::Stored(bytes) => {
                let row = |row: &usize| &bytes[row * width..][..width];
                TensorData::Stored(rows.iter().flat_map(row).copied().collect::<Vec<u8>>().into())
            }
        };
        let shape = std::iter::once(rows.len()).chain(self.shape[1..].iter().copied()).collect();
        Self { shape, data, ..self }
    }

    /// Numbers that are in memory.
    pub(crate) fn from_f32(values: &[f32], shape: Vec<usize>) -> Self {
        let data = TensorData::Stored(encode(values.iter().copied(), Dtype::F32).into());
        Self { dtype: Dtype::F32, shape, data }
    }

    /// One entry of its first dimension, without that.
    pub fn entry(&self, index: usize) -> TensorView<'_> {
        let shape = self.shape[1..].to_vec();
        let data = match &self.data {
            TensorData::Dummy(dummy) => TensorData::Dummy(*dummy),
            TensorData::Stored(bytes) => {
                let len = shape.iter().product::<usize>() * self.dtype.bytes();
                TensorData::Stored(Cow::Borrowed(&bytes[index * len..][..len]))
            }
        };
        TensorView { dtype: self.dtype, shape, data }
    }

    /// The same numbers as one vector.
    pub fn flattened(self) -> Self {
        Self { shape: vec![self.shape.iter().product()], ..self }
    }

    /// A matrix with its rows as columns.
    pub fn transposed(self) -> Self {
        let [rows, columns] = self.shape[..] else { panic!("{:?} is not a matrix", self.shape) };
        let size = self.dtype.bytes();
        let data = match &self.data {
            TensorData::Dummy(dummy) => TensorData::Dummy(*dummy),
            TensorData::Stored(bytes) => {
                let mut turned = Vec::with_capacity(bytes.len());
                for column in 0..columns {
                    for row in 0..rows {
                        turned.extend_from_slice(&bytes[(row * columns + column) * size..][..size]);
                    }
                }
                TensorData::Stored(turned.into())
            }
        };
        Self { shape: vec![columns, rows], data, ..self }
    }

    /// The same with a number added to each element, in `f32`; with 0 nothing is done.
    pub fn plus(self, offset: f32) -> Self {
        if offset == 0.0 {
            return self;
        }
        let wide = self.bytes_as(Dtype::F32);
        let values = wide.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes) + offset);
        let data = TensorData::Stored(encode(values, Dtype::F32).into());
        Self { dtype: Dtype::F32, data, ..self }
    }

    /// The elements as stored bytes, made here and now if they are nowhere.
    pub fn bytes(&self) -> Cow<'_, [u8]> {
        self.bytes_as(self.dtype)
    }

    /// The elements, each rounded to the nearest of `dtype`.
    pub fn bytes_as(&self, dtype: Dtype) -> Cow<'_, [u8]> {
        Cow::Owned(match &self.data {
            TensorData::Stored(bytes) if self.dtype == dtype => return Cow::Borrowed(bytes),
            TensorData::Dummy(dummy) => encode(dummy.values(self.shape.iter().product()), dtype),
            TensorData::Stored(bytes) => convert(bytes, self.dtype, dtype),
        })
    }
}

fn encode(values: impl Iterator<Item = f32>, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.flat_map(f32::to_le_bytes).collect(),
        Dtype::Bf16 => values.flat_map(|value| bf16::from_f32(value).to_le_bytes()).collect(),
        Dtype::F16 => values.flat_map(|value| f16::from_f32(value).to_le_bytes()).collect(),
    }
}
