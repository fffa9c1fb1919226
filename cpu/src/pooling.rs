//! Pooling: the hidden states of a prompt's tokens become one vector.

use quire_model::{PoolRow, Pooling};

/// Takes some tokens of a prompt, `[tokens][width]`, into what there is of its vector: after the last of them
/// that is the vector. A mean adds token after token, so that the cut into steps leaves no trace.
pub(crate) fn pool_row(row: &PoolRow, tokens: &[f32], state: &mut [f32]) {
    let width = state.len();
    match row.pooling {
        Pooling::Cls if row.start == 0 => state.copy_from_slice(&tokens[..width]),
        Pooling::Cls => {}
        Pooling::Last => state.copy_from_slice(&tokens[tokens.len() - width..]),
        Pooling::Mean => {
            if row.start == 0 {
                state.fill(0.0);
            }
            for token in tokens.chunks_exact(width) {
                state.iter_mut().zip(token).for_each(|(sum, x)| *sum += x);
            }
            if row.is_last() {
                let count = row.prompt_len as f32;
                state.iter_mut().for_each(|sum| *sum /= count);
            }
        }
    }
}
