//! Adapters by gRPC, for every dialect: which one a request runs with, and loading and unloading them.

use quire_scheduler::Adapter;
use tonic::{Code, Status};

use super::status::{invalid_field, no_such_model};
use crate::adapters::{AdapterError, AdapterInfo, Adapters};
use crate::app::App;

/// The adapter of a request that names a model and perhaps, apart from that, an adapter.
pub(super) async fn adapter_of(app: &App, model: &str, name: &str) -> Result<Option<Adapter>, Status> {
    if !app.serves(model) {
        return Err(no_such_model(app, model));
    }
    if name.is_empty() {
        return app.adapter_of(model).await.map_err(|error| status(&error));
    }
    let adapters = enabled(app)
        .map_err(|status| Status::new(status.code(), format!("lora_name: {}", status.message())))?;
    if !app.model.is_served(model) && model != name {
        return Err(invalid_field("lora_name", &format!("{name:?} is not {model:?}, which model says")));
    }
    adapters.get(name).await.map(Some).map_err(|error| status(&error))
}

/// Loads an adapter; the fields are called so in errors.
pub(super) async fn load(app: &App, name: (&str, &str), path: (&str, &str)) -> Result<AdapterInfo, Status> {
    let adapters = updatable(app)?;
    for (field, value) in [name, path] {
        if value.is_empty() {
            return Err(invalid_field(field, "must not be empty"));
        }
    }
    adapters.load(name.1, path.1, None, false).await.map_err(|error| match error {
        AdapterError::Unusable { .. } => invalid_field(path.0, &error.to_string()),
        error => status(&error),
    })
}

/// Unloads an adapter.
pub(super) async fn unload(app: &App, field: &str, name: &str) -> Result<AdapterInfo, Status> {
    let adapters = updatable(app)?;
    if name.is_empty() {
        return Err(invalid_field(field, "must not be empty"));
    }
    adapters.unload(name).await.map_err(|error| status(&error))
}

/// All that are loaded.
pub(super) fn list(app: &App) -> Vec<AdapterInfo> {
    app.adapters.as_ref().map(Adapters::list).unwrap_or_default()
}

/// Different adapters in a step; 0 = none are supported.
pub(super) fn max_loras(app: &App) -> u32 {
    app.adapters.as_ref().map_or(0, |adapters| adapters.limits().max_loras)
}

fn enabled(app: &App) -> Result<&Adapters, Status> {
    let message = "adapters (LoRA) are not enabled; start the server with --enable-lora";
    app.adapters.as_ref().ok_or_else(|| Status::failed_precondition(message))
}

fn updatable(app: &App) -> Result<&Adapters, Status> {
    let adapters = enabled(app)?;
    if adapters.limits().runtime_updates {
        return Ok(adapters);
    }
    let message =
        "adapters cannot be changed while the server runs; start it with --allow-runtime-lora-updating";
    Err(Status::failed_precondition(message))
}

fn status(error: &AdapterError) -> Status {
    let code = match error {
        AdapterError::AlreadyLoaded(_) | AdapterError::NameTaken(_) => Code::AlreadyExists,
        AdapterError::TooMany => Code::ResourceExhausted,
        AdapterError::Unknown(_) | AdapterError::Missing { .. } => Code::NotFound,
        AdapterError::Unusable { .. } | AdapterError::Changed(_) => Code::FailedPrecondition,
        AdapterError::Panicked(_) => Code::Internal,
    };
    Status::new(code, error.to_string())
}
