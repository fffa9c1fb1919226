//! SmolLM3. (SmolLM and SmolLM2 are stored as Llama.)

use super::config::{Config, invalid};
use super::decoder::{set_windows, sliding_window};
use super::llama::llama;
use super::names::LLAMA_NAMES;
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::spec::ModelSpec;

pub(super) const SMOLLM3: Family =
    Family { stem: "SmolLM3", heads: &[GENERATES], spec: smollm3, names: &LLAMA_NAMES };

/// Llama in which some layers, every fourth unless a list says otherwise, do not rotate. If there are windows, these
/// layers have them.
fn smollm3(config: &Config) -> Result<ModelSpec, ModelError> {
    let config = config
        .with_default("tie_word_embeddings", true.into())
        .with_default("num_key_value_heads", 4.into())
        .with_default("rope_theta", 2_000_000.0.into());
    let mut spec = llama(&config)?;
    let rotates = rotates(&config, spec.layers.len())?;
    for (layer, rotates) in spec.layers.iter_mut().zip(&rotates) {
        layer.attention.rope = rotates.then_some(0);
    }
    let switched_on = config.flag_or("use_sliding_window", false)?;
    let window = if switched_on { sliding_window(&config)? } else { None };
    set_windows(&config, &mut spec.layers, window, |index| !rotates[index])?;
    Ok(spec)
}

/// `no_rope_layers` says, against its name, 1 for layers that rotate.
fn rotates(config: &Config, num_layers: usize) -> Result<Vec<bool>, ModelError> {
    let interval = config.positive_or("no_rope_layer_interval", Some(4))?;
    match config.numbers("no_rope_layers")? {
        None => Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect()),
        Some(list) if list.len() == num_layers => Ok(list.iter().map(|rotates| *rotates != 0.0).collect()),
        Some(list) => {
            let reason = format!("{} entries for num_hidden_layers = {num_layers}", list.len());
            Err(invalid("no_rope_layers", reason))
        }
    }
}
