//! MXFP4: four-bit floats (E2M1) in blocks of 32 that share a power of two, as gpt-oss stores its experts:
//! `{name}_blocks` `[experts][rows][columns / 32][16]` and `{name}_scales` `[experts][rows][columns / 32]`.

use crate::checkpoint::Checkpoint;
use crate::error::ModelError;
use crate::quantization::codebook::{Codebook, CodebookRows, E2M1};
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::scales::Scales;
use crate::quantization::stored::Stored;
use crate::safetensors::StoredDtype;

/// Weights that share a scale.
pub(super) const BLOCK: usize = 32;

/// The experts' matrices `[rows][columns]` one below the other, under a name such as
/// `model.layers.0.mlp.experts.gate_up_proj`; `None` if the checkpoint has no packed ones of that name. `used` is
/// told each tensor that was read.
pub fn read_experts(
    checkpoint: &Checkpoint,
    name: &str,
    experts: usize,
    (rows, columns): (usize, usize),
    used: &mut dyn FnMut(&str),
) -> Result<Option<PackedMatrix>, ModelError> {
    let (blocks, scales) = (format!("{name}_blocks"), format!("{name}_scales"));
    let Some(codes) = Stored::find(checkpoint, &blocks) else { return Ok(None) };
    if !columns.is_multiple_of(BLOCK) {
        return Err(codes.wrong(format!("packs {BLOCK} columns in a block, and there are {columns}")));
    }
    let per_row = columns / BLOCK;
    let codes = codes.of_shape(&[experts, rows, per_row, BLOCK / 2])?.bytes_of(&[StoredDtype::U8])?.to_vec();
    let missing = || ModelError::MissingTensor { name: scales.clone() };
    let exponents =
        Stored::find(checkpoint, &scales).ok_or_else(missing)?.of_shape(&[experts, rows, per_row])?;
    let exponents = exponents.bytes_of(&[StoredDtype::U8, StoredDtype::F8_E8M0])?;
    used(&blocks);
    used(&scales);
    Ok(Some(matrix(columns, BLOCK, codes, Scales::powers_of_two(exponents))))
}

/// Four-bit floats with a scale for each block of a row.
pub(super) fn matrix(columns: usize, block: usize, codes: Vec<u8>, scales: Scales) -> PackedMatrix {
    let table = Codebook::new(&E2M1);
    PackedRows::Codebook(CodebookRows { columns, codes, table, block, scales }).into()
}

impl Scales {
    /// Of exponents (e8m0): `2^(byte - 127)`; not a number for 255.
    pub(super) fn powers_of_two(exponents: &[u8]) -> Self {
        let bits = |exponent: &u8| match exponent {
            // Below the normal range: half of the smallest normal number.
            0 => 0x0040,
            255 => 0x7fc0,
            exponent => u16::from(*exponent) << 7,
        };
        Self::Bf16(exponents.iter().map(bits).collect())
    }
}
