//! The rotary embedding's angles, computed once for all positions.

use crate::spec::{RopeScaling, RopeSpec};

/// Cosines and sines by position: `[num_positions][head_dim]`, each row `head_dim / 2` cosines and then as
/// many sines. Angles are rounded to `f32` before the cosine, as transformers does.
pub fn rope_table(rope: &RopeSpec, head_dim: usize, num_positions: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let inv_freq: Vec<f32> = (0..half)
        .map(|i| 1.0 / rope.theta.powf((2 * i) as f64 / head_dim as f64))
        .map(|f| scaled_frequency(f, &rope.scaling) as f32)
        .collect();
    let mut table = Vec::with_capacity(num_positions * head_dim);
    for position in 0..num_positions {
        let angle = |f: &f32| f64::from(position as f32 * f);
        table.extend(inv_freq.iter().map(|f| angle(f).cos() as f32));
        table.extend(inv_freq.iter().map(|f| angle(f).sin() as f32));
    }
    table
}

/// One frequency after scaling. Source of `Llama3`: the Llama 3.1 model card's reference code.
fn scaled_frequency(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: original,
        } => {
            let wave_length = std::f64::consts::TAU / frequency;
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
    }
}
