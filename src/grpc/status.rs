//! Errors as gRPC statuses, with `google.rpc` details for clients that read them.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::engine::SubmitError;
use crate::text::TextError;
use crate::validate::ParamError;

/// What a client is told to wait when the server is overloaded.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// A field of the request is wrong.
pub(super) fn invalid(error: &ParamError) -> Status {
    invalid_field(field_path(&error.param), &error.message)
}

/// The field with this path is wrong.
pub(super) fn invalid_field(path: &str, message: &str) -> Status {
    let details = ErrorDetails::with_bad_request_violation(path, message);
    Status::with_error_details(Code::InvalidArgument, format!("{path}: {message}"), details)
}

/// The request was not taken.
pub(super) fn not_taken(error: &SubmitError) -> Status {
    match error {
        SubmitError::Overloaded { .. } => overloaded(&error.to_string()),
        SubmitError::WrongTask { .. } => Status::unimplemented(error.to_string()),
        SubmitError::Draining | SubmitError::Dead(_) => Status::unavailable(error.to_string()),
    }
}

/// The prompt's text could not be turned into tokens.
pub(super) fn not_tokenized(error: &TextError) -> Status {
    match error {
        TextError::Overloaded { .. } => overloaded(&error.to_string()),
        TextError::Encode { .. } => invalid_field("text", &error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

fn overloaded(message: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// Where [`crate::validate`]'s names are in a `GenerateRequest`. What it is told by us is a path already.
fn field_path(param: &str) -> &str {
    match param {
        "n" => "sampling.num_sequences",
        "top_k" => "sampling.top_k",
        "top_p" => "sampling.top_p",
        "min_p" => "sampling.min_p",
        "presence_penalty" => "decoding.presence_penalty",
        "frequency_penalty" => "decoding.frequency_penalty",
        "repetition_penalty" => "decoding.repetition_penalty",
        "logit_bias" => "decoding.logit_bias",
        "allowed_token_ids" => "decoding.allowed_token_ids",
        "bad_words" => "decoding.bad_words_token_ids",
        "min_tokens" => "stopping.min_new_tokens",
        "stop" => "stopping.stop_strings",
        "stop_token_ids" => "stopping.stop_token_ids",
        "prompt_logprobs" => "response.prompt_candidates",
        "cache_salt" => "kv.cache_salt",
        "input_tokens" => "prompt",
        path => path,
    }
}
