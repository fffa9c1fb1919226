//! From flags to a running engine: reads the model, sizes the KV cache, starts the threads.
//!
//! Memory is computed, not found out by trial: weights are what the checkpoint says, buffers follow from the
//! limits, and the KV cache gets what was asked for.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quire_model::gguf::GgufFile;
use quire_model::{
    BackendError, Checkpoint, KvDtype, KvGroups, LmHead, LoraTargets, ModelError, ModelSpec, PoolerSpec,
    Progress, RunnerConfig, SamplingDefaults, is_sentence_transformer, with_overrides,
};
use quire_scheduler::kv::KvCacheConfig;
use quire_scheduler::{ConfigError, Scheduler, SchedulerConfig};

use crate::adapters::{AdapterError, Adapters};
use crate::app::{App, ModelInfo};
use crate::chat::{ChatSetup, ChatSetupError};
use crate::config::{
    EngineConfig, GenerationConfig, LoadFormat, LoraConfig, MaxModelLen, ModelSource, RunnerChoice,
    ServerConfig,
};
use crate::demo;
use crate::device::{Device, DeviceError, KvMemory, weight_dtype};
use crate::embed::Pooler;
use crate::engine::{Engine, EngineOptions, KvEvents};
use crate::grammar::GrammarCompiler;
use crate::metrics::{CacheInfo, Metrics, MetricsInfo};
use crate::text::{ChatTemplate, TextError, TextPool, Tokenizer, TokenizerFiles};
use crate::validate::RequestLimits;

/// Text jobs waiting at most; each holds one request's body.
const MAX_QUEUED_TEXT_JOBS: usize = 4096;

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoadError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Text(#[from] TextError),
    #[error(transparent)]
    Chat(#[from] ChatSetupError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot read {path}")]
    Read { path: String, source: std::io::Error },
    #[error("--max-model-len {asked} is more than the {limit} tokens the model was made for")]
    MaxModelLen { asked: u32, limit: u32 },
    #[error(
        "the KV cache of {kv_bytes} bytes holds {kv_tokens} tokens, too few for one sequence of {max_model_len}: \
         raise --kv-cache-memory-bytes to {needed_bytes} or lower --max-model-len to {kv_tokens}"
    )]
    KvCache { kv_bytes: u64, kv_tokens: u64, max_model_len: u32, needed_bytes: u64 },
    #[error(
        "no memory is left for the KV cache: of {available_bytes} bytes, one sequence of {max_model_len} tokens needs \
         {needed_bytes}; raise --gpu-memory-utilization, lower --max-num-batched-tokens or --max-model-len, or take a \
         larger device"
    )]
    NoRoom { available_bytes: u64, max_model_len: u32, needed_bytes: u64 },
    #[error("--lora-target-modules {unknown}: the model has no such layers; adapters can change {known}")]
    LoraTargets { unknown: String, known: String },
    #[error("--lora-modules: {0}")]
    Adapter(#[from] AdapterError),
    #[error("--load-format {asked}: the model is not stored so")]
    LoadFormat { asked: &'static str },
    #[error(
        "--quantization {asked}: the file says how each of its tensors is stored; leave the flag out or say gguf"
    )]
    Quantization { asked: String },
    #[error("{architecture} has no head to generate with; use --runner pooling")]
    CannotGenerate { architecture: String },
    #[error("--runner pooling: pooling is not built for GPUs yet; use --device cpu")]
    NoPooling,
    #[error("the tokenizer has {tokenizer} entries, the model only {model}: they do not belong together")]
    Vocabulary { tokenizer: usize, model: usize },
    #[error(
        "the KV cache of {kv_bytes} bytes does not fit into {available_bytes} bytes of memory \
         (--gpu-memory-utilization of what is available); lower --kv-cache-memory-bytes"
    )]
    Memory { kv_bytes: u64, available_bytes: u64 },
}

/// A loaded model with its engine.
#[derive(Debug)]
pub struct Loaded {
    /// Both threads and the door.
    pub engine: Engine,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's chat template, or the operator's.
    pub chat_template: Option<ChatTemplate>,
    /// How answers of chats are taken apart.
    pub chat: ChatSetup,
    /// How it is pooled, if it does not generate.
    pub pooler: Option<Pooler>,
    /// What is served.
    pub model: ModelInfo,
    /// What requests may ask for.
    pub limits: RequestLimits,
    /// Where the engine's timings go.
    pub metrics: Arc<Metrics>,
    /// What clients need to tokenise for themselves.
    pub tokenizer_files: TokenizerFiles,
    /// Where the changes of its prefix cache go.
    pub kv_events: Option<Arc<KvEvents>>,
    /// Adapters that requests may name, if there are to be any.
    pub adapters: Option<Adapters>,
}

/// Loads the model and starts the engine. `progress` is called from the engine thread.
pub fn start(
    config: &EngineConfig,
    log_requests: bool,
    mut progress: impl FnMut(Progress) + Send + 'static,
) -> Result<Loaded, LoadError> {
    let mut files = Files::read(config)?;
    files.config = with_overrides(&files.config, &config.hf_overrides)?;
    let mut spec = ModelSpec::from_json(&files.config, files.generation_config.as_deref())?;
    if let Some(asked) = &config.quantization {
        spec.quantization = match (&files.gguf, &**asked) {
            (None, asked) => spec.quantization.asked_for(asked)?,
            (Some(_), "gguf") => spec.quantization,
            (Some(_), _) => return Err(LoadError::Quantization { asked: asked.clone() }),
        };
    }
    let (spec, pooler) = task(config, &files.config, spec)?;
    let defaults = sampling_defaults(config, files.generation_config.as_deref())?;
    let tokenizer = files.tokenizer;
    if tokenizer.vocab_size() > spec.vocab_size {
        let (tokenizer, model) = (tokenizer.vocab_size(), spec.vocab_size);
        return Err(LoadError::Vocabulary { tokenizer, model });
    }
    let chat_template = match &config.chat_template {
        Some(source) => Some(ChatTemplate::new(source, tokenizer.special_tokens())?),
        None => ChatTemplate::from_tokenizer(&tokenizer)?,
    };
    let chat = chat_setup(config, &tokenizer)?;
    let device = Device::choose(config.device)?;
    if pooler.is_some() && !device.can_pool() {
        return Err(LoadError::NoPooling);
    }
    device.int8_activations(config)?;
    let kv_dtype = device.kv_dtype(config, &spec)?;
    let scheduler = scheduler_config(config, &spec, &device, kv_dtype)?;
    tell_kv_cache(&scheduler);
    let model = model_info(config, &spec, &scheduler);
    let mut limits = request_limits(config, &spec, &scheduler, &tokenizer, defaults);
    limits.thinking = chat.thinking().cloned();
    let cache = CacheInfo {
        block_size: scheduler.block_size,
        blocks_per_sequence: scheduler.blocks_per_sequence(),
        enable_prefix_caching: scheduler.enable_prefix_caching,
        cache_dtype: kv_dtype.name().into(),
        gpu_memory_utilization: config.gpu_memory_utilization,
        kv_cache_memory_bytes: config.kv_cache_memory_bytes,
    };
    let max_loras = config.lora.as_ref().map(|lora| lora.limits.max_loras);
    let info = MetricsInfo {
        model_name: model.name().into(),
        max_model_len: scheduler.max_model_len,
        max_loras,
        cache,
    };
    let metrics = Arc::new(Metrics::new(&info));
    let tokenizer_files = TokenizerFiles {
        model: config.model.path().map(Path::to_path_buf),
        tokenizer: config.tokenizer.clone(),
    };
    let kv_events = config.kv_events.map(|events| Arc::new(KvEvents::new(events.buffer_steps)));
    let options = EngineOptions {
        tokenizer: tokenizer.clone(),
        metrics: metrics.clone(),
        max_num_queued_reqs: config.max_num_queued_reqs,
        seed: config.seed,
        pools: pooler.is_some(),
        log_requests,
        kv_events: kv_events.clone(),
    };
    let checkpoint = open_checkpoint(config, files.gguf, &spec)?;
    let (own_config, lora_targets) = (config.clone(), Arc::new(OnceLock::new()));
    let told = lora_targets.clone();
    let engine = Engine::start(options, move || -> Result<_, LoadError> {
        let limits = runner_config(&scheduler);
        let (start, mut weight_bytes) = (Instant::now(), 0);
        let mut progress = |now: Progress| {
            weight_bytes = now.loaded_bytes;
            progress(now);
        };
        let (runner, targets) = device.runner(&own_config, spec, &checkpoint, limits, &mut progress)?;
        let _ = told.set(targets);
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(weight_mib = weight_bytes >> 20, seconds = format!("{seconds:.1}"), "loaded");
        Ok((runner, Scheduler::new(scheduler)?))
    })?;
    let targets = lora_targets.get().cloned().unwrap_or_default();
    let adapters = config.lora.as_ref().map(|lora| adapters(lora, targets, &model)).transpose()?;
    Ok(Loaded {
        engine,
        tokenizer,
        chat_template,
        chat,
        pooler,
        model,
        limits,
        metrics,
        kv_events,
        tokenizer_files,
        adapters,
    })
}

impl Loaded {
    /// What front ends share. The engine itself stays with the caller, who joins it at the end.
    pub fn into_app(self, server: ServerConfig) -> (Engine, App) {
        let num_threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
        let app = App {
            engine: self.engine.handle().clone(),
            text_pool: TextPool::new(num_threads, MAX_QUEUED_TEXT_JOBS),
            grammars: GrammarCompiler::new(&self.tokenizer, &self.limits),
            tokenizer: self.tokenizer,
            chat_template: self.chat_template,
            chat: self.chat,
            pooler: self.pooler,
            adapters: self.adapters,
            model: self.model,
            limits: self.limits,
            metrics: self.metrics,
            tokenizer_files: self.tokenizer_files,
            kv_events: self.kv_events,
            shutdown: tokio::sync::Notify::new(),
            server,
        };
        (self.engine, app)
    }
}

/// The adapters that are there from the start.
fn adapters(lora: &LoraConfig, mut targets: LoraTargets, model: &ModelInfo) -> Result<Adapters, LoadError> {
    if let Some(kinds) = &lora.target_modules {
        let known = targets.kinds();
        targets.restrict_to(kinds).map_err(|unknown| LoadError::LoraTargets { unknown, known })?;
    }
    let adapters = Adapters::new(lora.limits.clone(), targets, &model.served_names);
    for module in &lora.modules {
        adapters.load_now(&module.name, &module.path, module.base_model_name.as_deref())?;
    }
    Ok(adapters)
}

/// What sampling parameters are where a request does not say.
fn sampling_defaults(config: &EngineConfig, own: Option<&str>) -> Result<SamplingDefaults, LoadError> {
    let text = match &config.generation_config {
        GenerationConfig::Model => own.map(String::from),
        GenerationConfig::Api => None,
        GenerationConfig::Folder(folder) => Some(read(&folder.join("generation_config.json"))?),
    };
    let defaults = text.as_deref().map(SamplingDefaults::from_json).transpose()?.unwrap_or_default();
    let overrides = serde_json::Value::Object(config.override_generation_config.clone());
    Ok(SamplingDefaults::from_json(&overrides.to_string())?.or(defaults))
}

/// Settles how answers are read, and says so: the operator may have to set it right.
fn chat_setup(config: &EngineConfig, tokenizer: &Tokenizer) -> Result<ChatSetup, ChatSetupError> {
    let own = || tokenizer.tool_use_template_source().or_else(|| tokenizer.chat_template_source());
    let template = config.chat_template.as_deref().or_else(own);
    let chat = ChatSetup::new(config.chat.clone(), template, tokenizer)?;
    let or_none = |name: &str| if name.is_empty() { "none".to_owned() } else { name.to_owned() };
    tracing::info!(
        tool_call_parser = or_none(chat.tool_call_parser()),
        reasoning_parser = or_none(chat.reasoning_parser()),
        "chats"
    );
    Ok(chat)
}

/// Whether the model generates or is pooled, and the model as it is loaded for that.
fn task(
    config: &EngineConfig,
    config_json: &str,
    mut spec: ModelSpec,
) -> Result<(ModelSpec, Option<Pooler>), LoadError> {
    let dir = config.model.path();
    let generates = spec.lm_head != LmHead::None;
    match config.runner {
        RunnerChoice::Generate if !generates => {
            return Err(LoadError::CannotGenerate { architecture: spec.architecture });
        }
        RunnerChoice::Generate => return Ok((spec, None)),
        RunnerChoice::Auto if generates && !dir.is_some_and(is_sentence_transformer) => {
            return Ok((spec, None));
        }
        RunnerChoice::Auto | RunnerChoice::Pooling => spec = spec.for_pooling(),
    }
    let mut pooler = PoolerSpec::of(&spec, config_json, dir)?;
    pooler.pooling = config.pooler.pooling.unwrap_or(pooler.pooling);
    pooler.normalize = config.pooler.normalize.unwrap_or(pooler.normalize);
    if let Some(longest) = pooler.max_seq_length {
        spec.max_position_embeddings = spec.max_position_embeddings.min(longest);
    }
    let (width, joins_pairs) = (spec.pooled_width(), !spec.causal);
    Ok((spec, Some(Pooler { spec: pooler, width, joins_pairs })))
}

/// The small files of a model.
struct Files {
    config: String,
    generation_config: Option<String>,
    tokenizer: Tokenizer,
    /// Where all of this is from, if it is one file.
    gguf: Option<GgufFile>,
}

impl Files {
    fn read(config: &EngineConfig) -> Result<Self, LoadError> {
        let own_tokenizer = config.tokenizer.as_deref().map(Tokenizer::from_dir).transpose()?;
        match &config.model {
            ModelSource::Demo => Ok(Self {
                config: demo::CONFIG.into(),
                generation_config: Some(demo::GENERATION_CONFIG.into()),
                tokenizer: match own_tokenizer {
                    Some(tokenizer) => tokenizer,
                    None => Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG))?,
                },
                gguf: None,
            }),
            ModelSource::Folder(dir) => Ok(Self {
                config: read(&dir.join("config.json"))?,
                generation_config: read_optional(&dir.join("generation_config.json"))?,
                tokenizer: match own_tokenizer {
                    Some(tokenizer) => tokenizer,
                    None => Tokenizer::from_dir(dir)?,
                },
                gguf: None,
            }),
            ModelSource::Gguf(path) => {
                let file = GgufFile::open(path)?;
                Ok(Self {
                    config: file.config_json()?,
                    generation_config: Some(file.generation_config_json()?),
                    tokenizer: match own_tokenizer {
                        Some(tokenizer) => tokenizer,
                        None => Tokenizer::from_gguf(file.metadata())?,
                    },
                    gguf: Some(file),
                })
            }
        }
    }
}

fn read(path: &Path) -> Result<String, LoadError> {
    std::fs::read_to_string(path)
        .map_err(|source| LoadError::Read { path: path.display().to_string(), source })
}

fn read_optional(path: &Path) -> Result<Option<String>, LoadError> {
    if path.exists() { read(path).map(Some) } else { Ok(None) }
}

fn open_checkpoint(
    config: &EngineConfig,
    gguf: Option<GgufFile>,
    spec: &ModelSpec,
) -> Result<Checkpoint, LoadError> {
    let dtype = weight_dtype(config);
    let checkpoint = match (config.load_format, &config.model, gguf) {
        (LoadFormat::Dummy, ..) => return Ok(Checkpoint::dummy(dtype.unwrap_or(spec.dtype))),
        (LoadFormat::Auto | LoadFormat::Gguf, _, Some(file)) => Checkpoint::from_gguf(file)?,
        (LoadFormat::Safetensors, _, Some(_)) => return Err(LoadError::LoadFormat { asked: "safetensors" }),
        (LoadFormat::Gguf, _, None) => return Err(LoadError::LoadFormat { asked: "gguf" }),
        (LoadFormat::Auto | LoadFormat::Safetensors, model, None) => match model.path() {
            None => Checkpoint::from_bytes(demo::WEIGHTS)?,
            Some(dir) => Checkpoint::open(dir)?,
        },
    };
    Ok(match dtype {
        Some(dtype) => checkpoint.converted_to(dtype),
        None => checkpoint,
    })
}

/// The limits of scheduling, with the KV cache in blocks.
fn scheduler_config(
    config: &EngineConfig,
    spec: &ModelSpec,
    device: &Device,
    kv_dtype: KvDtype,
) -> Result<SchedulerConfig, LoadError> {
    let limit = u32::try_from(spec.max_position_embeddings).unwrap_or(u32::MAX);
    let longest = match config.max_model_len {
        MaxModelLen::Model | MaxModelLen::Fitting => limit,
        MaxModelLen::Tokens(asked) if asked > limit => return Err(LoadError::MaxModelLen { asked, limit }),
        MaxModelLen::Tokens(asked) => asked,
    };
    // Where prompts are computed whole, a step must hold the longest.
    let least = if spec.causal { 0 } else { longest };
    let default = device.default_max_num_batched_tokens().max(least);
    let max_num_batched_tokens = config.max_num_batched_tokens.unwrap_or(default);
    let asked = config.max_num_seqs.unwrap_or(DEFAULT_MAX_NUM_SEQS.min(max_num_batched_tokens));
    let max_num_seqs = asked.min(max_num_batched_tokens);
    if max_num_seqs < asked {
        tracing::warn!(
            max_num_seqs,
            "lowered to --max-num-batched-tokens: each request needs a token a step"
        );
    }
    let limits = RunnerConfig {
        max_num_seqs: max_num_seqs as usize,
        max_num_batched_tokens: max_num_batched_tokens as usize,
        max_model_len: longest as usize,
        block_size: config.block_size as usize,
        num_blocks: 0,
    };
    let groups = device.kv_groups(config, spec);
    let memory = device.kv_memory(config, spec, &limits)?;
    let kv = KvRoom::new(spec, kv_dtype, memory, &limits, &groups)?;
    let max_model_len = match config.max_model_len {
        MaxModelLen::Fitting => kv.longest(limit).max(2),
        MaxModelLen::Model | MaxModelLen::Tokens(_) => longest,
    };
    let num_blocks = kv.num_blocks(max_model_len, max_num_seqs)?;
    Ok(SchedulerConfig {
        max_num_seqs,
        max_num_batched_tokens,
        max_model_len,
        block_size: config.block_size,
        num_blocks,
        kv_groups: groups.groups().to_vec(),
        enable_prefix_caching: config.enable_prefix_caching && spec.causal,
        enable_kv_events: config.kv_events.is_some(),
        policy: config.scheduling_policy,
        long_prefill_token_threshold: config.long_prefill_token_threshold.min(max_model_len),
        priority_ageing_us: match config.scheduling_policy {
            quire_scheduler::SchedulingPolicy::Priority => PRIORITY_AGEING_US,
            quire_scheduler::SchedulingPolicy::Fcfs => 0,
        },
        whole_prompts: !spec.causal,
        max_loras: config.lora.as_ref().map_or(1, |lora| lora.limits.max_loras),
        adapter_patience_us: ADAPTER_PATIENCE_US,
    })
}

/// How much fits, in vLLM's words.
fn tell_kv_cache(scheduler: &SchedulerConfig) {
    let (max_model_len, blocks) = (scheduler.max_model_len, scheduler.blocks_per_sequence());
    let concurrency = f64::from(scheduler.num_blocks - 1) / f64::from(blocks.max(1));
    let tokens = (concurrency * f64::from(max_model_len)) as u64;
    tracing::info!(kv_groups = scheduler.kv_groups.len(), "GPU KV cache size: {tokens} tokens");
    tracing::info!("Maximum concurrency for {max_model_len} tokens per request: {concurrency:.2}x");
}

/// vLLM's.
const DEFAULT_MAX_NUM_SEQS: u32 = 256;

/// A waiting request gains a priority every ten seconds, so that none waits for ever.
const PRIORITY_AGEING_US: u64 = 10_000_000;

/// How long requests for the adapters that run may go before one whose adapter has no place.
const ADAPTER_PATIENCE_US: u64 = 1_000_000;

/// The memory for the KV cache, and what it holds.
struct KvRoom {
    bytes: u64,
    available_bytes: u64,
    block_bytes: usize,
    /// As many blocks as fit.
    cache: KvCacheConfig,
}

impl KvRoom {
    fn new(
        spec: &ModelSpec,
        dtype: KvDtype,
        memory: KvMemory,
        limits: &RunnerConfig,
        groups: &KvGroups,
    ) -> Result<Self, LoadError> {
        let layout = groups.layout(spec, limits.block_size);
        let KvMemory { bytes, available_bytes } = memory;
        if bytes > available_bytes {
            return Err(LoadError::Memory { kv_bytes: bytes, available_bytes });
        }
        let fitting = layout.num_blocks(usize::try_from(bytes).unwrap_or(usize::MAX), dtype);
        let cache = KvCacheConfig {
            num_blocks: u32::try_from(fitting).unwrap_or(u32::MAX),
            block_size: limits.block_size as u32,
            groups: groups.groups().to_vec(),
            max_step_tokens: limits.max_num_batched_tokens as u32,
            enable_prefix_caching: false,
            record_events: false,
        };
        Ok(Self { bytes, available_bytes, block_bytes: layout.block_bytes(dtype), cache })
    }

    /// The longest sequence that fits, of at most `limit` tokens.
    fn longest(&self, limit: u32) -> u32 {
        let fits = |tokens: u32| self.cache.max_blocks(tokens) < self.cache.num_blocks as usize;
        let (mut fitting, mut too_long) = (0, limit.saturating_add(1));
        while too_long - fitting > 1 {
            let middle = fitting + (too_long - fitting) / 2;
            if fits(middle) { fitting = middle } else { too_long = middle }
        }
        fitting
    }

    /// KV blocks to have, the padding block included: those that fit, but no more than could ever be used.
    fn num_blocks(&self, max_model_len: u32, max_num_seqs: u32) -> Result<u32, LoadError> {
        let (per_sequence, fitting) = (self.cache.max_blocks(max_model_len), self.cache.num_blocks as usize);
        if fitting < per_sequence + 1 {
            let needed_bytes = ((per_sequence + 1) * self.block_bytes) as u64;
            return Err(match needed_bytes > self.available_bytes {
                true => {
                    LoadError::NoRoom { available_bytes: self.available_bytes, max_model_len, needed_bytes }
                }
                false => LoadError::KvCache {
                    kv_bytes: self.bytes,
                    kv_tokens: self.longest(max_model_len).into(),
                    max_model_len,
                    needed_bytes,
                },
            });
        }
        let useful = per_sequence * max_num_seqs as usize + 1;
        Ok(u32::try_from(fitting.min(useful)).unwrap_or(u32::MAX))
    }
}

fn runner_config(scheduler: &SchedulerConfig) -> RunnerConfig {
    RunnerConfig {
        max_num_seqs: scheduler.max_num_seqs as usize,
        max_num_batched_tokens: scheduler.max_num_batched_tokens as usize,
        max_model_len: scheduler.max_model_len as usize,
        block_size: scheduler.block_size as usize,
        num_blocks: scheduler.num_blocks as usize,
    }
}

fn model_info(config: &EngineConfig, spec: &ModelSpec, scheduler: &SchedulerConfig) -> ModelInfo {
    let root = match config.model.path() {
        None => demo::NAME.to_owned(),
        Some(path) => path.display().to_string(),
    };
    let served_names = match config.served_model_names.is_empty() {
        true => vec![root.clone()],
        false => config.served_model_names.clone(),
    };
    ModelInfo {
        served_names,
        root,
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64),
        architecture: spec.architecture.clone(),
        num_parameters: spec.num_parameters() as u64,
        block_size: scheduler.block_size,
        num_blocks: scheduler.num_blocks - 1,
        blocks_per_sequence: scheduler.blocks_per_sequence(),
        max_num_seqs: scheduler.max_num_seqs,
        max_num_batched_tokens: scheduler.max_num_batched_tokens,
        enable_prefix_caching: scheduler.enable_prefix_caching,
    }
}

fn request_limits(
    config: &EngineConfig,
    spec: &ModelSpec,
    scheduler: &SchedulerConfig,
    tokenizer: &Tokenizer,
    defaults: SamplingDefaults,
) -> RequestLimits {
    let mut eos_token_ids = spec.eos_token_ids.clone();
    eos_token_ids.extend(tokenizer.eos_token_id());
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    RequestLimits {
        max_model_len: scheduler.max_model_len,
        vocab_size: spec.vocab_size as u32,
        max_logprobs: config.max_logprobs,
        eos_token_ids: eos_token_ids.into(),
        defaults,
        stream_interval: config.stream_interval,
        thinking: None,
    }
}
