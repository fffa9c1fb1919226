//! [`LatentSpec`]: attention over a compressed latent (MLA) as data.

use crate::kv_dtype::KvScales;
use crate::spec::AttentionSpec;

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

    /// Elements of the weights that grouped attention has not: all but the first projection of queries and the
    /// output's.
    pub(crate) fn num_parameters(&self, num_heads: usize, hidden: usize) -> usize {
        let rank = self.kv_lora_rank;
        let up = num_heads * (self.nope_head_dim + self.v_head_dim) * rank;
        let queries = self.q_lora_rank.map_or(0, |rank| rank * (1 + num_heads * self.query_dim()));
        hidden * self.cached_dim() + rank + up + queries
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
    /// What the cache's elements are times, if they are FP8 and have no scales of their own.
    pub kv_scale: f32,
}

impl LatentShape {
    /// That of a layer whose attention is latent.
    pub(crate) fn of(attention: &AttentionSpec, latent: &LatentSpec, scales: KvScales) -> Self {
        Self {
            num_heads: attention.num_heads,
            latent_dim: latent.kv_lora_rank,
            nope_dim: latent.nope_head_dim,
            rope_dim: latent.rope_head_dim,
            scale: attention.scale,
            kv_scale: scales.key,
        }
    }
}
