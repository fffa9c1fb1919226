//! `POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: there are no adapters yet. The bodies are
//! checked as vLLM checks them, so that a wrong one is told from one that would do. `/openapi.json` leaves the
//! routes out until they can do something.

use axum::response::Response;

use super::error::ApiError;
use super::fields::Fields;

/// The handler of `/v1/load_lora_adapter`.
pub(crate) async fn load(mut fields: Fields) -> Result<Response, ApiError> {
    let (name, path) = read_load(&mut fields);
    fields.finish()?;
    if name.is_none() || path.is_none() {
        return Err(ApiError::invalid_user_input("both lora_name and lora_path must be given"));
    }
    Err(not_built())
}

/// The handler of `/v1/unload_lora_adapter`.
pub(crate) async fn unload(mut fields: Fields) -> Result<Response, ApiError> {
    let name = read_unload(&mut fields);
    fields.finish()?;
    if name.is_none() {
        return Err(ApiError::invalid_user_input("lora_name must be given"));
    }
    Err(not_built())
}

fn read_load(fields: &mut Fields) -> (Option<String>, Option<String>) {
    fields.bool("load_inplace");
    fields.bool("is_3d_lora_weight");
    (given(fields, "lora_name"), given(fields, "lora_path"))
}

fn read_unload(fields: &mut Fields) -> Option<String> {
    fields.int("lora_int_id");
    given(fields, "lora_name")
}

fn given(fields: &mut Fields, name: &str) -> Option<String> {
    fields.string(name).filter(|text| !text.is_empty())
}

fn not_built() -> ApiError {
    ApiError::not_implemented("LoRA adapters are not supported yet: the model is served as it was loaded")
}
