//! Every fixture of `model/tests/fixtures` against what transformers computes with it, position by position, its text
//! in chunks. A folder is tested by being there; the scripts beside them say how they are made.

mod support;

use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use candle_core::{Device, safetensors};
use quire_cpu::CpuOptions;
use quire_model::{ModelSpec, RunnerConfig};
use quire_scheduler::{ALL_LOGPROBS, SamplingParams, TokenId};
use support::{Planner, Sequence, load_runner};

/// Largest error of a position's log-probabilities, as a part of the largest of them: both sides compute in f32, and
/// only the order of sums differs.
const TOLERANCE: f32 = 2e-5;
const CHUNK: usize = 7;
/// Tokens that may follow a text (`greedy_ids`): what is served decides how some models rotate.
const NUM_GREEDY: usize = 32;

#[test]
fn every_fixture_has_transformers_log_probabilities() {
    let fixtures = fixtures();
    assert!(!fixtures.is_empty(), "the fixtures are gone");
    let fails = |dir: &&PathBuf| catch_unwind(|| compare(dir)).is_err();
    let failed: Vec<_> = fixtures.iter().filter(fails).filter_map(|dir| dir.file_name()).collect();
    assert!(failed.is_empty(), "{} fixtures fail (see above): {failed:?}", failed.len());
}

/// What has a config.json, and expectations of this kind; in the folder that the environment names, if it does
/// (model/tests/fixtures/make_random_fixtures.py fills one).
fn fixtures() -> Vec<PathBuf> {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures");
    let all = std::env::var_os("QUIRE_FIXTURES").map_or_else(own, PathBuf::from);
    let entries = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path());
    let has = |dir: &Path, name: &str| dir.join(name).exists();
    let mut dirs: Vec<_> =
        entries.filter(|dir| has(dir, "config.json") && has(dir, "expected.safetensors")).collect();
    dirs.sort();
    dirs
}

/// All log-probabilities that the model gives against the stored ones.
fn compare(dir: &Path) {
    let name = dir.file_name().unwrap().to_str().unwrap();
    let stored = safetensors::load(dir.join("expected.safetensors"), &Device::Cpu).unwrap();
    let token_ids: Vec<TokenId> =
        stored["token_ids"].to_vec1::<i64>().unwrap().into_iter().map(|id| id as TokenId).collect();
    let expected: Vec<Vec<f32>> = stored["logprobs"].to_vec2().unwrap();
    if let Err(refused) = ModelSpec::from_dir(dir) {
        panic!("{name}: {refused}");
    }

    // Fewer logits rows than tokens in a chunk, so that a step's logits come in parts.
    let config = RunnerConfig {
        max_num_seqs: 3,
        max_num_batched_tokens: CHUNK,
        max_model_len: token_ids.len() + NUM_GREEDY,
        block_size: 4,
        num_blocks: 20,
    };
    let mut runner = load_runner(dir, CpuOptions::default(), config);
    let sampling = SamplingParams {
        logprobs: Some(ALL_LOGPROBS),
        prompt_logprobs: Some(ALL_LOGPROBS),
        ..SamplingParams::default()
    };
    let mut planner = Planner::new(config.block_size, (1..20).collect());
    let mut sequences = [Sequence::new(1, 5, &token_ids, sampling)];
    let mut next_position = 1;
    while sequences[0].computed < token_ids.len() {
        planner.begin();
        let left = token_ids.len() - sequences[0].computed;
        planner.add(&mut sequences[0], left.min(CHUNK));
        let output = planner.run(&mut runner, &mut sequences);
        assert!(output.failed_rows.is_empty(), "{name}: {:?}", output.failed_rows);
        for found in &output.logprobs {
            assert_eq!(found.position, next_position, "{name}");
            let top = &output.top[found.top.start as usize..found.top.end as usize];
            let expected = &expected[next_position as usize - 1];
            assert_eq!(top.len(), expected.len(), "{name}");
            let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
            for (token, logprob) in top {
                let wanted = expected[*token as usize];
                let error = (logprob - wanted).abs() / largest;
                assert!(
                    error < TOLERANCE,
                    "{name}, position {next_position}, token {token}: {logprob} for {wanted}"
                );
            }
            assert_eq!(found.logprob, top.iter().find(|(token, _)| *token == found.token).unwrap().1);
            if let Some(prompt_token) = token_ids.get(next_position as usize) {
                assert_eq!(found.token, *prompt_token, "{name}");
            }
            next_position += 1;
        }
    }
    assert_eq!(next_position as usize, token_ids.len() + 1, "{name}: a position has no log-probabilities");
}
