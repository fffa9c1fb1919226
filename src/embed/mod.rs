//! Pooled models: texts or tokens in, vectors or the logits of labels out. What HTTP, gRPC and Ollama's API have in
//! common.
//!
//! Each input is a request of its own to the engine, so that they share steps with each other and with those
//! of other clients.

use std::sync::Arc;

use futures_util::future::try_join_all;
use quire_model::{LabelActivation, Labels, Matryoshka, PoolerSpec};
use quire_scheduler::{Adapter, SamplingParams, TokenId};

use crate::app::App;
use crate::engine::{FinishError, FinishKind, GenerateRequest, OutputStream, SubmitError, TextOptions};
use crate::text::{TextError, Tokens};
use crate::validate::{ParamError, check_cache_salt};

mod encode;

use self::encode::encode;

/// Inputs of one request (OpenAI's limit).
pub const MAX_INPUTS: usize = 2048;

/// How this server's model is pooled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pooler {
    /// By its makers or the operator.
    pub spec: PoolerSpec,
    /// Numbers in a whole vector, or labels.
    pub width: usize,
    /// Whether two texts are compared by joining them as the tokenizer does, with separators (encoders), or as they
    /// are (decoders, as in vLLM).
    pub joins_pairs: bool,
}

/// What a pooled model is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolTask {
    /// A vector of the text.
    Embed,
    /// The probabilities of labels.
    Classify,
}

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedInput {
    /// As text.
    Text(String),
    /// In tokens.
    Ids(Vec<TokenId>),
    /// Two texts that are seen together, such as a query and a document.
    Pair(String, String),
}

/// How the inputs of one request are embedded.
#[derive(Debug, Clone)]
pub struct EmbedOptions {
    /// The client's name for the request, for the log and for aborts by name.
    pub request_id: String,
    /// What is asked for; `None` = whatever the model gives.
    pub task: Option<PoolTask>,
    /// What an input is called in errors.
    pub input_param: &'static str,
    /// Whether the tokenizer adds what it adds to a text.
    pub add_special_tokens: bool,
    /// Cut inputs that are too long instead of refusing them.
    pub truncate: Option<Truncation>,
    /// Cut texts to so many tokens of their own before that: the first of a pair and the second.
    pub max_text_tokens: [Option<u32>; 2],
    /// Fill inputs up to the length of the context with the tokenizer's token for it.
    pub pad: bool,
    /// Refuse inputs of more tokens than this, though the model would take them.
    pub max_prompt_tokens: Option<u32>,
    /// Keep so many numbers of each vector.
    pub dimensions: Option<i64>,
    /// Bring vectors to length 1, or make probabilities of logits; `None` = as the model wants.
    pub use_activation: Option<bool>,
    /// Lower runs first (with `--scheduling-policy priority`).
    pub priority: i32,
    /// Isolates the prefix cache, in which causal models leave the prompt's blocks.
    pub cache_salt: Option<String>,
    /// The adapter to run with.
    pub adapter: Option<Adapter>,
}

/// What to keep of an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
            task: Some(PoolTask::Embed),
            input_param: "input",
            add_special_tokens: true,
            truncate: None,
            max_text_tokens: [None; 2],
            pad: false,
            max_prompt_tokens: None,
            dimensions: None,
            use_activation: None,
            priority: 0,
            cache_salt: None,
            adapter: None,
        }
    }
}

/// One input as a vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// As many numbers as were asked for, or one a label.
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
    /// The model is of the other kind.
    #[error(
        "{}",
        match task {
            PoolTask::Embed => "the model classifies and gives no embeddings; see /classify, /score and /rerank",
            PoolTask::Classify => "the model embeds and has no labels; see /v1/embeddings",
        }
    )]
    WrongTask {
        /// What was asked for.
        task: PoolTask,
    },
    /// A field of the request is wrong.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// A text could not be tokenized.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The engine did not take an input.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// An input was taken, and somebody ended it: an operator, or the shutdown of the server.
    #[error("the request was aborted")]
    Aborted,
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
    if let Some(task) = options.task.filter(|task| *task != pooler.task()) {
        return Err(EmbedError::WrongTask { task });
    }
    let width = pooler.check_dimensions(options.dimensions, app.model.name())?;
    let salt = options.cache_salt.clone().map(check_cache_salt).transpose()?;
    check_number(inputs.len(), options.input_param)?;
    // Before the texts are encoded, which may take long.
    app.engine.check_room(inputs.len(), true).inspect_err(|error| app.metrics.on_refusal(error))?;
    let prompts = encode(app, pooler, inputs, options).await?;
    let request_id: Arc<str> = options.request_id.as_str().into();
    if app.server.enable_log_requests {
        let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
        tracing::info!(request_id = &*request_id, inputs = prompts.len(), prompt_tokens, "embedding request");
    }
    let request = |prompt: Tokens| GenerateRequest {
        external_id: request_id.clone(),
        prompt_token_ids: prompt.ids.into(),
        sampling: SamplingParams {
            pooling: Some(pooler.spec.pooling),
            second_text_start: prompt.second_text_start,
            max_tokens: 0,
            ..SamplingParams::default()
        },
        seeded: true,
        n: 1,
        priority: options.priority,
        cache_salt: salt.clone(),
        bypass_prefix_cache: true,
        adapter: options.adapter.clone(),
        text: TextOptions { detokenize: false, ..TextOptions::default() },
    };
    let mut streams = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let prompt_tokens = prompt.ids.len() as u32;
        // Those taken before a refusal are aborted as their streams are dropped.
        let stream = app.engine.submit(request(prompt)).inspect_err(|error| app.metrics.on_refusal(error))?;
        streams.push((stream, prompt_tokens));
    }
    let embeddings = streams.into_iter().map(async |(stream, prompt_tokens)| {
        let values = pooler.finish(vector_of(stream).await?, width, options.use_activation);
        Ok(Embedding { values, prompt_tokens })
    });
    try_join_all(embeddings).await
}

impl Pooler {
    /// What the model does.
    pub fn task(&self) -> PoolTask {
        if self.labels().is_some() { PoolTask::Classify } else { PoolTask::Embed }
    }

    /// What the numbers mean, if they are no embedding.
    pub fn labels(&self) -> Option<&Labels> {
        self.spec.labels.as_ref()
    }

    /// A vector as it is answered.
    fn finish(&self, mut values: Vec<f32>, width: usize, use_activation: Option<bool>) -> Vec<f32> {
        match self.labels() {
            None => {
                values.truncate(width);
                if use_activation.unwrap_or(self.spec.normalize) {
                    normalize(&mut values);
                }
            }
            Some(labels) if use_activation.unwrap_or(true) => activate(&mut values, labels.activation),
            Some(_) => {}
        }
        values
    }

    /// How many numbers of a vector to keep.
    fn check_dimensions(&self, asked: Option<i64>, model: &str) -> Result<usize, ParamError> {
        let Some(asked) = asked else { return Ok(self.width) };
        let refuse = |message: String| Err(ParamError::new("dimensions", message));
        if self.labels().is_some() {
            return refuse(format!("the model gives {} labels, and no vector that could be cut", self.width));
        }
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

/// Waits for the one end of a pooled request.
async fn vector_of(mut stream: OutputStream) -> Result<Vec<f32>, EmbedError> {
    let mut vector = None;
    while let Some(delta) = stream.next().await {
        vector = delta.embedding.take().or(vector);
        let Some(finish) = delta.finish.take() else { continue };
        if let Some(vector) = vector.filter(|_| finish.kind == FinishKind::Stop) {
            return Ok(vector);
        }
        let failed = |error: FinishError| EmbedError::Failed(error.to_string().into());
        return Err(finish.error.map_or(EmbedError::Aborted, failed));
    }
    Err(EmbedError::Failed("the request ended without an answer".into()))
}

/// Brings a vector to length 1. Lengths are summed in f64.
fn normalize(values: &mut [f32]) {
    let norm = values.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    // As torch does: a vector of zeros stays one.
    let scale = 1.0 / norm.max(1e-12);
    values.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
}

/// Makes probabilities of logits.
fn activate(logits: &mut [f32], activation: LabelActivation) {
    match activation {
        LabelActivation::Identity => {}
        LabelActivation::Sigmoid => {
            logits.iter_mut().for_each(|x| *x = (1.0 / (1.0 + (-f64::from(*x)).exp())) as f32);
        }
        LabelActivation::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weight = |x: f32| f64::from(x - max).exp();
            let total: f64 = logits.iter().map(|x| weight(*x)).sum();
            logits.iter_mut().for_each(|x| *x = (weight(*x) / total) as f32);
        }
    }
}
