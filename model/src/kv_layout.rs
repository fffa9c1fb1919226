//! How large a block of the KV cache is, so that the number of blocks follows from a budget in bytes.

use crate::kv_dtype::KvDtype;
use crate::spec::ModelSpec;

/// Shape of the paged cache. One buffer a layer, each `[block][K | V][kv_head][token in block][head_dim]`;
/// block 0 is padding that no request owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// Layers whose keys and values are kept: all, or none where attention looks ahead, since then nothing is
    /// computed that continues what was.
    pub num_layers: usize,
    /// Key and value heads of a layer.
    pub num_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in a block.
    pub block_size: usize,
}

impl KvLayout {
    /// The layout of a model.
    pub fn new(spec: &ModelSpec, block_size: usize) -> Self {
        Self {
            num_layers: if spec.causal { spec.layers.len() } else { 0 },
            num_kv_heads: spec.attention.num_kv_heads,
            head_dim: spec.attention.head_dim,
            block_size,
        }
    }

    /// Keys and values of one block in one layer, each a vector of `head_dim` numbers.
    pub fn block_vectors(&self) -> usize {
        2 * self.num_kv_heads * self.block_size
    }

    /// Bytes of one block over all layers, stored as `dtype`.
    pub fn block_bytes(&self, dtype: KvDtype) -> usize {
        self.num_layers * self.block_vectors() * dtype.vector_bytes(self.head_dim)
    }

    /// Blocks that fit into `budget_bytes`, the padding block among them.
    pub fn num_blocks(&self, budget_bytes: usize, dtype: KvDtype) -> usize {
        // Blocks that take no room are mere numbers.
        budget_bytes.checked_div(self.block_bytes(dtype)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_keys_and_values_of_all_layers() {
        let layout = KvLayout { num_layers: 6, num_kv_heads: 2, head_dim: 32, block_size: 16 };
        assert_eq!(layout.block_bytes(KvDtype::F32), 6 * 2 * 2 * 32 * 16 * 4);
        assert_eq!(layout.block_bytes(KvDtype::Bf16) * 2, layout.block_bytes(KvDtype::F32));
        let block_bytes = layout.block_bytes(KvDtype::F16);
        assert_eq!(layout.num_blocks(10 * block_bytes, KvDtype::F16), 10);
        assert_eq!(layout.num_blocks(10 * block_bytes - 1, KvDtype::F16), 9);
    }
}
