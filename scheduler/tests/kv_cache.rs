//! Blocks as bookkeeping: free list, pool, hashes, the manager's operations.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use quire_scheduler::Adapter;
use quire_scheduler::kv::*;
use quire_scheduler::sim::Rng;

fn sequence(prompt: &[u32]) -> Sequence<'_> {
    Sequence { prompt, output: &[], adapter: None, cache_salt: None }
}

fn hashes_of(sequence: &Sequence<'_>, block_size: usize) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    sequence.extend_hashes(&mut hashes, usize::MAX, block_size);
    hashes
}

/// A manager of 10 usable blocks of 2 tokens, with events.
fn manager() -> KvCacheManager {
    KvCacheManager::new(config())
}

fn config() -> KvCacheConfig {
    KvCacheConfig {
        num_blocks: 11,
        block_size: 2,
        groups: vec![KvGroup::FULL],
        max_step_tokens: 100,
        enable_prefix_caching: true,
        record_events: true,
    }
}

fn key(hash: BlockHash) -> BlockKey {
    BlockKey { hash, group: 0 }
}

/// Computes and registers a whole prompt, as a step would.
fn fill(manager: &mut KvCacheManager, prompt: &[u32]) -> BlockTable {
    let (mut table, mut hits) = (BlockTable::default(), Vec::new());
    let sequence = sequence(prompt);
    let hashes = hashes_of(&sequence, 2);
    manager.find_hits(&hashes, prompt.len() as u32, &mut hits);
    manager.adopt(&mut table, &hits);
    assert!(manager.grow(&mut table, 0, prompt.len() as u32, &mut Vec::new()));
    manager.register(&mut table, hashes.len(), &hashes, &sequence);
    table
}

#[test]
fn free_list_is_an_ordered_set() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let (mut list, mut model) = (FreeList::new(20), VecDeque::new());
        for _ in 0..500 {
            let block = BlockId(rng.between(1, 19));
            match rng.below(4) {
                0 => assert_eq!(list.pop_front(), model.pop_front(), "seed {seed}"),
                1 if !model.contains(&block) => {
                    list.push_back(block);
                    model.push_back(block);
                }
                2 if !model.contains(&block) => {
                    list.push_front(block);
                    model.push_front(block);
                }
                3 if model.contains(&block) => {
                    list.remove(block);
                    model.retain(|other| *other != block);
                }
                _ => {}
            }
            assert_eq!(list.contains(block), model.contains(&block), "seed {seed}");
            assert_eq!(list.len() as usize, model.len(), "seed {seed}");
            assert!(list.iter().eq(model.iter().copied()), "seed {seed}");
            assert_eq!(list.is_empty(), model.is_empty());
        }
    }
}

#[test]
#[should_panic(expected = "block 3 is free already")]
fn a_block_is_not_freed_twice() {
    let mut list = FreeList::new(5);
    list.push_back(BlockId(3));
    list.push_front(BlockId(3));
}

#[test]
fn blocks_are_given_out_in_order_and_never_the_padding_block() {
    let mut pool = BlockPool::new(5, false);
    let all: Vec<u32> = std::iter::from_fn(|| pool.allocate()).map(|block| block.0).collect();
    assert_eq!(all, [1, 2, 3, 4]);
    assert_eq!((pool.num_free(), pool.num_total()), (0, 4));
}

#[test]
fn hashed_blocks_are_kept_longest_and_the_tail_of_a_sequence_goes_first() {
    let mut manager = manager();
    let mut one = fill(&mut manager, &[1, 2, 3, 4, 5]);
    let mut two = fill(&mut manager, &[6, 7, 8, 9]);
    assert_eq!(one.blocks(), [BlockId(1), BlockId(2), BlockId(3)]);
    manager.free(&mut one);
    manager.free(&mut two);
    // Half a block cannot be hit: first. Then those never used. Then by age, tails before heads.
    let order: Vec<u32> = manager.pool().free_blocks().iter().map(|block| block.0).collect();
    assert_eq!(order, [3, 6, 7, 8, 9, 10, 2, 1, 5, 4]);
}

#[test]
fn content_is_forgotten_only_when_its_block_is_given_out() {
    let mut manager = manager();
    let prompt: Vec<u32> = (0..20).collect();
    let mut table = fill(&mut manager, &prompt);
    manager.free(&mut table);
    assert_eq!(manager.pool().num_cached(), 10);
    let mut other = BlockTable::default();
    assert!(manager.grow(&mut other, 0, 6, &mut Vec::new()));
    assert_eq!(manager.pool().num_cached(), 7);
    let (hashes, mut hits) = (hashes_of(&sequence(&prompt), 2), Vec::new());
    manager.find_hits(&hashes, 20, &mut hits);
    assert_eq!(hits.len(), 7, "the head is still there");
}

#[test]
fn a_hit_takes_its_blocks_out_of_reach_of_eviction() {
    let mut manager = manager();
    let mut first = fill(&mut manager, &[1, 2, 3, 4, 5]);
    manager.free(&mut first);
    let second = fill(&mut manager, &[1, 2, 3, 4, 6]);
    assert_eq!(second.blocks()[..2], [BlockId(1), BlockId(2)]);
    let mut rest = BlockTable::default();
    assert!(manager.grow(&mut rest, 0, 14, &mut Vec::new()));
    assert!(rest.blocks().iter().all(|block| !second.blocks().contains(block)));
    assert_eq!(manager.pool().num_free(), 0);
    assert_eq!(manager.pool().ref_count(BlockId(1)), 1);
}

#[test]
fn too_few_free_blocks_leave_everything_as_it_was() {
    let mut manager = manager();
    let mut table = BlockTable::default();
    assert!(manager.grow(&mut table, 0, 17, &mut Vec::new()));
    let before = (table.blocks().to_vec(), manager.pool().num_free());
    let mut new = Vec::new();
    assert!(!manager.grow(&mut table, 0, 21, &mut new));
    assert_eq!((table.blocks().to_vec(), manager.pool().num_free()), before);
    assert!(new.is_empty());
    assert!(manager.grow(&mut table, 0, 20, &mut new));
    assert_eq!(new, [BlockId(10)]);
}

#[test]
fn a_hit_never_covers_the_last_token() {
    let mut manager = manager();
    fill(&mut manager, &[1, 2, 3, 4]);
    let mut hits_of = |prompt: &[u32]| {
        let mut hits = Vec::new();
        manager.find_hits(&hashes_of(&sequence(prompt), 2), prompt.len() as u32, &mut hits);
        hits.len()
    };
    assert_eq!(hits_of(&[1, 2, 3, 4]), 1);
    assert_eq!(hits_of(&[1, 2, 3, 4, 5]), 2);
    assert_eq!(hits_of(&[1, 2]), 0);
    assert_eq!(hits_of(&[1, 2, 9, 4, 5]), 1);
    assert_eq!(hits_of(&[9, 2, 3, 4, 5]), 0, "a block is what it is only after what came before");
}

#[test]
fn free_hits_count_as_taken() {
    let mut manager = manager();
    let mut one = fill(&mut manager, &[1, 2, 3, 4, 5]);
    let hits = one.blocks()[..2].to_vec();
    assert_eq!(manager.num_blocks_taken(&hits, 9), 3, "both hits are held by another");
    manager.free(&mut one);
    assert_eq!(manager.num_blocks_taken(&hits, 9), 5, "both hits are free blocks");
}

#[test]
fn equal_content_may_be_in_two_blocks_and_outlives_the_first() {
    let mut manager = manager();
    let prompt = [1, 2, 3];
    let mut one = fill(&mut manager, &prompt);
    let mut two = BlockTable::default();
    let sequence = sequence(&prompt);
    let hashes = hashes_of(&sequence, 2);
    assert!(manager.grow(&mut two, 0, 3, &mut Vec::new()));
    manager.register(&mut two, 1, &hashes, &sequence);
    assert_eq!(manager.pool().num_cached(), 1);
    let (first, second) = (one.blocks()[0], two.blocks()[0]);
    assert_ne!(first, second);
    assert_eq!(manager.pool().get(&key(hashes[0])), Some(first));
    manager.unregister(first, &key(hashes[0]));
    assert_eq!(manager.pool().get(&key(hashes[0])), Some(second));
    manager.unregister(first, &key(hashes[0]));
    manager.unregister(second, &key(hashes[0]));
    assert_eq!(manager.pool().get(&key(hashes[0])), None);
    let stored = |event: &&KvEvent| matches!(event, KvEvent::Stored { .. });
    let events = manager.take_events();
    assert_eq!(events.iter().filter(stored).count(), 1, "told once, whatever the number of blocks");
    assert_eq!(events.len(), 2);
    manager.free(&mut one);
    manager.free(&mut two);
    assert_eq!(manager.pool().num_free(), 10);
}

#[test]
fn reset_needs_an_idle_cache() {
    let mut manager = manager();
    let mut table = fill(&mut manager, &[1, 2, 3]);
    assert!(!manager.reset_prefix_cache());
    assert_eq!(manager.pool().num_cached(), 1);
    manager.free(&mut table);
    assert!(manager.reset_prefix_cache());
    assert_eq!(manager.pool().num_cached(), 0);
    assert_eq!(manager.take_events().last(), Some(&KvEvent::Cleared));
    assert_eq!(manager.usage(), 0.0);
}

#[test]
fn events_tell_chains_with_their_parents() {
    let mut manager = manager();
    let mut table = BlockTable::default();
    let (prompt, salt): (Vec<u32>, Arc<str>) = ((1..=6).collect(), "s".into());
    let sequence = Sequence { cache_salt: Some(&salt), ..sequence(&prompt) };
    let hashes = hashes_of(&sequence, 2);
    assert!(manager.grow(&mut table, 0, 6, &mut Vec::new()));
    assert_eq!(manager.register(&mut table, 1, &hashes, &sequence), 0..1);
    assert_eq!(manager.register(&mut table, 1, &hashes, &sequence), 1..1);
    assert_eq!(manager.register(&mut table, 3, &hashes, &sequence), 1..3);
    let stored = |range: std::ops::Range<usize>, parent| KvEvent::Stored {
        block_hashes: hashes[range.clone()].to_vec(),
        parent_block_hash: parent,
        token_ids: prompt[range.start * 2..range.end * 2].to_vec(),
        block_size: 2,
        adapter: None,
        cache_salt: Some(salt.clone()),
        group: 0,
        sliding_window: None,
    };
    assert_eq!(manager.take_events(), [stored(0..1, None), stored(1..3, Some(hashes[0]))]);
    manager.free(&mut table);
    assert!(manager.grow(&mut table, 0, 20, &mut Vec::new()));
    let removed = KvEvent::Removed { block_hashes: vec![hashes[2], hashes[1], hashes[0]], group: 0 };
    assert_eq!(manager.take_events(), [removed]);
}

#[test]
fn nothing_is_kept_for_nobody() {
    let mut manager = KvCacheManager::new(KvCacheConfig { record_events: false, ..config() });
    let mut table = fill(&mut manager, &[1, 2, 3]);
    manager.free(&mut table);
    manager.reset_prefix_cache();
    assert!(manager.take_events().is_empty());
}

#[test]
fn hashing_bit_by_bit_is_hashing_at_once() {
    let tokens: Vec<u32> = (0..100).map(|i| i * 7).collect();
    let all = hashes_of(&sequence(&tokens), 16);
    assert_eq!(all.len(), 6);
    let mut grown = Vec::new();
    for len in 0..=100 {
        // The border between prompt and output is not part of the content.
        let (prompt, output) = tokens[..len].split_at(len / 3);
        Sequence { output, ..sequence(prompt) }.extend_hashes(&mut grown, usize::MAX, 16);
        assert_eq!(grown, all[..len / 16]);
    }
    let mut some = Vec::new();
    sequence(&tokens).extend_hashes(&mut some, 2, 16);
    assert_eq!(some, all[..2]);
}

#[test]
fn different_content_has_different_hashes() {
    let parent = hash_block(None, &[], [0u32].into_iter());
    let (x, y) = (ExtraKey::Adapter("x"), ExtraKey::CacheSalt("x"));
    let mut seen = BTreeSet::new();
    for parent in [None, Some(&parent)] {
        for keys in [&[][..], &[x], &[y], &[x, y], &[ExtraKey::Adapter("xx")], &[ExtraKey::Adapter("")]] {
            for tokens in [&[1u32, 2][..], &[2, 1], &[1, 2, 0], &[1], &[0x0002_0001]] {
                assert!(seen.insert(hash_block(parent, keys, tokens.iter().copied())));
            }
        }
    }
    assert_eq!(seen.len(), 60);
}

#[test]
fn adapters_mark_every_block_and_salts_only_the_first() {
    let tokens: Vec<u32> = (0..6).collect();
    let name: Arc<str> = "x".into();
    let plain = hashes_of(&sequence(&tokens), 2);
    // Of what it is called nothing is in the hash.
    let adapter = Adapter::new("another name", "x", ());
    let adapted = hashes_of(&Sequence { adapter: Some(&adapter), ..sequence(&tokens) }, 2);
    let salted = hashes_of(&Sequence { cache_salt: Some(&name), ..sequence(&tokens) }, 2);
    for block in 0..3 {
        let three = BTreeSet::from([plain[block], adapted[block], salted[block]]);
        assert_eq!(three.len(), 3, "an adapter named like a salt is not that salt");
    }
    let tail = |parent, keys: &[ExtraKey<'_>]| hash_block(Some(parent), keys, [2u32, 3].into_iter());
    assert_eq!(salted[1], tail(&salted[0], &[]));
    assert_eq!(adapted[1], tail(&adapted[0], &[ExtraKey::Adapter("x")]));
}

/// The hash is a wire fact: routers compare what several servers publish. Computed with Python's hashlib over
/// the bytes that `hash_block` documents.
#[test]
fn the_hash_is_the_documented_one() {
    let hex = |hash: BlockHash| hash.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let first = hash_block(None, &[], [1u32, 2, 3, 4].into_iter());
    assert_eq!(hex(first), "f42f6b5021117cf9aecba4016b721a455d9224f99dd6080d38788b06a9d2d200");
    let keys = [ExtraKey::Adapter("lora"), ExtraKey::CacheSalt("salt")];
    assert_eq!(
        hex(hash_block(Some(&first), &keys, 0..20u32)),
        "b3cc650380b65d072ec2dfd3fb696a78840545854d258eae072e182ce842d13e"
    );
}
