//! [`Recording`]: what a reader of request bodies asks for, as a JSON schema.
//!
//! Bodies are read by hand, so there is no type to derive a schema from. Instead the reader itself is run
//! over a [`Fields`] that has no values and takes notes: each name, each type, and what is missed when it is
//! absent. So the schema cannot say anything else than the code does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value, json};

use crate::app::App;
use crate::http::fields::Fields;

/// Notes on one object; shared by the [`Fields`] that takes them and whoever started it.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    app: Arc<App>,
    /// What [`Fields::has`] answers.
    has: bool,
    notes: Arc<Mutex<Recording>>,
}

#[derive(Debug, Default)]
struct Recording {
    fields: Map<String, Value>,
    nested: Vec<(String, Recorder)>,
    required: BTreeSet<String>,
}

/// The schema of the bodies that `read` takes. A reader that looks whether a field is there takes one form
/// with it and another without: if they differ, either is allowed.
pub(crate) fn schema_of(app: &Arc<App>, read: fn(Fields)) -> Value {
    let form = |has| {
        let recorder = Recorder::new(app.clone(), has);
        read(Fields::recording(recorder.clone()));
        recorder.schema()
    };
    let (without, with) = (form(false), form(true));
    if without == with { without } else { json!({ "anyOf": [without, with] }) }
}

impl Recorder {
    fn new(app: Arc<App>, has: bool) -> Self {
        Self { app, has, notes: Arc::default() }
    }

    /// What [`Fields::has`] is to answer.
    pub(crate) fn has(&self) -> bool {
        self.has
    }

    /// A field was asked for, of this type.
    pub(crate) fn note(&self, name: &str, schema: Value) {
        self.with(|notes| {
            notes.fields.entry(name).or_insert(schema);
        });
    }

    /// An object was asked for, whose own fields are noted by what is returned.
    pub(crate) fn nested(&self, name: &str) -> Self {
        let nested = Self::new(self.app.clone(), self.has);
        self.with(|notes| notes.nested.push((name.to_owned(), nested.clone())));
        nested
    }

    /// A field is known more exactly than by its type. What was not read is in no schema, whatever is known of it.
    pub(crate) fn describe(&self, name: &str, describe: impl FnOnce(&App) -> Value) {
        let Value::Object(more) = describe(&self.app) else { unreachable!("schemas are objects") };
        self.with(|notes| {
            let Some(known) = notes.fields.get_mut(name) else { return };
            // Another form altogether, or more about the same.
            if more.contains_key("type") || more.contains_key("anyOf") || more.contains_key("oneOf") {
                *known = Value::Object(more);
            } else if let Value::Object(known) = known {
                known.extend(more);
            }
        });
    }

    /// A field was missed.
    pub(crate) fn require(&self, name: &str) {
        self.with(|notes| {
            notes.required.insert(name.to_owned());
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Recording) -> T) -> T {
        change(&mut self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn schema(&self) -> Value {
        self.with(|notes| {
            let mut properties = notes.fields.clone();
            for (name, nested) in &notes.nested {
                properties.insert(name.clone(), nested.schema());
            }
            for (name, schema) in &mut properties {
                if !notes.required.contains(name) {
                    *schema = nullable(schema.take());
                }
            }
            let mut object = json!({ "type": "object", "properties": properties });
            if !notes.required.is_empty() {
                object["required"] = json!(notes.required);
            }
            object
        })
    }
}

/// Null is as good as leaving a field out.
fn nullable(mut schema: Value) -> Value {
    if schema.as_object().is_some_and(Map::is_empty) {
        return schema;
    }
    match schema.get("type") {
        Some(Value::String(kind)) if !schema["enum"].is_array() => {
            schema["type"] = json!([kind, "null"]);
            schema
        }
        _ => json!({ "anyOf": [schema, { "type": "null" }] }),
    }
}
