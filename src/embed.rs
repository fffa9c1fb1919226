//! Embeddings: texts or tokens in, vectors out. What HTTP, gRPC and Ollama's API have in common.
//!
//! Each input is a request of its own to the engine, so that they share steps with each other and with those
//! of other clients.

use std::sync::Arc;

use futures_util::future::try_join_all;
use quire_model::{Matryoshka, PoolerSpec};
use quire_scheduler::{Pooling, SamplingParams, TokenId};

use crate::app::App;
use crate::engine::{FinishKind, GenerateRequest, OutputStream, SubmitError, TextOptions};
use crate::text::{TextError, Tokenizer};
use crate::validate::{ParamError, check_cache_salt};

/// Inputs of one request (OpenAI's limit).
pub const MAX_INPUTS: usize = 2048;
/// No token of a vocabulary stands for so much text; beyond it a text is not worth encoding.
const MAX_TOKEN_BYTES: usize = 512;
/// Texts tokenized by one job of the text pool.
const TEXTS_PER_JOB: usize = 64;

/// How this server's model is pooled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooler {
    /// By its makers or the operator.
    pub spec: PoolerSpec,
    /// Numbers in a whole vector.
    pub width: usize,
}

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// As text.
    Text(String),
    /// In tokens.
    Ids(Vec<TokenId>),
}

/// How the inputs of one request are embedded.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// The client's name for the request, for the log and for aborts by name.
    pub request_id: String,
    /// What an input is called in errors.
    pub input_param: &'static str,
    /// Whether the tokenizer adds what it adds to a text.
    pub add_special_tokens: bool,
    /// Cut inputs that are too long instead of refusing them.
    pub truncate: Option<Truncation>,
    /// Keep so many numbers of each vector.
    pub dimensions: Option<i64>,
    /// Bring vectors to length 1; `None` = as the model wants.
    pub normalize: Option<bool>,
    /// Lower runs first (with `--scheduling-policy priority`).
    pub priority: i32,
    /// Isolates the prefix cache, in which causal models leave the prompt's blocks.
    pub cache_salt: Option<String>,
}

/// What to keep of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// Tokens; `None` = as many as the model takes.
    pub max_tokens: Option<u32>,
    /// Keep the end of it, not the beginning.
    pub keep_end: bool,
}

impl Default for EmbedOptions {
    fn default() -> Self {
        Self {
            request_id: String::new(),
            input_param: "input",
            add_special_tokens: true,
            truncate: None,
            dimensions: None,
            normalize: None,
            priority: 0,
            cache_salt: None,
        }
    }
}

/// One input as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many numbers as were asked for.
    pub values: Vec<f32>,
    /// Tokens of the input.
    pub prompt_tokens: u32,
}

/// Why there are no embeddings.
#[derive(Debug, thiserror::Error)]
pub enum EmbedError {
    /// The server does something else with its model.
    #[error("this server generates text and embeds nothing; start it with --runner pooling for embeddings")]
    NotPooled,
    /// A field of the request is wrong.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A text could not be tokenized.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The engine did not take an input.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// An input was taken and then failed.
    #[error("{0}")]
    Failed(Arc<str>),
}

/// Embeds all inputs, or none of them. The embeddings are in the order of the inputs.
pub async fn embed(
    app: &App,
    inputs: Vec<EmbedInput>,
    options: &EmbedOptions,
) -> Result<Vec<Embedding>, EmbedError> {
    let pooler = app.pooler.as_ref().ok_or(EmbedError::NotPooled)?;
    let width = pooler.check_dimensions(options.dimensions, app.model.name())?;
    let normalize = options.normalize.unwrap_or(pooler.spec.normalize);
    let salt = options.cache_salt.clone().map(check_cache_salt).transpose()?;
    check_number(inputs.len(), options.input_param)?;
    let prompts = tokenize(app, inputs, options).await?;
    let request_id: Arc<str> = options.request_id.as_str().into();
    if app.server.enable_log_requests {
        let prompt_tokens: usize = prompts.iter().map(Vec::len).sum();
        tracing::info!(request_id = &*request_id, inputs = prompts.len(), prompt_tokens, "embedding request");
    }
    let request = |prompt: Vec<TokenId>| GenerateRequest {
        external_id: request_id.clone(),
        prompt_token_ids: prompt.into(),
        sampling: pooled(pooler.spec.pooling),
        seeded: true,
        n: 1,
        priority: options.priority,
        cache_salt: salt.clone(),
        bypass_prefix_cache: true,
        text: TextOptions { detokenize: false, ..TextOptions::default() },
    };
    let mut streams = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let prompt_tokens = prompt.len() as u32;
        // Those taken before a refusal are aborted as their streams are dropped.
        let stream = app.engine.submit(request(prompt)).inspect_err(|error| app.metrics.on_refusal(error))?;
        streams.push((stream, prompt_tokens));
    }
    let embeddings = streams.into_iter().map(async |(stream, prompt_tokens)| {
        let values = cut(vector_of(stream).await?, width, normalize);
        Ok(Embedding { values, prompt_tokens })
    });
    try_join_all(embeddings).await
}

impl Pooler {
    /// How many numbers of a vector to keep.
    fn check_dimensions(&self, asked: Option<i64>, model: &str) -> Result<usize, ParamError> {
        let Some(asked) = asked else { return Ok(self.width) };
        let refuse = |message: String| Err(ParamError::new("dimensions", message));
        let possible = usize::try_from(asked).ok().filter(|asked| (1..=self.width).contains(asked));
        match (&self.spec.matryoshka, possible) {
            (Matryoshka::No, Some(asked)) if asked == self.width => Ok(asked),
            (Matryoshka::No, _) => refuse(format!(
                "model {model:?} does not support matryoshka representation: its embeddings have {} dimensions, \
                 and fewer would be no embedding",
                self.width
            )),
            (Matryoshka::Lengths(lengths), Some(asked)) if lengths.contains(&asked) => Ok(asked),
            (Matryoshka::Lengths(lengths), _) => {
                refuse(format!("dimensions must be one of {lengths:?}, got {asked}"))
            }
            (Matryoshka::Any, Some(asked)) => Ok(asked),
            (Matryoshka::Any, None) => {
                refuse(format!("dimensions must be between 1 and {}, got {asked}", self.width))
            }
        }
    }
}

fn check_number(inputs: usize, param: &str) -> Result<(), ParamError> {
    match inputs {
        0 => Err(ParamError::new(param, "at least one input is needed")),
        1..=MAX_INPUTS => Ok(()),
        _ => Err(ParamError::new(
            param,
            format!("at most {MAX_INPUTS} inputs are allowed in one request, got {inputs}"),
        )),
    }
}

fn pooled(pooling: Pooling) -> SamplingParams {
    SamplingParams { pooling: Some(pooling), max_tokens: 0, ..SamplingParams::default() }
}

/// Waits for the one end of a pooled request.
async fn vector_of(mut stream: OutputStream) -> Result<Vec<f32>, EmbedError> {
    let mut vector = None;
    while let Some(delta) = stream.next().await {
        vector = delta.embedding.take().or(vector);
        let Some(finish) = delta.finish.take() else { continue };
        if let Some(vector) = vector.filter(|_| finish.kind == FinishKind::Stop) {
            return Ok(vector);
        }
        return Err(EmbedError::Failed(
            finish.error.map_or_else(|| "the request was aborted".into(), |error| error.to_string().into()),
        ));
    }
    Err(EmbedError::Failed("the request ended without an answer".into()))
}

/// The first numbers of a vector, of length 1 if wanted. Lengths are summed in f64.
fn cut(mut values: Vec<f32>, width: usize, normalize: bool) -> Vec<f32> {
    values.truncate(width);
    if normalize {
        let norm = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
        // As torch does: a vector of zeros stays one.
        let scale = 1.0 / norm.max(1e-12);
        values.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    }
    values
}

/// The inputs in tokens, each checked.
async fn tokenize(
    app: &App,
    inputs: Vec<EmbedInput>,
    options: &EmbedOptions,
) -> Result<Vec<Vec<TokenId>>, EmbedError> {
    let max = app.limits.max_model_len;
    let encoding = Encoding {
        tokenizer: app.tokenizer.clone(),
        max_model_len: max as usize,
        vocab_size: app.limits.vocab_size,
        param: options.input_param,
        add_special_tokens: options.add_special_tokens,
        truncate: match options.truncate {
            Some(Truncation { max_tokens: Some(keep), .. }) if keep > max => {
                let message =
                    format!("must not be above the model's maximum context length ({max}), got {keep}");
                return Err(ParamError::new("truncate_prompt_tokens", message).into());
            }
            Some(asked) => Some((asked.max_tokens.unwrap_or(max) as usize, asked.keep_end)),
            None => None,
        },
    };
    let single = inputs.len() == 1;
    let mut jobs = Vec::new();
    let mut inputs = inputs.into_iter();
    for first in (0..inputs.len()).step_by(TEXTS_PER_JOB) {
        let (encoding, part): (_, Vec<_>) = (encoding.clone(), inputs.by_ref().take(TEXTS_PER_JOB).collect());
        jobs.push(app.text_pool.run(move || -> Result<Vec<_>, EmbedError> {
            let index = |at: usize| (!single).then_some(first + at);
            part.into_iter().enumerate().map(|(at, input)| encoding.tokens(input, index(at))).collect()
        }));
    }
    let parts = try_join_all(jobs).await?;
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// How inputs become tokens; shared by the jobs of a request.
#[derive(Clone)]
struct Encoding {
    tokenizer: Tokenizer,
    max_model_len: usize,
    vocab_size: u32,
    param: &'static str,
    add_special_tokens: bool,
    /// Tokens to keep, and whether those at the end.
    truncate: Option<(usize, bool)>,
}

impl Encoding {
    /// `index` is the input's place, if there are several.
    fn tokens(&self, input: EmbedInput, index: Option<usize>) -> Result<Vec<TokenId>, EmbedError> {
        let wrong = |message: String| {
            let param = index.map_or(self.param.to_owned(), |index| format!("{}[{index}]", self.param));
            EmbedError::Param(ParamError::new(param, message))
        };
        let ids = match (input, self.truncate) {
            (EmbedInput::Text(text), Some((keep, from_end))) => {
                let text = self.shorten(&text, keep, from_end);
                self.tokenizer.encode_truncated(text, self.add_special_tokens, keep, from_end)?
            }
            (EmbedInput::Text(text), None) if text.len() > self.max_model_len * MAX_TOKEN_BYTES => {
                return Err(wrong(format!(
                    "This model's maximum context length is {} tokens, and a text of {} bytes cannot fit. Please \
                     reduce the length of the input.",
                    self.max_model_len,
                    text.len()
                )));
            }
            (EmbedInput::Text(text), None) => self.tokenizer.encode(&text, self.add_special_tokens)?,
            (EmbedInput::Ids(mut ids), truncate) => {
                match truncate {
                    Some((keep, true)) => drop(ids.drain(..ids.len().saturating_sub(keep))),
                    Some((keep, false)) => ids.truncate(keep),
                    None => {}
                }
                ids
            }
        };
        if ids.is_empty() {
            return Err(wrong("the input is empty; at least one token is needed".into()));
        }
        if let Some(id) = ids.iter().find(|&&id| id >= self.vocab_size) {
            let last = self.vocab_size - 1;
            return Err(wrong(format!("token id {id} is out of the vocabulary; ids go from 0 to {last}")));
        }
        if ids.len() > self.max_model_len {
            return Err(wrong(format!(
                "This model's maximum context length is {} tokens. However, your input has {} tokens. Please \
                 reduce the length of the input, or set truncate_prompt_tokens.",
                self.max_model_len,
                ids.len()
            )));
        }
        Ok(ids)
    }

    /// Cuts off what will be truncated anyway, far from what remains.
    fn shorten<'a>(&self, text: &'a str, keep: usize, from_end: bool) -> &'a str {
        let bytes = 2 * keep * MAX_TOKEN_BYTES;
        match from_end {
            true => &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..],
            false => &text[..text.floor_char_boundary(bytes)],
        }
    }
}
