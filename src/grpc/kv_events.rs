//! KV events as a stream of messages, whatever the dialect.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream as streams;
use tokio::time::timeout;
use tonic::Status;

use super::call::Messages;
use crate::app::App;
use crate::engine::{BatchGone, EngineHandle, KvEventBatch, KvEvents, Subscription};

/// How often a stream on which nothing happens looks whether the server shuts down, which it would hold up.
const DRAIN_POLL: Duration = Duration::from_millis(250);

/// The events, if the operator wants them told.
pub(super) fn published(app: &App) -> Result<&Arc<KvEvents>, Status> {
    app.kv_events.as_ref().ok_or_else(|| {
        let flag = "--kv-events-config '{\"enable_kv_cache_events\": true}'";
        Status::unimplemented(format!("KV events are not published; start the server with {flag}"))
    })
}

/// The status for who reads too slowly: what is missing is gone.
pub(super) fn lost(gone: BatchGone) -> Status {
    Status::data_loss(format!("this subscriber is too slow: {gone}; subscribe again"))
}

/// vLLM's name for the layers of a group: those with a sliding window, or those without.
pub(super) fn spec_kind(sliding_window: Option<u32>) -> &'static str {
    if sliding_window.is_some() { "sliding_window" } else { "full_attention" }
}

/// These messages first, then what is subscribed to, until the server shuts down. A subscriber that is too slow
/// gets what `ended` makes of its status as the last.
pub(super) fn stream<T: Send + 'static>(
    app: &App,
    first: VecDeque<T>,
    subscription: Subscription,
    wire: fn(&KvEventBatch) -> T,
    ended: fn(Status) -> Result<T, Status>,
) -> Messages<T> {
    let reader = Reader { engine: app.engine.clone(), first, subscription: Some(subscription), wire, ended };
    Box::pin(streams::unfold(reader, |mut reader| async move { Some((reader.next().await?, reader)) }))
}

struct Reader<T> {
    engine: EngineHandle,
    first: VecDeque<T>,
    /// `None` after the last message.
    subscription: Option<Subscription>,
    wire: fn(&KvEventBatch) -> T,
    ended: fn(Status) -> Result<T, Status>,
}

impl<T> Reader<T> {
    async fn next(&mut self) -> Option<Result<T, Status>> {
        if let Some(message) = self.first.pop_front() {
            return Some(Ok(message));
        }
        loop {
            let subscription = self.subscription.as_mut()?;
            match timeout(DRAIN_POLL, subscription.next()).await {
                Ok(Ok(batch)) => return Some(Ok((self.wire)(&batch))),
                Ok(Err(gone)) => {
                    self.subscription = None;
                    return Some((self.ended)(lost(gone)));
                }
                Err(_) if self.engine.is_draining() => return None,
                Err(_) => (),
            }
        }
    }
}
