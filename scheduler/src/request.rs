//! What was asked of the engine: a [`Request`] with its [`SamplingParams`], and how it can end.
//!
//! These are plain data, validated at the edges (HTTP, gRPC, command line) and never changed here.
//! The scheduler keeps its own mutable record of a request's progress; nobody else sees that.

use std::sync::Arc;

use crate::adapter::Adapter;
use crate::grammar::Grammar;
use crate::repetition::RepetitionDetection;

/// An index into the model's vocabulary.
pub type TokenId = u32;

/// Microseconds on a monotonic clock whose zero the caller chooses. The scheduler never reads a clock.
pub type TimeUs = u64;

/// The engine's own name for one sequence: unique for the life of the process, never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// One sequence to generate. A client's request with `n > 1` is `n` of these.
#[derive(Debug, Clone)]
pub struct Request {
    /// Unique; the door ([`RequestId`]) hands them out.
    pub id: RequestId,
    /// At least one token; at most `max_model_len`, less one if a token is to be generated.
    pub prompt_token_ids: Arc<[TokenId]>,
    /// Validated parameters.
    pub sampling: Arc<SamplingParams>,
    /// Lower runs first under [`crate::SchedulingPolicy::Priority`].
    pub priority: i32,
    /// When the request entered the engine; orders requests of equal priority.
    pub arrival_us: TimeUs,
    /// The adapter (LoRA) whose weights apply; what it is, is part of the prefix-cache key.
    pub adapter: Option<Adapter>,
    /// Isolates the prefix cache: only requests with the same salt share blocks.
    pub cache_salt: Option<Arc<str>>,
    /// Do not read the prefix cache (blocks are still written to it).
    pub bypass_prefix_cache: bool,
}

/// How the next token is chosen and when to stop. Ranges are vLLM's (`SamplingParams`), checked at
/// the edges; this struct assumes them.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 = greedy, else 0.01..=2.
    pub temperature: f32,
    /// 0 = off, else keep the k most likely tokens.
    pub top_k: u32,
    /// (0, 1]; 1 = off.
    pub top_p: f32,
    /// [0, 1]; 0 = off. Keeps tokens at least this fraction as likely as the best.
    pub min_p: f32,
    /// [-2, 2]; subtracted once from each token already generated.
    pub presence_penalty: f32,
    /// [-2, 2]; subtracted per occurrence in the generated text.
    pub frequency_penalty: f32,
    /// > 0; 1 = off. Divides (or multiplies, if negative) logits of tokens in prompt or output.
    pub repetition_penalty: f32,
    /// Key of the counter-based generator; always set by the time a request reaches the engine.
    pub seed: u64,
    /// At least 1.
    pub max_tokens: u32,
    /// At most `max_tokens`. Until then EOS and stop tokens cannot be sampled.
    pub min_tokens: u32,
    /// EOS does not end the sequence.
    pub ignore_eos: bool,
    /// The model's own end tokens (generation_config.json and tokenizer).
    pub eos_token_ids: Arc<[TokenId]>,
    /// Further ids that end the sequence; sorted, without repeats.
    pub stop_token_ids: Vec<TokenId>,
    /// Added to logits; each in [-100, 100].
    pub logit_bias: Vec<(TokenId, f32)>,
    /// If set, only these can be sampled; sorted.
    pub allowed_token_ids: Option<Vec<TokenId>>,
    /// Token sequences that must not be completed.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Ends outputs that go round in circles.
    pub repetition: Option<RepetitionDetection>,
    /// What the output must be.
    pub grammar: Option<Grammar>,
    /// `Some(k)`: log-probability of each generated token and of the `k` best. [`ALL_LOGPROBS`] = all.
    pub logprobs: Option<u32>,
    /// With `logprobs`: besides the token itself, these are told instead of the best. Without repeats.
    pub logprob_token_ids: Option<Arc<[TokenId]>>,
    /// The same as `logprobs` for each prompt token but the first.
    pub prompt_logprobs: Option<u32>,
    /// Generate nothing: the request ends when its prompt is computed, with the prompt's hidden states
    /// pooled into one vector. Nothing above is used then.
    pub pooling: Option<Pooling>,
    /// Where the second text begins in a pooled prompt of two, for encoders that tell them apart (token type 1).
    pub second_text_start: Option<u32>,
}

/// How the hidden states of a prompt's tokens become one vector (vLLM's `seq_pooling_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// That of the last token: for causal models, the one that has seen the whole prompt.
    Last,
    /// That of the first token, which encoders train for it (`[CLS]`).
    Cls,
    /// The mean of all.
    Mean,
}

/// Value of [`SamplingParams::logprobs`] that asks for the whole vocabulary.
pub const ALL_LOGPROBS: u32 = u32::MAX;

impl Default for SamplingParams {
    /// vLLM's engine-level defaults (temperature 1, nothing else in force, 16 tokens).
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            max_tokens: 16,
            min_tokens: 0,
            ignore_eos: false,
            eos_token_ids: Arc::new([]),
            stop_token_ids: Vec::new(),
            logit_bias: Vec::new(),
            allowed_token_ids: None,
            bad_words: Vec::new(),
            repetition: None,
            grammar: None,
            logprobs: None,
            logprob_token_ids: None,
            prompt_logprobs: None,
            pooling: None,
            second_text_start: None,
        }
    }
}

impl SamplingParams {
    /// Whether `token` can never come next after `output`, whatever the model and the grammar say:
    /// `allowed_token_ids`, `bad_words` and `min_tokens`.
    pub fn excludes(&self, output: &[TokenId], token: TokenId) -> bool {
        let completes = |word: &Vec<TokenId>| {
            word.split_last().is_some_and(|(last, prefix)| *last == token && output.ends_with(prefix))
        };
        let ends = || self.eos_token_ids.contains(&token) || self.stop_token_ids.contains(&token);
        self.allowed_token_ids.as_ref().is_some_and(|allowed| allowed.binary_search(&token).is_err())
            || self.bad_words.iter().any(completes)
            || output.len() < self.min_tokens as usize && ends()
    }
}

/// How a sequence ended. Exactly one per request, ever.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's own end token was sampled.
    Eos(TokenId),
    /// One of [`SamplingParams::stop_token_ids`] was sampled.
    StopToken(TokenId),
    /// `max_tokens` or the model's context length was reached.
    Length,
    /// [`SamplingParams::repetition`] found a pattern.
    Repetition,
    /// The prompt is computed and pooled, which is all that was asked for.
    Pooled,
    /// Somebody asked for it: the client left, a stop string matched, the server drains.
    Abort,
    /// The request itself rules out every token that could come next, or its grammar takes more than it may. The
    /// text says why, for the client to read.
    Impossible(Arc<str>),
    /// The request failed; the text says why, for the client to read.
    Error(Arc<str>),
}
