//! `Embed` of this dialect: a prompt in tokens becomes a vector.

use quire_proto::vllm::grpc::engine::{EmbedRequest, EmbedResponse};
use tonic::Status;

use super::super::call::Caller;
use super::super::status::{invalid_field, not_taken, not_tokenized};
use crate::app::App;
use crate::embed::{self, EmbedError, EmbedInput, EmbedOptions};

const INPUT: &str = "tokenized";

/// Embeds the prompt, unless the caller's time is over before.
pub(super) async fn embed(
    app: &App,
    request: EmbedRequest,
    caller: &Caller,
) -> Result<EmbedResponse, Status> {
    let Some(prompt) = request.tokenized else {
        return Err(invalid_field(INPUT, "the prompt is needed, in tokens"));
    };
    let request_id = caller.request_id.clone();
    let options = EmbedOptions { request_id, input_param: INPUT, ..EmbedOptions::default() };
    let inputs = vec![EmbedInput::Ids(prompt.input_ids)];
    let embeddings = caller.in_time(embed::embed(app, inputs, &options)).await?.map_err(refused)?;
    let embedding = embeddings.into_iter().next().ok_or_else(|| Status::internal("there is no embedding"))?;
    Ok(EmbedResponse {
        embedding_dim: embedding.values.len() as u32,
        prompt_tokens: embedding.prompt_tokens,
        embedding: embedding.values,
    })
}

fn refused(error: EmbedError) -> Status {
    match error {
        EmbedError::NotPooled | EmbedError::WrongTask { .. } => Status::unimplemented(error.to_string()),
        EmbedError::Param(error) => invalid_field(INPUT, &error.message),
        EmbedError::Text(error) => not_tokenized(&error, INPUT),
        EmbedError::Submit(error) => not_taken(&error),
        EmbedError::Aborted => Status::aborted(error.to_string()),
        EmbedError::Failed(reason) => Status::internal(&*reason),
    }
}
