//! DeepSeek-V2, V2-Lite, V3 and R1: latent attention, and mixtures after the first layers.

use super::config::{Config, invalid, unsupported};
use super::decoder::{attention, bare, num_layers};
use super::mixtures::{mixture, with_shared};
use super::names::{LLAMA_NAMES, MoeNames, Names, QWEN_MOE_NAMES, Stack};
use super::rope::{rope_of, rope_parameters};
use super::{Family, GENERATES};
use crate::error::ModelError;
use crate::latent_spec::LatentSpec;
use crate::moe_spec::{ExpertGroups, GroupScore, MoeSpec, RouterScores};
use crate::spec::{
    Activation, AttentionSpec, DenseSpec, LayerSpec, MlpSpec, ModelSpec, Positions, RopeScaling, RopeSpec,
};

pub(super) const DEEPSEEK_V2: Family =
    Family { stem: "DeepseekV2", heads: &[GENERATES], spec: deepseek_v2, names: &NAMES };
pub(super) const DEEPSEEK_V3: Family =
    Family { stem: "DeepseekV3", heads: &[GENERATES], spec: deepseek_v3, names: &NAMES };

const NAMES: Names = Names {
    moe: MoeNames {
        shared_input: Stack::Separate(["mlp.shared_experts.gate_proj", "mlp.shared_experts.up_proj"]),
        shared_output: "mlp.shared_experts.down_proj",
        ..QWEN_MOE_NAMES
    },
    has_next_token_layers: true,
    ..LLAMA_NAMES
};

/// Softmax scores, of the best groups if there are groups.
fn deepseek_v2(config: &Config) -> Result<ModelSpec, ModelError> {
    config.only("scoring_func", "softmax".into(), "softmax")?;
    // Whether weights that add up to one would be scaled as well is told differently wherever one looks.
    config.only("norm_topk_prob", false.into(), "false")?;
    let config = config.with_default("first_k_dense_replace", 0.into());
    let mut moe = routed(&config, RouterScores::Softmax, false)?;
    moe.router.groups = match config.word("topk_method")? {
        None | Some("greedy") => None,
        Some("group_limited_greedy") => Some(groups(&config, &moe, GroupScore::Best)?),
        Some(other) => return Err(unsupported("topk_method", other, "greedy, group_limited_greedy")),
    };
    deepseek(&config, moe, true)
}

/// Sigmoid scores with a correction of the choice, of the best groups.
fn deepseek_v3(config: &Config) -> Result<ModelSpec, ModelError> {
    config.only("scoring_func", "sigmoid".into(), "sigmoid")?;
    config.only("topk_method", "noaux_tc".into(), "noaux_tc")?;
    let config = config.with_default("first_k_dense_replace", 3.into());
    let renormalise = config.flag_or("norm_topk_prob", true)?;
    let mut moe = routed(&config, RouterScores::Sigmoid, renormalise)?;
    moe.router.correction_bias = true;
    moe.router.groups = Some(groups(&config, &moe, GroupScore::SumOfTwoBest)?);
    let interleaved = config.flag_or("rope_interleave", true)?;
    deepseek(&config, moe, interleaved)
}

fn deepseek(config: &Config, moe: MoeSpec, interleaved: bool) -> Result<ModelSpec, ModelError> {
    let hidden_size = config.positive("hidden_size")?;
    let (attention, rope) = latent_attention(config)?;
    let dense = DenseSpec {
        intermediate_size: config.positive("intermediate_size")?,
        activation: Activation::Silu,
        gated: true,
        bias: false,
    };
    let first = config.count("first_k_dense_replace")?.unwrap_or(0);
    let step = config.positive_or("moe_layer_freq", Some(1))?;
    let layer = |index: usize| LayerSpec {
        attention: attention.clone(),
        mlp: match index >= first && index.is_multiple_of(step) {
            true => MlpSpec::Moe(moe.clone()),
            false => MlpSpec::Dense(dense),
        },
    };
    Ok(ModelSpec {
        layers: (0..num_layers(config)?).map(layer).collect(),
        positions: Positions::Rotary(vec![RopeSpec { interleaved, ..rope }]),
        ..bare(config, hidden_size)?
    })
}

/// The mixture but for the groups. Several shared experts are stored as one.
fn routed(config: &Config, scores: RouterScores, renormalise: bool) -> Result<MoeSpec, ModelError> {
    config.only("mlp_bias", false.into(), "false")?;
    let moe = mixture(config, "n_routed_experts", "moe_intermediate_size", scores, renormalise)?;
    let moe = match config.count("n_shared_experts")? {
        None | Some(0) => moe,
        Some(count) => {
            let width = count.checked_mul(moe.intermediate_size).filter(|width| *width <= 1 << 28);
            let width = width.ok_or_else(|| invalid("n_shared_experts", format!("{count} are too many")))?;
            with_shared(moe, width, false)
        }
    };
    let scale = config.f32_or("routed_scaling_factor", 1.0)?;
    Ok(MoeSpec { router: crate::RouterSpec { scale, ..moe.router }, ..moe })
}

fn groups(config: &Config, moe: &MoeSpec, score: GroupScore) -> Result<ExpertGroups, ModelError> {
    let (num_groups, top_groups) = (config.positive("n_group")?, config.positive("topk_group")?);
    let num_experts = moe.router.num_experts;
    let least = if score == GroupScore::SumOfTwoBest { 2 } else { 1 };
    if !num_experts.is_multiple_of(num_groups) || num_experts / num_groups < least {
        let reason = format!("{num_groups} groups of {num_experts} experts: not {least} or more in each");
        return Err(invalid("n_group", reason));
    }
    if top_groups > num_groups || top_groups * (num_experts / num_groups) < moe.router.top_k {
        let reason = format!("{top_groups} of {num_groups} groups, for {} experts a token", moe.router.top_k);
        return Err(invalid("topk_group", reason));
    }
    Ok(ExpertGroups { num_groups, top_groups, score })
}

/// Attention and its rotation, which turns the last part of each query and of the one key.
fn latent_attention(config: &Config) -> Result<(AttentionSpec, RopeSpec), ModelError> {
    let latent = LatentSpec {
        q_lora_rank: match config.unless_said("q_lora_rank", 1536.into()).number("q_lora_rank")? {
            None => None,
            Some(_) => Some(config.positive_or("q_lora_rank", Some(1536))?),
        },
        kv_lora_rank: config.positive_or("kv_lora_rank", Some(512))?,
        nope_head_dim: config.positive_or("qk_nope_head_dim", Some(128))?,
        rope_head_dim: config.positive_or("qk_rope_head_dim", Some(64))?,
        v_head_dim: config.positive_or("v_head_dim", Some(128))?,
    };
    let parameters = rope_parameters(config)?;
    let all_dim = parameters.as_ref().map_or(Ok(None), |parameters| parameters.number("mscale_all_dim"))?;
    let rope = rope_of(config, parameters, latent.rope_head_dim, 10_000.0)?;
    // Queries and keys are made longer by YaRN here, the parts that are not rotated too.
    let longer = match (&rope.scaling, all_dim) {
        (RopeScaling::Yarn { factor, .. }, Some(all)) if *factor > 1.0 && all != 0.0 => {
            (0.1 * all * factor.ln() + 1.0) as f32
        }
        _ => 1.0,
    };
    let bias = config.flag_or("attention_bias", false)?;
    let grouped = attention(config, latent.cached_dim())?;
    let attention = AttentionSpec {
        num_kv_heads: 1,
        // A compressed query has the bias, the only projection has none.
        qkv_bias: bias,
        output_bias: bias,
        scale: (latent.query_dim() as f32).powf(-0.5) * longer * longer,
        latent: Some(latent),
        ..grouped
    };
    Ok((attention, rope))
}
