//! The prefix cache as requests meet it: hits, isolation, sharing in flight, events.

mod common;

use std::sync::Arc;

use common::*;
use quire_scheduler::kv::{BlockHash, KvEvent};
use quire_scheduler::*;

fn prompt(len: u32) -> Vec<TokenId> {
    (0..len).collect()
}

/// Tokens cached for a second request, after a first one with this prompt has ended.
fn cached_after(first: Request, second: Request) -> u32 {
    let mut driver = Driver::new(config());
    driver.add([first]);
    driver.run();
    let id = second.id.0;
    driver.add([second]);
    driver.run();
    driver.heard.cached[&id]
}

#[test]
fn a_later_request_starts_behind_the_full_blocks_of_the_shared_prefix() {
    assert_eq!(cached_after(with_prompt(1, prompt(10), 1), with_prompt(2, prompt(10), 1)), 8);
    assert_eq!(cached_after(with_prompt(1, prompt(8), 1), with_prompt(2, prompt(8), 1)), 4);
    assert_eq!(cached_after(with_prompt(1, prompt(8), 1), with_prompt(2, prompt(9), 1)), 8);
    assert_eq!(cached_after(with_prompt(1, prompt(3), 1), with_prompt(2, prompt(3), 1)), 0);
}

#[test]
fn generated_tokens_are_cached_too() {
    let mut driver = Driver::new(config());
    driver.add([with_prompt(1, prompt(6), 7)]);
    driver.run();
    let mut next = prompt(6);
    next.extend(&driver.heard.tokens[&1]);
    next.extend([1, 2, 3, 4]);
    driver.add([with_prompt(2, next, 1)]);
    driver.run();
    // 13 tokens, of which the last was never computed: three full blocks.
    assert_eq!(driver.heard.cached[&2], 12);
}

#[test]
fn adapters_and_salts_do_not_share_and_the_same_ones_do() {
    let make = |id, adapter: Option<&str>, salt: Option<&str>| Request {
        adapter: adapter.map(|name| Adapter::new(name, name, ())),
        cache_salt: salt.map(Arc::from),
        ..with_prompt(id, prompt(12), 1)
    };
    let kinds = [(None, None), (Some("x"), None), (None, Some("x")), (Some("x"), Some("x"))];
    for (a, first) in kinds.into_iter().enumerate() {
        for (b, second) in kinds.into_iter().enumerate() {
            let cached = cached_after(make(1, first.0, first.1), make(2, second.0, second.1));
            assert_eq!(cached, if a == b { 8 } else { 0 }, "{first:?} then {second:?}");
        }
    }
}

#[test]
fn without_the_cache_nothing_is_found() {
    let mut driver = Driver::new(SchedulerConfig { enable_prefix_caching: false, ..config() });
    driver.add([with_prompt(1, prompt(12), 1), with_prompt(2, prompt(12), 1)]);
    driver.run();
    assert_eq!((driver.heard.cached[&1], driver.heard.cached[&2]), (0, 0));
    assert_eq!(driver.scheduler.stats().prefix_cache_queries_total, 0);
    assert_eq!(driver.scheduler.kv().pool().num_cached(), 0);
}

#[test]
fn who_bypasses_the_cache_writes_to_it_but_does_not_read() {
    let bypass = |id| Request { bypass_prefix_cache: true, ..with_prompt(id, prompt(12), 1) };
    let asks = |id| with_sampling(with_prompt(id, prompt(12), 1), |p| p.prompt_logprobs = Some(0));
    assert_eq!(cached_after(with_prompt(1, prompt(12), 1), bypass(2)), 0);
    assert_eq!(cached_after(bypass(1), with_prompt(2, prompt(12), 1)), 8);
    assert_eq!(cached_after(with_prompt(1, prompt(12), 1), asks(2)), 0);
    assert_eq!(cached_after(asks(1), with_prompt(2, prompt(12), 1)), 8);
}

#[test]
fn identical_prompts_of_one_step_are_computed_once() {
    let mut driver = Driver::new(config());
    driver.add((1..=3).map(|id| with_prompt(id, prompt(10), 2)));
    let plan = driver.step().unwrap();
    assert_eq!(rows(&plan), [(1, 0, 10), (2, 8, 2), (3, 8, 2)]);
    assert_eq!(plan.admitted[1].block_ids, plan.new_block_ids[..2]);
    driver.run();
}

#[test]
fn a_prefix_in_flight_is_waited_for_and_does_not_hold_up_others() {
    let mut driver = Driver::new(SchedulerConfig { max_num_batched_tokens: 16, ..config() });
    driver.scheduler.add(with_prompt(1, prompt(40), 4));
    driver.step();
    driver.add([with_prompt(2, prompt(42), 4), request(3, 6, 1)]);
    // The first goes on; the second would compute the same blocks; the third is let past. Only if there is
    // budget left, though: the first takes all of it here.
    assert_eq!(rows(&driver.step().unwrap()), [(1, 16, 16)]);
    let plan = driver.step().unwrap();
    assert_eq!(rows(&plan), [(1, 32, 8), (2, 40, 2), (3, 0, 6)]);
    driver.run();
    assert_eq!(driver.heard.cached[&2], 40);
    assert_eq!(driver.scheduler.stats().prompt_tokens_computed_total, 40 + 2 + 6);
}

#[test]
fn deferred_requests_are_counted_and_passed_over() {
    let config = SchedulerConfig { long_prefill_token_threshold: 8, ..config() };
    let mut driver = Driver::new(config);
    driver.add([with_prompt(1, prompt(40), 4), with_prompt(2, prompt(40), 4), request(3, 6, 1)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 0, 8), (3, 0, 6)]);
    let stats = driver.scheduler.stats();
    assert_eq!((stats.num_waiting_deferred, stats.num_waiting_capacity), (1, 0));
    for start in [8, 16, 24] {
        assert_eq!(rows(&driver.step().unwrap()), [(1, start, 8)]);
    }
    // The last block is computed anew: a hit never covers the last token.
    assert_eq!(rows(&driver.step().unwrap()), [(1, 32, 8), (2, 36, 4)]);
    assert_eq!(driver.scheduler.stats().num_waiting_deferred, 0);
    driver.run();
    assert_eq!(driver.scheduler.stats().prompt_tokens_computed_total, 40 + 4 + 6);
}

#[test]
fn if_the_owner_leaves_the_next_one_computes_the_rest() {
    let config = SchedulerConfig { long_prefill_token_threshold: 8, ..config() };
    let mut driver = Driver::new(config);
    driver.add((1..=3).map(|id| with_prompt(id, prompt(40), 1)));
    driver.step();
    assert_eq!(driver.scheduler.stats().num_waiting_deferred, 2);
    driver.scheduler.abort(RequestId(1));
    assert_eq!(rows(&driver.step().unwrap()), [(2, 8, 8)]);
    assert_eq!(driver.scheduler.stats().num_waiting_deferred, 1);
    driver.scheduler.abort(RequestId(3));
    assert_eq!(driver.scheduler.stats().num_waiting_deferred, 0);
    driver.run();
}

#[test]
fn who_does_not_read_the_cache_neither_waits_nor_is_waited_for() {
    let config = SchedulerConfig { long_prefill_token_threshold: 8, ..config() };
    let mut driver = Driver::new(config);
    let bypass = |id| Request { bypass_prefix_cache: true, ..with_prompt(id, prompt(40), 1) };
    driver.add([bypass(1), with_prompt(2, prompt(40), 1), bypass(3)]);
    assert_eq!(rows(&driver.step().unwrap()), [(1, 0, 8), (2, 8, 8), (3, 0, 8)]);
    driver.run();
}

#[test]
fn hits_are_counted_once_a_request_even_if_it_is_preempted() {
    let mut driver = Driver::new(tight(8));
    driver.add([with_prompt(1, prompt(9), 1)]);
    driver.run();
    let before = driver.scheduler.stats();
    assert_eq!((before.prefix_cache_queries_total, before.prefix_cache_hits_total), (9, 0));
    driver.add([with_prompt(2, prompt(9), 20), request(3, 9, 20)]);
    driver.run();
    assert!(!driver.heard.preemptions.is_empty());
    let after = driver.scheduler.stats();
    assert_eq!((after.prefix_cache_queries_total, after.prefix_cache_hits_total), (27, 8));
}

#[test]
fn reset_is_refused_while_blocks_are_held() {
    let mut driver = Driver::new(SchedulerConfig { enable_kv_events: true, ..config() });
    driver.add([with_prompt(1, prompt(12), 3)]);
    driver.step();
    assert!(!driver.scheduler.reset_prefix_cache());
    driver.run();
    assert!(driver.scheduler.reset_prefix_cache());
    driver.drain();
    assert_eq!(driver.heard.events.last(), Some(&KvEvent::Cleared));
    driver.add([with_prompt(2, prompt(12), 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&2], 0);
}

#[test]
fn events_follow_the_cache() {
    let mut driver = Driver::new(SchedulerConfig { enable_kv_events: true, ..tight(4) });
    driver.add([with_prompt(1, prompt(8), 5)]);
    driver.run();
    let stored = |event: &KvEvent| match event {
        KvEvent::Stored { block_hashes, parent_block_hash, token_ids, .. } => {
            (block_hashes.clone(), *parent_block_hash, token_ids.clone())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(driver.heard.events.len(), 2);
    let (first, none, tokens) = stored(&driver.heard.events[0]);
    assert_eq!((first.len(), none, tokens), (2, None, prompt(8)));
    let (second, parent, tokens) = stored(&driver.heard.events[1]);
    assert_eq!((parent, &tokens[..]), (Some(first[1]), &driver.heard.tokens[&1][..4]));
    // Another request takes all four blocks: the tail of the first goes first.
    driver.add([request(2, 15, 1)]);
    driver.run();
    let removed: Vec<BlockHash> = [second[0], first[1], first[0]].into();
    assert_eq!(driver.heard.events[2], KvEvent::Removed { block_hashes: removed, group: 0 });
}
