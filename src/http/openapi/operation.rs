//! [`Operation`]: what one method of one path takes and answers, told by the module that answers it.

use std::sync::Arc;

use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::recorder::schema_of;
use crate::app::App;
use crate::http::error::ErrorBody;
use crate::http::fields::Fields;

/// The description of a route in the making.
#[derive(Debug)]
pub(crate) struct Operation<'a> {
    app: &'a Arc<App>,
    /// Where schemas of named types are gathered.
    types: &'a mut SchemaGenerator,
    /// The body of errors, and whether it is another than usual.
    error: Value,
    own_errors: bool,
    json: Map<String, Value>,
    responses: Map<String, Value>,
}

/// How a route tells of itself.
pub(crate) type Describe = fn(&mut Operation<'_>);

impl<'a> Operation<'a> {
    pub(super) fn new(app: &'a Arc<App>, types: &'a mut SchemaGenerator) -> Self {
        let error = json!(types.subschema_for::<ErrorBody<'_>>());
        Self { app, types, error, own_errors: false, json: Map::new(), responses: Map::new() }
    }

    /// Errors have this shape, not OpenAI's. To be said before anything else.
    pub(crate) fn errors_are<T: JsonSchema>(&mut self) -> &mut Self {
        self.error = json!(self.types.subschema_for::<T>());
        self.own_errors = true;
        self
    }

    /// What it does, in a few words.
    pub(crate) fn about(&mut self, summary: &str) -> &mut Self {
        self.json.insert("summary".into(), summary.into());
        self
    }

    /// It takes a JSON body, read by this function; and what can be wrong with one.
    pub(crate) fn takes(&mut self, read: fn(Fields)) -> &mut Self {
        let schema = schema_of(self.app, read);
        let body = json!({ "required": true, "content": { "application/json": { "schema": schema } } });
        self.json.insert("requestBody".into(), body);
        self.refuses(400, "The request is wrong; `param` names the field")
            .refuses(404, "The model is not served")
            .refuses(408, "The body came too slowly")
            .refuses(413, "The body is too large")
            .refuses(500, "The server failed; its log has the reason")
            .refuses(503, "Too much to do, or shutting down: try again, or elsewhere")
    }

    /// A part of the path.
    pub(crate) fn path_parameter(&mut self, name: &str) -> &mut Self {
        self.parameter(name, "path", true, json!({ "type": "string", "minLength": 1 }))
    }

    /// A parameter after the `?`.
    pub(crate) fn query_parameter(&mut self, name: &str, required: bool, schema: Value) -> &mut Self {
        self.parameter(name, "query", required, schema)
    }

    /// 200 with this as JSON.
    pub(crate) fn answers<T: JsonSchema>(&mut self) -> &mut Self {
        let schema = self.types.subschema_for::<T>();
        self.content("200", "OK", "application/json", json!(schema))
    }

    /// 200 with server-sent events, if the body says `"stream": true`.
    pub(crate) fn streams(&mut self, events: &str) -> &mut Self {
        // The schema is that of one event, as tools read it.
        let event = json!({
            "type": "object",
            "properties": { "event": { "type": "string" }, "data": { "type": "string" } },
            "description": events,
        });
        self.answers_as("text/event-stream", event)
    }

    /// 200 with text of this media type.
    pub(crate) fn answers_text(&mut self, media_type: &str) -> &mut Self {
        self.answers_as(media_type, json!({ "type": "string" }))
    }

    /// 200 with this media type and schema.
    pub(crate) fn answers_as(&mut self, media_type: &str, schema: Value) -> &mut Self {
        self.content("200", "OK", media_type, schema)
    }

    /// Or 200 with bytes.
    pub(crate) fn answers_bytes(&mut self) -> &mut Self {
        self.answers_as("application/octet-stream", json!({ "type": "string", "format": "binary" }))
    }

    /// 200 without a body.
    pub(crate) fn answers_nothing(&mut self) -> &mut Self {
        self.responses.insert("200".into(), json!({ "description": "OK" }));
        self
    }

    /// An error, in the shape that all errors have.
    pub(crate) fn refuses(&mut self, status: u16, description: &str) -> &mut Self {
        let schema = self.error.clone();
        self.content(&status.to_string(), description, "application/json", schema)
    }

    /// Needs a key: 401 in vLLM's words without one.
    pub(super) fn guarded(&mut self) -> &mut Self {
        self.json.insert("security".into(), json!([{ "bearer": [] }]));
        let schema = if self.own_errors {
            self.error.clone()
        } else {
            let error = json!({ "error": { "const": "Unauthorized" } });
            json!({ "type": "object", "properties": error, "required": ["error"] })
        };
        self.content("401", "The key is missing or wrong", "application/json", schema)
    }

    pub(super) fn finish(mut self, id: String, tag: &str) -> Value {
        self.json.insert("operationId".into(), id.into());
        self.json.insert("tags".into(), json!([tag]));
        self.json.insert("responses".into(), self.responses.into());
        Value::Object(self.json)
    }

    fn parameter(&mut self, name: &str, place: &str, required: bool, schema: Value) -> &mut Self {
        let parameter = json!({ "name": name, "in": place, "required": required, "schema": schema });
        match self.json.entry("parameters").or_insert_with(|| json!([])) {
            Value::Array(parameters) => parameters.push(parameter),
            _ => unreachable!("it is made a list here"),
        }
        self
    }

    fn content(&mut self, status: &str, description: &str, media_type: &str, schema: Value) -> &mut Self {
        let response = self.responses.entry(status).or_insert_with(|| json!({ "description": description }));
        response["content"][media_type] = json!({ "schema": schema });
        self
    }
}
