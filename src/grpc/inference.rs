//! `vllm.Inference`: one call is one request to the engine; the answer is read from its
//! [`OutputStream`](crate::engine::OutputStream) as fast as the client takes it, with nothing in between.

use std::collections::VecDeque;
use std::sync::Arc;

use quire_proto::vllm::generate_request::Prompt;
use quire_proto::vllm::{GenerateRequest, GenerateResponse, inference_server};
use tonic::{Request, Response, Status};

use super::call::{Caller, Generation, Messages, checked, guarded, messages, tokenize};
use super::lora;
use super::status::invalid_field;
use super::structured;
use super::translate::{self, Shape};
use crate::app::App;
use crate::engine::PromptOutput;
use crate::validate::RequestFields;

/// The service.
#[derive(Debug)]
pub(super) struct Inference(Arc<App>);

impl Inference {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl inference_server::Inference for Inference {
    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<GenerateResponse>, Status> {
        // The schema has room for one sequence in an answer, and a second one must not be lost in silence.
        if request.get_ref().sampling.is_some_and(|sampling| sampling.num_sequences > 1) {
            let message = "one answer holds one sequence; use GenerateStream for more";
            return Err(invalid_field("sampling.num_sequences", message));
        }
        let (mut call, caller) = accept(&self.0, request).await?;
        let whole = guarded(call.whole()).await?;
        Ok(caller.answer(whole))
    }

    type GenerateStreamStream = Messages<GenerateResponse>;

    async fn generate_stream(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStreamStream>, Status> {
        let (call, caller) = accept(&self.0, request).await?;
        let stream = messages(Box::new(call), |mut call| async move { (call.next().await, call) });
        Ok(caller.answer(stream))
    }
}

/// Checks a call and hands it to the engine.
async fn accept(app: &App, request: Request<GenerateRequest>) -> Result<(Call, Caller), Status> {
    let (metadata, _, mut request) = request.into_parts();
    let caller = Caller::read(&metadata, std::mem::take(&mut request.request_id))?;
    let call = guarded(submit(app, request, &caller)).await?;
    Ok((call, caller))
}

async fn submit(app: &App, mut request: GenerateRequest, caller: &Caller) -> Result<Call, Status> {
    let adapter = lora::adapter_of(app, &request.model, &request.lora_name).await?;
    translate::refuse_unsupported(&request)?;
    let kind = request.decoding.as_mut().and_then(|decoding| decoding.structured_output.take());
    let constraint = structured::constraint(kind)?;
    let (mut sampling, shape) = translate::sampling(&mut request, &app.limits.defaults)?;
    sampling.grammar = structured::compile(app, constraint).await?;
    let prompt = match request.prompt.take() {
        Some(Prompt::TokenIds(tokens)) => tokens.ids,
        Some(Prompt::Text(text)) => tokenize(app, text, "text").await?,
        None => return Err(invalid_field("prompt", "one of text and token_ids is needed")),
    };
    let fields = translate::request_fields(request, caller.request_id.clone(), prompt);
    let fields = RequestFields { adapter, ..fields };
    let request = checked(app, fields, sampling, translate::field_path)?;
    let num_cached_tokens = vec![0; request.n as usize];
    let generation = caller.submit(app, request)?;
    Ok(Call { generation, shape, num_cached_tokens, prompt_sent: false, ready: VecDeque::new() })
}

/// One request on its way back.
struct Call {
    generation: Generation,
    shape: Shape,
    /// By sequence; known from its first delta, sent with its last.
    num_cached_tokens: Vec<u32>,
    prompt_sent: bool,
    /// Messages to send before the engine is asked again; while the prompt's facts have not been sent,
    /// messages that must wait for them.
    ready: VecDeque<GenerateResponse>,
}

impl Call {
    /// The next message of a stream; `None` after the last.
    async fn next(&mut self) -> Result<Option<GenerateResponse>, Status> {
        loop {
            if self.prompt_sent
                && let Some(message) = self.ready.pop_front()
            {
                return Ok(Some(message));
            }
            let Some(delta) = self.generation.next().await? else {
                return Ok(None);
            };
            let prompt = delta.prompt.take();
            if let Some(prompt) = &prompt {
                self.num_cached_tokens[delta.index as usize] = prompt.num_cached_tokens;
            }
            let num_cached_tokens = self.num_cached_tokens[delta.index as usize];
            let is_first = delta.index == 0 || !self.shape.needs_prompt_logprobs();
            let outputs = self.shape.sequence_output(delta, num_cached_tokens);
            let message = GenerateResponse { prompt_info: None, outputs: Some(outputs) };
            if self.prompt_sent {
                return Ok(Some(message));
            }
            self.ready.push_back(message);
            if is_first {
                self.prompt_sent = true;
                let info =
                    self.shape.prompt_info(&self.generation.prompt_token_ids, &prompt.unwrap_or_default());
                return Ok(Some(GenerateResponse { prompt_info: Some(info), outputs: None }));
            }
        }
    }

    /// All of sequence 0 in one message.
    async fn whole(&mut self) -> Result<GenerateResponse, Status> {
        let mut prompt = PromptOutput::default();
        let mut whole = quire_proto::vllm::SequenceOutput::default();
        while let Some(delta) = self.generation.next().await? {
            if let Some(first) = delta.prompt.take() {
                prompt = first;
            }
            translate::append(&mut whole, self.shape.sequence_output(delta, prompt.num_cached_tokens));
        }
        let prompt_info = self.shape.prompt_info(&self.generation.prompt_token_ids, &prompt);
        Ok(GenerateResponse { prompt_info: Some(prompt_info), outputs: Some(whole) })
    }
}
