//! Errors as gRPC statuses, with `google.rpc` details for clients that read them.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::app::App;
use crate::engine::SubmitError;
use crate::text::TextError;
use crate::validate::ParamError;

/// What a client is told to wait when the server is overloaded.
const RETRY_DELAY: Duration = Duration::from_secs(1);

/// Where [`crate::validate`]'s names are in a request of some dialect. What it is told by us is a path already.
pub(super) type FieldPath = fn(&str) -> &str;

/// A field of the request is wrong.
pub(super) fn invalid(error: &ParamError, path: FieldPath) -> Status {
    invalid_field(path(&error.param), &error.message)
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

/// The text in this field could not be turned into tokens.
pub(super) fn not_tokenized(error: &TextError, field: &str) -> Status {
    match error {
        TextError::Overloaded { .. } => overloaded(&error.to_string()),
        TextError::Encode { .. } => invalid_field(field, &error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

/// The request names a model that is not served.
pub(super) fn no_such_model(app: &App, model: &str) -> Status {
    Status::not_found(format!("model {model:?} is not served here; {:?} is", app.model.name()))
}

fn overloaded(message: &str) -> Status {
    let details = ErrorDetails::with_retry_info(Some(RETRY_DELAY));
    Status::with_error_details(Code::ResourceExhausted, message, details)
}
