//! API keys in the metadata of a call, as on HTTP.

use std::sync::Arc;

use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::api_keys::ApiKeys;

/// Lets calls pass that bear one of the keys.
#[derive(Debug, Clone)]
pub(super) struct Guard(Arc<ApiKeys>);

impl Guard {
    pub(super) fn new(keys: ApiKeys) -> Self {
        Self(Arc::new(keys))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        if self.0.admit(request.metadata().get("authorization").map(|value| value.as_bytes())) {
            return Ok(request);
        }
        let message = "a valid API key is needed: send it as metadata 'authorization: Bearer <key>'";
        Err(Status::unauthenticated(message))
    }
}
