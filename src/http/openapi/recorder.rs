//! [`Recording`]: what a reader of request bodies asks for, as a JSON schema.
//!
//! Bodies are read by hand, so there is no type to derive a schema from. Instead the reader itself is run
//! over a [`Fields`] that has no values and takes notes: each name, each type, and what is missed when it is
//! absent. So the schema cannot say anything else than the code does.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use crate::app::App;
use crate::http::fields::Fields;

/// Notes on one object; shared by the [`Fields`] that takes them and whoever started it.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    app: Arc<App>,
    /// What [`Fields::has`] was asked, and answered.
    asked: Arc<Mutex<Vec<(String, bool)>>>,
    notes: Arc<Mutex<Recording>>,
}

#[derive(Debug, Default)]
struct Recording {
    fields: Map<String, Value>,
    nested: Vec<(String, Recorder)>,
    required: BTreeSet<String>,
}

/// Times that a reader is run at most: one that looks whether fields are there takes several forms.
const MAX_RUNS: usize = 64;

/// The schema of the bodies that `read` takes. A reader that looks whether a field is there is run with each
/// answer; if the forms it takes differ, any of them is allowed.
pub(crate) fn schema_of(app: &Arc<App>, read: fn(Fields)) -> Value {
    let mut forms: Vec<Value> = Vec::new();
    let mut asked = Vec::new();
    for _ in 0..MAX_RUNS {
        let recorder = Recorder::new(app.clone(), Arc::new(Mutex::new(asked)));
        read(Fields::recording(recorder.clone()));
        let form = recorder.schema();
        if !forms.contains(&form) {
            forms.push(form);
        }
        // The next answers, in the order of binary numbers.
        asked = lock(&recorder.asked).clone();
        while asked.last().is_some_and(|(_, there)| *there) {
            asked.pop();
        }
        let Some((_, there)) = asked.last_mut() else { break };
        *there = true;
    }
    if forms.len() == 1 { forms.swap_remove(0) } else { json!({ "anyOf": forms }) }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Recorder {
    fn new(app: Arc<App>, asked: Arc<Mutex<Vec<(String, bool)>>>) -> Self {
        Self { app, asked, notes: Arc::default() }
    }

    /// What [`Fields::has`] is to answer.
    pub(crate) fn has(&self, name: &str) -> bool {
        let mut asked = lock(&self.asked);
        if let Some((_, there)) = asked.iter().find(|(other, _)| other == name) {
            return *there;
        }
        asked.push((name.to_owned(), false));
        false
    }

    /// A field was asked for, of this type.
    pub(crate) fn note(&self, name: &str, schema: Value) {
        self.with(|notes| {
            notes.fields.entry(name).or_insert(schema);
        });
    }

    /// An object was asked for, whose own fields are noted by what is returned.
    pub(crate) fn nested(&self, name: &str) -> Self {
        let nested = Self::new(self.app.clone(), self.asked.clone());
        self.with(|notes| {
            notes.fields.entry(name).or_insert_with(|| json!({}));
            notes.nested.push((name.to_owned(), nested.clone()));
        });
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
        change(&mut lock(&self.notes))
    }

    fn schema(&self) -> Value {
        self.with(|notes| {
            let mut properties = notes.fields.clone();
            // Unless there is a description of the whole.
            for (name, nested) in notes.nested.iter().filter(|(name, _)| notes.fields[name] == json!({})) {
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
