//! AWQ as AutoAWQ writes it (version `gemm`, 4 bits): `qweight` `[columns][rows / 8]`, `qzeros`
//! `[groups][rows / 8]`, `scales` `[groups][rows]`. Each word holds eight neighbouring rows' codes, in an order made
//! for its kernels.

use crate::error::ModelError;
use crate::quantization::gptq::{scales_by_group, zeros};
use crate::quantization::integers::{CodeWidth, Groups, IntegerRows};
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::read::Module;

/// What config.json says of an AWQ checkpoint, and its tensors do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwqSpec {
    /// Columns of a group; `None` = a whole row.
    pub group_size: Option<usize>,
}

/// Which four bits of a word hold each of its eight rows.
const PLACE: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

pub(super) fn read(module: &mut Module<'_, '_>, spec: &AwqSpec) -> Result<Option<PackedMatrix>, ModelError> {
    if !module.has("qweight") {
        return Ok(None);
    }
    let (rows, columns) = (module.rows, module.columns);
    let width = rows / 8;
    if !rows.is_multiple_of(8) {
        let reason = format!("is packed in eights of rows, and there are {rows}");
        return Err(ModelError::PackedTensor { name: format!("{}.qweight", module.name), reason });
    }
    let words = module.tensor("qweight", |tensor| tensor.of_shape(&[columns, width])?.words())?;
    let groups = Groups::Runs(spec.group_size.unwrap_or(columns));
    let num_groups = groups.count(columns);
    let scales =
        module.tensor("scales", |tensor| scales_by_group(&tensor.of_shape(&[num_groups, rows])?, rows))?.0;
    let code = |word: u32, row: usize| (word >> (4 * PLACE[row % 8]) & 15) as u8;
    let zeros = module.tensor("qzeros", |tensor| {
        let words = tensor.of_shape(&[num_groups, width])?.words()?;
        Ok(zeros(rows, num_groups, |row, group| i16::from(code(words[group * width + row / 8], row))))
    })?;
    let codes = IntegerRows::pack((rows, columns), CodeWidth::Four, |row, column| {
        code(words[column * width + row / 8], row)
    });
    let width = CodeWidth::Four;
    Ok(Some(PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros }).into()))
}
