//! The middle of the house: the engine thread (scheduler and runner), the output thread (tokens to
//! text), and the door to both. Knows no HTTP, no gRPC, no device.

mod core;
mod handle;
mod kv_events;
mod output;
mod pause;
mod request;
mod stats;
mod stream;
#[cfg(test)]
mod tests;

pub use self::core::{Engine, EngineOptions};
pub use self::handle::EngineHandle;
pub use self::kv_events::{BatchGone, KvEventBatch, KvEvents, Subscription};
pub use self::pause::PauseMode;
pub use self::request::{GenerateRequest, SubmitError, TextOptions};
pub use self::stats::EngineStats;
pub use self::stream::{
    Finish, FinishError, FinishKind, OutputDelta, OutputStream, PromptOutput, StopCause, Timings,
    TokenLogprobs,
};
