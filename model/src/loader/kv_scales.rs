//! Loading the scales of FP8 keys and values: a number each for a layer, which some checkpoints bring along. They
//! matter only if the cache is asked to be FP8 (`--kv-cache-dtype`).

use super::Loader;
use crate::backend::Backend;
use crate::error::ModelError;
use crate::kv_dtype::KvScales;

/// Where checkpoints have them, under a layer's attention, in the forms that vLLM reads.
const KEYS: [&str; 5] =
    ["k_scale", "attn.k_scale", "k_proj.k_scale", "k_proj.output_scale", "qkv_proj.k_scale"];
const VALUES: [&str; 5] =
    ["v_scale", "attn.v_scale", "v_proj.v_scale", "v_proj.output_scale", "qkv_proj.v_scale"];
const BOTH: &str = "kv_scale";

impl<B: Backend> Loader<'_, B> {
    /// Those of a layer. Where there is one for keys and none for values, or the other way round, it is that of both.
    pub(super) fn kv_scales(&mut self, index: usize) -> Result<KvScales, ModelError> {
        let output = self.names.layer(index, self.names.of.output);
        let attention = output.rsplit_once('.').map_or(&*output, |(attention, _)| attention);
        let mut first = |names: &[&str]| -> Result<Option<f32>, ModelError> {
            let mut found = None;
            for name in names {
                found = found.or(self.positive(&format!("{attention}.{name}"))?);
            }
            Ok(found)
        };
        let (key, value, both) = (first(&KEYS)?, first(&VALUES)?, first(&[BOTH])?);
        let default = KvScales::default();
        Ok(KvScales {
            key: key.or(both).or(value).unwrap_or(default.key),
            value: value.or(both).or(key).unwrap_or(default.value),
        })
    }

    /// A tensor of one number, if there is one of that name. Numbers up to 0 stand for none.
    fn positive(&mut self, name: &str) -> Result<Option<f32>, ModelError> {
        // Some go by names that say nothing else elsewhere, and are not among the unused ones.
        if !self.checkpoint.has(name) {
            return Ok(None);
        }
        let shape: &[usize] = match self.checkpoint.raw(name)?.shape {
            [1] => &[1],
            _ => &[],
        };
        Ok(self.values(name, shape)?.first().copied().filter(|scale| *scale > 0.0))
    }
}
