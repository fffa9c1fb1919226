//! The table of routes. The router and `/openapi.json` are both made from it, so neither knows of a route
//! that the other does not.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::routing::{MethodFilter, MethodRouter, any, on};

use super::openapi::{self, Describe};
use super::{
    HttpState, admin, anthropic, chat, completions, generative_scoring, inference, invocations, lora, models,
    ollama, ops, page, pooling, responses, tokenize, tokenizer_info,
};
use crate::app::App;
use crate::embed::{PoolTask, Pooler};

/// One method of one path.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// In axum's form: `/v1/models/{*id}`.
    pub(crate) path: &'static str,
    handler: MethodRouter<Arc<HttpState>>,
    /// `None` = answers, but only to say that there is nothing.
    pub(crate) describe: Option<Describe>,
}

/// Every route of this server.
pub(crate) fn routes(app: &App) -> Vec<Route> {
    let server = &app.server;
    let mut routes = task_routes(app.pooler.as_ref());
    routes.extend([
        get("/v1/models", models::list, models::describe_list),
        get("/v1/models/{*id}", models::get, models::describe_get),
        post("/invocations", invocations::invocations, invocations::describe),
        post("/tokenize", tokenize::tokenize, tokenize::describe_tokenize),
        post("/detokenize", tokenize::detokenize, tokenize::describe_detokenize),
        tokenizer_info_route(server.enable_tokenizer_info_endpoint),
        get("/health", ops::health, ops::describe_health),
        get("/ready", ops::ready, ops::describe_ready),
        get("/ping", ops::health, ops::describe_health),
        post("/ping", ops::health, ops::describe_health),
        get("/version", ops::version, ops::describe_version),
        get("/load", ops::load, ops::describe_load),
        get("/metrics", ops::metrics, ops::describe_metrics),
        get("/kv_event_sources", ops::kv_event_sources, ops::describe_kv_event_sources),
    ]);
    routes.extend(admin_routes(server.enable_admin));
    routes
        .extend(lora_routes(app.adapters.as_ref().is_some_and(|adapters| adapters.limits().runtime_updates)));
    routes.extend(ollama_routes());
    routes.extend(scale_out_routes(server.enable_scale_out));
    if server.ui {
        routes.extend([
            get("/", page::index, page::describe_index),
            get("/quire/page.css", page::style, page::describe_style),
            get("/quire/page.js", page::script, page::describe_script),
            get("/quire/state", page::state, page::describe_state),
        ]);
    }
    if !server.disable_fastapi_docs {
        routes.push(get("/openapi.json", openapi::openapi, openapi::describe));
    }
    routes
}

/// Those about the one thing that the server does with its model, and those about the others, which answer 404 and
/// why.
fn task_routes(pooler: Option<&Pooler>) -> Vec<Route> {
    let mut generating = vec![
        post("/v1/completions", completions::completions, completions::describe),
        post("/v1/chat/completions", chat::chat_completions, chat::describe),
        post("/v1/chat/completions/batch", chat::batch::batch, chat::batch::describe),
        post("/v1/responses", responses::create, responses::describe::create),
        get("/v1/responses/{id}", responses::retrieve, responses::describe::retrieve),
        delete("/v1/responses/{id}", responses::delete, responses::describe::delete),
        post("/v1/responses/{id}/cancel", responses::cancel, responses::describe::cancel),
        get("/v1/responses/{id}/input_items", responses::input_items, responses::describe::input_items),
        post("/generative_scoring", generative_scoring::generative_scoring, generative_scoring::describe),
        post("/v1/messages", anthropic::messages, anthropic::describe_messages),
        post("/v1/messages/count_tokens", anthropic::count_tokens, anthropic::describe_count_tokens),
    ];
    let mut embedding = vec![
        post("/v1/embeddings", pooling::embeddings, pooling::describe_embeddings),
        post("/v2/embed", pooling::cohere_embed, pooling::describe_cohere),
        post("/api/embed", ollama::embed::embeddings, ollama::describe::embeddings),
        post("/api/embeddings", ollama::embed::old_embeddings, ollama::describe::old_embeddings),
    ];
    let mut classifying = vec![post("/classify", pooling::classify, pooling::describe_classify)];
    let mut scoring = vec![
        post("/v1/score", pooling::score, pooling::describe_score),
        post("/score", pooling::score, pooling::describe_score),
        post("/v1/rerank", pooling::rerank, pooling::describe_rerank),
        post("/v2/rerank", pooling::rerank, pooling::describe_rerank),
        post("/rerank", pooling::rerank, pooling::describe_rerank),
    ];
    let mut pooling = vec![post("/pooling", pooling::pooling, pooling::describe_pooling)];
    let embeds = pooler.is_some_and(|pooler| pooler.task() == PoolTask::Embed);
    let classifies = pooler.is_some_and(|pooler| pooler.task() == PoolTask::Classify);
    let scores = embeds || pooler.is_some_and(|pooler| pooler.width == 1);
    let mut all = Vec::new();
    for (routes, is_there) in [
        (&mut generating, pooler.is_none()),
        (&mut pooling, pooler.is_some()),
        (&mut embedding, embeds),
        (&mut classifying, classifies),
        (&mut scoring, scores),
    ] {
        let hidden = routes.iter_mut().filter(|_| !is_there);
        hidden.for_each(|route| route.describe = None);
        all.append(routes);
    }
    all
}

/// Those that change the server for everybody.
fn admin_routes(enabled: bool) -> Vec<Route> {
    let mut routes = vec![
        post("/pause", admin::pause, admin::describe::pause),
        post("/resume", admin::resume, admin::describe::resume),
        get("/is_paused", admin::is_paused, admin::describe::is_paused),
        post("/sleep", admin::sleep, admin::describe::sleep),
        post("/wake_up", admin::wake_up, admin::describe::wake_up),
        get("/is_sleeping", admin::is_sleeping, admin::describe::is_sleeping),
        post("/reset_prefix_cache", admin::reset_prefix_cache, admin::describe::reset_prefix_cache),
        post("/abort_requests", admin::abort_requests, admin::describe::abort_requests),
        get("/server_info", admin::server_info, admin::describe::server_info),
    ];
    if !enabled {
        for route in &mut routes {
            route.handler = any(admin::forbidden);
            route.describe = None;
        }
    }
    routes
}

/// Those that change which adapters there are.
fn lora_routes(enabled: bool) -> Vec<Route> {
    let mut routes = vec![
        post("/v1/load_lora_adapter", lora::load, lora::describe_load),
        post("/v1/unload_lora_adapter", lora::unload, lora::describe_unload),
    ];
    if !enabled {
        for route in &mut routes {
            route.handler = any(lora::closed);
            route.describe = None;
        }
    }
    routes
}

fn tokenizer_info_route(enabled: bool) -> Route {
    match enabled {
        true => get("/tokenizer_info", tokenizer_info::tokenizer_info, tokenizer_info::describe),
        false => plain(Method::GET, "/tokenizer_info", tokenizer_info::closed),
    }
}

/// Those for gateways that bring their own tokenizer.
fn scale_out_routes(enabled: bool) -> Vec<Route> {
    let mut routes = vec![
        post("/inference/v1/generate", inference::generate, inference::describe_generate),
        post("/inference/v1/abort_requests", inference::abort_requests, inference::describe_abort),
    ];
    if !enabled {
        for route in &mut routes {
            route.handler = any(inference::forbidden);
            route.describe = None;
        }
    }
    routes
}

/// Routes of Ollama's API.
fn ollama_routes() -> Vec<Route> {
    let managed = |method, path| plain(method, path, ollama::managed);
    vec![
        post("/api/chat", ollama::chat, ollama::describe::chat),
        post("/api/generate", ollama::generate, ollama::describe::generate),
        get("/api/tags", ollama::models::tags, ollama::describe::tags),
        get("/api/ps", ollama::models::ps, ollama::describe::ps),
        post("/api/show", ollama::models::show, ollama::describe::show),
        get("/api/version", ollama::models::version, ollama::describe::version),
        managed(Method::POST, "/api/pull"),
        managed(Method::POST, "/api/push"),
        managed(Method::POST, "/api/create"),
        managed(Method::POST, "/api/copy"),
        managed(Method::DELETE, "/api/delete"),
        managed(Method::HEAD, "/api/blobs/{digest}"),
        managed(Method::POST, "/api/blobs/{digest}"),
    ]
}

/// The router of the table.
pub(crate) fn router(app: &App) -> Router<Arc<HttpState>> {
    routes(app).into_iter().fold(Router::new(), |router, route| router.route(route.path, route.handler))
}

/// The same routes, and all of them under another path too: a proxy may have taken that away, or not.
pub(crate) fn under(root_path: &str, router: Router) -> Router {
    if root_path.is_empty() {
        return router;
    }
    Router::new().nest(root_path, router.clone()).merge(router)
}

/// A route that the document leaves out.
fn plain<H: Handler<T, Arc<HttpState>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("a method of HTTP");
    Route { method, path, handler: on(filter, handler), describe: None }
}

fn get<H: Handler<T, Arc<HttpState>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: Describe,
) -> Route {
    Route { method: Method::GET, path, handler: on(MethodFilter::GET, handler), describe: Some(describe) }
}

fn post<H: Handler<T, Arc<HttpState>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: Describe,
) -> Route {
    Route { method: Method::POST, path, handler: on(MethodFilter::POST, handler), describe: Some(describe) }
}

fn delete<H: Handler<T, Arc<HttpState>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: Describe,
) -> Route {
    Route {
        method: Method::DELETE,
        path,
        handler: on(MethodFilter::DELETE, handler),
        describe: Some(describe),
    }
}
