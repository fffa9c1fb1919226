//! `SubscribeKvEvents` of this dialect.
//!
//! Load records do not come with the events: `GetLoads` has them. A subscriber without a sequence number that is still kept gets the state there is, as a snapshot.

use quire_proto::smg::grpc::common::kv_block_extra_key::Key;
use quire_proto::smg::grpc::common::kv_cache_event::Data;
use quire_proto::smg::grpc::common::*;
use quire_scheduler::kv::{BlockHash, KvEvent};
use tonic::Status;

use super::super::call::Messages;
use super::super::kv_events::{published, spec_kind, stream};
use crate::app::App;
use crate::engine::KvEventBatch as Batch;

pub(super) fn subscribe(
    app: &App,
    request: &SubscribeKvEventsRequest,
) -> Result<Messages<KvEventBatch>, Status> {
    let events = published(app)?;
    // 0 = the whole history if it is there, which is the same as the state there is.
    let start = request.start_sequence_number.max(1);
    let (snapshot, subscription) = match events.subscribe(start) {
        Ok(subscription) => (Vec::new(), subscription),
        Err(_) => events.subscribe_with_snapshot(),
    };
    let count = snapshot.len() as u32;
    let blocks =
        snapshot.iter().flat_map(|batch| &batch.events).filter(|e| matches!(e, KvEvent::Stored { .. }));
    let blocks = blocks.count() as u64;
    let snapshot = (0..).zip(snapshot).map(move |(index, batch)| {
        let place = KvSnapshotChunk { index, count, blocks, unknown_before: 0 };
        KvEventBatch { snapshot: Some(place), ..wire(&batch) }
    });
    Ok(stream(app, snapshot.collect(), subscription, wire, Err))
}

fn wire(batch: &Batch) -> KvEventBatch {
    let since_1970 = batch.time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    KvEventBatch {
        sequence_number: batch.sequence_number,
        timestamp: since_1970.as_secs_f64(),
        events: batch.events.iter().map(event).collect(),
        dp_rank: Some(0),
        snapshot: None,
        load: None,
    }
}

fn event(event: &KvEvent) -> KvCacheEvent {
    let data = match event {
        KvEvent::Stored {
            block_hashes,
            parent_block_hash,
            token_ids,
            block_size,
            adapter,
            cache_salt,
            group,
            sliding_window,
        } => {
            let keys = |key: &Option<std::sync::Arc<str>>| {
                key.as_ref().map(|text| KvBlockExtraKey { key: Some(Key::Text(text.to_string())) })
            };
            let block = |(at, (hash, tokens)): (usize, (&BlockHash, &[u32]))| KvBlock {
                block_hash: number(hash),
                token_ids: tokens.to_vec(),
                block_size: *block_size as i32,
                // The salt is part of the first block of a sequence; the others inherit it.
                extra_keys: keys(adapter)
                    .into_iter()
                    .chain(keys(cache_salt).filter(|_| at == 0 && parent_block_hash.is_none()))
                    .collect(),
                ..KvBlock::default()
            };
            let chunks = token_ids.chunks(*block_size as usize);
            Data::Stored(KvBlocksStored {
                blocks: block_hashes.iter().zip(chunks).enumerate().map(block).collect(),
                parent_block_hash: parent_block_hash.as_ref().map(number),
                tier: Some(KvCacheTier::Device.into()),
                lora_name: adapter.as_ref().map(|name| name.to_string()),
                cache_salt: cache_salt.as_ref().map(|salt| salt.to_string()),
                group_idx: Some(*group),
                kv_cache_spec_kind: Some(spec_kind(*sliding_window).into()),
                kv_cache_spec_sliding_window: *sliding_window,
                ..KvBlocksStored::default()
            })
        }
        KvEvent::Removed { block_hashes, group } => Data::Removed(KvBlocksRemoved {
            block_hashes: block_hashes.iter().map(number).collect(),
            tier: Some(KvCacheTier::Device.into()),
            group_idx: Some(*group),
            ..KvBlocksRemoved::default()
        }),
        KvEvent::Cleared => Data::Cleared(KvCacheCleared { ownership: None }),
    };
    KvCacheEvent { event_id: 0, data: Some(data) }
}

/// The last 64 bits of the hash, as the gateway's own servicers shorten them.
fn number(hash: &BlockHash) -> i64 {
    let last = hash.0.last_chunk().expect("a hash has 32 bytes");
    i64::from_be_bytes(*last)
}
