//! [`Workload`]: who asks what in one simulated life, drawn from a seed.

use std::sync::Arc;

use super::model::SimModel;
use super::rng::Rng;
use super::runner::{SimCheck, SimFailures, SimRunnerConfig};
use super::toy_grammar::ToyGrammar;
use crate::adapter::Adapter;
use crate::config::{SchedulerConfig, SchedulingPolicy};
use crate::grammar::Grammar;
use crate::kv::KvGroup;
use crate::repetition::RepetitionDetection;
use crate::request::{Pooling, Request, RequestId, SamplingParams, TimeUs, TokenId};

const VOCAB: u32 = 40;
const EOS: TokenId = 0;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Workload {
    pub(super) scheduler: SchedulerConfig,
    pub(super) runner: SimRunnerConfig,
    /// A step in how many percent of which a request arrives.
    pub(super) arrival_percent: u32,
    /// Per 1000 steps.
    pub(super) abort_permille: u32,
    /// Requests alive at once.
    pub(super) max_live: usize,
    /// Requests with a grammar.
    grammar_percent: u32,
    /// What they share.
    grammars: Vec<Grammar>,
    /// Requests with an adapter.
    adapter_percent: u32,
    /// What they choose from. One is called as another.
    adapters: Vec<Adapter>,
    /// Prompts that others begin with; grows by finished conversations.
    prefixes: Vec<Vec<TokenId>>,
    /// Often asked again at once.
    last: Option<Request>,
    next_id: u64,
}

impl Workload {
    pub(super) fn new(seed: u64, rng: &mut Rng) -> Self {
        let scheduler = draw_config(rng);
        let failing = rng.percent(30);
        let failures = if failing {
            SimFailures { submit: rng.below(60), collect: rng.below(60), row: rng.below(60) }
        } else {
            SimFailures::default()
        };
        let runner = SimRunnerConfig {
            model: SimModel { seed, vocab: 0..VOCAB },
            max_num_seqs: scheduler.max_num_seqs,
            max_in_flight: rng.between(1, 3) as usize,
            cost: None,
            check: Some(SimCheck {
                num_blocks: scheduler.num_blocks,
                block_size: scheduler.block_size,
                kv_groups: scheduler.kv_groups.clone(),
            }),
            failures,
        };
        let prefixes = (0..rng.between(1, 4)).map(|_| draw_tokens(rng, scheduler.max_model_len)).collect();
        let toy = |number| ToyGrammar { seed: seed ^ number, vocab_size: VOCAB, eos: EOS, failures: 2 };
        let grammars = (1..4).map(|number| toy(number << 32).grammar()).collect();
        Self {
            arrival_percent: *rng.pick(&[5, 20, 50, 90]),
            abort_permille: *rng.pick(&[0, 0, 5, 30]),
            max_live: rng.between(2, 40) as usize,
            grammar_percent: *rng.pick(&[0, 30, 100]),
            grammars,
            adapter_percent: *rng.pick(&[15, 15, 60]),
            adapters: [("a", "a"), ("b", "b"), ("b", "another b"), ("c", "c")]
                .map(|(name, key)| Adapter::new(name, key, ()))
                .into(),
            scheduler,
            runner,
            prefixes,
            last: None,
            next_id: 0,
        }
    }

    /// A new request; one in a hundred is one that must be refused.
    pub(super) fn draw_request(&mut self, rng: &mut Rng, now_us: TimeUs) -> Request {
        self.next_id += 1;
        if let Some(last) = self.last.clone().filter(|_| rng.percent(20)) {
            return Request { id: RequestId(self.next_id), ..last };
        }
        let most = self.scheduler.max_model_len - 1;
        let mut prompt = if rng.percent(60) { rng.pick(&self.prefixes).clone() } else { Vec::new() };
        if !rng.percent(30) || prompt.is_empty() {
            prompt.extend(draw_tokens(rng, most.min(2 * self.scheduler.block_size)));
        }
        prompt.truncate(if rng.percent(70) { most as usize / 2 + 1 } else { most as usize });
        if rng.percent(1) {
            prompt = if rng.percent(50) { Vec::new() } else { vec![1; most as usize + 1] };
        }
        let max_tokens = if rng.percent(20) { 1 } else { rng.between(1, most) };
        let sampling = SamplingParams {
            seed: u64::from(rng.below(3)),
            max_tokens,
            min_tokens: if rng.percent(20) { rng.between(0, max_tokens) } else { 0 },
            ignore_eos: rng.percent(20),
            eos_token_ids: Arc::new([EOS]),
            stop_token_ids: if rng.percent(20) { vec![1, 2] } else { Vec::new() },
            allowed_token_ids: rng.percent(5).then(|| (0..VOCAB).filter(|token| token % 8 != 7).collect()),
            bad_words: if rng.percent(5) { vec![vec![3], vec![4, 5]] } else { Vec::new() },
            grammar: rng.percent(self.grammar_percent).then(|| rng.pick(&self.grammars).clone()),
            repetition: rng.percent(10).then_some(RepetitionDetection {
                min_pattern_size: 1,
                max_pattern_size: 3,
                min_count: 2,
            }),
            logprobs: rng.percent(10).then_some(0),
            prompt_logprobs: rng.percent(8).then_some(0),
            ..SamplingParams::default()
        };
        // Encoders can do nothing else.
        let pools = self.scheduler.whole_prompts || rng.percent(10);
        let sampling = match pools {
            true => SamplingParams { pooling: Some(Pooling::Mean), ..SamplingParams::default() },
            false => sampling,
        };
        let adapter = rng.percent(self.adapter_percent).then(|| rng.pick(&self.adapters).clone());
        let salt = rng.percent(15).then(|| Arc::from(*rng.pick(&["a", "b"])));
        let request = Request {
            id: RequestId(self.next_id),
            prompt_token_ids: prompt.into(),
            sampling: Arc::new(sampling),
            priority: rng.between(0, 6) as i32 - 3,
            arrival_us: now_us - u64::from(rng.below(50)).min(now_us),
            adapter,
            cache_salt: salt,
            bypass_prefix_cache: rng.percent(4),
        };
        self.last = Some(request.clone());
        request
    }

    /// A conversation goes on: later prompts may begin with this whole sequence.
    pub(super) fn remember(&mut self, rng: &mut Rng, request: &Request, outputs: &[TokenId]) {
        if rng.percent(10) && request.prompt_token_ids.len() < self.scheduler.max_model_len as usize / 2 {
            let at = rng.below(self.prefixes.len() as u32) as usize;
            self.prefixes[at] = request.prompt_token_ids.iter().chain(outputs).copied().collect();
        }
    }
}

fn draw_config(rng: &mut Rng) -> SchedulerConfig {
    let block_size = *rng.pick(&[1, 2, 3, 4, 8, 16]);
    let max_model_len = rng.between(4, 16 + 6 * block_size);
    let max_num_seqs = rng.between(1, 10);
    let policy = if rng.percent(50) { SchedulingPolicy::Fcfs } else { SchedulingPolicy::Priority };
    let enable_prefix_caching = rng.percent(85);
    let mut config = SchedulerConfig {
        max_num_seqs,
        // Small budgets make prefills take many steps: more is in flight, shared and preempted half-way.
        max_num_batched_tokens: max_num_seqs
            + if rng.percent(50) { rng.below(3 * block_size) } else { rng.below(3 * max_model_len) },
        max_model_len,
        block_size,
        num_blocks: 0,
        kv_groups: draw_groups(rng, max_model_len),
        enable_prefix_caching,
        enable_kv_events: enable_prefix_caching && rng.percent(50),
        policy,
        long_prefill_token_threshold: if rng.percent(35) { rng.between(1, max_model_len) } else { 0 },
        priority_ageing_us: match policy {
            SchedulingPolicy::Priority if rng.percent(50) => u64::from(rng.between(1, 2000)),
            _ => 0,
        },
        whole_prompts: false,
        max_loras: rng.between(1, 4),
        adapter_patience_us: u64::from(rng.below(1000)),
    };
    if rng.percent(10) {
        config = SchedulerConfig {
            max_num_batched_tokens: config.max_num_batched_tokens.max(config.max_model_len),
            long_prefill_token_threshold: 0,
            enable_prefix_caching: false,
            enable_kv_events: false,
            whole_prompts: true,
            ..config
        };
    }
    let least = config.kv_cache().max_blocks(max_model_len) as u32;
    config.num_blocks = 1 + least + rng.below(3 * least + 2);
    config
}

/// Half of the models have one kind of layers; windows are of all sizes, one token and more than a sequence
/// among them.
fn draw_groups(rng: &mut Rng, max_model_len: u32) -> Vec<KvGroup> {
    if rng.percent(35) {
        return vec![KvGroup::FULL];
    }
    let longest = *rng.pick(&[2, 8, max_model_len / 2 + 1, max_model_len + 3]);
    let mut windows = [rng.between(1, longest), rng.between(1, longest)].map(Some);
    if rng.percent(70) {
        windows[0] = None;
    }
    let num_groups = *rng.pick(&[1, 1, 2, 2, 3, 6]);
    (0..num_groups).map(|_| KvGroup { sliding_window: *rng.pick(&windows) }).collect()
}

fn draw_tokens(rng: &mut Rng, most: u32) -> Vec<TokenId> {
    (0..rng.between(1, most)).map(|_| rng.below(VOCAB)).collect()
}
