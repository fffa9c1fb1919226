//! Groups of layers: what a window frees, what of a prefix can be hit, and how much fits.

mod common;

use common::*;
use quire_scheduler::kv::*;
use quire_scheduler::sim::Rng;
use quire_scheduler::*;

fn windows(windows: &[Option<u32>]) -> Vec<KvGroup> {
    windows.iter().map(|&sliding_window| KvGroup { sliding_window }).collect()
}

/// A pool that holds one sequence of `max_model_len` tokens when a step computes at most eight.
fn smallest(groups: &[Option<u32>], max_model_len: u32) -> SchedulerConfig {
    let mut config =
        SchedulerConfig { max_model_len, max_num_batched_tokens: 8, kv_groups: windows(groups), ..config() };
    config.num_blocks = 1 + config.blocks_per_sequence();
    config
}

#[test]
fn a_long_sequence_goes_through_a_window_in_a_small_pool() {
    let config = smallest(&[Some(6)], 400);
    assert_eq!(config.num_blocks, 1 + 5, "8 tokens and the 5 before them, in blocks of 4");
    let full = SchedulerConfig { kv_groups: windows(&[None]), ..config.clone() };
    let refusal = Scheduler::new(full).unwrap_err().to_string();
    assert!(refusal.contains("needs 100"), "{refusal}");
    let mut driver = Driver::new(config);
    driver.add([request(1, 250, 150)]);
    driver.run();
    assert_eq!(driver.heard.ends[&1], FinishReason::Length);
    assert_eq!(driver.heard.tokens[&1].len(), 150);
    assert!(driver.heard.preemptions.is_empty());
}

#[test]
fn many_sequences_with_windows_run_at_once_where_few_whole_ones_would() {
    let groups = [Some(6), None, Some(6), Some(6)];
    let config =
        SchedulerConfig { num_blocks: 1 + 440, max_num_batched_tokens: 64, ..smallest(&groups, 200) };
    let mut driver = Driver::new(config);
    driver.add((1..=6).map(|id| request(id, 180, 20)));
    let mut most = 0;
    while driver.scheduler.has_unfinished() {
        driver.step().unwrap();
        most = most.max(driver.scheduler.stats().num_running);
    }
    assert_eq!(most, 6, "200 blocks for each would be two at once");
    assert!(driver.heard.preemptions.is_empty());
}

#[test]
fn identical_prompts_are_computed_once_though_their_windows_have_moved_on() {
    let mut driver = Driver::new(SchedulerConfig { kv_groups: windows(&[None, Some(6)]), ..config() });
    let prompt: Vec<u32> = (0..41).collect();
    driver.add([with_prompt(1, prompt.clone(), 1)]);
    driver.run();
    driver.add([with_prompt(2, prompt.clone(), 30)]);
    let plan = driver.step().unwrap();
    assert_eq!(rows(&plan), [(2, 40, 1)]);
    let blocks = &plan.admitted[0].block_ids;
    let of_group =
        |group: usize| blocks.iter().skip(group).step_by(2).filter(|block| !block.is_null()).count();
    assert_eq!((of_group(0), of_group(1)), (10, 2), "the window before position 40 begins at 35");
    // While the second still runs: what its window has left behind can be hit, but for what was given out since.
    driver.step();
    driver.add([with_prompt(3, prompt[..21].to_vec(), 1)]);
    driver.run();
    assert_eq!(driver.heard.cached[&3], 20);
}

/// A row that failed may have computed nonsense all along, in blocks that it has given back since.
#[test]
fn what_a_failed_request_gave_back_is_not_hit() {
    let mut driver = Driver::new(SchedulerConfig { kv_groups: windows(&[Some(6)]), ..config() });
    driver.add([request(1, 40, 20)]);
    driver.step();
    driver.step();
    assert!(driver.scheduler.stats().num_blocks_cached > 0, "the window has moved on");
    let plan = driver.schedule().unwrap();
    let mut answer = driver.answer(&plan);
    answer.failed_rows.push((0, FinishReason::Error("logits are not numbers".into())));
    driver.finish_with(plan, Ok(&answer));
    assert_eq!(driver.scheduler.stats().num_blocks_cached, 0);
    assert_eq!(driver.free_blocks(), 100);
}

#[test]
fn wrong_groups_are_refused_by_name() {
    let refused = |kv_groups| SchedulerConfig { kv_groups, ..config() }.validate().unwrap_err().to_string();
    assert!(refused(Vec::new()).contains("kv_groups has 0 groups"));
    assert!(refused(windows(&[None; 65])).contains("1 to 64"));
    assert!(refused(windows(&[None, Some(0)])).contains("sliding_window is 0"));
}

/// The longest prefix of which each group has what the token behind it sees; by trying all.
fn longest_prefix(manager: &KvCacheManager, hashes: &[BlockHash], num_tokens: u32) -> usize {
    let size = manager.block_size();
    let is_cached = |end: usize| {
        manager.groups().iter().enumerate().all(|(group, kind)| {
            let first = kind.first_visible(end as u32 * size) / size;
            (first as usize..end)
                .all(|i| manager.pool().get(&BlockKey { hash: hashes[i], group: group as u32 }).is_some())
        })
    };
    let most = (num_tokens - 1) / size;
    (0..=hashes.len().min(most as usize)).rev().find(|&end| is_cached(end)).unwrap()
}

#[test]
fn the_longest_prefix_is_found_whatever_was_evicted() {
    let (mut num_hits, mut num_windows) = (0, 0);
    for seed in 0..300 {
        let mut rng = Rng::new(seed);
        let block_size = rng.between(1, 4);
        let kinds = [None, Some(rng.between(1, 9)), Some(rng.between(1, 20))];
        let groups: Vec<_> = (0..rng.between(1, 4)).map(|_| *rng.pick(&kinds)).collect();
        let mut manager = KvCacheManager::new(KvCacheConfig {
            num_blocks: 70 * groups.len() as u32,
            block_size,
            groups: windows(&groups),
            max_step_tokens: 10,
            enable_prefix_caching: true,
            record_events: false,
        });
        let stem: Vec<u32> = (0..60).collect();
        for _ in 0..60 {
            let mut prompt = stem[..rng.between(1, 60) as usize].to_vec();
            prompt.extend((0..rng.below(4)).map(|_| rng.below(3)));
            let sequence = Sequence { prompt: &prompt, output: &[], adapter: None, cache_salt: None };
            let (mut hashes, mut hits, mut table) = (Vec::new(), Vec::new(), BlockTable::default());
            sequence.extend_hashes(&mut hashes, usize::MAX, block_size as usize);
            let len = prompt.len() as u32;
            let found = manager.find_hits(&hashes, len, &mut hits);
            assert_eq!(found, longest_prefix(&manager, &hashes, len), "seed {seed}, {groups:?}");
            assert_eq!(hits.len(), found * groups.len(), "seed {seed}");
            for (at, block) in hits.iter().enumerate() {
                let (index, group) = (at / groups.len(), at % groups.len());
                let skipped =
                    manager.groups()[group].num_skipped_blocks(found as u32 * block_size, block_size);
                assert_eq!(block.is_null(), index < skipped, "seed {seed}: block {index} of group {group}");
                let key = BlockKey { hash: hashes[index], group: group as u32 };
                assert!(block.is_null() || manager.pool().key(*block) == Some(&key), "seed {seed}");
            }
            num_hits += found;
            num_windows += hits.iter().filter(|block| block.is_null()).count();
            // Computed in steps of ten tokens, and then left for others to evict.
            manager.adopt(&mut table, &hits);
            let mut computed = found as u32 * block_size;
            while computed < len {
                let end = len.min(computed + 10);
                assert!(manager.grow(&mut table, computed, end, &mut Vec::new()), "seed {seed}");
                manager.register(&mut table, (end / block_size) as usize, &hashes, &sequence);
                computed = end;
            }
            manager.free(&mut table);
        }
        assert_eq!(manager.pool().num_free(), manager.pool().num_total());
    }
    assert!(num_hits > 10_000 && num_windows > 1_000, "{num_hits} hits, {num_windows} left out");
}
