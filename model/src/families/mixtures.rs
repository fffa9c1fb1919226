//! Mixtures of experts by the fields that most configs share.

use super::config::{Config, invalid};
use crate::error::ModelError;
use crate::moe_spec::{ExpertActivation, MoeSpec, RouterScores, RouterSpec, SharedExpertSpec};
use crate::spec::{Activation, DenseSpec};

/// Experts of a gate and an up projection with SiLU, chosen by `scores`, whose weights are divided by their sum if
/// `renormalise`. `num_experts` and `intermediate_size` are the fields' names.
pub(super) fn mixture(
    config: &Config,
    num_experts: &'static str,
    intermediate_size: &'static str,
    scores: RouterScores,
    renormalise: bool,
) -> Result<MoeSpec, ModelError> {
    config.only("hidden_act", "silu".into(), "silu")?;
    let (num_experts, top_k) = (config.positive(num_experts)?, config.positive("num_experts_per_tok")?);
    if num_experts > MOST_EXPERTS {
        return Err(invalid("num_experts", format!("{num_experts} is not within 1 to {MOST_EXPERTS}")));
    }
    if top_k > num_experts {
        let reason = format!("{top_k} of {num_experts} experts");
        return Err(invalid("num_experts_per_tok", reason));
    }
    Ok(MoeSpec {
        router: RouterSpec {
            num_experts,
            top_k,
            scores,
            correction_bias: false,
            groups: None,
            renormalise,
            scale: 1.0,
        },
        router_bias: false,
        intermediate_size: config.positive(intermediate_size)?,
        activation: ExpertActivation::Silu,
        bias: false,
        shared: None,
    })
}

/// Far more than there are, and few enough for a list of them.
const MOST_EXPERTS: usize = 1 << 16;

/// The same with an expert that all tokens use.
pub(super) fn with_shared(moe: MoeSpec, intermediate_size: usize, gated: bool) -> MoeSpec {
    let mlp = DenseSpec { intermediate_size, activation: Activation::Silu, gated: true, bias: false };
    MoeSpec { shared: Some(SharedExpertSpec { mlp, gated }), ..moe }
}
