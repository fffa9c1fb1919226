//! `grpc.health.v1.Health`: whether the engine makes progress, asked at the moment of the question.
//!
//! The messages are `tonic-health`'s; its server is not used, because it keeps a status that somebody
//! would have to keep up to date.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, stream};
use quire_proto::openengine::v1::control_server::SERVICE_NAME as OPENENGINE_CONTROL;
use quire_proto::openengine::v1::inference_server::SERVICE_NAME as OPENENGINE_INFERENCE;
use quire_proto::vllm::control_server::SERVICE_NAME as CONTROL;
use quire_proto::vllm::grpc::engine::vllm_engine_server::SERVICE_NAME as VLLM_ENGINE;
use quire_proto::vllm::inference_server::SERVICE_NAME as INFERENCE;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_server};

use crate::app::App;

/// How often a watch looks. Nobody looks if nobody watches.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The service.
#[derive(Debug)]
pub(super) struct Health(Arc<App>);

impl Health {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        match status(&self.0, &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(Status::not_found("no such service")),
            status => Ok(Response::new(response(status))),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let watch = Watch { app: self.0.clone(), service: request.into_inner().service, last: None };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watch::next))))
    }
}

struct Watch {
    app: Arc<App>,
    service: String,
    last: Option<ServingStatus>,
}

impl Watch {
    /// The status at first, then each change. Ends once the client has been told of a shutdown: an open
    /// stream would hold it up.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            let now = status(&self.app, &self.service);
            if self.last.replace(now) != Some(now) {
                return Some((Ok(response(now)), self));
            }
            if self.app.engine.is_draining() {
                return None;
            }
            tokio::time::sleep(WATCH_INTERVAL).await;
        }
    }
}

fn status(app: &App, service: &str) -> ServingStatus {
    let services = [INFERENCE, CONTROL, VLLM_ENGINE, OPENENGINE_INFERENCE, OPENENGINE_CONTROL];
    if !service.is_empty() && !services.contains(&service) {
        return ServingStatus::ServiceUnknown;
    }
    if health_problem(app).is_some() { ServingStatus::NotServing } else { ServingStatus::Serving }
}

/// Why no requests should come here, if they should not.
pub(super) fn health_problem(app: &App) -> Option<String> {
    let stats = app.engine.stats();
    if let Some(reason) = stats.death() {
        return Some(format!("the engine has stopped: {reason}"));
    }
    if app.engine.is_draining() {
        return Some("the server is shutting down".into());
    }
    let stalled = stats.stalled_for();
    (stalled > app.server.stall_timeout).then(|| format!("no step has ended for {} s", stalled.as_secs()))
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}
