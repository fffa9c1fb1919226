//! GPTQ as AutoGPTQ and GPTQModel write it: `qweight` `[columns * bits / 32][rows]`, `qzeros`
//! `[groups][rows * bits / 32]`, `scales` `[groups][rows]`, `g_idx` `[columns]`. Codes are dense in 32-bit words
//! from the lowest bit on, down a column of `qweight` and along a row of `qzeros`; codes of 3 bits cross words.

use std::sync::Arc;

use crate::error::ModelError;
use crate::quantization::integers::{CodeWidth, Groups, IntegerRows, Zeros};
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::read::Module;
use crate::quantization::scales::Scales;
use crate::quantization::stored::Stored;

/// What config.json says of a GPTQ checkpoint, and its tensors do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GptqSpec {
    /// Bits of a code, unless a module's tensors say otherwise.
    pub bits: Option<usize>,
    /// Columns of a group where there is no `g_idx`; `None` = a whole row.
    pub group_size: Option<usize>,
    /// Format `gptq_v2`: zero points are stored as they are. Before, one less, modulo 2^bits.
    pub v2: bool,
}

pub(super) fn read(module: &mut Module<'_, '_>, spec: &GptqSpec) -> Result<Option<PackedMatrix>, ModelError> {
    if !module.has("qweight") {
        return Ok(None);
    }
    let (rows, columns) = (module.rows, module.columns);
    let (bits, words) = module.tensor("qweight", |tensor| {
        let bits = bits_of(&tensor, columns, rows, spec.bits)?;
        Ok((bits, tensor.words()?))
    })?;
    let groups = module.optional("g_idx", |tensor| group_index(&tensor, columns))?;
    let (scales, num_groups) = module.tensor("scales", |tensor| scales_by_group(&tensor, rows))?;
    let groups = match groups {
        Some(index) => groups_of_index(index, num_groups, spec.group_size),
        None => Some(Groups::Runs(spec.group_size.unwrap_or(columns))),
    };
    let groups = groups.filter(|groups| groups.count(columns) == num_groups).ok_or_else(|| {
        let reason = format!(
            "has {num_groups} groups, which does not agree with g_idx or group_size for {columns} columns"
        );
        ModelError::PackedTensor { name: format!("{}.scales", module.name), reason }
    })?;
    let mask = ((1u32 << bits) - 1) as u8;
    let offset = u8::from(!spec.v2);
    let zeros = module.tensor("qzeros", |tensor| {
        let width = (rows * bits).div_ceil(32);
        let words = tensor.of_shape(&[num_groups, width])?.words()?;
        let zero = |row: usize, group: usize| {
            code(bits, row, |word| words[group * width + word]).wrapping_add(offset) & mask
        };
        Ok(zeros(rows, num_groups, |row, group| i16::from(zero(row, group))))
    })?;
    let width = CodeWidth::of_bits(bits);
    let codes = IntegerRows::pack((rows, columns), width, |row, column| {
        code(bits, column, |word| words[word * rows + row])
    });
    Ok(Some(PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros }).into()))
}

/// Code `index` of a dense stream of words.
#[inline(always)]
pub(super) fn code(bits: usize, index: usize, word: impl Fn(usize) -> u32) -> u8 {
    let first = index * bits;
    let (at, shift) = (first / 32, first % 32);
    let mut value = word(at) >> shift;
    if shift + bits > 32 {
        value |= word(at + 1) << (32 - shift);
    }
    (value & ((1 << bits) - 1)) as u8
}

/// Zero points of each row's groups, kept once if they are all the same.
pub(super) fn zeros(rows: usize, groups: usize, zero: impl Fn(usize, usize) -> i16) -> Zeros {
    let all: Vec<i16> = (0..rows)
        .flat_map(|row| (0..groups).map(move |group| (row, group)))
        .map(|(r, g)| zero(r, g))
        .collect();
    match all.first() {
        Some(first) if all.iter().all(|zero| zero == first) => Zeros::All(*first),
        _ => Zeros::OfGroups(all),
    }
}

/// `[groups][rows]` as stored, turned to `[rows][groups]`; with the number of groups.
pub(super) fn scales_by_group(tensor: &Stored<'_>, rows: usize) -> Result<(Scales, usize), ModelError> {
    let groups = match tensor.shape[..] {
        [groups, width] if width == rows && groups > 0 => groups,
        _ => return Err(tensor.wrong(format!("has shape {:?}; expected [groups, {rows}]", tensor.shape))),
    };
    let order = (0..rows).flat_map(|row| (0..groups).map(move |group| group * rows + row));
    Ok((tensor.scales()?.reordered(order), groups))
}

/// The group of each column, checked later against the number of groups.
fn group_index(tensor: &Stored<'_>, columns: usize) -> Result<Vec<u32>, ModelError> {
    let index = tensor.of_shape(&[columns])?.integers()?;
    index
        .into_iter()
        .map(|group| u32::try_from(group).map_err(|_| tensor.wrong(format!("has the group {group}"))))
        .collect()
}

/// Runs where the index is one, else the index; `None` if it names a group that does not exist.
pub(super) fn groups_of_index(index: Vec<u32>, count: usize, group_size: Option<usize>) -> Option<Groups> {
    if index.iter().any(|group| *group as usize >= count) {
        return None;
    }
    let width = group_size.unwrap_or(index.len()).max(1);
    let is_run = index.iter().enumerate().all(|(column, group)| column / width == *group as usize);
    Some(if is_run { Groups::Runs(width) } else { Groups::Index { of_column: Arc::from(index), count } })
}

/// Bits of a code, from how many words hold a column of `qweight`.
fn bits_of(
    tensor: &Stored<'_>,
    columns: usize,
    rows: usize,
    usual: Option<usize>,
) -> Result<usize, ModelError> {
    let fits = |bits: &usize| tensor.shape == [(columns * bits).div_ceil(32), rows];
    usual.into_iter().chain([2, 3, 4, 8]).find(fits).ok_or_else(|| {
        tensor.wrong(format!(
            "has shape {:?}; for {rows} rows of {columns} columns it is [{}, {rows}] with 4 bits, and 2, 3 and 8 are \
             supported as well",
            tensor.shape,
            columns.div_ceil(8),
        ))
    })
}
