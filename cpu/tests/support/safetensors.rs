//! Checkpoints made up in memory, tensor by tensor.

use quire_model::Checkpoint;
use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Map, json};

/// A safetensors file in the making.
#[derive(Default)]
pub struct Tensors {
    header: Map<String, serde_json::Value>,
    data: Vec<u8>,
}

impl Tensors {
    pub fn add(&mut self, name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>) {
        let first = self.data.len();
        self.data.extend(bytes);
        let offsets = [first, self.data.len()];
        self.header.insert(name.into(), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
    }

    /// Random bits: integers of one byte or four.
    pub fn bytes(&mut self, rng: &mut StdRng, name: &str, dtype: &str, shape: &[usize]) {
        let size = if dtype == "I32" { 4 } else { 1 };
        let bytes = (0..size * shape.iter().product::<usize>()).map(|_| rng.random()).collect();
        self.add(name, dtype, shape, bytes);
    }

    pub fn finite_e4m3(&mut self, rng: &mut StdRng, name: &str, shape: &[usize]) {
        let byte = |_| rng.random_range(0..0x7fu8) | if rng.random() { 0x80 } else { 0 };
        let bytes = (0..shape.iter().product::<usize>()).map(byte).collect();
        self.add(name, "F8_E4M3", shape, bytes);
    }

    /// Powers of two, as bytes.
    pub fn exponents(&mut self, rng: &mut StdRng, name: &str, shape: &[usize]) {
        let bytes = (0..shape.iter().product::<usize>()).map(|_| rng.random_range(110..130)).collect();
        self.add(name, "U8", shape, bytes);
    }

    /// Numbers around zero, none of them very small.
    pub fn floats(&mut self, rng: &mut StdRng, name: &str, dtype: &str, shape: &[usize]) {
        let value = |_| rng.random_range(0.01..0.5f32) * if rng.random() { 1.0 } else { -1.0 };
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(value).collect();
        let bytes = match dtype {
            "F32" => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            "BF16" => values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
        };
        self.add(name, dtype, shape, bytes);
    }

    /// bitsandbytes' tensors of a 4-bit matrix, in blocks of 64.
    pub fn nf4(&mut self, rng: &mut StdRng, name: &str, [rows, columns]: [usize; 2], nested: bool) {
        let blocks = (rows * columns).div_ceil(64);
        let mut state =
            json!({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]});
        self.bytes(rng, &format!("{name}.weight"), "U8", &[(rows * columns).div_ceil(2), 1]);
        self.floats(rng, &format!("{name}.weight.quant_map"), "F32", &[16]);
        let absmax = format!("{name}.weight.absmax");
        if nested {
            self.bytes(rng, &absmax, "U8", &[blocks]);
            self.floats(rng, &format!("{name}.weight.nested_absmax"), "F32", &[blocks.div_ceil(256)]);
            self.floats(rng, &format!("{name}.weight.nested_quant_map"), "F32", &[256]);
            state["nested_blocksize"] = json!(256);
            state["nested_offset"] = json!(0.037);
        } else {
            self.floats(rng, &absmax, "F32", &[blocks]);
        }
        let state = state.to_string().into_bytes();
        self.add(&format!("{name}.weight.quant_state.bitsandbytes__nf4"), "U8", &[state.len()], state);
    }

    pub fn checkpoint(self) -> Checkpoint {
        let header = serde_json::Value::Object(self.header).to_string().into_bytes();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &self.data].concat();
        Checkpoint::from_bytes(file).unwrap()
    }
}
