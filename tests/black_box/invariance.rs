//! Invariant 8: an answer does not depend on who shares the batch, on chunking, on prefix-cache hits or
//! on preemption. The same request with the same seed gives the same tokens and the same
//! log-probabilities, to the last bit.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::ask::{Answer, Ask, Door, Prompt};
use crate::crowd::Crowd;
use crate::http;
use crate::server::{Server, TINY_KV};

/// Random requests of every length and with every kind of sampling.
fn asks(seed: u64, num: usize) -> Vec<Ask> {
    eprintln!("requests are drawn with seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    (0..num).map(|index| ask(&mut rng, index)).collect()
}

fn ask(rng: &mut StdRng, index: usize) -> Ask {
    // Lengths around the block size and the chunk size matter most.
    let len = match index % 4 {
        0 => rng.random_range(1..=4),
        1 => 16 * rng.random_range(1..=4) + rng.random_range(0..=2) - 1,
        2 => rng.random_range(100..=500),
        _ => 32,
    };
    let prompt = Prompt::Tokens((0..len).map(|_| rng.random_range(0..2048)).collect());
    let mut ask = Ask::greedy(prompt, rng.random_range(1..=64));
    ask.ignore_eos = rng.random_bool(0.7);
    ask.temperature = if index.is_multiple_of(5) { 0.0 } else { [0.5, 1.0, 1.5][rng.random_range(0..3)] };
    ask.seed = rng.random_range(0..i64::MAX);
    if rng.random_bool(0.4) {
        ask.top_p = rng.random_range(0.5..1.0);
        ask.top_k = rng.random_range(1..100);
    }
    if rng.random_bool(0.3) {
        ask.min_p = rng.random_range(0.0..0.1);
        ask.presence_penalty = rng.random_range(-1.0..1.0);
        ask.frequency_penalty = rng.random_range(-1.0..1.0);
        ask.repetition_penalty = rng.random_range(0.8..1.5);
    }
    ask
}

/// Asks one after the other on a server that has nothing else to do.
async fn alone(server: &Server, asks: &[Ask]) -> Vec<Answer> {
    let mut answers = Vec::new();
    for ask in asks {
        answers.push(ask.via(Door::Completions, server).await);
    }
    answers
}

/// Asks `at_once` at a time, through changing doors, and compares with what came out alone.
async fn expect(expected: &[Answer], asks: &[Ask], server: &Server, at_once: usize) {
    let tasks = asks.iter().zip(expected).enumerate().map(|(index, (ask, expected))| async move {
        let door = Door::FOR_TOKENS[index % Door::FOR_TOKENS.len()];
        let answer = ask.via(door, server).await;
        assert!(
            answer == *expected,
            "request {index} through {door:?} differs\nasked: {ask:?}\nalone: {expected:?}\nnow:   {answer:?}"
        );
    });
    stream::iter(tasks).buffer_unordered(at_once).collect::<()>().await;
}

#[tokio::test]
async fn invariant_8_the_batch_and_the_prefix_cache_change_no_bit() {
    let asks = asks(801, 48);
    let server = Server::start(&[]);
    let expected = alone(&server, &asks).await;
    let distinct = expected.iter().map(|answer| &answer.token_ids);
    assert!(distinct.collect::<std::collections::HashSet<_>>().len() > 40, "these requests test nothing");
    // Everything is in the prefix cache now.
    expect(&expected, &asks, &server, 1).await;
    let crowd = Crowd::start(&server, 64).await;
    expect(&expected, &asks, &server, 16).await;
    crowd.assert_present().await;
    drop(crowd);
    assert!(server.metrics().await.value("vllm:prefix_cache_hits_total") > 1000.0);

    let uncached = Server::start(&["--no-enable-prefix-caching"]);
    expect(&expected, &asks, &uncached, 16).await;
    assert_eq!(uncached.metrics().await.value("vllm:prefix_cache_hits_total"), 0.0);
}

#[tokio::test]
async fn invariant_8_chunks_change_no_bit() {
    let asks = asks(802, 48);
    let expected = alone(&Server::shared(&[]), &asks).await;
    for chunk in ["32", "7"] {
        let server = Server::start(&["--max-num-batched-tokens", chunk, "--max-num-seqs", "7"]);
        expect(&expected, &asks, &server, 24).await;
    }
}

#[tokio::test]
async fn invariant_8_narrower_keys_and_values_change_no_bit_with_the_batch() {
    let asks = asks(805, 24);
    for dtype in ["fp8", "int8"] {
        let kv = ["--kv-cache-dtype", dtype];
        let server = Server::start(&kv);
        let expected = alone(&server, &asks).await;
        // Everything is in the prefix cache now.
        expect(&expected, &asks, &server, 16).await;
        let small = ["--max-num-batched-tokens", "32", "--max-num-seqs", "7"];
        expect(&expected, &asks, &Server::start(&[&kv[..], &small, TINY_KV].concat()), 24).await;
    }
}

#[tokio::test]
async fn invariant_8_block_size_changes_no_bit() {
    let asks = asks(803, 24);
    let expected = alone(&Server::shared(&[]), &asks).await;
    let server = Server::start(&["--block-size", "32"]);
    expect(&expected, &asks, &server, 16).await;
}

#[tokio::test]
async fn invariant_8_preemption_changes_no_bit() {
    let asks = asks(804, 64);
    let expected = alone(&Server::shared(&[]), &asks).await;
    for caching in ["--enable-prefix-caching", "--no-enable-prefix-caching"] {
        let server = Server::start(&[TINY_KV, &[caching]].concat());
        expect(&expected, &asks, &server, 64).await;
        let preemptions = server.metrics().await.value("vllm:num_preemptions_total");
        eprintln!("{preemptions} preemptions with {caching}");
        assert!(preemptions > 0.0, "the KV cache was not small enough to test anything");
    }
}

/// What is forced is forced again when a sequence is computed anew.
#[tokio::test]
async fn invariant_8_budgets_of_thoughts_hold_under_preemption() {
    const THINKS: [&str; 2] = ["--reasoning-parser", "deepseek_r1"];
    let mut rng = StdRng::seed_from_u64(806);
    let bodies: Vec<Value> = (0..64)
        .map(|_| {
            // Every other budget is spent before the output ends.
            let (budget, seed) = (rng.random_range(0..80), rng.random_range(0..i64::MAX));
            let padding = "well ".repeat(rng.random_range(1..60));
            json!({"prompt": format!("{padding}<think>"), "max_tokens": 50, "ignore_eos": true, "seed": seed,
                "thinking_token_budget": budget, "return_token_ids": true})
        })
        .collect();
    let choice = |server: &Arc<Server>, body: &Value| {
        let (http, body) = (server.http, body.clone());
        async move { http::post(http, "/v1/completions", &body).await.ok()["choices"][0].take() }
    };
    let server = Server::shared(&THINKS);
    let mut expected = Vec::new();
    for body in &bodies {
        let alone = choice(&server, body).await;
        let ends = alone["text"].as_str().expect("text").contains("</think>");
        // The marker is a few tokens long.
        let budget = body["thinking_token_budget"].as_u64().expect("a number");
        assert!(ends || budget > 40, "a budget of {budget} is not kept: {alone}");
        expected.push(alone);
    }
    for caching in ["--enable-prefix-caching", "--no-enable-prefix-caching"] {
        let server = Arc::new(Server::start(&[TINY_KV, &THINKS, &[caching]].concat()));
        let answers: Vec<_> =
            stream::iter(&bodies).map(|body| choice(&server, body)).buffered(64).collect().await;
        for ((body, expected), answer) in bodies.iter().zip(&expected).zip(&answers) {
            assert_eq!(answer, expected, "{caching}: {body}");
        }
        let preemptions = server.metrics().await.value("vllm:num_preemptions_total");
        assert!(preemptions > 0.0, "the KV cache was not small enough to test anything");
    }
}
