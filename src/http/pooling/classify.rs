//! `POST /classify`: refused by name. It needs a model with a classification head, and none is built.

use crate::http::error::ApiError;

/// The handler.
pub(crate) async fn classify() -> ApiError {
    ApiError::not_implemented(
        "classification is not built: it needs a model with a classification head; see /v1/embeddings, /v1/score \
         and /v1/rerank",
    )
}
