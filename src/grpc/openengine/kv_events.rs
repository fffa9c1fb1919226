//! `SubscribeKvEvents` of this dialect.

use std::collections::VecDeque;
use std::sync::Arc;

use quire_proto::openengine::v1::kv_event::Event;
use quire_proto::openengine::v1::subscribe_kv_events_response::Event as Response;
use quire_proto::openengine::v1::*;
use quire_scheduler::kv::{BlockHash, KvEvent as Change};
use tonic::Status;

use super::super::call::{Messages, check_rank_number};
use super::super::kv_events::{published, spec_kind, stream};
use crate::app::App;
use crate::engine::KvEventBatch as Batch;

pub(super) fn subscribe(
    app: &App,
    request: SubscribeKvEventsRequest,
) -> Result<Messages<SubscribeKvEventsResponse>, Status> {
    for rank in request.data_parallel_ranks {
        check_rank_number("data_parallel_ranks", rank.into())?;
    }
    let events = published(app)?;
    let (snapshot, subscription) = match request.start_sequence_number {
        0 if request.include_snapshot => events.subscribe_with_snapshot(),
        0 => (Vec::new(), events.subscribe_to_next()),
        start => match events.subscribe(start) {
            Ok(subscription) => (Vec::new(), subscription),
            Err(_) if request.include_snapshot => events.subscribe_with_snapshot(),
            Err(gone) => return Err(Status::out_of_range(gone.to_string())),
        },
    };
    let snapshot: VecDeque<_> = snapshot.iter().map(wire).collect();
    Ok(stream(app, snapshot, subscription, wire, ended))
}

/// The subscription was taken, so that its end is a response.
fn ended(status: Status) -> Result<SubscribeKvEventsResponse, Status> {
    let message = status.message().to_owned();
    let error = EngineError { code: ErrorCode::Overloaded.into(), message, retryable: true };
    Ok(SubscribeKvEventsResponse { event: Some(Response::Error(error)) })
}

fn wire(batch: &Batch) -> SubscribeKvEventsResponse {
    let since_1970 = batch.time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let batch = KvEventBatch {
        sequence_number: batch.sequence_number,
        timestamp_unix_nanos: u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX),
        data_parallel_rank: 0,
        events: batch.events.iter().map(event).collect(),
    };
    SubscribeKvEventsResponse { event: Some(Response::Batch(batch)) }
}

fn event(change: &Change) -> KvEvent {
    let event = match change {
        Change::Stored {
            block_hashes,
            parent_block_hash,
            token_ids,
            block_size,
            adapter,
            cache_salt,
            group,
            sliding_window,
        } => {
            let text = |key: &Option<Arc<str>>| key.as_ref().map(|text| text.to_string());
            // The salt is part of the first block of a sequence; the others inherit it.
            let keys = |at: usize| OpaqueKeyTuple {
                values: text(adapter)
                    .into_iter()
                    .chain(text(cache_salt).filter(|_| at == 0 && parent_block_hash.is_none()))
                    .collect(),
            };
            let has_keys = adapter.is_some() || cache_salt.is_some();
            Event::BlockStored(BlockStored {
                block_hashes: block_hashes.iter().map(name).collect(),
                parent_block_hash: parent_block_hash.as_ref().map(name),
                token_ids: token_ids.clone(),
                block_size: *block_size,
                lora_name: text(adapter).unwrap_or_default(),
                medium: StorageMedium::Gpu.into(),
                extra_keys: (0..block_hashes.len()).filter(|_| has_keys).map(keys).collect(),
                group_idx: *group,
                kv_cache_spec_kind: spec_kind(*sliding_window).into(),
                kv_cache_spec_sliding_window: sliding_window.unwrap_or_default(),
                ..BlockStored::default()
            })
        }
        Change::Removed { block_hashes, group } => Event::BlockRemoved(BlockRemoved {
            block_hashes: block_hashes.iter().map(name).collect(),
            medium: StorageMedium::Gpu.into(),
            group_idx: *group,
        }),
        Change::Cleared => Event::AllBlocksCleared(AllBlocksCleared {}),
    };
    KvEvent { event: Some(event), ..KvEvent::default() }
}

fn name(hash: &BlockHash) -> KvBlockHash {
    KvBlockHash { value: hash.0.to_vec(), encoding: "sha256".into() }
}
