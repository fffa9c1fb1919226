//! [`read_matrix`]: a linear layer's weight out of a checkpoint, packed if it is stored packed.
//!
//! Which modules a quantiser converted is seen from the tensors that they have, not from lists of names in
//! config.json: the lists differ from tool to tool, and the tensors cannot be wrong about themselves.

use crate::checkpoint::{Checkpoint, TensorView};
use crate::error::ModelError;
use crate::quantization::at_load::quantize;
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::plain::PlainRows;
use crate::quantization::stored::Stored;
use crate::quantization::{Quantization, awq, bitsandbytes, compressed_tensors, fp8, gptq};
use crate::safetensors::StoredDtype;

/// A matrix on its way to a device.
pub enum MatrixView<'a> {
    /// In one of the types that are computed with.
    Plain(TensorView<'a>),
    /// A few bits a weight, and the scales.
    Packed(PackedMatrix),
}

impl MatrixView<'_> {
    /// Bytes of the weights, scales included.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Plain(view) => view.shape.iter().product::<usize>() * view.dtype.bytes(),
            Self::Packed(matrix) => matrix.bytes(),
        }
    }

    /// The same as a packed matrix, to be stacked with one; the error says that it is not a matrix.
    pub fn into_packed(self) -> Result<PackedMatrix, String> {
        match self {
            Self::Packed(matrix) => Ok(matrix),
            Self::Plain(view) => {
                let plain = PlainRows::new(&view).ok_or("a tensor that is no matrix cannot be stacked")?;
                Ok(PackedMatrix::new(PackedRows::Plain(plain)))
            }
        }
    }
}

/// Where the tensors of one module are, and which of them have been read.
pub(super) struct Module<'a, 'u> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Its name, without a dot at the end.
    pub(super) name: &'a str,
    /// Rows of its weight: outputs.
    pub(super) rows: usize,
    /// Columns of its weight: inputs.
    pub(super) columns: usize,
    used: &'u mut dyn FnMut(&str),
}

/// The weight `[rows][columns]` of the module of that name (without `.weight`), in the form it is stored in, or
/// quantised here and now if that is what `quantization` says. `used` is told each tensor that was read.
pub fn read_matrix<'a>(
    checkpoint: &'a Checkpoint,
    quantization: &Quantization,
    name: &'a str,
    (rows, columns): (usize, usize),
    used: &mut dyn FnMut(&str),
) -> Result<MatrixView<'a>, ModelError> {
    let mut module = Module { checkpoint, name, rows, columns, used };
    if rows.checked_mul(columns).is_none_or(|elements| elements == 0) {
        return Ok(MatrixView::Plain(module.plain()?));
    }
    let packed = match quantization {
        Quantization::None => None,
        Quantization::Gptq(spec) => gptq::read(&mut module, spec)?,
        Quantization::Awq(spec) => awq::read(&mut module, spec)?,
        Quantization::Fp8(spec) => fp8::read(&mut module, spec)?,
        Quantization::CompressedTensors(spec) => compressed_tensors::read(&mut module, spec)?,
        Quantization::BitsAndBytes => bitsandbytes::read(&mut module)?,
        // Only experts are packed, under names of their own.
        Quantization::Mxfp4 => None,
        Quantization::AtLoad(to) => {
            let view = module.plain()?;
            Some(
                quantize(&view, *to)
                    .map_err(|reason| ModelError::PackedTensor { name: format!("{name}.weight"), reason })?,
            )
        }
    };
    match packed {
        Some(matrix) => Ok(MatrixView::Packed(matrix)),
        None => Ok(MatrixView::Plain(module.plain()?)),
    }
}

impl<'a> Module<'a, '_> {
    /// Whether the checkpoint has `{name}.{suffix}`.
    pub(super) fn has(&self, suffix: &str) -> bool {
        self.checkpoint.has(&format!("{}.{suffix}", self.name))
    }

    /// The type of `{name}.{suffix}`, if there is one.
    pub(super) fn dtype(&self, suffix: &str) -> Option<StoredDtype> {
        Stored::find(self.checkpoint, &format!("{}.{suffix}", self.name)).map(|tensor| tensor.dtype)
    }

    /// Calls `read` with the tensor `{name}.{suffix}`, which must exist.
    pub(super) fn tensor<T>(
        &mut self,
        suffix: &str,
        read: impl FnOnce(Stored<'_>) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        let name = format!("{}.{suffix}", self.name);
        self.optional(suffix, read)?.ok_or(ModelError::MissingTensor { name })
    }

    /// The same for a tensor that need not exist.
    pub(super) fn optional<T>(
        &mut self,
        suffix: &str,
        read: impl FnOnce(Stored<'_>) -> Result<T, ModelError>,
    ) -> Result<Option<T>, ModelError> {
        let name = format!("{}.{suffix}", self.name);
        let found = Stored::find(self.checkpoint, &name).map(read).transpose()?;
        if found.is_some() {
            (self.used)(&name);
            self.checkpoint.give_back(&name);
        }
        Ok(found)
    }

    /// Marks tensors as read that say nothing about the weight: scales that tell a quantised kernel how to round
    /// its activations, which stay f32 here.
    pub(super) fn pass_over(&mut self, suffixes: &[&str]) {
        for suffix in suffixes.iter().filter(|suffix| self.has(suffix)).collect::<Vec<_>>() {
            (self.used)(&format!("{}.{suffix}", self.name));
        }
    }

    /// The weight as a tensor of a type that is computed with.
    fn plain(&mut self) -> Result<TensorView<'a>, ModelError> {
        let name = format!("{}.weight", self.name);
        let view = self.checkpoint.tensor(&name, &[self.rows, self.columns])?;
        (self.used)(&name);
        Ok(view)
    }
}
