//! The gRPC front end, for one port: three dialects (`vllm`, `vllm.grpc.engine`, `openengine.v1`), health and
//! reflection.
//!
//! Translates protobuf into [`crate::validate`] and [`crate::engine`] and back; decides nothing itself.

mod admin;
mod auth;
mod call;
mod control;
mod health;
mod inference;
mod kv_events;
mod load_report;
mod lora;
mod openengine;
mod status;
mod structured;
#[cfg(test)]
mod tests;
mod translate;
mod vllm_engine;

use std::sync::Arc;

use quire_proto::openengine::v1::control_server::ControlServer as OpenEngineControlServer;
use quire_proto::openengine::v1::inference_server::InferenceServer as OpenEngineInferenceServer;
use quire_proto::vllm::control_server::ControlServer;
use quire_proto::vllm::grpc::engine::vllm_engine_server::VllmEngineServer;
use quire_proto::vllm::inference_server::InferenceServer;
use tonic::service::{InterceptorLayer, Routes};
use tonic_health::pb::health_server::HealthServer;
use tower::Layer;

use self::auth::Guard;
use self::control::Control;
use self::health::Health;
use self::inference::Inference;
use self::load_report::Reporting;
use self::vllm_engine::VllmEngine;
use crate::api_keys::ApiKeys;
use crate::app::App;

/// Bytes of a request message at most, decoded; vLLM's limit.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// All services.
///
/// Health follows the engine by itself: it says NOT_SERVING from
/// [`start_draining`](crate::engine::EngineHandle::start_draining) on, or when the engine died or stalls,
/// and its watches end when draining starts, so that they do not hold up a graceful shutdown.
pub fn routes(app: Arc<App>) -> Routes {
    let keys = InterceptorLayer::new(Guard::new(ApiKeys::new(&app.server.api_keys)));
    let inference =
        InferenceServer::new(Inference::new(app.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let control = ControlServer::new(Control::new(app.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let engine =
        VllmEngineServer::new(VllmEngine::new(app.clone())).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let open_inference = OpenEngineInferenceServer::new(openengine::Inference::new(app.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let open_control = OpenEngineControlServer::new(openengine::Control::new(app.clone()))
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    Routes::default()
        .add_service(keys.layer(Reporting::new(open_inference, app.clone())))
        .add_service(keys.layer(open_control))
        .add_service(keys.layer(Reporting::new(engine, app.clone())))
        .add_service(keys.layer(Reporting::new(inference, app.clone())))
        .add_service(keys.layer(control))
        .add_service(HealthServer::new(Health::new(app)))
        // grpcurl and others still speak only v1alpha.
        .add_service(keys.layer(reflection().build_v1().expect("our descriptors are valid")))
        .add_service(keys.layer(reflection().build_v1alpha().expect("our descriptors are valid")))
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(quire_proto::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}
