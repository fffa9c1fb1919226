//! HTTP: OpenAI's API with vLLM's extras, and the routes for operators.
//!
//! This module translates: JSON into [`GenerateRequest`]s, output into JSON or server-sent events, errors
//! into status codes. It decides nothing about scheduling, and nothing behind it knows of HTTP.

mod absent;
mod admin;
mod anthropic;
mod auth;
mod chat;
mod completions;
mod error;
mod events;
mod fields;
mod generative_scoring;
mod inference;
mod invocations;
mod json;
mod load_report;
mod logprobs;
mod lora;
mod models;
mod ollama;
mod openapi;
mod ops;
mod page;
mod part;
mod pooling;
mod prompt;
mod reply;
mod request_metrics;
mod responses;
mod routes;
mod sampling;
mod sse;
mod structured;
#[cfg(test)]
pub(crate) mod tests;
mod tokenize;
mod tokenizer_info;
mod unsupported;
mod usage;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequestParts, MatchedPath, OriginalUri, Request, State};
use axum::http::header::{CONNECTION, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Version};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use quire_scheduler::Adapter;

use self::error::ApiError;
use self::prompt::Encoder;
use self::reply::ReplyStyle;
use self::responses::ResponseStore;
use crate::api_keys::ApiKeys;
use crate::app::App;
use crate::chat::Conversation;
use crate::config::CorsConfig;
use crate::engine::{GenerateRequest, OutputStream};
use crate::text::ChatTemplate;

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes.
pub fn router(app: Arc<App>) -> Router {
    let state = Arc::new(HttpState {
        api_keys: ApiKeys::new(&app.server.api_keys),
        encoder: Encoder::new(app.tokenizer.clone(), &app.limits),
        openapi: OnceLock::new(),
        responses: Arc::default(),
        style: ReplyStyle::of(&app),
        app,
    });
    let mut router = routes::router(&state.app)
        .fallback(no_such_route)
        .method_not_allowed_fallback(async || ApiError::method_not_allowed())
        .layer(from_fn_with_state(state.clone(), load_report::report))
        .layer(from_fn(catch_panic))
        .layer(from_fn_with_state(state.clone(), auth::check))
        .layer(from_fn(anthropic::shape_errors))
        .layer(from_fn_with_state(state.clone(), count));
    if state.app.server.enable_request_id_headers {
        router = router.layer(from_fn(echo_request_id));
    }
    if !state.app.server.cors.origins.is_empty() {
        router = router.layer(cors(&state.app.server.cors));
    }
    routes::under(&state.app.server.root_path, router.with_state(state.clone()))
}

/// What a request runs with.
struct Served {
    /// The name to answer with.
    name: String,
    adapter: Option<Adapter>,
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct HttpState {
    pub(crate) app: Arc<App>,
    pub(crate) api_keys: ApiKeys,
    pub(crate) encoder: Encoder,
    /// `/openapi.json`, once somebody has asked for it.
    pub(crate) openapi: OnceLock<Bytes>,
    pub(crate) responses: Arc<ResponseStore>,
    pub(crate) style: ReplyStyle,
}

impl HttpState {
    /// What a request's `model` names, if there is such a thing.
    async fn served(&self, asked: Option<String>) -> Result<Served, ApiError> {
        self.check_model(asked.as_deref())?;
        let asked = asked.unwrap_or_default();
        match self.app.adapter_of(&asked).await? {
            None => Ok(Served { name: self.app.model.name().to_owned(), adapter: None }),
            adapter => Ok(Served { name: asked, adapter }),
        }
    }

    /// Refuses the name of what is not served.
    fn check_model(&self, asked: Option<&str>) -> Result<(), ApiError> {
        match asked {
            Some(name) if !self.app.serves(name) => Err(ApiError::unknown_model(name, &self.app.all_names())),
            _ => Ok(()),
        }
    }

    /// The prompt's text. Takes time: work for the text pool.
    fn render(&self, conversation: &Conversation) -> Result<String, ApiError> {
        let Some(own) = &conversation.template else {
            return Ok(conversation.render(self.chat_template()?)?);
        };
        if !self.app.server.trust_request_chat_template {
            let message = "Chat template is passed with request, but --trust-request-chat-template is not set. \
                           Refused request with untrusted chat template.";
            return Err(ApiError::bad_param("chat_template", message));
        }
        Ok(conversation.render_by(own, self.app.tokenizer.special_tokens())?)
    }

    fn chat_template(&self) -> Result<&ChatTemplate, ApiError> {
        let message = "the model has no chat template, so it cannot chat; see --chat-template";
        self.app.chat_template.as_ref().ok_or_else(|| ApiError::bad_param("messages", message))
    }

    /// Hands requests to the engine; all or none.
    fn submit(&self, requests: Vec<GenerateRequest>) -> Result<Vec<OutputStream>, ApiError> {
        let engine = &self.app.engine;
        let total = requests.iter().map(|request| request.n as usize).sum();
        let pooled = requests.iter().any(|request| request.sampling.pooling.is_some());
        engine.check_room(total, pooled).inspect_err(|error| self.app.metrics.on_refusal(error))?;
        let mut streams = Vec::with_capacity(requests.len());
        for request in requests {
            if self.app.server.enable_log_requests {
                log_request(&request);
            }
            // Others may have come in between: those taken before a refusal are aborted as their streams are dropped.
            streams.push(engine.submit(request).inspect_err(|error| self.app.metrics.on_refusal(error))?);
        }
        Ok(streams)
    }
}

/// What was asked, but never the text.
fn log_request(request: &GenerateRequest) {
    tracing::info!(
        request_id = &*request.external_id,
        prompt_tokens = request.prompt_token_ids.len(),
        n = request.n,
        priority = request.priority,
        max_tokens = request.sampling.max_tokens,
        temperature = request.sampling.temperature,
        top_p = request.sampling.top_p,
        top_k = request.sampling.top_k,
        seed = request.seeded.then_some(request.sampling.seed),
        "request"
    );
}

/// The client's name for its request.
pub(crate) struct RequestName {
    /// Its header `X-Request-Id`.
    pub(crate) sent: Option<String>,
    /// What the answer's `X-Request-Id` will be where it sent none, if there will be one.
    pub(crate) given: Option<String>,
}

#[derive(Clone)]
struct GivenName(String);

impl<S: Sync> FromRequestParts<S> for RequestName {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let sent = parts.headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok()).map(String::from);
        Ok(Self { sent, given: parts.extensions.get().map(|GivenName(name)| name.clone()) })
    }
}

/// A handler that panics has failed its own request and nothing else.
async fn catch_panic(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        ApiError::internal("internal error; the server's log has the reason").into_response()
    })
}

/// Counts the answer and the time to its head.
async fn count(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    // Names of methods and paths that clients make up must not become labels.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    };
    let route = request.extensions().get::<MatchedPath>().cloned();
    let handler = route.as_ref().map_or("none", MatchedPath::as_str);
    let keeps_open = request.version() >= Version::HTTP_2;
    let mut response = next.run(request).await;
    if state.app.engine.is_draining() && !keeps_open {
        // The connection would end with the server; told so, a client sends its next request elsewhere.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    state.app.metrics.on_http(handler, method, response.status().as_u16(), started.elapsed().as_secs_f64());
    response
}

/// Gives each request an id if it has none, and sends it back. A `request_id` in the body goes before an
/// id that was only given.
async fn echo_request_id(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(X_REQUEST_ID).cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().simple().to_string();
        request.extensions_mut().insert(GivenName(id.clone()));
        HeaderValue::try_from(id).expect("hexadecimal digits are fit for headers")
    });
    let mut response = next.run(request).await;
    response.headers_mut().insert(X_REQUEST_ID, id);
    response
}

/// 404, or 501 for what vLLM has there, or for a path with slashes at its end the way to the path without (as vLLM's framework does).
async fn no_such_route(OriginalUri(uri): OriginalUri) -> Response {
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    // Two slashes at the start would name another host.
    if trimmed.len() == path.len() || trimmed.is_empty() || trimmed.starts_with("//") {
        let error = absent::refusal(path).unwrap_or_else(|| ApiError::no_such_route(path));
        return error.into_response();
    }
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, format!("{trimmed}{query}"))]).into_response()
}

fn cors(config: &CorsConfig) -> CorsLayer {
    let all = |list: &[String]| list.iter().any(|item| item == "*");
    // With credentials, browsers do not take `*` for an answer.
    let (origin, methods, headers) = match config.credentials {
        true => {
            (AllowOrigin::mirror_request(), AllowMethods::mirror_request(), AllowHeaders::mirror_request())
        }
        false => (AllowOrigin::any(), AllowMethods::any(), AllowHeaders::any()),
    };
    // What is no header value, method or name of a header cannot be sent by a browser either.
    let origin = match all(&config.origins) {
        true => origin,
        false => AllowOrigin::list(config.origins.iter().filter_map(|text| HeaderValue::try_from(text).ok())),
    };
    let methods = match all(&config.methods) {
        true => methods,
        false => AllowMethods::list(config.methods.iter().filter_map(|text| text.parse().ok())),
    };
    let headers = match all(&config.headers) {
        true => headers,
        false => AllowHeaders::list(config.headers.iter().filter_map(|text| HeaderName::try_from(text).ok())),
    };
    CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(methods)
        .allow_headers(headers)
        .allow_credentials(config.credentials)
        .expose_headers([X_REQUEST_ID])
}
