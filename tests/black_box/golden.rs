//! The demo model's golden continuations, made by another implementation (transformers, float32), must
//! come out token for token through every door and in every circumstance.
//!
//! The rule: at a position whose two best golden log-probabilities are within [`NEAR`] the two
//! implementations may choose differently, since they add floats in different order. Such a case is
//! compared up to there; everywhere else the tokens must be equal and log-probabilities within
//! [`TOLERANCE`].

use std::sync::LazyLock;

use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;

use crate::ask::{Answer, Ask, Door, Prompt};
use crate::crowd::Crowd;
use crate::server::Server;

/// Two best this near: either may win.
const NEAR: f32 = 0.02;
/// Largest difference of log-probabilities.
const TOLERANCE: f32 = 0.02;
/// Answers waited for at the same time where nothing asks for another number.
const AT_ONCE: usize = 8;

#[derive(Debug, Deserialize)]
struct Case {
    kind: String,
    name: String,
    #[serde(default)]
    messages: Value,
    #[serde(default)]
    tools: Value,
    prompt_ids: Vec<u32>,
    output_ids: Vec<u32>,
    output_text: String,
    finish_reason: String,
    top5: Vec<Vec<(u32, f32)>>,
}

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        cases: Vec<Case>,
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/golden.json");
    let text = std::fs::read_to_string(path).expect("the golden file is there");
    serde_json::from_str::<File>(&text).expect("the golden file is as described in its README").cases
});

impl Case {
    fn ask(&self, door: Door) -> Ask {
        let prompt = if Door::FOR_MESSAGES.contains(&door) {
            Prompt::Messages(self.messages.clone(), self.tools.clone())
        } else {
            Prompt::Tokens(self.prompt_ids.clone())
        };
        Ask::greedy(prompt, self.output_ids.len() as u32)
    }

    fn doors(&self) -> Vec<Door> {
        let mut doors = Door::FOR_TOKENS.to_vec();
        if self.kind == "chat" {
            doors.extend(Door::FOR_MESSAGES);
        }
        doors
    }

    /// How many tokens were compared, or what is wrong.
    fn check(&self, answer: &Answer) -> Result<usize, String> {
        if answer.prompt_token_ids != self.prompt_ids {
            return Err(format!("prompt {:?} instead of {:?}", answer.prompt_token_ids, self.prompt_ids));
        }
        let len = answer.token_ids.len();
        if answer.logprobs.len() != len || answer.top.len() != len {
            return Err("not one log-probability and one list of alternatives a token".to_owned());
        }
        for (at, golden) in self.top5.iter().enumerate() {
            let Some(&token) = answer.token_ids.get(at) else {
                return Err(format!("ended after {at} tokens"));
            };
            if token != self.output_ids[at] {
                if golden[0].1 - golden[1].1 <= NEAR && token == golden[1].0 {
                    return Ok(at);
                }
                return Err(format!("token {at} is {token}, golden best are {golden:?}"));
            }
            check_logprobs(token, answer.logprobs[at], &answer.top[at], golden)
                .map_err(|wrong| format!("at token {at}: {wrong}"))?;
        }
        if len != self.output_ids.len() {
            return Err(format!("went on after {} tokens", self.output_ids.len()));
        }
        if answer.finish_reason != self.finish_reason {
            return Err(format!("ended with {:?}, not {:?}", answer.finish_reason, self.finish_reason));
        }
        if answer.text != self.output_text {
            return Err(format!("text is {:?}, not {:?}", answer.text, self.output_text));
        }
        Ok(len)
    }
}

fn check_logprobs(token: u32, logprob: f32, top: &[(u32, f32)], golden: &[(u32, f32)]) -> Result<(), String> {
    let near = |a: f32, b: f32| (a - b).abs() <= TOLERANCE;
    if !golden.iter().any(|&(id, lp)| id == token && near(lp, logprob)) {
        return Err(format!("log-probability {logprob} of {token}, golden are {golden:?}"));
    }
    if top.len() != golden.len() {
        return Err(format!("{} alternatives instead of {}", top.len(), golden.len()));
    }
    let last = top[top.len() - 1].1;
    for &(id, lp) in golden {
        match top.iter().find(|(other, _)| *other == id) {
            Some(&(_, got)) if near(got, lp) => (),
            Some(&(_, got)) => return Err(format!("log-probability {got} of alternative {id}, not {lp}")),
            // Only one as good as the last on our list can have fallen off it.
            None if near(last, lp) => (),
            None => return Err(format!("alternative {id} ({lp}) is missing in {top:?}")),
        }
    }
    Ok(())
}

/// Asks every case through every door that takes it, `at_once` at a time, `copies` times.
async fn check_all(server: &Server, doors: &[Door], at_once: usize, copies: usize) {
    let tasks = (0..copies).flat_map(|_| CASES.iter()).flat_map(|case| {
        let taken = case.doors();
        doors.iter().filter(move |door| taken.contains(door)).map(move |&door| (case, door))
    });
    let results = stream::iter(tasks).map(|(case, door)| async move {
        let answer = case.ask(door).via(door, server).await;
        case.check(&answer).unwrap_or_else(|wrong| {
            panic!("golden case {:?} {:?} through {door:?}: {wrong}", case.name, case.prompt_ids)
        })
    });
    let compared: Vec<usize> = results.buffer_unordered(at_once).collect().await;
    let total: usize = CASES.iter().map(|case| case.output_ids.len()).sum::<usize>();
    let asked = CASES.iter().map(|case| {
        let doors = case.doors().iter().filter(|door| doors.contains(door)).count();
        doors * case.output_ids.len() * copies
    });
    let (compared, asked) = (compared.iter().sum::<usize>(), asked.sum::<usize>());
    eprintln!("compared {compared} of {asked} tokens ({} cases, {total} tokens a round)", CASES.len());
    assert!(compared * 100 >= asked * 90, "too few positions were compared to mean anything");
}

const ALL_DOORS: [Door; 6] =
    [Door::Completions, Door::CompletionsStream, Door::Chat, Door::ChatStream, Door::Grpc, Door::GrpcStream];

#[tokio::test]
async fn golden_alone() {
    let server = Server::start(&[]);
    check_all(&server, &[Door::Completions], 1, 1).await;
    check_all(&server, &[Door::Grpc], 1, 1).await;
}

#[tokio::test]
async fn golden_through_every_door() {
    check_all(&Server::shared(&[]), &ALL_DOORS, AT_ONCE, 1).await;
}

#[tokio::test]
async fn golden_with_64_other_requests_in_flight() {
    let server = Server::start(&[]);
    let crowd = Crowd::start(&server, 64).await;
    check_all(&server, &[Door::ChatStream, Door::GrpcStream], AT_ONCE, 1).await;
    crowd.assert_present().await;
}

#[tokio::test]
async fn golden_without_prefix_caching() {
    let server = Server::start(&["--no-enable-prefix-caching"]);
    check_all(&server, &[Door::Completions, Door::Chat, Door::GrpcStream], AT_ONCE, 1).await;
    assert_eq!(server.metrics().await.value("vllm:prefix_cache_hits_total"), 0.0);
}

#[tokio::test]
async fn golden_with_prefix_caching() {
    let server = Server::start(&["--enable-prefix-caching"]);
    check_all(&server, &[Door::Completions, Door::Chat, Door::GrpcStream], AT_ONCE, 2).await;
    let hits = server.metrics().await.value("vllm:prefix_cache_hits_total");
    // Each prompt came several times, and the long ones fill many blocks.
    assert!(hits > 5000.0, "only {hits} tokens were found in the prefix cache");
}

#[tokio::test]
async fn golden_with_32_tokens_a_step() {
    let server = Server::start(&["--max-num-batched-tokens", "32", "--max-num-seqs", "32"]);
    check_all(&server, &[Door::Completions, Door::ChatStream, Door::GrpcStream], AT_ONCE, 1).await;
}

/// Every request in flight is a golden one, so that those preempted are, too.
#[tokio::test]
async fn golden_when_requests_are_preempted() {
    let server = Server::start(crate::server::TINY_KV);
    check_all(&server, &[Door::Completions, Door::GrpcStream], 64, 2).await;
    let preemptions = server.metrics().await.value("vllm:num_preemptions_total");
    eprintln!("{preemptions} preemptions");
    assert!(preemptions > 0.0, "the KV cache was not small enough to test anything");
}

#[test]
fn the_comparison_finds_planted_errors() {
    let case = CASES.iter().find(|case| case.output_ids.len() > 8).expect("there are long cases");
    let good = Answer {
        prompt_token_ids: case.prompt_ids.clone(),
        token_ids: case.output_ids.clone(),
        logprobs: case.top5.iter().map(|top| top[0].1).collect(),
        top: case.top5.clone(),
        finish_reason: case.finish_reason.clone(),
        text: case.output_text.clone(),
    };
    assert_eq!(case.check(&good), Ok(case.output_ids.len()));
    let plant = |change: &dyn Fn(&mut Answer)| {
        let mut bad = good.clone();
        change(&mut bad);
        case.check(&bad).expect_err("a planted error goes unnoticed");
    };
    plant(&|answer| answer.prompt_token_ids[0] += 1);
    plant(&|answer| answer.token_ids[3] += 1);
    plant(&|answer| answer.logprobs[3] -= 0.03);
    plant(&|answer| answer.top[3][4].1 -= 0.03);
    plant(&|answer| answer.top[3][1].0 = 2047);
    plant(&|answer| answer.top[3].truncate(4));
    plant(&|answer| answer.finish_reason = "abort".to_owned());
    plant(&|answer| answer.text.push('!'));
    plant(&|answer| answer.logprobs.truncate(1));
    plant(&|answer| {
        answer.token_ids.push(5);
        answer.logprobs.push(0.0);
        answer.top.push(vec![]);
    });
    plant(&|answer| {
        answer.token_ids.pop();
        answer.logprobs.pop();
        answer.top.pop();
    });
}
