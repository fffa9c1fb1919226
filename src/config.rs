//! What the operator meant: flags, environment and config file, checked and with defaults filled in.
//! Nothing below the command line sees a raw flag.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_model::KvDtype;
use quire_scheduler::{Pooling, SchedulingPolicy};
use serde_json::{Map, Value};

use crate::adapters::AdapterLimits;

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The demo model in the program itself.
    Demo,
    /// A Hugging Face folder.
    Folder(PathBuf),
    /// A GGUF file, or the first of those that one was split into.
    Gguf(PathBuf),
}

impl ModelSource {
    /// Where it is; `None` for what is in the program.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Demo => None,
            Self::Folder(path) | Self::Gguf(path) => Some(path),
        }
    }
}

/// The precision weights are held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightDtype {
    /// As stored.
    Auto,
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadFormat {
    /// safetensors, or GGUF if the model is such a file.
    Auto,
    /// safetensors, and nothing else.
    Safetensors,
    /// GGUF, and nothing else.
    Gguf,
    /// Random weights of the right shape, for measurements.
    Dummy,
}

/// Tokens of prompt and output together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MaxModelLen {
    /// What the model was made for. A KV cache that is too small for it is refused.
    Model,
    /// The same, or what the KV cache holds if that is less.
    Fitting,
    /// This many.
    Tokens(u32),
}

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceChoice {
    /// GPU 0 if there is one that can be used, else the CPU.
    Auto,
    /// All cores that the process may use.
    Cpu,
    /// The NVIDIA GPU of that number.
    Cuda(usize),
}

/// What a server does with its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerChoice {
    /// What the model is for: folders of sentence-transformers are pooled, others generate.
    Auto,
    /// Generate text.
    Generate,
    /// Pool hidden states into embeddings, and generate nothing.
    Pooling,
}

/// What the operator wants to be different from the model's own pooler.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolerOverrides {
    /// Which hidden states count.
    pub pooling: Option<Pooling>,
    /// Whether vectors are brought to length 1.
    pub normalize: Option<bool>,
}

/// LoRA adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraConfig {
    /// What adapters may be.
    pub limits: AdapterLimits,
    /// Ends of the names of the layers that they may change; `None` = all there are.
    pub target_modules: Option<Vec<String>>,
    /// Those to load at the start.
    pub modules: Vec<LoraModule>,
}

/// An adapter to load at the start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraModule {
    /// What clients call it.
    pub name: String,
    /// Its folder.
    pub path: String,
    /// Which of the model's names is its parent's; `None` = the first.
    pub base_model_name: Option<String>,
}

/// Model, memory and scheduling.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// What to load.
    pub model: ModelSource,
    /// What is done with it.
    pub runner: RunnerChoice,
    /// How it is pooled, if it is.
    pub pooler: PoolerOverrides,
    /// What computes it.
    pub device: DeviceChoice,
    /// Names for clients; if empty, the path as given (or "pebble" for the demo).
    pub served_model_names: Vec<String>,
    /// Prompt and output together.
    pub max_model_len: MaxModelLen,
    /// Requests in a step at most; `None` = 256, or the tokens of a step if that is less.
    pub max_num_seqs: Option<u32>,
    /// Tokens in a step at most; `None` = what suits the device.
    pub max_num_batched_tokens: Option<u32>,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// Bytes of KV cache; `None` = by `gpu_memory_utilization`.
    pub kv_cache_memory_bytes: Option<u64>,
    /// Share of the device's memory to use in all, 0..=1.
    pub gpu_memory_utilization: f64,
    /// Keep full blocks for requests with the same prefix.
    pub enable_prefix_caching: bool,
    /// Layers with a sliding window free the blocks that fell out of it, where the device can.
    pub hybrid_kv_cache: bool,
    /// Tell those who ask what happens in the prefix cache.
    pub kv_events: Option<KvEventsConfig>,
    /// Who is admitted first.
    pub scheduling_policy: SchedulingPolicy,
    /// Tokens of one prompt computed in a step while others wait; 0 = no limit.
    pub long_prefill_token_threshold: u32,
    /// Sequences queued and running at most.
    pub max_num_queued_reqs: usize,
    /// Seeds requests that bring no seed.
    pub seed: u64,
    /// Precision of weights.
    pub dtype: WeightDtype,
    /// What the KV cache keeps of a number; `None` = as the device likes.
    pub kv_cache_dtype: Option<KvDtype>,
    /// Activations are rounded to 8 bits for products by weights of integers.
    pub int8_activations: bool,
    /// Fields of config.json that the operator wants otherwise.
    pub hf_overrides: Map<String, Value>,
    /// What full-precision weights are made at load, or how those of the checkpoint must be quantised.
    pub quantization: Option<String>,
    /// Source of weights.
    pub load_format: LoadFormat,
    /// No recorded decode steps on a GPU.
    pub enforce_eager: bool,
    /// On a GPU too, a result does not depend on the batch it is computed in.
    pub batch_invariant: bool,
    /// Whence the defaults of sampling parameters come.
    pub generation_config: GenerationConfig,
    /// What goes before those: fields of generation_config.json.
    pub override_generation_config: Map<String, Value>,
    /// `--max-logprobs`; `None` = no limit.
    pub max_logprobs: Option<u32>,
    /// Tokens of a stream to send together, at least 1.
    pub stream_interval: u32,
    /// Replaces the model's chat template: the template itself (a file has been read by now).
    pub chat_template: Option<String>,
    /// Replaces the folder's tokenizer.
    pub tokenizer: Option<PathBuf>,
    /// Tools and reasoning.
    pub chat: ChatConfig,
    /// Adapters; `None` = there are none.
    pub lora: Option<LoraConfig>,
}

/// Whence the defaults of sampling parameters come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GenerationConfig {
    /// The model's generation_config.json.
    Model,
    /// Nowhere: those of the API.
    Api,
    /// The generation_config.json of another folder.
    Folder(PathBuf),
}

/// How answers of chats are read, and what chats get that clients did not ask for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatConfig {
    /// How the model writes tool calls, by vLLM's name; `None` = as its chat template shows.
    pub tool_call_parser: Option<String>,
    /// How the model marks its reasoning, by vLLM's name; `None` = as its chat template shows.
    pub reasoning_parser: Option<String>,
    /// The operator relies on tool calls being understood: without a parser the server does not start.
    pub enable_auto_tool_choice: bool,
    /// Tools are not shown to the model when it must not call them.
    pub exclude_tools_when_tool_choice_none: bool,
    /// Markers of reasoning besides those of the model's format.
    pub reasoning: Option<ReasoningConfig>,
    /// Variables for the chat template where the request does not set them.
    pub default_chat_template_kwargs: Map<String, Value>,
}

/// Markers around reasoning, where budgets for it are concerned (vLLM's `--reasoning-config`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReasoningConfig {
    /// A text that begins reasoning.
    pub begin: String,
    /// A text that ends it; what the server writes where a budget is spent.
    pub end: String,
}

/// How KV events are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvEventsConfig {
    /// Steps whose events are kept for subscribers that come or read late.
    pub buffer_steps: usize,
}

/// Listeners and their manners.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Address of both listeners.
    pub host: IpAddr,
    /// HTTP; 0 = the system chooses.
    pub port: u16,
    /// HTTP on this file, a Unix socket, instead of a port.
    pub uds: Option<PathBuf>,
    /// gRPC; 0 = the system chooses. `None` = no gRPC.
    pub grpc_port: Option<u16>,
    /// If any: requests must bear one of these.
    pub api_keys: Vec<String>,
    /// How long running requests may take to finish after SIGTERM.
    pub shutdown_timeout: Duration,
    /// Log each request's id, parameters and end (never its text).
    pub enable_log_requests: bool,
    /// Bytes of a request body at most.
    pub max_body_bytes: usize,
    /// What browsers may do on other sites.
    pub cors: CorsConfig,
    /// Every route is there under this path too: `/llm`. Empty = no.
    pub root_path: String,
    /// Clients may send chat templates of their own.
    pub trust_request_chat_template: bool,
    /// Open `/tokenizer_info`.
    pub enable_tokenizer_info_endpoint: bool,
    /// Open the routes that change the server for everybody.
    pub enable_admin: bool,
    /// No `/openapi.json`.
    pub disable_fastapi_docs: bool,
    /// The page at `/`, and `/quire/state` which feeds it.
    pub ui: bool,
    /// Open the routes for gateways that bring their own tokenizer.
    pub enable_scale_out: bool,
    /// Echo `X-Request-Id` in answers.
    pub enable_request_id_headers: bool,
    /// Seconds between SSE comments on a silent stream; zero = none.
    pub sse_keep_alive_interval: Duration,
    /// With work to do and no step finished for this long, `/health` says 503.
    pub stall_timeout: Duration,
    /// TLS on both ports; `None` = plain.
    pub tls: Option<TlsConfig>,
    /// What answers tell.
    pub answers: AnswerConfig,
}

/// CORS: from where, and with what, browsers may call. `*` in a list is all there are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CorsConfig {
    /// Origins; empty = no CORS at all.
    pub origins: Vec<String>,
    /// Methods.
    pub methods: Vec<String>,
    /// Headers of requests.
    pub headers: Vec<String>,
    /// Cookies and other credentials may be sent.
    pub credentials: bool,
}

/// What answers tell beyond what clients ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerConfig {
    /// Streams tell the usage, on every chunk and at the end, whether asked to or not.
    pub force_include_usage: bool,
    /// The usage tells how many tokens of the prompt were in the prefix cache.
    pub prompt_tokens_details: bool,
    /// Answers of a single choice tell how long they took.
    pub request_metrics: bool,
    /// Tokens in log-probabilities are written as `token_id:7`, whether asked for or not.
    pub tokens_as_token_ids: bool,
    /// `system_fingerprint`.
    pub fingerprint: Fingerprint,
    /// The role of answers in chats that continue no message.
    pub response_role: String,
}

impl Default for AnswerConfig {
    fn default() -> Self {
        Self {
            force_include_usage: false,
            prompt_tokens_details: true,
            request_metrics: false,
            tokens_as_token_ids: false,
            fingerprint: Fingerprint::Hash,
            response_role: "assistant".into(),
        }
    }
}

/// What `system_fingerprint` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fingerprint {
    /// The program's version, and a hash of the model and the limits it is served with.
    Hash,
    /// The operator's own words.
    Custom(String),
    /// Null.
    None,
}

/// Certificates of the server and of its clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// The server's certificate and those up to its root, in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM; `None` = in the same file.
    pub key_file: Option<PathBuf>,
    /// Whose signatures on clients' certificates count, in PEM; there unless `client_auth` is `None`.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients must prove who they are.
    pub client_auth: ClientAuth,
    /// Read the files again when they change.
    pub refresh: bool,
}

/// What is asked of a TLS client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nothing.
    None,
    /// A certificate, if it has one; it must then be good.
    Optional,
    /// A good certificate.
    Required,
}
