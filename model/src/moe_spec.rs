//! [`MoeSpec`]: a mixture of experts as data: how a token's router logits become experts and weights, and what
//! an expert is.

use crate::spec::DenseSpec;

/// An MLP of many experts, of which each token uses a few.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeSpec {
    /// Who is chosen, and with what weights.
    pub router: RouterSpec,
    /// Whether the router's projection has a bias.
    pub router_bias: bool,
    /// Width of an expert between its two halves.
    pub intermediate_size: usize,
    /// What an expert does between its halves; always of a gate and a value.
    pub activation: ExpertActivation,
    /// Whether the experts' projections have biases.
    pub bias: bool,
    /// An expert that every token uses.
    pub shared: Option<SharedExpertSpec>,
}

/// The expert that every token uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedExpertSpec {
    /// What it is; several of them are one that is as wide as all together.
    pub mlp: DenseSpec,
    /// Whether its result is multiplied with the sigmoid of a projection of the input (Qwen2-MoE).
    pub gated: bool,
}

/// From router logits to experts and weights. Of equals the first is taken.
#[derive(Debug, Clone, PartialEq)]
pub struct RouterSpec {
    /// Routed experts; at least 1.
    pub num_experts: usize,
    /// Experts of a token; at most `num_experts`.
    pub top_k: usize,
    /// What is made of the logits.
    pub scores: RouterScores,
    /// A number an expert is added to the scores for the choice alone (DeepSeek-V3).
    pub correction_bias: bool,
    /// The choice is made among experts of the best groups only.
    pub groups: Option<ExpertGroups>,
    /// Whether the weights of the chosen are divided by their sum.
    pub renormalise: bool,
    /// Factor on all weights.
    pub scale: f32,
}

/// What a router's logits become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RouterScores {
    /// Softmax over all experts (Mixtral, Qwen, OLMoE, DeepSeek-V2).
    Softmax,
    /// Softmax over the chosen ones (Granite, gpt-oss).
    SoftmaxOfChosen,
    /// The sigmoid of each (DeepSeek-V3).
    Sigmoid,
    /// Two experts, each weighed by softmax among the logits that are not further than
    /// `2 * jitter * max(|logit|, best)` below the best that is left (Phi-3.5-MoE).
    SparseMixer {
        /// `router_jitter_noise`.
        jitter: f32,
    },
}

/// Experts in groups of equal size, by their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Divides the number of experts.
    pub num_groups: usize,
    /// Groups that are left to choose from; with room for all experts of a token.
    pub top_groups: usize,
    /// What a group is worth.
    pub score: GroupScore,
}

/// What a group of experts is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek-V2).
    Best,
    /// Its two best experts (DeepSeek-V3).
    SumOfTwoBest,
}

/// What an expert does between its halves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ExpertActivation {
    /// `silu(gate) * up`.
    Silu,
    /// `(up + 1) * gate * sigmoid(alpha * gate)` of `min(gate, limit)` and of `up` within `±limit` (gpt-oss).
    ClampedSwiGlu {
        /// 1.702 in the published models.
        alpha: f32,
        /// 7 in the published models.
        limit: f32,
    },
}

/// A mixture with its weights on a device.
pub struct Experts<'a, W> {
    /// What it is.
    pub spec: &'a MoeSpec,
    /// `[num_experts]`, if [`RouterSpec::correction_bias`].
    pub correction_bias: Option<&'a W>,
    /// An entry an expert, `[gate: intermediate_size | up: intermediate_size][hidden]`.
    pub gate_up: &'a [W],
    /// An entry an expert, or none.
    pub gate_up_bias: &'a [W],
    /// An entry an expert, `[hidden][intermediate_size]`.
    pub down: &'a [W],
    /// An entry an expert, or none.
    pub down_bias: &'a [W],
}

impl MoeSpec {
    /// Elements of all weights of a layer whose residual stream is `hidden` wide.
    pub fn num_parameters(&self, hidden: usize) -> usize {
        let RouterSpec { num_experts, correction_bias, .. } = self.router;
        let biases = usize::from(self.bias) * (2 * self.intermediate_size + hidden);
        let expert = 3 * hidden * self.intermediate_size + biases;
        let shared = self
            .shared
            .map_or(0, |shared| shared.mlp.num_parameters(hidden) + usize::from(shared.gated) * hidden);
        let router = hidden + usize::from(self.router_bias) + usize::from(correction_bias);
        num_experts * (expert + router) + shared
    }
}
