//! What each operation must read, write and multiply at the least: the denominators of all shares. Activations and
//! caches have 2 bytes an element, the residual stream and logits 4. What is read several times counts once.

use quire_model::{LmHead, ModelSpec};

use crate::report::Work;
use crate::step::Row;

fn memory(bytes: usize, formula: &'static str) -> Work {
    Work { bytes: bytes as f64, flops: 0.0, formula }
}

/// A product with a weight of `n` rows and `k` columns, whose results have `out_bytes` each.
pub(crate) fn product(rows: usize, n: usize, k: usize, out_bytes: usize) -> Work {
    Work {
        bytes: (2 * n * k + 2 * rows * k + out_bytes * rows * n) as f64,
        flops: 2.0 * rows as f64 * n as f64 * k as f64,
        formula: "bytes: weight n*k*2, input rows*k*2, output rows*n*2 (logits 4); flops 2*rows*n*k",
    }
}

/// Adding to the residual stream, and its norm.
pub(crate) fn norm(spec: &ModelSpec, rows: usize) -> Work {
    memory(rows * spec.hidden_size * (2 + 4 + 4 + 2), "rows*hidden*(2 in + 4 + 4 residual + 2 out)")
}

/// Rotation, norms of heads, and the write into the cache.
pub(crate) fn rope(spec: &ModelSpec, tokens: usize) -> Work {
    let attention = &spec.layers[0].attention;
    let (q, kv) = (attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim);
    memory(tokens * (2 * q + 2 * 2 * kv) * 2, "tokens*2*(2*q read and written + 2*2*kv read and cached)")
}

/// Attention of rows against all that they see.
pub(crate) fn attention(spec: &ModelSpec, rows: &[Row]) -> Work {
    let attention = &spec.layers[0].attention;
    let (q, kv) = (attention.num_heads * attention.head_dim, attention.num_kv_heads * attention.head_dim);
    let cached: usize = rows.iter().map(Row::end).sum();
    let tokens: usize = rows.iter().map(|row| row.len).sum();
    // Token i of a row sees start + i + 1 tokens.
    let seen = |row: &Row| row.len * row.start + row.len * (row.len + 1) / 2;
    Work {
        bytes: (2 * cached * 2 * kv + 2 * tokens * 2 * q) as f64,
        flops: 4.0 * q as f64 * rows.iter().map(seen).sum::<usize>() as f64,
        formula: "bytes: 2*2*kv_heads*head_dim of each token of each context, queries and output; flops \
                  4*heads*head_dim*pairs of a token and one that it sees",
    }
}

/// Width of the MLP between its two halves; what runs on GPUs has one MLP for all tokens.
pub(crate) fn inner_size(spec: &ModelSpec) -> usize {
    spec.layers[0].mlp.dense().map_or(0, |mlp| mlp.intermediate_size)
}

/// Activation and multiplication.
pub(crate) fn silu_mul(spec: &ModelSpec, rows: usize) -> Work {
    memory(rows * inner_size(spec) * 3 * 2, "rows*intermediate*2*(gate + up + out)")
}

/// Rows of the embedding into the residual stream.
pub(crate) fn embed(spec: &ModelSpec, tokens: usize) -> Work {
    memory(tokens * spec.hidden_size * (2 + 4), "tokens*hidden*(2 table + 4 residual)")
}

/// Rows that need logits.
pub(crate) fn gather(spec: &ModelSpec, rows: usize) -> Work {
    memory(rows * spec.hidden_size * 2 * 2, "rows*hidden*2*(in + out)")
}

/// Choosing a token a row.
pub(crate) fn sampling(spec: &ModelSpec, rows: usize) -> Work {
    memory(rows * spec.vocab_size * 4, "rows*vocab*4, read once")
}

/// A whole decode step, as its two halves run in turn: all products at once against the weights, then attention
/// against the caches. The embedding's rows count as nothing.
pub(crate) fn decode_step(spec: &ModelSpec, batch: usize, context: usize) -> [Work; 2] {
    let layers = spec.layers.len();
    let weights = weights_read(spec);
    let kv = spec.layers[0].attention.num_kv_heads * spec.layers[0].attention.head_dim;
    [
        Work {
            bytes: 2.0 * weights as f64,
            flops: 2.0 * batch as f64 * weights as f64,
            formula: "bytes 2*(parameters without the embedding's rows); flops 2*batch*the same",
        },
        memory(batch * context * layers * 2 * 2 * kv, "batch*context*layers*2*2*kv_heads*head_dim"),
    ]
}

/// A whole prompt from its first token to the first of the answer.
pub(crate) fn prefill(spec: &ModelSpec, tokens: usize) -> Work {
    let layers = spec.layers.len();
    let head = spec.vocab_size * spec.hidden_size;
    let in_layers = weights_read(spec) - head;
    let attention = attention(spec, &[Row { start: 0, len: tokens }]);
    Work {
        bytes: 2.0 * weights_read(spec) as f64,
        flops: 2.0 * (tokens * in_layers + head) as f64 + attention.flops * layers as f64,
        formula: "flops 2*tokens*(parameters in layers) + 2*vocab*hidden + 4*layers*heads*head_dim*pairs of tokens",
    }
}

/// Elements of weights that every step reads: all but an embedding of its own, of which it takes single rows.
fn weights_read(spec: &ModelSpec) -> usize {
    let embedding = if spec.lm_head == LmHead::Tied { 0 } else { spec.vocab_size * spec.hidden_size };
    spec.num_parameters() - embedding
}
