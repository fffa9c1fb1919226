//! A whole server over a model that computes nothing, to measure or to test the rest. The demo model's
//! tokenizer makes its tokens into text.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use quire_model::SamplingDefaults;
use quire_scheduler::sim::{SimFailures, SimModel, SimRunner, SimRunnerConfig, StepCost};
use quire_scheduler::{ModelRunner, Scheduler, SchedulerConfig, SchedulingPolicy};

use crate::app::{App, ModelInfo};
use crate::chat::ChatSetup;
use crate::config::{AnswerConfig, CorsConfig, ServerConfig};
use crate::demo;
use crate::engine::{Engine, EngineOptions};
use crate::grammar::GrammarCompiler;
use crate::load::LoadError;
use crate::metrics::{CacheInfo, Metrics, MetricsInfo};
use crate::text::{ChatTemplate, TextPool, Tokenizer, TokenizerFiles};
use crate::validate::RequestLimits;

const BLOCK_SIZE: u32 = 16;
const MAX_NUM_BATCHED_TOKENS: u32 = 8192;

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Simulation {
    /// Requests in a step at most. The KV cache holds as many of full length.
    pub max_num_seqs: u32,
    /// Prompt and output together.
    pub max_model_len: u32,
    /// Microseconds a step takes; 0 = only its own.
    pub step_us: f64,
}

/// Starts the engine, and makes what front ends need. Its listeners, if any, are for loopback and ports that
/// the system chooses.
pub fn start(simulation: &Simulation) -> Result<(Engine, App), LoadError> {
    let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG))?;
    let scheduler = scheduler_config(simulation);
    let model = model_info(&scheduler);
    let limits = RequestLimits {
        max_model_len: scheduler.max_model_len,
        vocab_size: tokenizer.vocab_size() as u32,
        max_logprobs: Some(20),
        eos_token_ids: tokenizer.eos_token_id().into_iter().collect(),
        defaults: SamplingDefaults::default(),
        stream_interval: 1,
        thinking: None,
    };
    let cache = CacheInfo {
        block_size: BLOCK_SIZE,
        blocks_per_sequence: scheduler.blocks_per_sequence(),
        enable_prefix_caching: true,
        cache_dtype: "simulated".into(),
        gpu_memory_utilization: 0.0,
        kv_cache_memory_bytes: None,
    };
    let info = MetricsInfo {
        model_name: model.name().into(),
        max_model_len: scheduler.max_model_len,
        max_loras: None,
        cache,
    };
    let metrics = Arc::new(Metrics::new(&info));
    let options = EngineOptions {
        tokenizer: tokenizer.clone(),
        metrics: metrics.clone(),
        max_num_queued_reqs: 1 << 20,
        seed: 0,
        pools: false,
        log_requests: false,
        kv_events: None,
    };
    let runner = SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 0, vocab: tokenizer.eos_token_id().unwrap_or(0) + 1..limits.vocab_size },
        max_num_seqs: scheduler.max_num_seqs,
        max_in_flight: 1,
        cost: (simulation.step_us > 0.0).then_some(StepCost {
            step_us: simulation.step_us,
            token_us: 0.0,
            sleep: true,
        }),
        check: None,
        failures: SimFailures::default(),
    });
    let engine = Engine::start(options, move || -> Result<_, LoadError> {
        Ok((Box::new(runner) as Box<dyn ModelRunner>, Scheduler::new(scheduler)?))
    })?;
    let app = App {
        engine: engine.handle().clone(),
        text_pool: TextPool::new(1, 1 << 16),
        chat_template: ChatTemplate::from_tokenizer(&tokenizer)?,
        chat: ChatSetup::default(),
        grammars: GrammarCompiler::new(&tokenizer, &limits),
        tokenizer,
        pooler: None,
        adapters: None,
        model,
        limits,
        metrics,
        tokenizer_files: TokenizerFiles { model: None, tokenizer: None },
        kv_events: None,
        shutdown: tokio::sync::Notify::new(),
        server: server_config(),
    };
    Ok((engine, app))
}

fn scheduler_config(simulation: &Simulation) -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: simulation.max_num_seqs,
        max_num_batched_tokens: MAX_NUM_BATCHED_TOKENS.max(simulation.max_num_seqs),
        // A prompt must leave room for a token.
        max_model_len: simulation.max_model_len + 1,
        block_size: BLOCK_SIZE,
        num_blocks: simulation.max_num_seqs * (simulation.max_model_len + 1).div_ceil(BLOCK_SIZE) + 1,
        kv_groups: vec![quire_scheduler::kv::KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    }
}

fn model_info(scheduler: &SchedulerConfig) -> ModelInfo {
    ModelInfo {
        served_names: vec!["simulated".into()],
        root: "simulated".into(),
        created: 0,
        architecture: "none".into(),
        num_parameters: 0,
        block_size: scheduler.block_size,
        num_blocks: scheduler.num_blocks - 1,
        blocks_per_sequence: scheduler.blocks_per_sequence(),
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        enable_prefix_caching: scheduler.enable_prefix_caching,
    }
}

fn server_config() -> ServerConfig {
    ServerConfig {
        host: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port: 0,
        grpc_port: Some(0),
        api_keys: Vec::new(),
        shutdown_timeout: Duration::from_secs(1),
        enable_log_requests: false,
        max_body_bytes: 32 << 20,
        uds: None,
        cors: CorsConfig::default(),
        root_path: String::new(),
        trust_request_chat_template: false,
        enable_tokenizer_info_endpoint: false,
        enable_admin: false,
        disable_fastapi_docs: false,
        ui: true,
        enable_scale_out: false,
        enable_request_id_headers: false,
        sse_keep_alive_interval: Duration::ZERO,
        stall_timeout: Duration::from_secs(60),
        tls: None,
        answers: AnswerConfig::default(),
    }
}
