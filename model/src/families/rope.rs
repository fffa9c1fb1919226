//! The rotations that a config.json asks for: `rope_parameters`, or `rope_theta` and `rope_scaling` in older files.

use serde_json::Value;

use super::config::{Config, invalid, unsupported};
use crate::error::ModelError;
use crate::spec::{RopeScaling, RopeSpec};

/// The one rotation of a model whose heads are `head_dim` wide.
pub(crate) fn rope(config: &Config, head_dim: usize) -> Result<RopeSpec, ModelError> {
    rope_of(config, rope_parameters(config)?, head_dim, 10_000.0)
}

/// The fields of the rotation's own object, if there is one.
pub(crate) fn rope_parameters(config: &Config) -> Result<Option<Config>, ModelError> {
    match config.get("rope_parameters").or(config.get("rope_scaling")) {
        None => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(Config::of(fields.clone()))),
        Some(other) => Err(invalid("rope_scaling", format!("{other} is not an object"))),
    }
}

/// A rotation by `parameters`, with what they leave open from the config itself.
pub(crate) fn rope_of(
    config: &Config,
    parameters: Option<Config>,
    head_dim: usize,
    default_theta: f64,
) -> Result<RopeSpec, ModelError> {
    let own = |field| parameters.as_ref().map_or(Ok(None), |parameters| parameters.number(field));
    let theta = own("rope_theta")?.or(config.number("rope_theta")?).unwrap_or(default_theta);
    if theta <= 0.0 {
        return Err(invalid("rope_theta", format!("{theta} is not positive")));
    }
    let share = own("partial_rotary_factor")?.or(config.number("partial_rotary_factor")?).unwrap_or(1.0);
    let dim = (head_dim as f64 * share) as usize;
    if dim > head_dim || dim == 0 || !dim.is_multiple_of(2) {
        let reason =
            format!("{share} of head_dim = {head_dim} is {dim}, not a positive even number up to it");
        return Err(invalid(if share == 1.0 { "head_dim" } else { "partial_rotary_factor" }, reason));
    }
    let scaling = match &parameters {
        None => RopeScaling::None,
        Some(parameters) => scaling(config, parameters, dim)?,
    };
    Ok(RopeSpec { dim, theta, scaling, interleaved: false })
}

const KINDS: &str = "default, linear, llama3, yarn, longrope";

fn scaling(config: &Config, parameters: &Config, dim: usize) -> Result<RopeScaling, ModelError> {
    let kind = match parameters.word("rope_type")?.or(parameters.word("type")?) {
        Some(kind) => kind,
        None => return Err(invalid("rope_scaling", format!("rope_type is missing; one of {KINDS}"))),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: need(parameters, "factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: need(parameters, "factor")?,
            low_freq_factor: need(parameters, "low_freq_factor")?,
            high_freq_factor: need(parameters, "high_freq_factor")?,
            original_max_position_embeddings: need(parameters, "original_max_position_embeddings")?,
        }),
        "yarn" => yarn(config, parameters),
        // "su" was the name before it had one.
        "longrope" | "su" => long(config, parameters, dim),
        other => Err(unsupported("rope_scaling.rope_type", other, KINDS)),
    }
}

/// Defaults are those of transformers' `_compute_yarn_parameters`.
fn yarn(config: &Config, parameters: &Config) -> Result<RopeScaling, ModelError> {
    let factor = need(parameters, "factor")?;
    let original = match parameters.number("original_max_position_embeddings")? {
        Some(original) => original,
        None => config.positive("max_position_embeddings")? as f64,
    };
    let longer = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
    let (mscale, all) = (parameters.number("mscale")?, parameters.number("mscale_all_dim")?);
    let attention_factor = match (parameters.number("attention_factor")?, mscale, all) {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => longer(mscale) / longer(all),
        _ => longer(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_max_position_embeddings: original,
        beta_fast: parameters.number("beta_fast")?.unwrap_or(32.0),
        beta_slow: parameters.number("beta_slow")?.unwrap_or(1.0),
        truncate: parameters.flag_or("truncate", true)?,
        attention_factor,
    })
}

fn long(config: &Config, parameters: &Config, dim: usize) -> Result<RopeScaling, ModelError> {
    let list = |field: &'static str| match parameters.numbers(field)? {
        Some(factors) if factors.len() == dim / 2 && factors.iter().all(|factor| *factor > 0.0) => {
            Ok(factors)
        }
        found => {
            let found = found.map_or("missing".into(), |factors| format!("{} numbers", factors.len()));
            let reason =
                format!("{field} must be {} positive numbers, half of what is rotated; {found}", dim / 2);
            Err(invalid("rope_scaling", reason))
        }
    };
    let longest = config.positive("max_position_embeddings")? as f64;
    let given = config.number("original_max_position_embeddings")?;
    let original = given.or(parameters.number("original_max_position_embeddings")?).unwrap_or(longest);
    if original <= 1.0 {
        return Err(invalid("original_max_position_embeddings", format!("{original} is not above 1")));
    }
    let factor = parameters.number("factor")?.unwrap_or(longest / original);
    let longer = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / original.ln()).sqrt() };
    Ok(RopeScaling::Long {
        short: list("short_factor")?,
        long: list("long_factor")?,
        original_max_position_embeddings: original,
        attention_factor: parameters.number("attention_factor")?.unwrap_or(longer),
    })
}

fn need(parameters: &Config, field: &'static str) -> Result<f64, ModelError> {
    match parameters.number(field)? {
        Some(number) if number > 0.0 => Ok(number),
        _ => Err(invalid("rope_scaling", format!("{field} must be a positive number"))),
    }
}
