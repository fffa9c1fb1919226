//! The whole front end over real sockets: engine and output threads run, only the model is simulated.

mod admin;
mod answers;
mod anthropic;
mod chat;
mod completions;
mod engine_fields;
mod errors;
mod inference;
mod lora;
mod mutations;
mod ollama;
mod openapi;
mod ops;
mod page;
mod pooling;
mod responses;
mod scoring;
mod streams;
mod templates;
mod thinking;
mod tools;
pub(crate) mod typed_events;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use quire_model::SamplingDefaults;
use quire_scheduler::sim::{SimFailures, SimModel, SimRunner, SimRunnerConfig, StepCost};
use quire_scheduler::{ModelRunner, Scheduler, SchedulerConfig, SchedulingPolicy};
use serde_json::Value;
use tokio::net::TcpListener;

use crate::adapters::Adapters;
use crate::app::{App, ModelInfo};
use crate::chat::ChatSetup;
use crate::config::{AnswerConfig, ChatConfig, CorsConfig, ServerConfig};
use crate::embed::Pooler;
use crate::engine::{Engine, EngineOptions};
use crate::grammar::GrammarCompiler;
use crate::metrics::Metrics;
use crate::text::{ChatTemplate, TextPool, Tokenizer, TokenizerFiles};
use crate::validate::RequestLimits;

const VOCAB_SIZE: u32 = 2048;
const MAX_MODEL_LEN: u32 = 512;
const EOS: u32 = 2;

/// What a test may want to be different.
pub(crate) struct Settings {
    server: ServerConfig,
    failures: SimFailures,
    cost: Option<StepCost>,
    max_num_queued_reqs: usize,
    vocab: std::ops::Range<u32>,
    chat: ChatConfig,
    /// Instead of the model's.
    chat_template: Option<String>,
    /// Embeddings instead of text.
    pooler: Option<Pooler>,
    adapters: Option<Adapters>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            server: ServerConfig {
                host: IpAddr::V4(Ipv4Addr::LOCALHOST),
                port: 0,
                grpc_port: None,
                api_keys: Vec::new(),
                shutdown_timeout: Duration::ZERO,
                enable_log_requests: false,
                max_body_bytes: 1 << 20,
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
            },
            failures: SimFailures::default(),
            cost: None,
            max_num_queued_reqs: 64,
            // Ordinary tokens of the demo model's vocabulary: no special ones, no lone bytes.
            vocab: 270..VOCAB_SIZE,
            chat: ChatConfig::default(),
            chat_template: None,
            pooler: None,
            adapters: None,
        }
    }
}

/// A server on a socket; it ends with the test's runtime.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    app: Arc<App>,
}

pub(crate) fn tokenizer() -> Tokenizer {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model");
    Tokenizer::from_dir(dir.as_ref()).unwrap()
}

fn app(settings: Settings) -> Arc<App> {
    let tokenizer = tokenizer();
    let metrics = Arc::new(Metrics::for_tests());
    let options = EngineOptions {
        tokenizer: tokenizer.clone(),
        metrics: metrics.clone(),
        max_num_queued_reqs: settings.max_num_queued_reqs,
        seed: 0,
        pools: settings.pooler.is_some(),
        log_requests: false,
        kv_events: None,
    };
    let runner = SimRunner::new(SimRunnerConfig {
        model: SimModel { seed: 7, vocab: settings.vocab },
        max_num_seqs: 32,
        max_in_flight: 2,
        cost: settings.cost,
        check: None,
        failures: settings.failures,
    });
    let scheduler = SchedulerConfig {
        max_num_seqs: 32,
        max_num_batched_tokens: 256,
        max_model_len: MAX_MODEL_LEN,
        block_size: 16,
        num_blocks: 1025,
        kv_groups: vec![quire_scheduler::kv::KvGroup::FULL],
        enable_prefix_caching: true,
        enable_kv_events: false,
        policy: SchedulingPolicy::Fcfs,
        long_prefill_token_threshold: 0,
        priority_ageing_us: 0,
        whole_prompts: false,
        max_loras: 4,
        adapter_patience_us: 0,
    };
    let build = move || {
        Ok::<_, Infallible>((Box::new(runner) as Box<dyn ModelRunner>, Scheduler::new(scheduler).unwrap()))
    };
    let Ok(engine) = Engine::start(options, build);
    let template = settings.chat_template.unwrap_or_else(|| tokenizer.chat_template_source().unwrap().into());
    let limits = RequestLimits {
        max_model_len: MAX_MODEL_LEN,
        vocab_size: VOCAB_SIZE,
        max_logprobs: Some(20),
        eos_token_ids: Arc::new([EOS]),
        defaults: SamplingDefaults::default(),
        stream_interval: 1,
        thinking: None,
    };
    let chat = ChatSetup::new(settings.chat, Some(&template), &tokenizer).unwrap();
    let limits = RequestLimits { thinking: chat.thinking().cloned(), ..limits };
    Arc::new(App {
        engine: engine.handle().clone(),
        text_pool: TextPool::new(2, 256),
        chat_template: Some(ChatTemplate::new(&template, tokenizer.special_tokens()).unwrap()),
        chat,
        grammars: GrammarCompiler::new(&tokenizer, &limits),
        tokenizer,
        pooler: settings.pooler,
        adapters: settings.adapters,
        model: ModelInfo {
            served_names: vec!["pebble".into(), "org/pebble".into()],
            root: "pebble".into(),
            created: 1_700_000_000,
            architecture: "LlamaForCausalLM".into(),
            num_parameters: 1_234_567,
            block_size: 16,
            num_blocks: 1024,
            blocks_per_sequence: MAX_MODEL_LEN.div_ceil(16),
            max_num_seqs: 32,
            max_num_batched_tokens: 256,
            enable_prefix_caching: true,
        },
        limits,
        metrics,
        tokenizer_files: TokenizerFiles { model: None, tokenizer: None },
        kv_events: None,
        shutdown: tokio::sync::Notify::new(),
        server: settings.server,
    })
}

pub(crate) async fn start(settings: Settings) -> Server {
    let app = app(settings);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = super::router(app.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    Server { address, app }
}

/// Of the server that tests start.
fn fingerprint() -> String {
    format!("quire-{}-0a6d5ffc", env!("CARGO_PKG_VERSION"))
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
    /// Empty if the bytes are none.
    text: String,
}

impl Answer {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Of an error: the status and `param`.
    #[track_caller]
    fn error(&self) -> (u16, String) {
        let json = self.json();
        let error = &json["error"];
        assert_eq!(error["code"], self.status.as_u16(), "{}", self.text);
        assert!(error["message"].is_string() && error["type"].is_string(), "{}", self.text);
        (self.status.as_u16(), error["param"].as_str().unwrap_or("null").to_owned())
    }

    /// The data of the events, without the final `[DONE]`, which must be there.
    #[track_caller]
    fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text);
        let mut events: Vec<_> = self
            .text
            .split_terminator("\n\n")
            .filter(|event| !event.starts_with(':'))
            .map(|event| event.strip_prefix("data: ").expect(event))
            .collect();
        assert_eq!(events.pop(), Some("[DONE]"));
        assert!(self.text.ends_with("data: [DONE]\n\n"));
        events.into_iter().map(|event| serde_json::from_str(event).unwrap()).collect()
    }
}

impl Server {
    async fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let response = client.request(request).await.unwrap();
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        let text = String::from_utf8(bytes.to_vec()).unwrap_or_default();
        Answer { status, headers, bytes, text }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Request<Full<Bytes>> {
        let uri = format!("http://{}{path}", self.address);
        let request = Request::builder().method(method).uri(uri);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, path, &[], b"")).await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.post_bytes(path, body.to_string().as_bytes()).await
    }

    async fn post_bytes(&self, path: &str, body: &[u8]) -> Answer {
        self.send(self.request(Method::POST, path, &[("content-type", "application/json")], body)).await
    }

    /// Waits until nothing is queued or running and all blocks are free again.
    pub(crate) async fn wait_until_idle(&self) {
        let stats = self.app.engine.stats();
        for _ in 0..500 {
            let scheduler = stats.scheduler();
            let free = scheduler.num_blocks_free == scheduler.num_blocks_total;
            if self.app.engine.num_in_flight() == 0 && scheduler.num_running == 0 && free {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!(
            "{} sequences are still in the engine: {:?}",
            self.app.engine.num_in_flight(),
            stats.scheduler()
        );
    }
}
