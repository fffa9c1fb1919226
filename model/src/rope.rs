//! The rotary embedding's angles, computed once for all positions.

use std::f64::consts::TAU;

use crate::spec::{RopeScaling, RopeSpec};

/// Cosines and sines by position: `[num_positions][rope.dim]`, each row `rope.dim / 2` cosines and then as many
/// sines, for sequences of up to `max_len` tokens. Angles are rounded to `f32` before the cosine, as transformers does.
pub fn rope_table(rope: &RopeSpec, max_len: usize, num_positions: usize) -> Vec<f32> {
    let half = rope.dim / 2;
    let inv_freq: Vec<f32> = (0..half)
        .map(|i| {
            let frequency = 1.0 / rope.theta.powf((2 * i) as f64 / rope.dim as f64);
            scaled_frequency(frequency, i, rope, max_len) as f32
        })
        .collect();
    let length = match rope.scaling {
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::Long { attention_factor, .. } => {
            attention_factor as f32
        }
        _ => 1.0,
    };
    let mut table = Vec::with_capacity(num_positions * rope.dim);
    for position in 0..num_positions {
        let angle = |f: &f32| f64::from(position as f32 * f);
        table.extend(inv_freq.iter().map(|f| angle(f).cos() as f32 * length));
        table.extend(inv_freq.iter().map(|f| angle(f).sin() as f32 * length));
    }
    table
}

/// The frequency of index `i` after scaling. Sources: of `Llama3` the Llama 3.1 model card's reference code, of `Yarn`
/// the paper (Peng et al. 2023), of `Long` LongRoPE (Ding et al. 2024).
fn scaled_frequency(frequency: f64, i: usize, rope: &RopeSpec, max_len: usize) -> f64 {
    match rope.scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let wave_length = TAU / frequency;
            if wave_length < original / high_freq_factor {
                frequency
            } else if wave_length > original / low_freq_factor {
                frequency / factor
            } else {
                let smooth =
                    (original / wave_length - low_freq_factor) / (high_freq_factor - low_freq_factor);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
        RopeScaling::Yarn {
            factor,
            original_max_position_embeddings: original,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } => {
            let (dim, theta) = (rope.dim as f64, rope.theta);
            // The index whose wave turns so many times over the original context.
            let index_of = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
            let (low, high) = (index_of(beta_fast), index_of(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001;
            }
            let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * divided + frequency * (1.0 - divided)
        }
        RopeScaling::Long { ref short, ref long, original_max_position_embeddings: original, .. } => {
            let factors = if max_len as f64 > original { long } else { short };
            frequency / factors[i]
        }
    }
}

/// The rate at which a head's scores fall with distance, by ALiBi (Press et al. 2022): powers of `2^(-8 / n)` for a power
/// of two `n` of heads; for other numbers those of the next lower power, then every other one of the next higher.
pub fn alibi_slope(num_heads: usize, head: usize) -> f32 {
    let lower = 1 << num_heads.ilog2();
    let exponent = match head < lower {
        true => 8.0 / lower as f64 * (head + 1) as f64,
        false => 4.0 / lower as f64 * (2 * (head - lower) + 1) as f64,
    };
    (-exponent).exp2() as f32
}
