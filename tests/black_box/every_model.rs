//! Every fixture of `model/tests/fixtures` through the real server: the log-probabilities of its text and the 32
//! greedy tokens after it must be those of transformers, alone, and the same to the last bit in company, with
//! prompts cut into chunks and taken from the prefix cache.
//!
//! The near-tie rule: where the likeliest token was likelier than the runner-up by less than [`NEAR`] in
//! log-probability, another order of sums may choose the runner-up; what comes after that is not compared.
//!
//! A folder is tested by being there: nothing else names it. `QUIRE_FIXTURES` names another place to look for them,
//! which model/tests/fixtures/make_random_fixtures.py can fill.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::ask::{Answer, Ask, Door, Prompt};
use crate::http;
use crate::server::Server;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures");
/// Names another folder of them.
const ELSEWHERE: &str = "QUIRE_FIXTURES";
/// The fixtures' vocabularies are numbers only; this one has a character for each.
const TOKENIZER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/model/tests/fixtures/tokenizer");
/// Two best this near: either may win.
const NEAR: f32 = 1e-3;
/// Largest error of a position's log-probabilities, as a part of the largest of them.
const TOLERANCE: f32 = 1e-4;
/// Strangers in the batch.
const COMPANY: usize = 6;

/// A folder with `expected.safetensors`: see `expected.py` there.
struct Fixture {
    name: String,
    model: PathBuf,
    token_ids: Vec<u32>,
    /// One row a token.
    logprobs: Vec<Vec<f32>>,
    greedy_ids: Vec<u32>,
    greedy_margins: Vec<f32>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fixture_is_served_with_transformers_numbers_in_any_company() {
    let fixtures = fixtures();
    let least = if std::env::var_os(ELSEWHERE).is_some() { 1 } else { 90 };
    assert!(fixtures.len() >= least, "the fixtures are gone: {} are left", fixtures.len());
    let tasks = fixtures.into_iter().map(|fixture| async {
        let name = fixture.name.clone();
        // A task of its own, so that one that fails does not hide the others.
        tokio::spawn(check(fixture)).await.map_err(|_| name)
    });
    let results: Vec<Result<(), String>> = stream::iter(tasks).buffer_unordered(2).collect().await;
    let failed: Vec<String> = results.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{} fixtures fail (see above): {}", failed.len(), failed.join(", "));
}

/// Whatever can be loaded is compared with something, here or in the tests of pooling.
#[test]
fn no_fixture_is_without_expectations() {
    for folder in folders() {
        let has = |name: &str| folder.join(name).exists();
        let expected = ["expected.safetensors", "pooled.safetensors", "labels.safetensors"];
        assert!(
            !has("config.json") || expected.iter().any(|name| has(name)),
            "{} is compared with nothing",
            folder.display()
        );
    }
}

async fn check(fixture: Fixture) {
    let name = fixture.name.as_str();
    let max_model_len = (fixture.token_ids.len() + fixture.greedy_ids.len()).to_string();
    let vocab = fixture.logprobs[0].len().to_string();
    let mut flags = vec![fixture.model.to_str().expect("UTF-8"), "--tokenizer", TOKENIZER];
    flags.extend(["--max-model-len", &max_model_len, "--max-logprobs", &vocab]);
    flags.extend(["--kv-cache-memory-bytes", "8000000"]);
    let server = Server::start(&flags);
    check_prompt(&fixture, &server).await;
    let alone = fixture.ask().via(Door::Completions, &server).await;
    fixture.check_greedy(&alone).unwrap_or_else(|wrong| panic!("{name}: {wrong}"));
    drop(server);

    flags.extend(["--max-num-batched-tokens", "13", "--max-num-seqs", "5"]);
    let server = Server::start(&flags);
    let mut rng = StdRng::seed_from_u64(fixture.name.len() as u64);
    // Before anything is cached, while others' prompts and tokens fill the steps; and from the cache.
    for round in ["new", "cached"] {
        let strangers = join_all((0..COMPANY).map(|_| fixture.stranger(&mut rng)).map(|ask| {
            let server = &server;
            async move { ask.via(Door::CompletionsStream, server).await }
        }));
        let own = join_all(Door::FOR_TOKENS.map(|door| {
            let (server, fixture) = (&server, &fixture);
            async move { (door, fixture.ask().via(door, server).await) }
        }));
        let (_, answers) = tokio::join!(strangers, own);
        for (door, answer) in answers {
            assert!(
                answer == alone,
                "{name}, {round} prompt, {door:?}, in company: {answer:?}\nalone: {alone:?}"
            );
        }
    }
    let hits = server.metrics().await.value("vllm:prefix_cache_hits_total");
    assert!(hits > 0.0, "{name}: nothing came from the prefix cache");
}

/// All log-probabilities of the fixture's text.
async fn check_prompt(fixture: &Fixture, server: &Server) {
    let name = fixture.name.as_str();
    let vocab = fixture.logprobs[0].len();
    let body = json!({ "prompt": fixture.token_ids, "max_tokens": 1, "prompt_logprobs": vocab });
    let answer = http::post(server.http, "/v1/completions", &body).await.ok();
    let found = answer["choices"][0]["prompt_logprobs"].as_array().expect("one a token");
    assert_eq!(found.len(), fixture.token_ids.len(), "{name}");
    for (position, (found, expected)) in found[1..].iter().zip(&fixture.logprobs).enumerate() {
        let found = found.as_object().expect("an object by token");
        assert_eq!(found.len(), vocab, "{name}, position {position}");
        let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        for (token, entry) in found {
            let token: usize = token.parse().expect("a token id");
            let logprob = entry["logprob"].as_f64().expect("a number") as f32;
            let error = (logprob - expected[token]).abs() / largest;
            assert!(
                error < TOLERANCE,
                "{name}, position {position}, token {token}: {logprob} for {}",
                expected[token]
            );
        }
    }
}

impl Fixture {
    fn read(folder: &Path) -> Self {
        let tensors = Tensors::read(&folder.join("expected.safetensors"));
        let ids = |name: &str| tensors.i64s(name).into_iter().map(|id| id as u32).collect::<Vec<_>>();
        let token_ids = ids("token_ids");
        let logprobs = tensors.f32s("logprobs");
        let vocab = logprobs.len() / token_ids.len();
        Self {
            name: folder.file_name().expect("a name").to_string_lossy().into_owned(),
            model: model_in(folder),
            logprobs: logprobs.chunks_exact(vocab).map(<[f32]>::to_vec).collect(),
            greedy_ids: ids("greedy_ids"),
            greedy_margins: tensors.f32s("greedy_margins"),
            token_ids,
        }
    }

    fn ask(&self) -> Ask {
        let prompt = Prompt::Tokens(self.token_ids.clone());
        Ask { ignore_eos: true, ..Ask::greedy(prompt, self.greedy_ids.len() as u32) }
    }

    /// Somebody else's request.
    fn stranger(&self, rng: &mut StdRng) -> Ask {
        let (vocab, longest) = (self.logprobs[0].len() as u32, self.token_ids.len());
        let len = rng.random_range(1..=longest);
        let prompt = Prompt::Tokens((0..len).map(|_| rng.random_range(0..vocab)).collect());
        let max_tokens = rng.random_range(1..=self.greedy_ids.len() as u32);
        let seed = rng.random_range(0..i64::MAX);
        Ask { ignore_eos: true, temperature: 1.0, seed, ..Ask::greedy(prompt, max_tokens) }
    }

    fn check_greedy(&self, answer: &Answer) -> Result<(), String> {
        let expected = &self.greedy_ids;
        if answer.token_ids.len() != expected.len() {
            return Err(format!("{} tokens instead of {}", answer.token_ids.len(), expected.len()));
        }
        let differs = |(found, expected): (&u32, &u32)| found != expected;
        match answer.token_ids.iter().zip(expected).position(differs) {
            Some(at) if self.greedy_margins[at] >= NEAR => Err(format!(
                "token {at} differs, where the best was ahead by {}: {:?} for {expected:?}",
                self.greedy_margins[at], answer.token_ids
            )),
            _ => Ok(()),
        }
    }
}

fn fixtures() -> Vec<Fixture> {
    let folders = folders().into_iter().filter(|folder| folder.join("expected.safetensors").exists());
    folders.map(|folder| Fixture::read(&folder)).collect()
}

fn folders() -> Vec<PathBuf> {
    let place = std::env::var_os(ELSEWHERE).map_or_else(|| PathBuf::from(FIXTURES), PathBuf::from);
    let entries = std::fs::read_dir(place).expect("the fixtures are there");
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

/// The folder, or its GGUF file (the first part of a split one), which is a whole model.
fn model_in(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "gguf");
    files.filter(is_gguf).min().unwrap_or_else(|| folder.to_owned())
}

/// A safetensors file: the length of its header, the header, and the numbers that it points into.
struct Tensors {
    header: HashMap<String, Value>,
    data: Vec<u8>,
}

impl Tensors {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let (len, rest) = bytes.split_first_chunk().expect("a length");
        let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
        Self { header: serde_json::from_slice(header).expect("a header"), data: data.to_vec() }
    }

    fn bytes(&self, name: &str, dtype: &str) -> &[u8] {
        let entry = self.header.get(name).unwrap_or_else(|| panic!("expected.safetensors has no {name}"));
        assert_eq!(entry["dtype"], dtype, "{name}");
        let offset = |index: usize| entry["data_offsets"][index].as_u64().expect("an offset") as usize;
        &self.data[offset(0)..offset(1)]
    }

    fn f32s(&self, name: &str) -> Vec<f32> {
        self.bytes(name, "F32").as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    fn i64s(&self, name: &str) -> Vec<i64> {
        self.bytes(name, "I64").as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect()
    }
}
