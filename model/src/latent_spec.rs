//! [`LatentSpec`]: attention over a compressed latent (MLA) as data.

/// Attention whose keys and values are made of one short vector a token, which is all that is cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSpec {
    /// Width of what queries are made of; `None`: of the layer's input itself.
    pub q_lora_rank: Option<usize>,
    /// Width of what keys and values are made of.
    pub kv_lora_rank: usize,
    /// Width of the part of a query or key that is not rotated.
    pub nope_head_dim: usize,
    /// Width of the rotated part; all heads share the key's.
    pub rope_head_dim: usize,
    /// Width of a value.
    pub v_head_dim: usize,
}

impl LatentSpec {
    /// Numbers that are cached of a token: the latent and the rotated part of its key.
    pub fn cached_dim(&self) -> usize {
        self.kv_lora_rank + self.rope_head_dim
    }

    /// Width of a query before it is brought into the latent's space.
    pub fn query_dim(&self) -> usize {
        self.nope_head_dim + self.rope_head_dim
    }
}

/// What the operations of latent attention need to know of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatentShape {
    /// Query heads.
    pub num_heads: usize,
    /// Width of the latent, which is also the value.
    pub latent_dim: usize,
    /// Width of the part of a query that is not rotated, before it is brought into the latent's space.
    pub nope_dim: usize,
    /// Width of the rotated part.
    pub rope_dim: usize,
    /// Factor on q·k.
    pub scale: f32,
}
