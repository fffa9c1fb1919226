//! Loading latent attention. Its second key and value projection is taken apart by head: one half is turned over, to
//! bring queries into the latent's space, the other brings results out of it.

use super::{Loader, Part};
use crate::backend::Backend;
use crate::checkpoint::TensorView;
use crate::error::ModelError;
use crate::latent_spec::LatentSpec;
use crate::quantization::MatrixView;
use crate::row_order::halves;
use crate::spec::AttentionSpec;
use crate::weights::LatentWeights;

impl<B: Backend> Loader<'_, B> {
    /// All that a layer with latent attention has besides its first projection of queries.
    pub(super) fn latent(
        &mut self,
        index: usize,
        attention: &AttentionSpec,
    ) -> Result<Option<LatentWeights<B>>, ModelError> {
        let Some(latent) = &attention.latent else { return Ok(None) };
        let (names, hidden) = (self.names.of.latent, self.spec.hidden_size);
        let [_, norm, second] = names.compressed_q;
        let queries = match latent.q_lora_rank {
            None => None,
            Some(rank) => {
                let norm = format!("{}.weight", self.names.layer(index, norm));
                let second = [self.queries(index, attention, latent, second)];
                Some((self.vector(&norm, rank, None, 0.0)?, self.projection(&second, rank, false)?))
            }
        };
        let kv = Part {
            module: self.names.layer(index, names.kv),
            rows: latent.cached_dim(),
            order: self.rotated_last(attention, latent.kv_lora_rank, latent.rope_head_dim, 1),
        };
        let kv_norm = format!("{}.weight", self.names.layer(index, names.kv_norm));
        let (into_latent, out_of_latent) = self.kv_up(index, attention.num_heads, latent)?;
        Ok(Some(LatentWeights {
            queries,
            kv: self.projection(&[kv], hidden, attention.qkv_bias)?,
            kv_norm: self.vector(&kv_norm, latent.kv_lora_rank, None, 0.0)?,
            into_latent,
            out_of_latent,
        }))
    }

    /// The first projection of queries, which may be the only one.
    pub(super) fn first_queries(&self, index: usize, attention: &AttentionSpec, latent: &LatentSpec) -> Part {
        let names = self.names.of.latent;
        match latent.q_lora_rank {
            None => self.queries(index, attention, latent, names.q),
            Some(rank) => Part::whole(self.names.layer(index, names.compressed_q[0]), rank),
        }
    }

    fn queries(&self, index: usize, attention: &AttentionSpec, latent: &LatentSpec, name: &str) -> Part {
        let LatentSpec { nope_head_dim, rope_head_dim, .. } = *latent;
        Part {
            module: self.names.layer(index, name),
            rows: attention.num_heads * latent.query_dim(),
            order: self.rotated_last(attention, nope_head_dim, rope_head_dim, attention.num_heads),
        }
    }

    /// The order of rows of heads of which the last `dim` numbers are rotated, if it is not that of the checkpoint.
    fn rotated_last(
        &self,
        attention: &AttentionSpec,
        first: usize,
        dim: usize,
        num_heads: usize,
    ) -> Option<Vec<usize>> {
        self.interleaved_dim(attention)?;
        let turned = halves(&(first..first + dim).collect::<Vec<_>>(), dim, dim);
        let of_head: Vec<usize> = (0..first).chain(turned).collect();
        let rows = (0..num_heads).flat_map(|head| of_head.iter().map(move |row| head * (first + dim) + row));
        Some(rows.collect())
    }

    fn kv_up(
        &mut self,
        index: usize,
        num_heads: usize,
        latent: &LatentSpec,
    ) -> Result<(B::Weight, B::Weight), ModelError> {
        let LatentSpec { nope_head_dim: nope, v_head_dim: value, kv_lora_rank: rank, .. } = *latent;
        let module = self.names.layer(index, self.names.of.latent.kv_up);
        let rows = num_heads * (nope + value);
        let rows_of = |head: usize, first: usize, count: usize| -> Vec<usize> {
            let start = head * (nope + value) + first;
            (start..start + count).collect()
        };
        let values: Vec<usize> = (0..num_heads).flat_map(|head| rows_of(head, nope, value)).collect();
        // Columns become rows, which no packed form can do.
        let stored = self.spec.quantization.only_as_stored();
        let matrix = match self.matrix(&module, (rows, rank), false, &stored)? {
            MatrixView::Plain(view) => view,
            MatrixView::Packed(packed) => TensorView::from_f32(&packed.dequantize(), vec![rows, rank]),
        };
        let keys =
            (0..num_heads).map(|head| matrix.clone().select_rows(&rows_of(head, 0, nope)).transposed());
        let into_latent = self.backend.load(&keys.collect::<Vec<_>>())?;
        Ok((into_latent, self.backend.load(&[matrix.select_rows(&values)])?))
    }
}
