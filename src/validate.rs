//! What a request may ask for: turns the fields of a request, as typed by a client in either protocol,
//! into [`SamplingParams`], or says which field is wrong and what is allowed.
//!
//! Ranges and defaults are vLLM's (`SamplingParams`); HTTP and gRPC differ only in a few defaults, which
//! they fill in before they come here.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;

use quire_model::SamplingDefaults;
use quire_scheduler::{ALL_LOGPROBS, Adapter, Grammar, RepetitionDetection, SamplingParams, TokenId};

use crate::engine::{GenerateRequest, TextOptions};
use crate::grammar::{self, ThinkingMarks, ThinkingStart};

/// One field of a request is wrong. Becomes a 400 with `param`, or INVALID_ARGUMENT.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ParamError {
    /// The field as the client wrote it.
    pub param: String,
    /// What is wrong and what is allowed.
    pub message: String,
}

impl ParamError {
    /// An error about `param`.
    pub fn new(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: param.into(), message: message.into() }
    }
}

/// What the loaded model and the server's flags allow.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Prompt and output together, in tokens.
    pub max_model_len: u32,
    /// Ids below this exist.
    pub vocab_size: u32,
    /// `--max-logprobs`; `None` = no limit (-1).
    pub max_logprobs: Option<u32>,
    /// The model's end tokens.
    pub eos_token_ids: Arc<[TokenId]>,
    /// From generation_config.json.
    pub defaults: SamplingDefaults,
    /// `--stream-interval`, at least 1.
    pub stream_interval: u32,
    /// How the model marks its thoughts, if that is known.
    pub thinking: Option<ThinkingMarks>,
}

/// Sequences one request may ask for. vLLM allows 16384, which one request can use to fill the server.
pub const MAX_N: u32 = 128;
/// `n`.
pub const N: RangeInclusive<i64> = 1..=MAX_N as i64;
/// `temperature`.
pub const TEMPERATURE: RangeInclusive<f64> = 0.0..=2.0;
/// `top_p` (but for 0) and `min_p`.
pub const SHARE: RangeInclusive<f64> = 0.0..=1.0;
/// `top_k`; 0 and -1 are all tokens.
pub const TOP_K: RangeInclusive<i64> = -1..=u32::MAX as i64;
/// `presence_penalty` and `frequency_penalty`.
pub const PENALTY: RangeInclusive<f64> = -2.0..=2.0;
/// `repetition_penalty`. vLLM takes all above 0; far out, logits divided by it are no longer finite.
pub const REPETITION_PENALTY: RangeInclusive<f64> = 1e-6..=1e6;
/// Stop strings a request may have (vLLM's VLLM_MAX_STOP_STRINGS).
pub const MAX_STOP_STRINGS: usize = 4;
/// Bytes in a stop string.
pub const MAX_STOP_STRING_BYTES: usize = 1024;
/// Bad words a request may have, counted after tokenisation (vLLM's VLLM_MAX_NUM_BAD_WORDS).
pub const MAX_BAD_WORDS: usize = 128;
/// Entries of `logit_bias`, and of `stop_token_ids`.
pub const MAX_TOKEN_LIST: usize = 4096;

/// `logprob_token_ids` a request may have (vLLM's bound).
pub const MAX_LOGPROB_TOKEN_IDS: usize = 128;
/// `max_pattern_size` of `repetition_detection`: each token is compared with as many.
pub const MAX_PATTERN_SIZE: i64 = 1024;

/// The sampling fields of a request; `None` means not given (or null).
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "the names are the wire's, and SamplingParams documents them")]
pub struct SamplingFields {
    pub n: Option<i64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub seed: Option<i64>,
    /// `None` takes `default_max_tokens`.
    pub max_tokens: Option<i64>,
    /// The field that `max_tokens` came from, for errors.
    pub max_tokens_param: &'static str,
    /// What the protocol gives when `max_tokens` is missing; `None` = whatever the context leaves.
    pub default_max_tokens: Option<u32>,
    pub min_tokens: Option<i64>,
    pub ignore_eos: bool,
    pub stop: Vec<String>,
    pub stop_token_ids: Vec<i64>,
    pub include_stop_str_in_output: bool,
    pub logit_bias: Vec<(i64, f64)>,
    pub allowed_token_ids: Option<Vec<i64>>,
    /// Already tokenised by the text pool.
    pub bad_words_token_ids: Vec<Vec<TokenId>>,
    /// Already compiled by the text pool.
    pub grammar: Option<Grammar>,
    /// -1 = no limit.
    pub thinking_token_budget: Option<i64>,
    /// Where the output begins, if more is known of that than the prompt's tokens tell.
    pub thinking_start: Option<ThinkingStart>,
    /// -1 = the whole vocabulary.
    pub logprobs: Option<i64>,
    /// The field that `logprobs` came from (`logprobs` or `top_logprobs`).
    pub logprobs_param: &'static str,
    /// Told with `logprobs`, instead of the best.
    pub logprob_token_ids: Option<Vec<i64>>,
    pub prompt_logprobs: Option<i64>,
    pub repetition_detection: Option<RepetitionFields>,
    pub stream_interval: Option<i64>,
    pub skip_special_tokens: Option<bool>,
    /// Special tokens that stay in the text all the same.
    pub kept_special_tokens: Arc<[TokenId]>,
    pub spaces_between_special_tokens: Option<bool>,
    pub detokenize: Option<bool>,
}

/// `repetition_detection`; `None` is 0.
#[derive(Debug, Clone, Copy, Default)]
#[allow(missing_docs, reason = "the names are the wire's, and RepetitionDetection documents them")]
pub struct RepetitionFields {
    pub min_pattern_size: Option<i64>,
    pub max_pattern_size: Option<i64>,
    pub min_count: Option<i64>,
}

/// Everything else about a request.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs, reason = "see GenerateRequest")]
pub struct RequestFields {
    pub external_id: String,
    pub prompt_token_ids: Vec<TokenId>,
    pub priority: i32,
    pub cache_salt: Option<String>,
    pub bypass_prefix_cache: bool,
    pub adapter: Option<Adapter>,
}

/// Checks a request against the limits.
pub fn generate_request(
    fields: RequestFields,
    sampling: SamplingFields,
    limits: &RequestLimits,
) -> Result<GenerateRequest, ParamError> {
    let prompt_len = check_prompt(&fields.prompt_token_ids, limits)?;
    let seeded = sampling.seed.is_some_and(|seed| seed != -1);
    let n = ranged("n", sampling.n, 1, &N)? as u32;
    let text = text_options(&sampling, limits)?;
    let budget = thinking_budget(&sampling, &fields.prompt_token_ids, limits)?;
    let params = sampling_params(sampling, prompt_len, budget, limits)?;
    if n > 1 && params.temperature == 0.0 {
        return Err(ParamError::new("n", format!("n must be 1 when temperature is 0 (greedy), got {n}")));
    }
    Ok(GenerateRequest {
        external_id: fields.external_id.into(),
        prompt_token_ids: fields.prompt_token_ids.into(),
        sampling: params,
        seeded,
        n,
        priority: fields.priority,
        cache_salt: fields.cache_salt.map(check_cache_salt).transpose()?,
        bypass_prefix_cache: fields.bypass_prefix_cache,
        adapter: fields.adapter,
        text,
    })
}

fn check_prompt(ids: &[TokenId], limits: &RequestLimits) -> Result<u32, ParamError> {
    if ids.is_empty() {
        return Err(ParamError::new("prompt", "the prompt is empty; at least one token is needed"));
    }
    if let Some(id) = ids.iter().find(|&&id| id >= limits.vocab_size) {
        let last = limits.vocab_size - 1;
        let message = format!("token id {id} is out of vocabulary; ids go from 0 to {last}");
        return Err(ParamError::new("prompt", message));
    }
    let max = limits.max_model_len;
    if ids.len() >= max as usize {
        return Err(too_long(ids.len(), max));
    }
    Ok(ids.len() as u32)
}

/// The error for a prompt that leaves no room to generate; the wording is what clients look for.
pub fn too_long(prompt_len: usize, max_model_len: u32) -> ParamError {
    ParamError::new(
        "input_tokens",
        format!(
            "This model's maximum context length is {max_model_len} tokens. However, your prompt contains \
             {prompt_len} input tokens, which leaves no room for output. Please reduce the length of the prompt."
        ),
    )
}

fn text_options(f: &SamplingFields, limits: &RequestLimits) -> Result<TextOptions, ParamError> {
    if f.stop.len() > MAX_STOP_STRINGS {
        let message = format!("at most {MAX_STOP_STRINGS} stop strings are allowed, got {}", f.stop.len());
        return Err(ParamError::new("stop", message));
    }
    if f.stop.iter().any(String::is_empty) {
        return Err(ParamError::new("stop", "a stop string must not be empty"));
    }
    if let Some(long) = f.stop.iter().find(|s| s.len() > MAX_STOP_STRING_BYTES) {
        let message = format!("a stop string has at most {MAX_STOP_STRING_BYTES} bytes, got {}", long.len());
        return Err(ParamError::new("stop", message));
    }
    // As in vLLM, a request can only ask for more than the server's own.
    let interval = match f.stream_interval {
        Some(interval) if interval < 1 => {
            let message = format!("stream_interval must be at least 1, got {interval}");
            return Err(ParamError::new("stream_interval", message));
        }
        interval => interval.map_or(1, |interval| u32::try_from(interval).unwrap_or(u32::MAX)),
    };
    let detokenize = f.detokenize.unwrap_or(true);
    if !detokenize && !f.stop.is_empty() {
        return Err(ParamError::new("stop", "stop strings need detokenize to be true"));
    }
    Ok(TextOptions {
        detokenize,
        stop: f.stop.clone(),
        include_stop_str_in_output: f.include_stop_str_in_output,
        skip_special_tokens: f.skip_special_tokens.unwrap_or(true),
        kept_special_tokens: f.kept_special_tokens.clone(),
        spaces_between_special_tokens: f.spaces_between_special_tokens.unwrap_or(true),
        interval: interval.max(limits.stream_interval),
    })
}

fn sampling_params(
    f: SamplingFields,
    prompt_len: u32,
    budget: Option<Budget<'_>>,
    limits: &RequestLimits,
) -> Result<SamplingParams, ParamError> {
    let defaults = &limits.defaults;
    let temperature = ranged("temperature", f.temperature.or(defaults.temperature), 1.0, &TEMPERATURE)?;
    let top_p = ranged("top_p", f.top_p.or(defaults.top_p), 1.0, &SHARE)?;
    if top_p == 0.0 {
        return Err(ParamError::new("top_p", "top_p must be in (0, 1], got 0"));
    }
    let top_k = ranged("top_k", f.top_k.or(defaults.top_k), 0, &TOP_K)?.max(0) as u32;
    let repetition_penalty = f.repetition_penalty.or(defaults.repetition_penalty).unwrap_or(1.0);
    if !REPETITION_PENALTY.contains(&repetition_penalty) {
        let (min, max) = (REPETITION_PENALTY.start(), REPETITION_PENALTY.end());
        let message = format!("repetition_penalty must be between {min} and {max}, got {repetition_penalty}");
        return Err(ParamError::new("repetition_penalty", message));
    }
    let max_tokens = max_tokens(&f, prompt_len, limits)?;
    // With a grammar, to ignore the end means to put it off while the grammar allows anything else.
    let grammar = match (f.grammar, f.ignore_eos) {
        (Some(grammar), true) => Some(grammar::late_end(&grammar, &limits.eos_token_ids)),
        (grammar, _) => grammar,
    };
    let ignore_eos = f.ignore_eos && grammar.is_none();
    let grammar = match budget {
        Some(Budget { tokens, start, marks }) => Some(marks.within(tokens, start, grammar.as_ref())),
        None => grammar,
    };
    let min_tokens = ranged("min_tokens", f.min_tokens, 0, &(0..=i64::from(max_tokens)))? as u32;
    let logprob_token_ids = logprob_token_ids(f.logprob_token_ids, f.logprobs, limits.vocab_size)?;
    let num_top = match &logprob_token_ids {
        Some(_) => Some(0),
        None => logprobs(f.logprobs_param, f.logprobs, limits)?,
    };
    Ok(SamplingParams {
        temperature: normal_temperature(temperature),
        top_k,
        top_p: top_p as f32,
        min_p: ranged("min_p", f.min_p.or(defaults.min_p), 0.0, &SHARE)? as f32,
        presence_penalty: ranged("presence_penalty", f.presence_penalty, 0.0, &PENALTY)? as f32,
        frequency_penalty: ranged("frequency_penalty", f.frequency_penalty, 0.0, &PENALTY)? as f32,
        repetition_penalty: repetition_penalty as f32,
        seed: f.seed.unwrap_or(0) as u64,
        max_tokens,
        min_tokens,
        ignore_eos,
        eos_token_ids: limits.eos_token_ids.clone(),
        stop_token_ids: token_list("stop_token_ids", f.stop_token_ids, limits.vocab_size)?,
        logit_bias: logit_bias(&f.logit_bias, limits.vocab_size)?,
        allowed_token_ids: allowed_token_ids(f.allowed_token_ids, limits.vocab_size)?,
        bad_words: bad_words(f.bad_words_token_ids, limits.vocab_size)?,
        grammar,
        logprobs: num_top,
        logprob_token_ids,
        repetition: f.repetition_detection.map(repetition).transpose()?.flatten(),
        prompt_logprobs: logprobs("prompt_logprobs", f.prompt_logprobs, limits)?,
        pooling: None,
        second_text_start: None,
    })
}

/// A limit to the thoughts of a request.
struct Budget<'a> {
    tokens: u32,
    start: ThinkingStart,
    marks: &'a ThinkingMarks,
}

fn thinking_budget<'a>(
    f: &SamplingFields,
    prompt: &[TokenId],
    limits: &'a RequestLimits,
) -> Result<Option<Budget<'a>>, ParamError> {
    let param = "thinking_token_budget";
    let tokens = match f.thinking_token_budget {
        None | Some(-1) => return Ok(None),
        Some(budget @ 0..) => u32::try_from(budget).unwrap_or(u32::MAX),
        Some(budget) => {
            let message = format!("{param} must be at least 0, or -1 for no limit, got {budget}");
            return Err(ParamError::new(param, message));
        }
    };
    let marks = limits.thinking.as_ref().ok_or_else(|| {
        let message = "thinking_token_budget is set, but it is not known how this model marks its reasoning; start \
                       the server with --reasoning-parser";
        ParamError::new(param, message)
    })?;
    if let Some(allowed) = &f.allowed_token_ids
        && marks.forced().iter().any(|&id| !allowed.contains(&id.into()))
    {
        let message = "thinking_token_budget needs the tokens that end the reasoning, and allowed_token_ids has not all";
        return Err(ParamError::new(param, message));
    }
    // A grammar that begins with the output leaves no room for thoughts; chats, whose grammars begin behind them, say
    // themselves where they are.
    let start = match (f.thinking_start, &f.grammar) {
        (Some(start), _) => start,
        (None, Some(_)) => ThinkingStart::Never,
        (None, None) => marks.start_after(prompt),
    };
    Ok(Some(Budget { tokens, start, marks }))
}

/// vLLM's rule: below 1e-5 is greedy, and what is left below 0.01 becomes 0.01, where logits divided by
/// the temperature would overflow.
fn normal_temperature(t: f64) -> f32 {
    if t < 1e-5 { 0.0 } else { t.max(0.01) as f32 }
}

/// What the context leaves, what the model's makers allow, and what was asked for: the least of them.
/// Asking for more than the context leaves is an error, as in vLLM.
fn max_tokens(f: &SamplingFields, prompt_len: u32, limits: &RequestLimits) -> Result<u32, ParamError> {
    let room = limits.max_model_len - prompt_len;
    let cap = limits.defaults.max_new_tokens.unwrap_or(u32::MAX).min(room);
    match f.max_tokens {
        None => Ok(f.default_max_tokens.unwrap_or(u32::MAX).min(cap)),
        Some(asked) if asked < 1 => {
            let param = f.max_tokens_param;
            Err(ParamError::new(param, format!("{param} must be at least 1, got {asked}")))
        }
        Some(asked) if asked > i64::from(room) => Err(ParamError::new(
            f.max_tokens_param,
            format!(
                "This model's maximum context length is {} tokens. However, you requested {asked} output tokens \
                 and your prompt contains {prompt_len} input tokens, for a total of {} tokens. Please reduce \
                 the length of the prompt or the number of requested output tokens.",
                limits.max_model_len,
                asked.saturating_add(i64::from(prompt_len)),
            ),
        )),
        Some(asked) => Ok((asked as u32).min(cap)),
    }
}

fn logprobs(param: &str, asked: Option<i64>, limits: &RequestLimits) -> Result<Option<u32>, ParamError> {
    let Some(asked) = asked else { return Ok(None) };
    match (asked, limits.max_logprobs) {
        (-1, None) => Ok(Some(ALL_LOGPROBS)),
        (-1, Some(max)) if max >= limits.vocab_size => Ok(Some(ALL_LOGPROBS)),
        (0.., None) => Ok(Some(asked.min(i64::from(limits.vocab_size)) as u32)),
        (0.., Some(max)) if asked <= i64::from(max) => Ok(Some(asked as u32)),
        (_, Some(max)) => {
            let message = format!("{param} must be between 0 and {max} (--max-logprobs), got {asked}");
            Err(ParamError::new(param, message))
        }
        _ => Err(ParamError::new(param, format!("{param} must be -1 or at least 0, got {asked}"))),
    }
}

fn logprob_token_ids(
    ids: Option<Vec<i64>>,
    logprobs: Option<i64>,
    vocab_size: u32,
) -> Result<Option<Arc<[TokenId]>>, ParamError> {
    let param = "logprob_token_ids";
    let Some(ids) = ids else { return Ok(None) };
    if ids.is_empty() || ids.len() > MAX_LOGPROB_TOKEN_IDS {
        let message = format!("{param} has 1 to {MAX_LOGPROB_TOKEN_IDS} entries, got {}", ids.len());
        return Err(ParamError::new(param, message));
    }
    if logprobs.is_none() {
        return Err(ParamError::new(param, "logprob_token_ids needs logprobs"));
    }
    let mut known = Vec::with_capacity(ids.len());
    for id in ids {
        let id = token_id(param, id, vocab_size)?;
        if !known.contains(&id) {
            known.push(id);
        }
    }
    Ok(Some(known.into()))
}

/// vLLM's rules; `None` is off.
fn repetition(f: RepetitionFields) -> Result<Option<RepetitionDetection>, ParamError> {
    let wrong = |field: &str, message| {
        Err(ParamError::new("repetition_detection", format!("repetition_detection.{field} {message}")))
    };
    let [min, max, count] =
        [f.min_pattern_size, f.max_pattern_size, f.min_count].map(|size| size.unwrap_or(0));
    if !(0..=MAX_PATTERN_SIZE).contains(&max) {
        return wrong("max_pattern_size", format!("must be between 0 and {MAX_PATTERN_SIZE}, got {max}"));
    }
    if !(0..=max).contains(&min) {
        return wrong(
            "min_pattern_size",
            format!("must be between 0 and max_pattern_size ({max}), got {min}"),
        );
    }
    if max == 0 {
        return Ok(None);
    }
    if count < 2 {
        return wrong("min_count", format!("must be at least 2, got {count}"));
    }
    Ok(Some(RepetitionDetection {
        min_pattern_size: min.max(1) as u32,
        max_pattern_size: max as u32,
        min_count: u32::try_from(count).unwrap_or(u32::MAX),
    }))
}

fn token_list(param: &str, ids: Vec<i64>, vocab_size: u32) -> Result<Vec<TokenId>, ParamError> {
    if ids.len() > MAX_TOKEN_LIST {
        let message = format!("{param} has at most {MAX_TOKEN_LIST} entries, got {}", ids.len());
        return Err(ParamError::new(param, message));
    }
    let ids: Result<Vec<_>, _> = ids.into_iter().map(|id| token_id(param, id, vocab_size)).collect();
    let mut ids = ids?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

fn token_id(param: &str, id: i64, vocab_size: u32) -> Result<TokenId, ParamError> {
    let valid = u32::try_from(id).ok().filter(|&id| id < vocab_size);
    valid.ok_or_else(|| {
        let last = vocab_size - 1;
        ParamError::new(
            param,
            format!("token id {id} in {param} is out of vocabulary, which has {vocab_size} ids, 0 to {last}"),
        )
    })
}

fn allowed_token_ids(ids: Option<Vec<i64>>, vocab_size: u32) -> Result<Option<Vec<TokenId>>, ParamError> {
    let param = "allowed_token_ids";
    let Some(ids) = ids else { return Ok(None) };
    if ids.is_empty() {
        return Err(ParamError::new(param, "allowed_token_ids must not be empty; leave it out to allow all"));
    }
    if ids.len() > vocab_size as usize {
        return Err(ParamError::new(
            param,
            format!("allowed_token_ids has more entries than the vocabulary ({vocab_size})"),
        ));
    }
    let ids: Result<Vec<_>, _> = ids.into_iter().map(|id| token_id(param, id, vocab_size)).collect();
    let mut ids = ids?;
    ids.sort_unstable();
    ids.dedup();
    Ok(Some(ids))
}

fn logit_bias(bias: &[(i64, f64)], vocab_size: u32) -> Result<Vec<(TokenId, f32)>, ParamError> {
    if bias.len() > MAX_TOKEN_LIST {
        let message = format!("logit_bias has at most {MAX_TOKEN_LIST} entries, got {}", bias.len());
        return Err(ParamError::new("logit_bias", message));
    }
    let entry = |&(id, value): &(i64, f64)| {
        if !value.is_finite() {
            return Err(ParamError::new(
                "logit_bias",
                format!("the bias of token {id} is not a finite number"),
            ));
        }
        Ok((token_id("logit_bias", id, vocab_size)?, value.clamp(-100.0, 100.0) as f32))
    };
    bias.iter().map(entry).collect()
}

fn bad_words(words: Vec<Vec<TokenId>>, vocab_size: u32) -> Result<Vec<Vec<TokenId>>, ParamError> {
    if words.len() > MAX_BAD_WORDS {
        let message =
            format!("bad_words has at most {MAX_BAD_WORDS} entries after tokenisation, got {}", words.len());
        return Err(ParamError::new("bad_words", message));
    }
    for word in &words {
        if word.is_empty() {
            return Err(ParamError::new("bad_words", "a bad word must not be empty"));
        }
        word.iter().try_for_each(|&id| token_id("bad_words", i64::from(id), vocab_size).map(drop))?;
    }
    Ok(words)
}

/// vLLM's rule: it becomes part of names and paths elsewhere.
pub(crate) fn check_cache_salt(salt: String) -> Result<Arc<str>, ParamError> {
    if salt.is_empty() || salt.chars().count() > 128 {
        return Err(ParamError::new("cache_salt", "cache_salt must have 1 to 128 characters"));
    }
    if salt.contains(['@', '/', '\\', '\0']) {
        return Err(ParamError::new("cache_salt", "cache_salt must not contain '@', '/', '\\' or NUL"));
    }
    Ok(salt.into())
}

fn ranged<T: Copy + PartialOrd + Display>(
    param: &str,
    value: Option<T>,
    default: T,
    range: &RangeInclusive<T>,
) -> Result<T, ParamError> {
    let value = value.unwrap_or(default);
    if range.contains(&value) {
        return Ok(value);
    }
    let (min, max) = (range.start(), range.end());
    Err(ParamError::new(param, format!("{param} must be between {min} and {max}, got {value}")))
}
