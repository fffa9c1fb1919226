//! [`Checkpoint`]: where a model's weights come from. Tensors are handed out as stored, without a copy.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::safetensors::{MmapedSafetensors, SliceSafetensors};
use half::{bf16, f16};
use serde_json::Value;

use crate::dummy::DummyTensor;
use crate::error::ModelError;
use crate::spec::Dtype;

/// A model's tensors by Hugging Face's names.
pub struct Checkpoint {
    source: Source,
    /// What tensors are converted to on their way out; `None` = handed out as stored.
    dtype: Option<Dtype>,
}

enum Source {
    Mapped(MmapedSafetensors),
    Memory(SliceSafetensors<'static>),
    Dummy(Dtype),
}

/// One stored tensor: row-major, little-endian.
pub struct TensorView<'a> {
    /// Element type as stored.
    pub dtype: Dtype,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: TensorData<'a>,
}

/// Where a tensor's elements are.
pub enum TensorData<'a> {
    /// `shape.product() * dtype.bytes()` bytes, of any alignment.
    Stored(Cow<'a, [u8]>),
    /// Nowhere: a device makes them by this rule.
    Dummy(DummyTensor),
}

impl Checkpoint {
    /// Maps `model.safetensors`, or the files that `model.safetensors.index.json` lists, into memory. The
    /// files must not be changed while the checkpoint is open.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        let index = dir.join("model.safetensors.index.json");
        let single = dir.join("model.safetensors");
        let files = if !single.exists() && index.exists() { shards(dir, &index)? } else { vec![single] };
        for path in &files {
            std::fs::File::open(path).map_err(|source| ModelError::Io { path: path.clone(), source })?;
        }
        // SAFETY: the map is read-only and lives as long as `self`; that nobody truncates the files meanwhile
        // is the documented condition of this function.
        #[allow(unsafe_code)]
        let mapped = unsafe { MmapedSafetensors::multi(&files) }
            .map_err(|e| ModelError::Malformed { path: dir.into(), reason: e.to_string() })?;
        Ok(Self { source: Source::Mapped(mapped), dtype: None })
    }

    /// A whole safetensors file that is in memory, such as one embedded in the program.
    pub fn from_bytes(file: &'static [u8]) -> Result<Self, ModelError> {
        let slice = SliceSafetensors::new(file).map_err(|e| ModelError::Malformed {
            path: "safetensors in memory".into(),
            reason: e.to_string(),
        })?;
        Ok(Self { source: Source::Memory(slice), dtype: None })
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
            Source::Mapped(files) => files.tensors().into_iter().map(|(name, _)| name).collect(),
            Source::Memory(file) => file.tensors().into_iter().map(|(name, _)| name).collect(),
            Source::Dummy(_) => BTreeSet::new(),
        }
    }

    /// Whether a file has a tensor of that name; false for a dummy.
    pub fn has(&self, name: &str) -> bool {
        match &self.source {
            Source::Mapped(files) => files.get(name).is_ok(),
            Source::Memory(file) => file.get(name).is_ok(),
            Source::Dummy(_) => false,
        }
    }

    /// The tensor of that name, which must have that shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let missing = |_| ModelError::MissingTensor { name: name.into() };
        let view = match &self.source {
            Source::Mapped(files) => files.get(name).map_err(missing)?,
            Source::Memory(file) => file.get(name).map_err(missing)?,
            Source::Dummy(dtype) => {
                let data = TensorData::Dummy(DummyTensor::new(name));
                return Ok(TensorView { dtype: *dtype, shape: shape.to_vec(), data });
            }
        };
        if view.shape() != shape {
            return Err(ModelError::Shape {
                name: name.into(),
                found: view.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        let dtype = match DType::try_from(view.dtype()) {
            Ok(DType::F32) => Dtype::F32,
            Ok(DType::BF16) => Dtype::Bf16,
            Ok(DType::F16) => Dtype::F16,
            _ => {
                let found = format!("{:?}", view.dtype());
                return Err(ModelError::TensorDtype { name: name.into(), found });
            }
        };
        let data = TensorData::Stored(Cow::Borrowed(view.data()));
        let view = TensorView { dtype, shape: shape.to_vec(), data };
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
        let two = |bytes: &[u8]| [bytes[0], bytes[1]];
        Cow::Owned(match &self.data {
            TensorData::Stored(bytes) if self.dtype == dtype => return Cow::Borrowed(bytes),
            TensorData::Dummy(dummy) => encode(dummy.values(self.shape.iter().product()), dtype),
            TensorData::Stored(bytes) => match self.dtype {
                Dtype::F32 => {
                    encode(bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])), dtype)
                }
                Dtype::Bf16 => {
                    encode(bytes.chunks_exact(2).map(|b| bf16::from_le_bytes(two(b)).to_f32()), dtype)
                }
                Dtype::F16 => {
                    encode(bytes.chunks_exact(2).map(|b| f16::from_le_bytes(two(b)).to_f32()), dtype)
                }
            },
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

/// The distinct files of an index, in order of name. A file outside the model's directory is refused.
fn shards(dir: &Path, index: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let malformed = |reason: String| ModelError::Malformed { path: index.into(), reason };
    let text =
        std::fs::read_to_string(index).map_err(|source| ModelError::Io { path: index.into(), source })?;
    let json: Value = serde_json::from_str(&text).map_err(|e| malformed(e.to_string()))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| malformed("weight_map is missing or not an object".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(file) if !file.contains(['/', '\\']) => names.insert(file),
            _ => return Err(malformed(format!("weight_map[{tensor:?}] = {file} is not a file name"))),
        };
    }
    Ok(names.into_iter().map(|name| dir.join(name)).collect())
}
