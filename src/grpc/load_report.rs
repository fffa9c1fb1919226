//! Load reports in the trailers of calls that generate: [`Reporting`] stands around a service.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http_body_util::BodyExt;
use prost::Message;
use quire_proto::orca::OrcaLoadReport;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::server::NamedService;

use crate::app::App;
use crate::load_report::LoadReport;

/// gRFC A51.
const TRAILER: &str = "endpoint-load-metrics-bin";

/// A service whose calls to `Generate...` end with the report of that moment.
#[derive(Debug, Clone)]
pub(super) struct Reporting<S> {
    service: S,
    app: Arc<App>,
}

impl<S> Reporting<S> {
    pub(super) fn new(service: S, app: Arc<App>) -> Self {
        Self { service, app }
    }
}

impl<S: NamedService> NamedService for Reporting<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Reporting<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next();
        let generates = method.is_some_and(|method| method.starts_with("Generate"));
        let answer = self.service.call(request);
        let app = self.app.clone();
        Box::pin(async move {
            let answer = answer.await?;
            Ok(if generates { with_report(answer, app) } else { answer })
        })
    }
}

fn with_report(answer: Response<Body>, app: Arc<App>) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
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
    Response::from_parts(head, Body::new(body))
}

fn trailer(app: &App) -> HeaderMap {
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
