//! [`App`]: what every front end needs to answer a request, made once at start and shared.

use std::sync::Arc;

use quire_scheduler::Adapter;

use crate::adapters::{AdapterError, Adapters};
use crate::chat::ChatSetup;
use crate::config::ServerConfig;
use crate::embed::Pooler;
use crate::engine::{EngineHandle, KvEvents};
use crate::grammar::GrammarCompiler;
use crate::metrics::Metrics;
use crate::text::{ChatTemplate, TextPool, Tokenizer, TokenizerFiles};
use crate::validate::RequestLimits;

/// Shared by HTTP and gRPC behind an `Arc`.
#[derive(Debug)]
pub struct App {
    /// The door to the engine.
    pub engine: EngineHandle,
    /// Threads for work on text that would hold up sockets.
    pub text_pool: TextPool,
    /// The model's tokenizer.
    pub tokenizer: Tokenizer,
    /// The model's (or the operator's) chat template. Without one, chat is refused with a 400.
    pub chat_template: Option<ChatTemplate>,
    /// How answers of chats are taken apart.
    pub chat: ChatSetup,
    /// Makes what clients want of an output's form into grammars.
    pub grammars: GrammarCompiler,
    /// How the model is pooled, if that is what it is served for; else it generates.
    pub pooler: Option<Pooler>,
    /// Adapters that requests may name; `None` = the server was started without.
    pub adapters: Option<Adapters>,
    /// What is served.
    pub model: ModelInfo,
    /// What requests may ask for.
    pub limits: RequestLimits,
    /// Counters and histograms.
    pub metrics: Arc<Metrics>,
    /// What clients need to tokenise for themselves.
    pub tokenizer_files: TokenizerFiles,
    /// What happens in the prefix cache; `None` = nobody was to know.
    pub kv_events: Option<Arc<KvEvents>>,
    /// Notified when an operator asks the server to shut down; it then does as on SIGTERM.
    pub shutdown: tokio::sync::Notify,
    /// Keys, names, limits of the listeners.
    pub server: ServerConfig,
}

impl App {
    /// Whose weights a request for this model runs with besides the model's; `None` if that is the model itself.
    pub async fn adapter_of(&self, model: &str) -> Result<Option<Adapter>, AdapterError> {
        match &self.adapters {
            _ if self.model.is_served(model) => Ok(None),
            Some(adapters) => adapters.get(model).await.map(Some),
            None => Err(AdapterError::Unknown(model.to_owned())),
        }
    }

    /// Whether a request may name this model.
    pub fn serves(&self, model: &str) -> bool {
        self.model.is_served(model) || self.adapters.as_ref().is_some_and(|adapters| adapters.has(model))
    }

    /// All names that requests may use: the model's, then the adapters'.
    pub fn all_names(&self) -> Vec<String> {
        let adapters = self.adapters.iter().flat_map(Adapters::list).map(|adapter| adapter.name);
        self.model.served_names.iter().cloned().chain(adapters).collect()
    }
}

/// Facts about the model for `/v1/models` and `vllm.Control`.
#[derive(Debug, Clone)]
pub struct ModelInfo {
    /// Names clients may use; at least one, the first is the one we answer with.
    pub served_names: Vec<String>,
    /// The path or name given on the command line.
    pub root: String,
    /// Seconds since 1970 at which the model was loaded.
    pub created: i64,
    /// Name in `architectures` of config.json.
    pub architecture: String,
    /// Elements of all weights.
    pub num_parameters: u64,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// KV blocks, the padding block not counted.
    pub num_blocks: u32,
    /// Blocks that a sequence of the greatest length holds at a time: fewer than its tokens fill where layers have
    /// windows, more where layers are in several groups.
    pub blocks_per_sequence: u32,
    /// Requests in a step at most.
    pub max_num_seqs: u32,
    /// Tokens in a step at most.
    pub max_num_batched_tokens: u32,
    /// Whether full blocks are kept for others.
    pub enable_prefix_caching: bool,
}

impl ModelInfo {
    /// The name we answer with.
    pub fn name(&self) -> &str {
        &self.served_names[0]
    }

    /// Whether clients may call the model this. An empty name means the default.
    pub fn is_served(&self, name: &str) -> bool {
        name.is_empty() || self.served_names.iter().any(|served| served == name)
    }
}
