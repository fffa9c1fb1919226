//! [`KvEvents`]: what enters and leaves the prefix cache, kept for those who ask: routers that send a request to
//! where its prefix is.
//!
//! The output thread puts in one batch a step; subscribers take from a ring at their own pace, so that none can hold
//! up the engine. One who falls behind the ring is told so and may begin again with the state there is.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use quire_scheduler::TokenId;
use quire_scheduler::kv::{BlockHash, BlockKey, KvEvent};
use tokio::sync::watch;

/// Tokens of stored blocks that the ring keeps at most, whatever the number of batches: 16 MiB.
const MAX_RING_TOKENS: usize = 4 << 20;
/// Blocks in a batch of a snapshot, which must fit into the messages that clients take.
const SNAPSHOT_BLOCKS: usize = 1024;

/// What one step did to the prefix cache.
#[derive(Debug, Clone, PartialEq)]
pub struct KvEventBatch {
    /// Counts up by one from 1.
    pub sequence_number: u64,
    /// When the step was worked off.
    pub time: SystemTime,
    /// In order.
    pub events: Vec<KvEvent>,
}

/// The batches published last, and the blocks that can be hit.
#[derive(Debug)]
pub struct KvEvents {
    state: Mutex<State>,
    /// The last sequence number; 0 = none yet.
    latest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    ring: VecDeque<Arc<KvEventBatch>>,
    ring_tokens: usize,
    max_batches: usize,
    last: u64,
    /// By the order in which they came.
    blocks: BTreeMap<u64, Block>,
    order: HashMap<BlockKey, u64>,
    num_stored: u64,
}

/// A block that can be hit.
#[derive(Debug, Clone)]
struct Block {
    key: BlockKey,
    parent: Option<BlockHash>,
    token_ids: Vec<TokenId>,
    adapter: Option<Arc<str>>,
    cache_salt: Option<Arc<str>>,
    sliding_window: Option<u32>,
}

/// The batch that should come next is no longer, or not yet, there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("KV event batch {asked} is not kept; those from {oldest} on are, and the last is {last}")]
pub struct BatchGone {
    /// The sequence number.
    pub asked: u64,
    /// The oldest that is kept.
    pub oldest: u64,
    /// The last one.
    pub last: u64,
}

impl KvEvents {
    /// An empty ring of `max_batches`, at least 1.
    pub fn new(max_batches: usize) -> Self {
        let state = State { max_batches: max_batches.max(1), ..State::default() };
        Self { state: Mutex::new(state), latest: watch::Sender::new(0) }
    }

    pub(super) fn publish(&self, events: Vec<KvEvent>) {
        let last = self.lock().push(events);
        self.latest.send_replace(last);
    }

    /// Batches from `start` on. Fails if that one is no longer kept, or more than one ahead of the last.
    pub fn subscribe(self: &Arc<Self>, start: u64) -> Result<Subscription, BatchGone> {
        let state = self.lock();
        match start >= state.oldest() && start <= state.last + 1 {
            true => Ok(self.subscription(start)),
            false => Err(state.gone(start)),
        }
    }

    /// Batches from the next on.
    pub fn subscribe_to_next(self: &Arc<Self>) -> Subscription {
        let next = self.lock().last + 1;
        self.subscription(next)
    }

    /// The state as batches that begin with [`KvEvent::Cleared`] and list the blocks that can be hit, each after
    /// the one before it; then what comes after. The batches' numbers end with the last one there is. Without any
    /// there is nothing to list.
    pub fn subscribe_with_snapshot(self: &Arc<Self>) -> (Vec<KvEventBatch>, Subscription) {
        let state = self.lock();
        let snapshot = state.snapshot();
        (snapshot, self.subscription(state.last + 1))
    }

    fn subscription(self: &Arc<Self>, next: u64) -> Subscription {
        Subscription { events: self.clone(), next, latest: self.latest.subscribe() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one reader.
#[derive(Debug)]
pub struct Subscription {
    events: Arc<KvEvents>,
    next: u64,
    latest: watch::Receiver<u64>,
}

impl Subscription {
    /// The next batch, waiting for it; fails if the ring has gone on without this reader. Cancel safe.
    pub async fn next(&mut self) -> Result<Arc<KvEventBatch>, BatchGone> {
        // The sender lives as long as `events`, so that this does not fail.
        let _ = self.latest.wait_for(|&last| last >= self.next).await;
        let state = self.events.lock();
        let place = self.next.checked_sub(state.oldest()).ok_or_else(|| state.gone(self.next))?;
        let batch = state.ring.get(place as usize).cloned().ok_or_else(|| state.gone(self.next))?;
        self.next += 1;
        Ok(batch)
    }
}

impl State {
    fn oldest(&self) -> u64 {
        self.last + 1 - self.ring.len() as u64
    }

    fn gone(&self, asked: u64) -> BatchGone {
        BatchGone { asked, oldest: self.oldest(), last: self.last }
    }

    fn push(&mut self, events: Vec<KvEvent>) -> u64 {
        events.iter().for_each(|event| self.apply(event));
        self.last += 1;
        self.ring_tokens += num_tokens(&events);
        let batch = KvEventBatch { sequence_number: self.last, time: SystemTime::now(), events };
        self.ring.push_back(Arc::new(batch));
        // The newest stays, however large it is.
        while self.ring.len() > self.max_batches
            || (self.ring_tokens > MAX_RING_TOKENS && self.ring.len() > 1)
        {
            let dropped = self.ring.pop_front().expect("it is not empty");
            self.ring_tokens -= num_tokens(&dropped.events);
        }
        self.last
    }

    fn apply(&mut self, event: &KvEvent) {
        match event {
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
                let mut parent = *parent_block_hash;
                for (&hash, tokens) in block_hashes.iter().zip(token_ids.chunks(*block_size as usize)) {
                    let (adapter, cache_salt) = (adapter.clone(), cache_salt.clone());
                    let (key, token_ids) = (BlockKey { hash, group: *group }, tokens.to_vec());
                    let sliding_window = *sliding_window;
                    let block = Block { key, parent, token_ids, adapter, cache_salt, sliding_window };
                    self.num_stored += 1;
                    if let Some(old) = self.order.insert(key, self.num_stored) {
                        self.blocks.remove(&old);
                    }
                    self.blocks.insert(self.num_stored, block);
                    parent = Some(hash);
                }
            }
            KvEvent::Removed { block_hashes, group } => {
                for &hash in block_hashes {
                    if let Some(order) = self.order.remove(&BlockKey { hash, group: *group }) {
                        self.blocks.remove(&order);
                    }
                }
            }
            KvEvent::Cleared => {
                self.blocks.clear();
                self.order.clear();
            }
        }
    }

    fn snapshot(&self) -> Vec<KvEventBatch> {
        if self.last == 0 {
            return Vec::new();
        }
        let mut events = vec![KvEvent::Cleared];
        events.extend(self.parents_first().into_iter().map(|block| KvEvent::Stored {
            block_hashes: vec![block.key.hash],
            parent_block_hash: block.parent,
            block_size: block.token_ids.len() as u32,
            token_ids: block.token_ids.clone(),
            adapter: block.adapter.clone(),
            cache_salt: block.cache_salt.clone(),
            group: block.key.group,
            sliding_window: block.sliding_window,
        }));
        // As many batches as there have been at most, so that their numbers can be consecutive.
        let num_batches = (events.len().div_ceil(SNAPSHOT_BLOCKS) as u64).min(self.last);
        let len = events.len().div_ceil(num_batches as usize);
        let (time, first) = (SystemTime::now(), self.last + 1 - events.len().div_ceil(len) as u64);
        (first..)
            .zip(events.chunks(len))
            .map(|(sequence_number, events)| KvEventBatch { sequence_number, time, events: events.to_vec() })
            .collect()
    }

    /// In the order in which they came; but a block that came again later than those after it comes before them.
    fn parents_first(&self) -> Vec<&Block> {
        let mut seen = HashSet::new();
        let mut blocks = Vec::with_capacity(self.blocks.len());
        for mut block in self.blocks.values() {
            let mut chain = Vec::new();
            while seen.insert(block.key) {
                chain.push(block);
                let parent = block.parent.map(|hash| BlockKey { hash, group: block.key.group });
                let parent = parent.and_then(|key| self.order.get(&key));
                let Some(parent) = parent.and_then(|order| self.blocks.get(order)) else { break };
                block = parent;
            }
            blocks.extend(chain.into_iter().rev());
        }
        blocks
    }
}

fn num_tokens(events: &[KvEvent]) -> usize {
    let tokens = |event: &KvEvent| match event {
        KvEvent::Stored { token_ids, .. } => token_ids.len(),
        KvEvent::Removed { block_hashes, .. } => block_hashes.len(),
        KvEvent::Cleared => 0,
    };
    events.iter().map(tokens).sum()
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn hash(n: u8) -> BlockHash {
        BlockHash([n; 32])
    }

    fn stored(parent: Option<u8>, blocks: &[u8], group: u32) -> KvEvent {
        KvEvent::Stored {
            block_hashes: blocks.iter().map(|&n| hash(n)).collect(),
            parent_block_hash: parent.map(hash),
            token_ids: blocks.iter().flat_map(|&n| [n.into(), u32::from(n) + 1000]).collect(),
            block_size: 2,
            adapter: None,
            cache_salt: None,
            group,
            sliding_window: None,
        }
    }

    /// What a subscriber who applies these knows: the parents of blocks.
    fn known(events: &[KvEvent]) -> HashMap<BlockKey, Option<BlockHash>> {
        let mut state = State { max_batches: 1, ..State::default() };
        events.iter().for_each(|event| state.apply(event));
        state.blocks.values().map(|block| (block.key, block.parent)).collect()
    }

    #[tokio::test]
    async fn who_begins_anywhere_knows_the_same() {
        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = StdRng::seed_from_u64(seed);
        let events = Arc::new(KvEvents::new(20));
        let mut all = Vec::new();
        let mut live = events.subscribe_to_next();
        for step in 1..200u64 {
            let group = rng.random_range(0..2);
            let event = match rng.random_range(0..20) {
                0 => KvEvent::Cleared,
                1..8 => KvEvent::Removed { block_hashes: vec![hash(rng.random_range(0..40))], group },
                _ => {
                    let block: u8 = rng.random_range(0..40);
                    stored(block.checked_sub(1), &[block], group)
                }
            };
            all.push(event.clone());
            events.publish(vec![event.clone()]);
            let batch = live.next().await.unwrap();
            assert_eq!((batch.sequence_number, &batch.events), (step, &vec![event]));

            let (snapshot, _) = events.subscribe_with_snapshot();
            assert_eq!(snapshot.last().unwrap().sequence_number, step);
            let listed: Vec<_> = snapshot.iter().flat_map(|batch| batch.events.clone()).collect();
            assert_eq!(known(&listed), known(&all));
            let mut before = HashSet::<BlockKey>::new();
            for event in &listed {
                let KvEvent::Stored { block_hashes, parent_block_hash, group, .. } = event else { continue };
                let key = |hash: &BlockHash| BlockKey { hash: *hash, group: *group };
                let parent =
                    parent_block_hash.as_ref().map(key).filter(|parent| known(&all).contains_key(parent));
                assert!(parent.is_none_or(|parent| before.contains(&parent)), "parents come first");
                before.extend(block_hashes.iter().map(key));
            }
        }
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_and_nobody_waits_for_it() {
        let events = Arc::new(KvEvents::new(3));
        let mut slow = events.subscribe_to_next();
        for n in 0..5 {
            events.publish(vec![stored(None, &[n], 0)]);
        }
        let gone = BatchGone { asked: 1, oldest: 3, last: 5 };
        assert_eq!(slow.next().await.unwrap_err(), gone);
        assert_eq!(events.subscribe(1).unwrap_err(), gone);
        assert_eq!(events.subscribe(3).unwrap().next().await.unwrap().sequence_number, 3);
        assert_eq!(events.subscribe(7).unwrap_err().asked, 7);
        assert!(events.subscribe(6).is_ok());
    }

    #[test]
    fn a_snapshot_is_cut_into_batches() {
        let events = Arc::new(KvEvents::new(10_000));
        assert!(events.subscribe_with_snapshot().0.is_empty());
        let mut n = 0u32;
        for _ in 0..3 {
            let mut hashes = Vec::new();
            for _ in 0..SNAPSHOT_BLOCKS {
                n += 1;
                let mut hash = [0; 32];
                hash[..4].copy_from_slice(&n.to_be_bytes());
                hashes.push(BlockHash(hash));
            }
            events.publish(vec![KvEvent::Stored {
                token_ids: vec![0; hashes.len()],
                block_hashes: hashes,
                parent_block_hash: None,
                block_size: 1,
                adapter: None,
                cache_salt: None,
                group: 0,
                sliding_window: None,
            }]);
        }
        let numbers: Vec<_> =
            events.subscribe_with_snapshot().0.iter().map(|batch| batch.sequence_number).collect();
        assert_eq!(numbers, [1, 2, 3], "never more than there have been");
    }
}
