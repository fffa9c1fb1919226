//! The formats of the compressed-tensors library: packed integers (`pack-quantized`), 8-bit integers
//! (`int-quantized`, `naive-quantized`), e4m3 (`float-quantized`) and four-bit floats (`nvfp4-pack-quantized`,
//! `mxfp4-pack-quantized`). A checkpoint may mix them; a module's tensors say which it is in.

use crate::error::ModelError;
use crate::quantization::fp8::scaled;
use crate::quantization::gptq::{code, groups_of_index, zeros};
use crate::quantization::integers::{CodeWidth, Groups, IntegerRows, Zeros};
use crate::quantization::mxfp4;
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::read::Module;
use crate::quantization::scales::Scales;
use crate::quantization::small_float::e4m3;
use crate::quantization::stored::Stored;
use crate::safetensors::StoredDtype;

/// What config.json says, and the tensors do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompressedTensorsSpec {
    /// Rows and columns of a block (`block_structure`), if scales are of blocks.
    pub block: Option<[usize; 2]>,
}

pub(super) fn read(
    module: &mut Module<'_, '_>,
    spec: &CompressedTensorsSpec,
) -> Result<Option<PackedMatrix>, ModelError> {
    if module.has("weight_packed") {
        let of_bytes = module.tensor("weight_packed", |tensor| Ok(tensor.dtype == StoredDtype::U8))?;
        return if of_bytes { four_bit_floats(module) } else { packed_integers(module) }.map(Some);
    }
    let shape = [module.rows, module.columns];
    match module.dtype("weight") {
        Some(StoredDtype::I8) => int8(module).map(Some),
        Some(StoredDtype::F8_E4M3) => {
            let codes = module.tensor("weight", |tensor| Ok(tensor.of_shape(&shape)?.bytes.to_vec()))?;
            let rows = module.tensor("weight_scale", |tensor| scaled(codes, shape, &tensor, spec.block))?;
            Ok(Some(PackedRows::Float8(rows).into()))
        }
        _ => Ok(None),
    }
}

/// `weight_packed` `[rows][columns * bits / 32]`, codes dense from the lowest bit on, each a signed integer plus
/// 2^(bits - 1); `weight_scale` `[rows][groups]`; `weight_zero_point` `[rows * bits / 32][groups]`, packed likewise.
fn packed_integers(module: &mut Module<'_, '_>) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = (module.rows, module.columns);
    let (bits, row_words, words) = module.tensor("weight_packed", |tensor| {
        let fits = |bits: &usize| tensor.shape == [rows, (columns * bits).div_ceil(32)];
        let bits = [4, 8, 2].into_iter().find(fits).ok_or_else(|| {
            let found = &tensor.shape;
            tensor.wrong(format!(
                "has shape {found:?}, which is not {rows} rows of {columns} codes of 2, 4 or 8 bits"
            ))
        })?;
        Ok((bits, tensor.shape[1], tensor.words()?))
    })?;
    module.optional("weight_shape", |tensor| match tensor.integers()?[..] {
        [r, c] if [r, c] == [rows as i64, columns as i64] => Ok(()),
        ref other => Err(tensor.wrong(format!("says {other:?}; config.json implies [{rows}, {columns}]"))),
    })?;
    let (scales, num_groups) =
        module.tensor("weight_scale", |tensor| scales_by_row(&tensor, rows, columns))?;
    let index = module.optional("weight_g_idx", |tensor| group_index(&tensor, columns))?;
    let groups = match index.flatten() {
        Some(index) => groups_of_index(index, num_groups, Some(columns / num_groups)).ok_or_else(|| {
            let reason = format!("names a group that is not among the {num_groups} of weight_scale");
            ModelError::PackedTensor { name: format!("{}.weight_g_idx", module.name), reason }
        })?,
        None => Groups::Runs(columns / num_groups),
    };
    let zeros = module.optional("weight_zero_point", |tensor| {
        let words = tensor.of_shape(&[(rows * bits).div_ceil(32), num_groups])?.words()?;
        let zero = |row, group| i16::from(code(bits, row, |word| words[word * num_groups + group]));
        Ok(zeros(rows, num_groups, zero))
    })?;
    let zeros = zeros.unwrap_or(Zeros::All(1 << (bits - 1)));
    let width = CodeWidth::of_bits(bits);
    let codes = IntegerRows::pack((rows, columns), width, |row, column| {
        code(bits, column, |word| words[row * row_words + word])
    });
    Ok(PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros }).into())
}

/// `weight` in signed bytes with `weight_scale` and `weight_zero_point` of the tensor, the rows or their groups.
fn int8(module: &mut Module<'_, '_>) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = (module.rows, module.columns);
    let codes = module.tensor("weight", |tensor| {
        let bytes = tensor.of_shape(&[rows, columns])?.bytes;
        Ok(bytes.iter().map(|byte| byte ^ 0x80).collect())
    })?;
    let (scales, num_groups) =
        module.tensor("weight_scale", |tensor| scales_by_row(&tensor, rows, columns))?;
    let groups = Groups::Runs(columns / num_groups);
    let zeros = module.optional("weight_zero_point", |tensor| {
        let stored = tensor.integers()?;
        let per_row = match stored.len() {
            1 => 0,
            len if len == rows * num_groups => num_groups,
            _ => return Err(tensor.wrong(format!("has shape {:?}, unlike weight_scale", tensor.shape))),
        };
        if stored.iter().any(|zero| !(-128..=127).contains(zero)) {
            return Err(tensor.wrong("has a zero point that is no signed byte"));
        }
        let at = |row: usize, group: usize| if per_row == 0 { 0 } else { row * per_row + group };
        Ok(zeros(rows, num_groups, |row, group| stored[at(row, group)] as i16 + 128))
    })?;
    let zeros = zeros.unwrap_or(Zeros::All(128));
    let width = CodeWidth::Eight;
    Ok(PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros }).into())
}

/// `weight_packed` `[rows][columns / 2]` in bytes. `weight_scale` `[rows][columns / 32]` of exponents, or
/// `[rows][columns / 16]` of e4m3 and one `weight_global_scale` that scales are divided by.
fn four_bit_floats(module: &mut Module<'_, '_>) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = (module.rows, module.columns);
    let codes = module.tensor("weight_packed", |tensor| {
        if !columns.is_multiple_of(2) {
            return Err(tensor.wrong(format!("packs two columns in a byte, and there are {columns}")));
        }
        Ok(tensor.of_shape(&[rows, columns / 2])?.bytes.to_vec())
    })?;
    let global = module.optional("weight_global_scale", |tensor| match tensor.floats()?[..] {
        [global] => Ok(global),
        _ => Err(tensor.wrong(format!("has shape {:?}; expected one number", tensor.shape))),
    })?;
    let block = if global.is_some() { 16 } else { mxfp4::BLOCK };
    let scales = module.tensor("weight_scale", |tensor| {
        let tensor = tensor.of_shape(&[rows, columns.div_ceil(block)])?;
        match global {
            None => Ok(Scales::powers_of_two(tensor.bytes_of(&[StoredDtype::U8, StoredDtype::F8_E8M0])?)),
            Some(global) => {
                let bytes = tensor.bytes_of(&[StoredDtype::F8_E4M3])?;
                Ok(Scales::F32(bytes.iter().map(|byte| e4m3(*byte) / global).collect()))
            }
        }
    })?;
    Ok(mxfp4::matrix(columns, block, codes, scales))
}

/// `[rows][groups]`, with the number of groups; one scale for all becomes one for each row.
fn scales_by_row(tensor: &Stored<'_>, rows: usize, columns: usize) -> Result<(Scales, usize), ModelError> {
    match tensor.shape[..] {
        [] | [1] | [1, 1] => Ok((tensor.scales()?.reordered((0..rows).map(|_| 0)), 1)),
        [n] if n == rows => Ok((tensor.scales()?, 1)),
        [n, groups] if n == rows && groups > 0 && columns.is_multiple_of(groups) => {
            Ok((tensor.scales()?, groups))
        }
        _ => Err(tensor.wrong(format!(
            "has shape {:?}; expected [{rows}, groups], where groups divide {columns} columns evenly",
            tensor.shape
        ))),
    }
}

/// The group of each column; `None` where the tensor is there and not filled (all -1).
fn group_index(tensor: &Stored<'_>, columns: usize) -> Result<Option<Vec<u32>>, ModelError> {
    let index = tensor.of_shape(&[columns])?.integers()?;
    if index.iter().all(|group| *group == -1) {
        return Ok(None);
    }
    let group = |group: i64| u32::try_from(group).map_err(|_| tensor.wrong(format!("has the group {group}")));
    index.into_iter().map(group).collect::<Result<_, _>>().map(Some)
}
