//! The gRPC front end over real sockets, with the simulated runner behind it.

mod health;
mod inference;
mod openengine;
mod refusals;
mod services;
mod translation;
mod vllm_engine;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use quire_model::SamplingDefaults;
use quire_proto::vllm::control_client::ControlClient;
use quire_proto::vllm::generate_request::Prompt;
use quire_proto::vllm::inference_client::InferenceClient;
use quire_proto::vllm::*;
use quire_scheduler::sim::{SimFailures, SimModel, SimRunner, SimRunnerConfig, StepCost};
use quire_scheduler::{ModelRunner, Scheduler, SchedulerConfig, SchedulingPolicy};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::app::{App, ModelInfo as AppModel};
use crate::chat::ChatSetup;
use crate::config::{AnswerConfig, CorsConfig, ServerConfig};
use crate::engine::{Engine, EngineOptions, KvEvents};
use crate::grammar::GrammarCompiler;
use crate::listen::{self, Protocol};
use crate::metrics::Metrics;
use crate::text::{TextPool, Tokenizer, TokenizerFiles};
use crate::validate::RequestLimits;

const VOCAB_SIZE: u32 = 2048;
const MAX_MODEL_LEN: u32 = 4096;

/// What differs between the servers of these tests.
struct Options {
    /// Time of a step.
    step_ms: u64,
    max_num_queued_reqs: usize,
    api_keys: Vec<String>,
    stall_timeout: Duration,
    enable_admin: bool,
    failures: SimFailures,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            step_ms: 0,
            max_num_queued_reqs: 64,
            api_keys: Vec::new(),
            stall_timeout: Duration::from_secs(60),
            enable_admin: false,
            failures: SimFailures::default(),
        }
    }
}

/// A server on a port of its own; it ends with the test's runtime.
struct TestServer {
    app: Arc<App>,
    channel: Channel,
    address: std::net::SocketAddr,
    /// The server ends with it.
    _stop: tokio::sync::watch::Sender<bool>,
}

impl TestServer {
    async fn start(options: Options) -> Self {
        Self::start_with_window(options, None).await
    }

    /// `window`: bytes that the client lets the server send ahead, on a stream.
    async fn start_with_window(options: Options, window: Option<u32>) -> Self {
        let app = Arc::new(app(options));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let router = super::routes(app.clone()).into_axum_router();
        tokio::spawn(listen::serve(listener, None, Protocol::Grpc, router, stopped));
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.initial_stream_window_size(window).connect().await.unwrap();
        Self { app, channel, address, _stop: stop }
    }

    fn inference(&self) -> InferenceClient<Channel> {
        InferenceClient::new(self.channel.clone())
    }

    fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
    }

    /// All messages of a stream, and how it ended.
    async fn stream(&self, request: GenerateRequest) -> (Vec<GenerateResponse>, Result<(), Status>) {
        let mut stream = match self.inference().generate_stream(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return (Vec::new(), Err(status)),
        };
        let mut messages = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, Ok(())),
                Err(status) => return (messages, Err(status)),
            }
        }
    }

    /// Waits until the engine holds nothing.
    async fn settled(&self) {
        let engine = &self.app.engine;
        for _ in 0..500 {
            let stats = engine.stats().scheduler();
            let queued = stats.num_running + stats.num_waiting_capacity + stats.num_waiting_deferred;
            if engine.num_in_flight() == 0 && queued == 0 && stats.num_blocks_free == stats.num_blocks_total {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the engine did not become empty: {:?}", engine.stats().scheduler());
    }
}

fn app(options: Options) -> App {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model/tokenizer.json");
    let tokenizer = Tokenizer::from_bytes(&std::fs::read(file).unwrap(), None).unwrap();
    let config = SchedulerConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: 256,
        max_model_len: MAX_MODEL_LEN,
        block_size: 16,
        num_blocks: 1001,
        kv_groups: vec![quire_scheduler::kv::KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: true,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    };
    let step_us = options.step_ms as f64 * 1000.0;
    let runner = SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 7, vocab: 3..VOCAB_SIZE },
        max_num_seqs: config.max_num_seqs,
        max_in_flight: 2,
        cost: (step_us > 0.0).then_some(StepCost { step_us, token_us: 0.0, sleep: true }),
        check: None,
        failures: options.failures,
    });
    let metrics = Arc::new(Metrics::for_tests());
    let kv_events = Some(Arc::new(KvEvents::new(100)));
    let engine_options = EngineOptions {
        tokenizer: tokenizer.clone(),
        metrics: metrics.clone(),
        max_num_queued_reqs: options.max_num_queued_reqs,
        seed: 0,
        pools: false,
        log_requests: false,
        kv_events: kv_events.clone(),
    };
    let build =
        || Ok::<_, Infallible>((Box::new(runner) as Box<dyn ModelRunner>, Scheduler::new(config).unwrap()));
    let Ok(engine) = Engine::start(engine_options, build);
    App {
        engine: engine.handle().clone(),
        text_pool: TextPool::new(1, 16),
        grammars: GrammarCompiler::new(&tokenizer, &limits()),
        tokenizer,
        chat_template: None,
        chat: ChatSetup::default(),
        pooler: None,
        adapters: None,
        model: AppModel {
            served_names: vec!["pebble".into(), "alias".into()],
            root: "models/pebble".into(),
            created: 0,
            architecture: "LlamaForCausalLM".into(),
            num_parameters: 1_234_567,
            block_size: 16,
            num_blocks: 1000,
            blocks_per_sequence: MAX_MODEL_LEN.div_ceil(16),
            max_num_seqs: 32,
            max_num_batched_tokens: 256,
            enable_prefix_caching: true,
        },
        limits: limits(),
        metrics,
        tokenizer_files: TokenizerFiles { model: None, tokenizer: None },
        kv_events,
        shutdown: tokio::sync::Notify::new(),
        server: ServerConfig {
            host: [127, 0, 0, 1].into(),
            port: 0,
            grpc_port: Some(0),
            api_keys: options.api_keys,
            shutdown_timeout: Duration::ZERO,
            enable_log_requests: false,
            max_body_bytes: 1 << 20,
            uds: None,
            cors: CorsConfig::default(),
            root_path: String::new(),
            trust_request_chat_template: false,
            enable_tokenizer_info_endpoint: false,
            enable_admin: options.enable_admin,
            disable_fastapi_docs: false,
            ui: true,
            enable_scale_out: false,
            enable_request_id_headers: false,
            sse_keep_alive_interval: Duration::ZERO,
            stall_timeout: options.stall_timeout,
            tls: None,
            answers: AnswerConfig::default(),
        },
    }
}

fn limits() -> RequestLimits {
    RequestLimits {
        max_model_len: MAX_MODEL_LEN,
        vocab_size: VOCAB_SIZE,
        max_logprobs: Some(20),
        eos_token_ids: [2, 0].into(),
        defaults: SamplingDefaults::default(),
        stream_interval: 1,
        thinking: None,
    }
}

/// `max_new_tokens` tokens after a prompt of tokens, always the same.
fn request(prompt: &[u32], max_new_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        prompt: Some(Prompt::TokenIds(TokenIds { ids: prompt.to_vec() })),
        temperature: Some(1.0),
        sampling: Some(RandomSampling { seed: Some(5), ..Default::default() }),
        stopping: Some(StoppingCriteria { max_new_tokens, ..Default::default() }),
        response: Some(ResponseOptions { output_token_ids: true, ..Default::default() }),
        ..Default::default()
    }
}

/// A status about a field: the code, and the field both in the message and in the details.
#[track_caller]
fn assert_invalid(status: &Status, field: &str) {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().starts_with(&format!("{field}: ")), "{field}: {}", status.message());
    let details = status.get_details_bad_request().expect("BadRequest details");
    assert_eq!(details.field_violations[0].field, field);
}
