//! FP8 checkpoints: `weight` in e4m3 with `weight_scale_inv` for each block (DeepSeek), or `weight_scale` for the
//! tensor or for each row (Neural Magic, FBGEMM, ModelOpt). Despite its name `weight_scale_inv` is what weights are
//! multiplied by, as `weight_scale` is.

use crate::error::ModelError;
use crate::quantization::float8::Float8Rows;
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::read::Module;
use crate::quantization::stored::Stored;
use crate::safetensors::StoredDtype;

/// What config.json says of an FP8 checkpoint, and its tensors do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fp8Spec {
    /// Rows and columns of a block (`weight_block_size`), if scales are of blocks.
    pub block: Option<[usize; 2]>,
}

pub(super) fn read(module: &mut Module<'_, '_>, spec: &Fp8Spec) -> Result<Option<PackedMatrix>, ModelError> {
    if module.dtype("weight") != Some(StoredDtype::F8_E4M3) {
        return Ok(None);
    }
    let shape = [module.rows, module.columns];
    let codes = module.tensor("weight", |tensor| Ok(tensor.of_shape(&shape)?.bytes.to_vec()))?;
    let suffix = if module.has("weight_scale_inv") { "weight_scale_inv" } else { "weight_scale" };
    let rows = module.tensor(suffix, |tensor| scaled(codes, shape, &tensor, spec.block))?;
    Ok(Some(PackedRows::Float8(rows).into()))
}

/// Codes with the scales of a tensor of any of the shapes that tools write.
pub(super) fn scaled(
    codes: Vec<u8>,
    [rows, columns]: [usize; 2],
    tensor: &Stored<'_>,
    block: Option<[usize; 2]>,
) -> Result<Float8Rows, ModelError> {
    let by_block = |[of_rows, of_columns]: [usize; 2]| [rows.div_ceil(of_rows), columns.div_ceil(of_columns)];
    let [of_rows, of_columns] = match (tensor.shape, block) {
        ([] | [1] | [1, 1], _) => [rows, columns],
        (shape, Some(block)) if shape == by_block(block) => block,
        ([n] | [n, 1], _) if *n == rows => [1, columns],
        (shape, _) => {
            let blocks = block
                .map_or(String::new(), |block| format!(", or {:?} for blocks of {block:?}", by_block(block)));
            return Err(tensor.wrong(format!(
                "has shape {shape:?}; for weights of [{rows}, {columns}] it is [], [1] or [{rows}, 1]{blocks}"
            )));
        }
    };
    let scale_rows = (0..rows).map(|row| (row / of_rows.max(1)) as u32).collect();
    Ok(Float8Rows { columns, codes, scale_rows, block: of_columns.max(1), scales: tensor.scales()? })
}
