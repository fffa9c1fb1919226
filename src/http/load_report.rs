//! Load reports in headers of answers, in the format the client names (vLLM's form of ORCA).

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderValue;
use axum::middleware::Next;
use axum::response::Response;

use super::HttpState;
use crate::load_report::LoadReport;

const ASKED: &str = "endpoint-load-metrics-format";
const REPORT: &str = "endpoint-load-metrics";

/// Middleware: adds the report if the client asks for TEXT or JSON. Other words ask for nothing, as in vLLM.
pub(super) async fn report(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let format = request.headers().get(ASKED).and_then(|format| format.to_str().ok()).map(str::to_uppercase);
    let mut response = next.run(request).await;
    let Some(format) = format else { return response };
    let metrics = LoadReport::of(&state.app).named_metrics();
    let text = match format.as_str() {
        "TEXT" => {
            let metrics = metrics.map(|(name, value)| format!("named_metrics.{name}={value}"));
            format!("TEXT {}", metrics.join(", "))
        }
        "JSON" => {
            let metrics = metrics.map(|(name, value)| format!("\"{name}\": {value}"));
            format!("JSON {{\"named_metrics\": {{{}}}}}", metrics.join(", "))
        }
        _ => return response,
    };
    if let Ok(text) = HeaderValue::try_from(text) {
        response.headers_mut().insert(REPORT, text);
    }
    response
}
