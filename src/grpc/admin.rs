//! What operators may ask of the server, in any dialect: only with `--enable-admin`.

use tonic::Status;

use super::status::invalid_field;
use crate::app::App;
use crate::engine::PauseMode;

/// PERMISSION_DENIED that names the flag, unless it was given.
pub(super) fn permit(app: &App, method: &str) -> Result<(), Status> {
    if app.server.enable_admin {
        return Ok(());
    }
    let message = format!("{method} is for operators; start the server with --enable-admin");
    Err(Status::permission_denied(message))
}

/// Has the engine stand still, and waits until it does. The prefix cache is cleared unless requests keep their
/// blocks or the client says no.
pub(super) async fn pause(app: &App, mode: PauseMode, clear_cache: Option<bool>) -> Result<(), Status> {
    if mode == PauseMode::Keep && clear_cache == Some(true) {
        return Err(invalid_field("clear_cache", "cannot be true where requests keep their KV blocks"));
    }
    if !app.engine.pause(mode).await {
        return Err(Status::aborted("the pause ended before the engine stood still"));
    }
    if clear_cache.unwrap_or(mode != PauseMode::Keep) && !app.engine.reset_prefix_cache().await {
        return Err(Status::aborted("the pause ended before the prefix cache could be cleared"));
    }
    Ok(())
}
