//! Load reports in the trailers of calls that generate.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use prost::Message;
use quire_proto::orca::OrcaLoadReport;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};

use crate::app::App;
use crate::load_report::LoadReport;

/// gRFC A51.
const TRAILER: &str = "endpoint-load-metrics-bin";

/// Middleware: puts the report of that moment into the trailers.
pub(super) async fn report(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    if !request.uri().path().rsplit('/').next().is_some_and(|method| method.starts_with("Generate")) {
        return next.run(request).await;
    }
    let (mut head, body) = next.run(request).await.into_parts();
    // An answer that is an error alone has its trailers in its head.
    if head.headers.contains_key("grpc-status") {
        head.headers.extend(trailer(&app));
    }
    let body = body.map_frame(move |mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            trailers.extend(trailer(&app));
        }
        frame
    });
    Response::from_parts(head, axum::body::Body::new(body))
}

fn trailer(app: &App) -> axum::http::HeaderMap {
    let report = LoadReport::of(app);
    let report = OrcaLoadReport {
        named_metrics: report.named_metrics().map(|(name, value)| (name.to_owned(), value)).into(),
        application_utilization: report.utilization,
        ..OrcaLoadReport::default()
    };
    let mut metadata = MetadataMap::new();
    metadata.insert_bin(TRAILER, BinaryMetadataValue::from_bytes(&report.encode_to_vec()));
    metadata.into_headers()
}
