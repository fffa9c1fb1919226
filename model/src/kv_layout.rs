//! How large a block of the KV cache is, so that the number of blocks follows from a budget in bytes.

use crate::kv_dtype::KvDtype;
use crate::spec::ModelSpec;

/// Shape of the paged cache. One buffer a layer, each `[block][K | V][kv_head][token in block][head_dim]`, or without
/// the values where these are part of the keys;
/// block 0 is padding that no request owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvLayout {
    /// What a layer keeps of a token, by layer: all of them, or none where attention looks ahead, since then nothing
    /// is computed that continues what was. Where layers share memory ([`crate::KvGroups::layout`]), one entry for
    /// those that do.
    pub layers: Vec<KvOfToken>,
    /// Tokens in a block.
    pub block_size: usize,
}

/// What one layer keeps of one token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvOfToken {
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Whether there are values besides the keys: not where both are made of one latent.
    pub has_values: bool,
}

impl KvLayout {
    /// The layout of a model.
    pub fn new(spec: &ModelSpec, block_size: usize) -> Self {
        let kept = spec.layers.iter().filter(|_| spec.causal).map(|layer| KvOfToken {
            num_kv_heads: layer.attention.num_kv_heads,
            head_dim: layer.attention.head_dim,
            has_values: layer.attention.latent.is_none(),
        });
        Self { layers: kept.collect(), block_size }
    }

    /// Elements of one block in one layer.
    pub fn block_len(&self, layer: usize) -> usize {
        self.layers[layer].vectors() * self.layers[layer].head_dim * self.block_size
    }

    /// Bytes of one block over all layers, stored as `dtype`.
    pub fn block_bytes(&self, dtype: KvDtype) -> usize {
        let of_token = |kept: &KvOfToken| kept.vectors() * dtype.vector_bytes(kept.head_dim);
        self.layers.iter().map(of_token).sum::<usize>() * self.block_size
    }

    /// Blocks that fit into `budget_bytes`, the padding block among them.
    pub fn num_blocks(&self, budget_bytes: usize, dtype: KvDtype) -> usize {
        // Blocks that take no room are mere numbers.
        budget_bytes.checked_div(self.block_bytes(dtype)).unwrap_or(usize::MAX)
    }
}

impl KvOfToken {
    /// Keys and values, each a vector of `head_dim` numbers.
    pub fn vectors(&self) -> usize {
        let planes = if self.has_values { 2 } else { 1 };
        planes * self.num_kv_heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_keys_and_values_of_all_layers() {
        let kept = KvOfToken { num_kv_heads: 2, head_dim: 32, has_values: true };
        let wide = KvOfToken { num_kv_heads: 3, ..kept };
        let layout = KvLayout { layers: vec![kept, kept, wide], block_size: 16 };
        assert_eq!(layout.block_bytes(KvDtype::F32), (2 + 2 + 3) * 2 * 32 * 16 * 4);
        assert_eq!(layout.block_bytes(KvDtype::Bf16) * 2, layout.block_bytes(KvDtype::F32));
        let block_bytes = layout.block_bytes(KvDtype::F16);
        assert_eq!(layout.num_blocks(10 * block_bytes, KvDtype::F16), 10);
        assert_eq!(layout.num_blocks(10 * block_bytes - 1, KvDtype::F16), 9);
        let latent = KvOfToken { num_kv_heads: 1, head_dim: 512 + 64, has_values: false };
        let layout = KvLayout { layers: vec![latent; 61], block_size: 16 };
        assert_eq!(layout.block_bytes(KvDtype::Bf16), 61 * 16 * 576 * 2);
    }
}
