//! What can be typed: the command line as clap sees it. What it means is worked out in
//! [`super::resolve`]; which of vLLM's other flags are understood is in [`super::compat`].

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};

use super::answer_args::AnswerArgs;
use super::bench::BenchCommand;
#[cfg(feature = "cuda")]
use super::compile_kernels::CompileKernelsArgs;
use super::kv_events::{KvEventsArg, parse_kv_events};
use super::lora_args::LoraArgs;
use super::numbers::{parse_bytes, parse_count};
use super::pooler_config::parse_pooler_config;
use super::reasoning_config::parse_reasoning_config;
use crate::config::{DeviceChoice, MaxModelLen, PoolerOverrides, ReasoningConfig};

/// Serves large language models: OpenAI-compatible HTTP and gRPC, paged KV cache, continuous batching.
#[derive(Debug, Parser)]
#[command(name = "quire", version, args_override_self = true, max_term_width = 110)]
#[command(after_help = "Without a command, quire serves its demo model on :8000 (HTTP) and :50051 (gRPC).")]
pub(super) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve a model over HTTP and gRPC
    Serve(Box<ServeArgs>),
    /// Talk to a running server in the terminal
    Chat(ChatArgs),
    /// Let a running server continue your text
    Complete(CompleteArgs),
    /// Measure a server, the engine, or serving itself
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Compile the CUDA kernels for a GPU, which need not be here (needs NVRTC)
    #[cfg(feature = "cuda")]
    CompileKernels(CompileKernelsArgs),
}

/// Flags of `quire serve`; names and defaults are vLLM's unless said otherwise.
#[derive(Debug, Args)]
#[command(after_help = SERVE_AFTER_HELP, args_override_self = true)]
pub(super) struct ServeArgs {
    /// Hugging Face folder, or the name of a model in the local Hugging Face cache; nothing is downloaded.
    /// Without it: the demo model in the program, `pebble`
    #[arg(value_name = "MODEL")]
    pub(super) model_tag: Option<String>,

    /// YAML file of flags and values: `max-num-seqs: 64`. The command line and the environment win over it
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,

    /// Everything about the model.
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Everything about tools and reasoning.
    #[command(flatten)]
    pub(super) chat: ChatFormatArgs,
    /// Everything about memory and steps.
    #[command(flatten)]
    pub(super) scheduling: SchedulingArgs,
    /// Everything about adapters.
    #[command(flatten)]
    pub(super) lora: LoraArgs,
    /// Everything about what answers tell.
    #[command(flatten)]
    pub(super) answers: AnswerArgs,
    /// Everything about sockets.
    #[command(flatten)]
    pub(super) listen: ListenArgs,
}

const SERVE_AFTER_HELP: &str = "\
Every flag can come from the environment as QUIRE_ and its name (QUIRE_MAX_NUM_SEQS=64) or from --config; the \
command line wins over the environment, the environment over the file. vLLM's own variables are read too: \
VLLM_API_KEY, VLLM_LOGGING_LEVEL, VLLM_CPU_KVCACHE_SPACE, VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS, \
VLLM_ALLOW_RUNTIME_LORA_UPDATING. Underscores in flag \
names are accepted, and --no-X turns a switch off.";

/// What to load, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub(super) struct ModelArgs {
    /// The same as MODEL
    #[arg(long, value_name = "MODEL")]
    pub(super) model: Option<String>,
    /// Names by which clients may call the model; the first is in the answers [default: MODEL]
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub(super) served_model_name: Vec<String>,
    /// Tokenizer folder, instead of the model's
    #[arg(long, value_name = "FOLDER")]
    pub(super) tokenizer: Option<PathBuf>,
    /// Jinja chat template instead of the model's: a file, or the template itself
    #[arg(long, value_name = "FILE|TEMPLATE")]
    pub(super) chat_template: Option<String>,
    /// Tokens of prompt and output together: 4096, 4k (4000), 4K (4096); `auto` or -1 is the model's own
    /// limit, or what the KV cache holds if that is less [default: the model's own limit]
    #[arg(long, value_name = "TOKENS", allow_hyphen_values = true, value_parser = parse_model_len)]
    pub(super) max_model_len: Option<MaxModelLen>,
    /// Precision of the weights; auto = as stored
    #[arg(long, value_enum, default_value_t = DtypeArg::Auto)]
    pub(super) dtype: DtypeArg,
    /// What the KV cache keeps of a number; auto = float32 on the CPU, on a GPU what the model computes in. fp8 is
    /// fp8_e4m3; int8 and fp8_per_token_head scale each token's keys and values by their own greatest
    #[arg(long, value_enum, default_value_t = KvCacheDtypeArg::Auto)]
    pub(super) kv_cache_dtype: KvCacheDtypeArg,
    /// What activations are rounded to for products by weights of integers, on the CPU: int8 multiplies integers,
    /// several times faster, and rounds activations to 127ths of the greatest of 32
    #[arg(long, value_enum, default_value_t = ActivationDtypeArg::Float32)]
    pub(super) activation_dtype: ActivationDtypeArg,
    /// Fields of config.json to replace, as JSON: {"rope_scaling": {"factor": 4}}; an object replaces single fields
    /// of the object of that name
    #[arg(long, value_name = "JSON")]
    pub(super) hf_overrides: Option<String>,
    /// Quantise full-precision weights when they are loaded: int8 or fp8 (a scale a row), nf4, q8_0, q4_0, q4_k;
    /// embeddings, lm_head and routers of experts stay. Quantised checkpoints are known by themselves; naming their
    /// method (gptq, awq, ...) refuses all others
    #[arg(long, short, value_name = "METHOD")]
    pub(super) quantization: Option<String>,
    /// Where weights come from; dummy = random numbers of the right shape, for measurements
    #[arg(long, value_enum, default_value_t = LoadFormatArg::Auto)]
    pub(super) load_format: LoadFormatArg,
    /// What the server does: generate text, or pool hidden states into embeddings (/v1/embeddings, /v1/score,
    /// /v1/rerank, /pooling); auto = embeddings for encoders and folders of sentence-transformers, else text
    #[arg(long, value_enum, default_value_t = RunnerArg::Auto)]
    pub(super) runner: RunnerArg,
    /// vLLM's other way to say it: embed = --runner pooling
    #[arg(long, value_enum, default_value_t = ConvertArg::Auto)]
    pub(super) convert: ConvertArg,
    /// How hidden states are pooled, as JSON: {"seq_pooling_type": "LAST", "CLS" or "MEAN", "use_activation":
    /// true to bring vectors to length 1} [default: as the model's folder says; LAST (encoders: CLS) and true]
    #[arg(long, value_name = "JSON", value_parser = parse_pooler_config)]
    pub(super) pooler_config: Option<PoolerOverrides>,
    /// What computes: auto (GPU 0 if there is one that can be used, else the CPU), cpu, cuda, or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = parse_device)]
    pub(super) device: DeviceChoice,
    /// On a GPU: enqueue the operations of every step one by one, and record no CUDA graphs
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enforce_eager: bool,
    /// On a GPU: the same bits for a request whatever else is in its batch, at some cost in speed. Always so on
    /// the CPU
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) batch_invariant: bool,
    /// Seeds requests that bring no seed
    #[arg(long, default_value_t = 0)]
    pub(super) seed: u64,
    /// Whence the defaults of sampling parameters come: auto (the model's generation_config.json), vllm (the API's
    /// own), or a folder with such a file
    #[arg(long, value_name = "auto|vllm|FOLDER", default_value = "auto")]
    pub(super) generation_config: String,
    /// Defaults of sampling parameters that go before those, as JSON: temperature, top_p, top_k, min_p,
    /// repetition_penalty, max_new_tokens
    #[arg(long, value_name = "JSON")]
    pub(super) override_generation_config: Option<String>,
    /// Log-probabilities a request may ask for at each position; -1 = the whole vocabulary
    #[arg(long, value_name = "N", default_value_t = 20, allow_hyphen_values = true,
          value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX)))]
    pub(super) max_logprobs: i64,
    /// Tokens of a stream to send together; the first is sent at once. Requests can ask for more
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) stream_interval: u32,
}

/// Tools and reasoning.
#[derive(Debug, Args)]
#[command(next_help_heading = "Tools and reasoning")]
pub(super) struct ChatFormatArgs {
    /// How the model writes tool calls: hermes, mistral, llama3_json ... (a wrong name lists all) [default: as its
    /// chat template shows]
    #[arg(long, value_name = "NAME")]
    pub(super) tool_call_parser: Option<String>,
    /// How the model marks its reasoning: qwen3, deepseek_r1 ... (a wrong name lists all) [default: as its chat
    /// template shows]
    #[arg(long, value_name = "NAME")]
    pub(super) reasoning_parser: Option<String>,
    /// Markers for thinking_token_budget besides those of the parser: '{"reasoning_start_str": "<think>",
    /// "reasoning_end_str": "</think>"}'; the end is what is written where a budget is spent
    #[arg(long, value_name = "JSON", value_parser = parse_reasoning_config)]
    pub(super) reasoning_config: Option<ReasoningConfig>,
    /// Do not start unless it is known how the model writes tool calls. Where it is, models may always call tools
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_auto_tool_choice: bool,
    /// Do not show tools to the model in requests with tool_choice "none"
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) exclude_tools_when_tool_choice_none: bool,
    /// Variables for the chat template, a JSON object; chat_template_kwargs of a request go before them
    #[arg(long, value_name = "JSON")]
    pub(super) default_chat_template_kwargs: Option<String>,
}

/// Memory, batches and queues.
#[derive(Debug, Args)]
#[command(next_help_heading = "Memory and scheduling")]
pub(super) struct SchedulingArgs {
    /// Requests in a step at most [default: 256, or --max-num-batched-tokens if that is less]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) max_num_seqs: Option<u32>,
    /// Tokens in a step at most (1k, 1K forms as above) [default: 8192 on a GPU, 2048 on the CPU]
    #[arg(long, value_name = "TOKENS", value_parser = parse_step_tokens)]
    pub(super) max_num_batched_tokens: Option<u32>,
    /// Tokens in a KV block: a power of two up to 256
    #[arg(long, value_name = "TOKENS", default_value_t = 16)]
    pub(super) block_size: u32,
    /// Memory for the KV cache: 512M, 4GiB or bytes [default: VLLM_CPU_KVCACHE_SPACE GiB, or
    /// 4 GiB (256 MiB for the demo), or --gpu-memory-utilization of the free memory if that is less]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub(super) kv_cache_memory_bytes: Option<u64>,
    /// Share of the free memory that may be used, above 0 and up to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.92)]
    pub(super) gpu_memory_utilization: f64,
    /// Keep full KV blocks for requests that begin the same way (--no-enable-prefix-caching to turn off)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_prefix_caching: bool,
    /// All layers keep all tokens: layers with a sliding window do not free the blocks that fell out of it
    #[arg(long)]
    pub(super) disable_hybrid_kv_cache_manager: bool,
    /// Who goes first: in order of arrival, or by the request's priority (lower first)
    #[arg(long, value_enum, default_value_t = PolicyArg::Fcfs)]
    pub(super) scheduling_policy: PolicyArg,
    /// Tell subscribers (by gRPC) what happens in the prefix cache: JSON with enable_kv_cache_events, and buffer_steps,
    /// the steps that are kept for those who come late
    #[arg(long, value_name = "JSON", value_parser = parse_kv_events)]
    pub(super) kv_events_config: Option<KvEventsArg>,
    /// Tokens of one prompt computed in a step while others wait; 0 = no limit
    #[arg(long, value_name = "TOKENS", default_value = "0", value_parser = parse_u32_count)]
    pub(super) long_prefill_token_threshold: u32,
    /// Sequences queued and running at most; beyond it a request is answered 503 at once
    #[arg(long, value_name = "N", default_value_t = 8192,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_num_queued_reqs: u32,
}

/// Sockets, keys, logs.
#[derive(Debug, Args)]
#[command(next_help_heading = "Server")]
pub(super) struct ListenArgs {
    /// Address to listen on: an IP address or localhost
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub(super) host: String,
    /// HTTP port; 0 = any free one
    #[arg(long, default_value_t = 8000)]
    pub(super) port: u16,
    /// HTTP on this file, a Unix socket, and on no port; gRPC is then on 127.0.0.1
    #[arg(long, value_name = "FILE", conflicts_with = "ssl_certfile")]
    pub(super) uds: Option<PathBuf>,
    /// Answer under this path too: /llm makes /llm/v1/models, for proxies that do not take it away
    #[arg(long, value_name = "PATH", default_value = "")]
    pub(super) root_path: String,
    /// gRPC port; 0 = any free one
    #[arg(long, value_name = "PORT", default_value_t = 50051)]
    pub(super) grpc_port: u16,
    /// Serve gRPC (--no-grpc to turn off)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) grpc: bool,
    /// Requests must bear one of these keys (several allowed) [env: VLLM_API_KEY]
    #[arg(long, value_name = "KEY", num_args = 1..)]
    pub(super) api_key: Vec<String>,
    /// TLS on both ports: the server's certificate and those up to its root, in PEM
    #[arg(long, value_name = "FILE")]
    pub(super) ssl_certfile: Option<PathBuf>,
    /// Private key of the certificate, in PEM [default: in the same file]
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub(super) ssl_keyfile: Option<PathBuf>,
    /// Authorities that sign certificates of clients, in PEM; with --ssl-cert-reqs 1 or 2
    #[arg(long, value_name = "FILE", requires = "ssl_certfile")]
    pub(super) ssl_ca_certs: Option<PathBuf>,
    /// Certificates of clients: 0 = not asked for, 1 = checked if there is one, 2 = needed
    #[arg(long, value_name = "0|1|2", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub(super) ssl_cert_reqs: u8,
    /// Read the files of TLS again when they change
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_ssl_refresh: bool,
    /// Seconds that running requests may take to finish after SIGTERM; 0 = end them at once (vLLM's default)
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, default_value = "30", value_parser = parse_seconds)]
    pub(super) shutdown_timeout: f64,
    /// Seconds with work and without a finished step after which /health answers 503
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, default_value = "300", value_parser = parse_seconds)]
    pub(super) stall_timeout: f64,
    /// Bytes of a request body at most
    #[arg(long, value_name = "BYTES", default_value = "32MiB", value_parser = parse_bytes)]
    pub(super) max_body_bytes: u64,
    /// Origins from which browsers may call (CORS): `*`, one or several, or a JSON list
    #[arg(long, value_name = "ORIGIN", num_args = 1..)]
    pub(super) allowed_origins: Vec<String>,
    /// Methods for browsers: `*`, several, or a JSON list; with --allowed-origins
    #[arg(long, value_name = "METHOD", num_args = 1.., default_value = "*")]
    pub(super) allowed_methods: Vec<String>,
    /// Headers for browsers: `*`, several, or a JSON list; with --allowed-origins
    #[arg(long, value_name = "HEADER", num_args = 1.., default_value = "*")]
    pub(super) allowed_headers: Vec<String>,
    /// Browsers may send cookies and the like; with --allowed-origins
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) allow_credentials: bool,
    /// Clients may send a chat_template of their own. For clients that are trusted: a template has limits on steps and
    /// length, and none on memory
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) trust_request_chat_template: bool,
    /// Open /tokenizer_info, which shows the tokenizer's settings and the chat template
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_tokenizer_info_endpoint: bool,
    /// Open the routes that change the server for everybody: /pause, /resume, /sleep, /wake_up,
    /// /reset_prefix_cache, /abort_requests, /server_info
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_admin: bool,
    /// Serve the page at / (--no-ui to turn off)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) ui: bool,
    /// Serve no /openapi.json
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) disable_fastapi_docs: bool,
    /// Open the routes for gateways that bring their own tokenizer: /inference/v1/generate and abort_requests
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_scale_out: bool,
    /// Repeat X-Request-Id in answers
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_request_id_headers: bool,
    /// Seconds between SSE comments on a silent stream; 0 = none
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true, default_value = "0", value_parser = parse_seconds)]
    pub(super) sse_keep_alive_interval: f64,
    /// Log each request's id, parameters and end (never its text)
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_log_requests: bool,
    /// Form of log lines (on standard error)
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,
}

/// Flags of `quire chat`.
#[derive(Debug, Args)]
pub(super) struct ChatArgs {
    /// Which server.
    #[command(flatten)]
    pub(super) server: RemoteArgs,
    /// System prompt
    #[arg(long, value_name = "TEXT")]
    pub(super) system_prompt: Option<String>,
}

/// Flags of `quire complete`.
#[derive(Debug, Args)]
pub(super) struct CompleteArgs {
    /// Which server.
    #[command(flatten)]
    pub(super) server: RemoteArgs,
}

/// A server to talk to, and how.
#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    /// The server's API [default: http://localhost:8000/v1]
    #[arg(long)]
    pub(super) url: Option<String>,
    /// Model to ask for [default: the first that the server lists]
    #[arg(long, value_name = "NAME")]
    pub(super) model_name: Option<String>,
    /// Key for the server
    #[arg(long, value_name = "KEY", env = "OPENAI_API_KEY", hide_env_values = true)]
    pub(super) api_key: Option<String>,
    /// Send this, print the answer, leave
    #[arg(short, long, value_name = "MESSAGE")]
    pub(super) quick: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) max_tokens: Option<u32>,
    /// After each answer, print its tokens and their rate
    #[arg(long)]
    pub(super) stats: bool,
}

/// Value of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum DtypeArg {
    Auto,
    #[value(alias = "half")]
    Float16,
    Bfloat16,
    #[value(alias = "float")]
    Float32,
}

/// Value of `--kv-cache-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum KvCacheDtypeArg {
    Auto,
    Float32,
    #[value(alias = "half")]
    Float16,
    Bfloat16,
    #[value(name = "fp8_e4m3", alias = "fp8")]
    Fp8E4m3,
    #[value(name = "fp8_e5m2")]
    Fp8E5m2,
    #[value(name = "int8_per_token_head", alias = "int8")]
    Int8PerTokenHead,
    #[value(name = "fp8_per_token_head")]
    Fp8PerTokenHead,
}

/// Value of `--activation-dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum ActivationDtypeArg {
    Float32,
    Int8,
}

/// Value of `--runner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum RunnerArg {
    Auto,
    Generate,
    Pooling,
}

/// Value of `--convert`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum ConvertArg {
    Auto,
    None,
    Embed,
}

/// Value of `--load-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum LoadFormatArg {
    Auto,
    Safetensors,
    Gguf,
    Dummy,
}

/// Value of `--scheduling-policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum PolicyArg {
    Fcfs,
    Priority,
}

/// Value of `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum LogFormat {
    Text,
    Json,
}

fn parse_model_len(text: &str) -> Result<MaxModelLen, String> {
    if text == "auto" || text == "-1" {
        return Ok(MaxModelLen::Fitting);
    }
    match parse_u32_count(text) {
        Ok(0) | Err(_) => Err("must be a number of tokens above 0 (4096, 4k, 4K), auto or -1".into()),
        Ok(tokens) => Ok(MaxModelLen::Tokens(tokens)),
    }
}

fn parse_device(text: &str) -> Result<DeviceChoice, String> {
    let number = |text: &str| text.parse().map(DeviceChoice::Cuda);
    match text {
        "auto" => Ok(DeviceChoice::Auto),
        "cpu" => Ok(DeviceChoice::Cpu),
        "cuda" => Ok(DeviceChoice::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .map(number)
            .and_then(Result::ok)
            .ok_or_else(|| "must be auto, cpu, cuda or cuda:N, N the number of a GPU from 0".to_owned()),
    }
}

fn parse_step_tokens(text: &str) -> Result<u32, String> {
    parse_u32_count(text)
        .ok()
        .filter(|n| (1..=1 << 20).contains(n))
        .ok_or_else(|| "must be between 1 and 1048576 tokens".into())
}

fn parse_u32_count(text: &str) -> Result<u32, String> {
    u32::try_from(parse_count(text)?).map_err(|_| format!("must be at most {}", u32::MAX))
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| (0.0..=86_400.0).contains(s));
    seconds.ok_or_else(|| "must be a number of seconds between 0 and 86400".into())
}
