//! bitsandbytes: 4-bit codes of NF4 or FP4 (`weight` with `weight.absmax`, `weight.quant_map` and
//! `weight.quant_state.bitsandbytes__nf4`, a JSON text in bytes; with double quantisation `weight.nested_absmax` and
//! `weight.nested_quant_map` too), and 8-bit integers (`weight` with `SCB`, the greatest magnitude of each row).
//!
//! Scales that are themselves quantised are dequantised once, at load: they are one number in 64.

use serde::Deserialize;

use crate::error::ModelError;
use crate::quantization::codebook::{Codebook, CodebookRows};
use crate::quantization::integers::{CodeWidth, Groups, IntegerRows, Zeros};
use crate::quantization::packed::{PackedMatrix, PackedRows};
use crate::quantization::read::Module;
use crate::quantization::scales::Scales;
use crate::safetensors::StoredDtype;

/// What `quant_state` says. Codes and blocks run on over the ends of rows.
#[derive(Deserialize)]
struct QuantState {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

const STATES: [&str; 2] = ["weight.quant_state.bitsandbytes__nf4", "weight.quant_state.bitsandbytes__fp4"];

pub(super) fn read(module: &mut Module<'_, '_>) -> Result<Option<PackedMatrix>, ModelError> {
    if module.has("SCB") {
        return int8(module).map(Some);
    }
    match STATES.into_iter().find(|state| module.has(state)) {
        Some(state) => four_bits(module, state).map(Some),
        None => Ok(None),
    }
}

fn four_bits(module: &mut Module<'_, '_>, state: &'static str) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = (module.rows, module.columns);
    let state = module.tensor(state, |tensor| {
        let state: QuantState = serde_json::from_slice(tensor.bytes_of(&[StoredDtype::U8])?)
            .map_err(|error| tensor.wrong(format!("is not the JSON that it should be: {error}")))?;
        let sizes = [Some(state.blocksize), state.nested_blocksize];
        if sizes.contains(&Some(0)) || state.shape != [rows, columns] {
            let (shape, block) = (&state.shape, state.blocksize);
            return Err(tensor.wrong(format!(
                "says shape {shape:?} and blocks of {block}; config.json implies [{rows}, {columns}]"
            )));
        }
        if !["nf4", "fp4"].contains(&state.quant_type.as_str()) {
            return Err(tensor.wrong(format!("says {:?}; supported: nf4, fp4", state.quant_type)));
        }
        Ok(state)
    })?;
    let table = module.tensor("weight.quant_map", |tensor| {
        let values: [f32; 16] = tensor
            .floats()?
            .try_into()
            .map_err(|_| tensor.wrong(format!("has shape {:?}; expected sixteen numbers", tensor.shape)))?;
        Ok(Codebook::new(&values))
    })?;
    let absmax = absmax(module, &state)?;
    let codes = module.tensor("weight", |tensor| match tensor.bytes.len() {
        // Storage may be of any element type: only its bytes mean something.
        len if len == (rows * columns).div_ceil(2) => Ok(repack(tensor.bytes, rows, columns)),
        len => Err(tensor.wrong(format!("has {len} bytes; {rows} x {columns} codes of 4 bits do not"))),
    })?;
    let rows = CodebookRows::in_stream(columns, codes, table, state.blocksize, &absmax);
    Ok(PackedRows::Codebook(rows).into())
}

/// The scale of each block.
fn absmax(module: &mut Module<'_, '_>, state: &QuantState) -> Result<Vec<f32>, ModelError> {
    let blocks = (module.rows * module.columns).div_ceil(state.blocksize);
    if !module.has("weight.nested_absmax") {
        return module.tensor("weight.absmax", |tensor| tensor.of_shape(&[blocks])?.floats());
    }
    let map = module.tensor("weight.nested_quant_map", |tensor| tensor.of_shape(&[256])?.floats())?;
    let block = state.nested_blocksize.unwrap_or(256);
    let absmax = module
        .tensor("weight.nested_absmax", |tensor| tensor.of_shape(&[blocks.div_ceil(block)])?.floats())?;
    let offset = state.nested_offset.unwrap_or(0.0);
    module.tensor("weight.absmax", |tensor| {
        let codes = tensor.of_shape(&[blocks])?.bytes_of(&[StoredDtype::U8])?;
        let scale = |(index, code): (usize, &u8)| map[usize::from(*code)] * absmax[index / block] + offset;
        Ok(codes.iter().enumerate().map(scale).collect())
    })
}

/// Rows of codes whose first is in the low bits, of one stream whose first is in the high bits.
fn repack(stream: &[u8], rows: usize, columns: usize) -> Vec<u8> {
    if columns.is_multiple_of(2) {
        return stream.iter().map(|byte| byte.rotate_left(4)).collect();
    }
    let code = |index: usize| stream[index / 2] >> (4 * (1 - index % 2)) & 15;
    IntegerRows::pack((rows, columns), CodeWidth::Four, |row, column| code(row * columns + column))
}

fn int8(module: &mut Module<'_, '_>) -> Result<PackedMatrix, ModelError> {
    let (rows, columns) = (module.rows, module.columns);
    let codes = module.tensor("weight", |tensor| {
        let bytes = tensor.of_shape(&[rows, columns])?.bytes_of(&[StoredDtype::I8])?;
        Ok(bytes.iter().map(|byte| byte ^ 0x80).collect())
    })?;
    let scales = module.tensor("SCB", |tensor| {
        let greatest = tensor.of_shape(&[rows])?.floats()?;
        Ok(Scales::F32(greatest.into_iter().map(|greatest| greatest / 127.0).collect()))
    })?;
    module.optional("weight_format", |tensor| match tensor.integers()?[..] {
        [0] => Ok(()),
        ref other => Err(tensor.wrong(format!("is {other:?}; supported: 0 (row after row)"))),
    })?;
    let (width, groups, zeros) = (CodeWidth::Eight, Groups::Runs(columns), Zeros::All(128));
    Ok(PackedRows::Integers(IntegerRows { columns, width, codes, groups, scales, zeros }).into())
}
