//! The table of routes. The router and `/openapi.json` are both made from it, so neither knows of a route
//! that the other does not.

use std::sync::Arc;

use axum::Router;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::openapi::{self, Describe};
use super::{HttpState, admin, anthropic, chat, completions, models, ops, page, responses, tokenize};
use crate::config::ServerConfig;

/// One method of one path.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) method: Method,
    /// In axum's form: `/v1/models/{*id}`.
    pub(crate) path: &'static str,
    handler: MethodRouter<Arc<HttpState>>,
    /// For operators: refused unless the server was started with `--enable-admin`.
    admin: bool,
    /// `None` = answers, but only to say that there is nothing.
    pub(crate) describe: Option<Describe>,
}

/// Every route of a server with these settings.
pub(crate) fn routes(server: &ServerConfig) -> Vec<Route> {
    let mut routes = vec![
        post("/v1/completions", completions::completions, completions::describe),
        post("/v1/chat/completions", chat::chat_completions, chat::describe),
        plain(Method::POST, "/v1/responses", responses::create),
        plain(Method::GET, "/v1/responses/{id}", responses::retrieve),
        plain(Method::DELETE, "/v1/responses/{id}", responses::delete),
        plain(Method::POST, "/v1/responses/{id}/cancel", responses::cancel),
        plain(Method::GET, "/v1/responses/{id}/input_items", responses::input_items),
        plain(Method::POST, "/v1/messages", anthropic::messages),
        plain(Method::POST, "/v1/messages/count_tokens", anthropic::count_tokens),
        get("/v1/models", models::list, models::describe_list),
        get("/v1/models/{*id}", models::get, models::describe_get),
        post("/tokenize", tokenize::tokenize, tokenize::describe_tokenize),
        post("/detokenize", tokenize::detokenize, tokenize::describe_detokenize),
        get("/health", ops::health, ops::describe_health),
        get("/ready", ops::ready, ops::describe_ready),
        get("/ping", ops::health, ops::describe_health),
        post("/ping", ops::health, ops::describe_health),
        get("/version", ops::version, ops::describe_version),
        get("/load", ops::load, ops::describe_load),
        get("/metrics", ops::metrics, ops::describe_metrics),
    ];
    routes.extend(admin_routes());
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

/// Routes that change the server for everybody.
fn admin_routes() -> impl Iterator<Item = Route> {
    let routes = [
        plain(Method::POST, "/pause", admin::pause),
        plain(Method::POST, "/resume", admin::resume),
        plain(Method::GET, "/is_paused", admin::is_paused),
        plain(Method::POST, "/sleep", admin::sleep),
        plain(Method::POST, "/wake_up", admin::wake_up),
        plain(Method::GET, "/is_sleeping", admin::is_sleeping),
        plain(Method::POST, "/reset_prefix_cache", admin::reset_prefix_cache),
        plain(Method::POST, "/abort_requests", admin::abort_requests),
        plain(Method::GET, "/server_info", admin::server_info),
    ];
    routes.into_iter().map(|route| Route { admin: true, ..route })
}

/// The router of the table.
pub(crate) fn router(state: &Arc<HttpState>) -> Router<Arc<HttpState>> {
    let (admin, open): (Vec<_>, Vec<_>) =
        routes(&state.app.server).into_iter().partition(|route| route.admin);
    let of = |routes: Vec<Route>| {
        let add = |router: Router<_>, route: Route| router.route(route.path, route.handler);
        routes.into_iter().fold(Router::new(), add)
    };
    of(open).merge(of(admin).layer(from_fn_with_state(state.clone(), admin::guard)))
}

/// A route that the document leaves out.
fn plain<H: Handler<T, Arc<HttpState>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Route {
    let filter = MethodFilter::try_from(method.clone()).expect("a method of HTTP");
    Route { method, path, handler: on(filter, handler), admin: false, describe: None }
}

fn get<H: Handler<T, Arc<HttpState>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: Describe,
) -> Route {
    let handler = on(MethodFilter::GET, handler);
    Route { method: Method::GET, path, handler, admin: false, describe: Some(describe) }
}

fn post<H: Handler<T, Arc<HttpState>>, T: 'static>(
    path: &'static str,
    handler: H,
    describe: Describe,
) -> Route {
    let handler = on(MethodFilter::POST, handler);
    Route { method: Method::POST, path, handler, admin: false, describe: Some(describe) }
}
