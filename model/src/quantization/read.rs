//! [`read_matrix`]: a linear layer's weight out of a checkpoint, packed if it is stored packed.
//!
//! Which modules a quantiser converted is seen from the tensors that they have, not from lists of names in
//! config.json: the lists differ from tool to tool, and the tensors cannot be wrong about themselves.

use crate::checkpoint::{Checkpoint, TensorView};
use crate::error::ModelError;
use crate::quantization::at_load::quantize;
use crate::quantization::ggml::GgmlRows;
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

    /// The same with these rows, in this order.
    pub fn select_rows(self, rows: &[usize]) -> Self {
        match self {
            Self::Plain(view) => Self::Plain(view.select_rows(rows)),
            Self::Packed(matrix) => Self::Packed(matrix.select_rows(rows)),
        }
    }

    /// The same as a packed matrix, to be stacked with one.
    pub fn into_packed(self) -> PackedMatrix {
        match self {
            Self::Packed(matrix) => matrix,
            Self::Plain(view) => PackedRows::Plain(PlainRows::new(&view)).into(),
        }
    }
}

/// Where the tensors of one module are, and which of them have been read.
pub(super) struct Module<'a, 'u> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Its name, without a dot at the end.
    pub(super) name: &'u str,
    /// Rows of its weight: outputs.
    pub(super) rows: usize,
    /// Columns of its weight: inputs.
    pub(super) columns: usize,
    is_transposed: bool,
    used: &'u mut dyn FnMut(&str),
}

/// The weight `[rows][columns]` of the module of that name (without `.weight`), in the form it is stored in, or
/// quantised here and now if that is what `quantization` says. A weight that is not packed lies on its side if
/// `is_transposed`. `used` is told each tensor that was read.
pub fn read_matrix<'a>(
    checkpoint: &'a Checkpoint,
    quantization: &Quantization,
    name: &str,
    (rows, columns): (usize, usize),
    is_transposed: bool,
    used: &mut dyn FnMut(&str),
) -> Result<MatrixView<'a>, ModelError> {
    let mut module = Module { checkpoint, name, rows, columns, is_transposed, used };
    if rows.checked_mul(columns).is_none_or(|elements| elements == 0) {
        return Ok(MatrixView::Plain(module.plain()?));
    }
    if let Some(matrix) = module.blocks(quantization)? {
        return Ok(MatrixView::Packed(matrix));
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
        Quantization::AtLoad(to) => quantize(&module.plain()?, *to)
            .map_err(|reason| ModelError::PackedTensor { name: format!("{name}.weight"), reason })?,
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

    /// The weight, if a GGUF file has it as blocks.
    fn blocks(&mut self, quantization: &Quantization) -> Result<Option<PackedMatrix>, ModelError> {
        let name = format!("{}.weight", self.name);
        let Some(tensor) = self.checkpoint.blocks(&name) else { return Ok(None) };
        if matches!(quantization, Quantization::AtLoad(_)) {
            let kind = tensor.kind.name();
            let reason = format!("is stored as {kind} already; --quantization is for full-precision weights");
            return Err(ModelError::PackedTensor { name, reason });
        }
        let expected = [self.rows, self.columns];
        if tensor.shape != expected {
            let found = tensor.shape.to_vec();
            return Err(ModelError::Shape { name, found, expected: expected.to_vec() });
        }
        let rows =
            GgmlRows::of(tensor).map_err(|reason| ModelError::PackedTensor { name: name.clone(), reason })?;
        (self.used)(&name);
        self.checkpoint.give_back(&name);
        Ok(Some(PackedRows::Ggml(rows).into()))
    }

    /// The weight as a tensor of a type that is computed with.
    fn plain(&mut self) -> Result<TensorView<'a>, ModelError> {
        let name = format!("{}.weight", self.name);
        let view = match self.is_transposed {
            false => self.checkpoint.tensor(&name, &[self.rows, self.columns])?,
            true => self.checkpoint.tensor(&name, &[self.columns, self.rows])?.transposed(),
        };
        (self.used)(&name);
        Ok(view)
    }
}
