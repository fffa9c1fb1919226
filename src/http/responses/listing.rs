//! `GET /v1/responses/{id}/input_items`: what a response was made from, page by page.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::reply::json;

/// Items on a page, unless fewer are asked for; OpenAI's numbers.
const DEFAULT_LIMIT: usize = 20;
pub(super) const MAX_LIMIT: usize = 100;

/// Which page.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct ItemsQuery {
    /// 1 to 100 items; 20 if not given.
    limit: Option<usize>,
    order: Option<Order>,
    /// The id of the item before the page.
    after: Option<String>,
}

/// Newest first, or as they were sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Order {
    #[default]
    Desc,
    Asc,
}

/// One page.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct ItemList<'a> {
    object: &'static str,
    data: Vec<&'a Value>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// The handler.
pub(crate) async fn input_items(
    State(state): State<Arc<HttpState>>,
    Path(id): Path<String>,
    query: Result<Query<ItemsQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|rejection| ApiError::bad_body(rejection.body_text()))?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        let message = format!("limit must be from 1 to {MAX_LIMIT}, got {limit}");
        return Err(ApiError::bad_param("limit", message));
    }
    let stored = state.responses.get(&id).ok_or_else(|| ApiError::no_such_response(&id))?;
    let mut items: Vec<_> = stored.input.iter().collect();
    if query.order.unwrap_or_default() == Order::Desc {
        items.reverse();
    }
    if let Some(after) = &query.after {
        let place = items.iter().position(|item| item["id"] == **after);
        let place = place.ok_or_else(|| ApiError::bad_param("after", "there is no item with this id"))?;
        items.drain(..=place);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id_of = |item: Option<&&'_ Value>| item.and_then(|item| item["id"].as_str()).map(String::from);
    let (first_id, last_id) = (id_of(items.first()), id_of(items.last()));
    Ok(json(&ItemList { object: "list", data: items, first_id, last_id, has_more }))
}
