//! [`refusal`]: an error about what was asked of the backend, not about the device.

use quire_model::BackendError;

/// What cannot be done, in words for the operator; later steps may succeed.
pub(crate) fn refusal(reason: String) -> BackendError {
    BackendError { device: "cuda", reason, fatal: false }
}
