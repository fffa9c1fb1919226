//! [`CudaOptions`]: how the backend works.

use std::path::PathBuf;

use quire_model::Dtype;

use crate::gemm::{GemmOptions, GemmTuning};

/// What the operator chooses.
#[derive(Debug, Clone)]
pub struct CudaOptions {
    /// Type of weights, activations and KV cache. With f32 the plain kernels compute, for exactness.
    pub dtype: Dtype,
    /// A result does not depend, bit for bit, on the batch it is computed in: attention in one fixed order, one
    /// algorithm for each product.
    pub batch_invariant: bool,
    /// Record decode steps and repeat them as a whole.
    pub graphs: bool,
    /// Choose the algorithms of products by timing them, rather than by the library's guess.
    pub tune_products: bool,
    /// Where compiled kernels and chosen algorithms are kept between starts.
    pub cache_dir: Option<PathBuf>,
    /// Told of what went otherwise than it should, at the start.
    pub warn: fn(&str),
}

/// At most so long is spent on timing products; what is left is timed at the next start.
const TUNING_SECONDS_MAX: f64 = 20.0;

impl CudaOptions {
    /// Ordinary ones.
    pub fn new(dtype: Dtype) -> Self {
        Self {
            dtype,
            batch_invariant: false,
            graphs: true,
            tune_products: true,
            cache_dir: None,
            warn: |_| {},
        }
    }

    pub(crate) fn gemm(&self) -> GemmOptions {
        GemmOptions {
            batch_invariant: self.batch_invariant,
            tuning: self.tune_products.then(|| GemmTuning {
                table_directory: self.cache_dir.clone(),
                seconds_max: TUNING_SECONDS_MAX,
            }),
        }
    }
}
