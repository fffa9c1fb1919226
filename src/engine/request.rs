//! What a front end asks of the engine, in tokens: [`GenerateRequest`]. HTTP and gRPC both translate
//! into this and know nothing of what happens to it.

use std::sync::Arc;

use quire_scheduler::{Adapter, SamplingParams, TokenId};

/// One prompt and how to continue it, `n` times. Made by [`crate::validate`], which has checked every
/// field against the model and the server's limits.
#[derive(Debug, Clone)]
pub struct GenerateRequest {
    /// The client's name for the request, for the log and for aborts by name. Need not be unique.
    pub external_id: Arc<str>,
    /// 1 ..= `max_model_len - 1` tokens, all in the vocabulary.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Parameters of the first sequence; the seeds of the others follow from it.
    pub sampling: SamplingParams,
    /// Whether `sampling.seed` came from the client. If not, the engine draws one.
    pub seeded: bool,
    /// Sequences to generate, at least 1.
    pub n: u32,
    /// Lower runs first (with `--scheduling-policy priority`).
    pub priority: i32,
    /// Isolates the prefix cache.
    pub cache_salt: Option<Arc<str>>,
    /// Do not read the prefix cache.
    pub bypass_prefix_cache: bool,
    /// The adapter it runs with.
    pub adapter: Option<Adapter>,
    /// What becomes of the tokens.
    pub text: TextOptions,
}

/// How tokens become text.
#[derive(Debug, Clone)]
pub struct TextOptions {
    /// Produce text at all. Off: [`OutputDelta::text`](super::OutputDelta::text) stays empty.
    pub detokenize: bool,
    /// Ends the sequence when this text appears.
    pub stop: Vec<String>,
    /// Keep the stop string (or the text of a stop token) at the end of the text.
    pub include_stop_str_in_output: bool,
    /// Leave special tokens out of the text.
    pub skip_special_tokens: bool,
    /// Special tokens that stay all the same.
    pub kept_special_tokens: Arc<[TokenId]>,
    /// Put spaces between special tokens that are kept.
    pub spaces_between_special_tokens: bool,
    /// Tokens to send together, at least 1; the first is sent at once, and so is the end.
    pub interval: u32,
}

impl Default for TextOptions {
    fn default() -> Self {
        Self {
            detokenize: true,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            skip_special_tokens: true,
            kept_special_tokens: Arc::default(),
            spaces_between_special_tokens: true,
            interval: 1,
        }
    }
}

/// Why a request was not taken. The answer is immediate; nothing was queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests are queued or running as `--max-num-queued-reqs` allows.
    #[error(
        "the server is overloaded: {queued} requests are queued or running, the limit is {limit}; try again later"
    )]
    Overloaded {
        /// Sequences in the engine now.
        queued: usize,
        /// `--max-num-queued-reqs`.
        limit: usize,
    },
    /// The server does something else with its model.
    #[error(
        "{}",
        if *pools { "this server embeds (--runner pooling) and generates no text" }
        else { "this server generates text and embeds nothing; start it with --runner pooling for embeddings" }
    )]
    WrongTask {
        /// Whether it pools.
        pools: bool,
    },
    /// The server is shutting down and takes no new work.
    #[error("the server is shutting down and takes no new requests")]
    Draining,
    /// The engine has stopped; the process is about to end.
    #[error("the engine has stopped: {0}")]
    Dead(Arc<str>),
}
