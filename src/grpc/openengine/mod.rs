//! `openengine.v1`, a contract for engines that belongs to no vendor: its two services.
//!
//! What is wrong with a request is a gRPC status. What goes wrong with one that was taken is an `EngineError` in
//! the last response, and the call itself ends well.

mod control;
mod generate;
mod kv_events;

use std::sync::Arc;

use quire_proto::openengine::v1::{GenerateRequest, GenerateResponse, inference_server};
use tonic::{Request, Response, Status};

pub(super) use self::control::Control;
use super::call::{Caller, Messages, guarded, messages};
use crate::app::App;

/// The service that generates.
#[derive(Debug)]
pub(super) struct Inference(Arc<App>);

impl Inference {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl inference_server::Inference for Inference {
    type GenerateStream = Messages<GenerateResponse>;

    async fn generate(
        &self,
        request: Request<GenerateRequest>,
    ) -> Result<Response<Self::GenerateStream>, Status> {
        let (metadata, _, mut request) = request.into_parts();
        let priority = generate::priority(&metadata)?;
        let caller = Caller::read(&metadata, std::mem::take(&mut request.request_id))?;
        let call = guarded(generate::submit(&self.0, request, priority, &caller)).await?;
        Ok(caller.answer(messages(Box::new(call), |mut call| async move { (call.next().await, call) })))
    }
}
