//! A stream adds up to the whole answer, whatever is asked: random requests to every API that streams, each sent
//! twice. Everything that both answers say must be the same: texts, tokens, log-probabilities, calls, ends, counts;
//! and where one is refused, so is the other.

mod added_up;
mod requests;

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

use crate::http;
use crate::server::Server;

/// What came of a request.
#[derive(Debug)]
enum Outcome {
    Answer(Value),
    /// The message.
    Refusal(String),
}

/// How the two answers of an API are read.
struct Api {
    path: &'static str,
    /// A whole answer without what differs from answer to answer.
    plain: fn(Value) -> Value,
    /// The same, of a stream's body.
    added_up: fn(&str) -> Result<Value, String>,
}

const COMPLETIONS: Api = Api {
    path: "/v1/completions",
    plain: added_up::plain,
    added_up: |body| added_up::completion(&added_up::events(body)?),
};
const CHAT: Api = Api {
    path: "/v1/chat/completions",
    plain: added_up::plain,
    added_up: |body| added_up::chat(&added_up::events(body)?),
};
const RESPONSES: Api =
    Api { path: "/v1/responses", plain: added_up::plain_response, added_up: added_up::response };
const MESSAGES: Api =
    Api { path: "/v1/messages", plain: added_up::plain_message, added_up: added_up::message };
const OLLAMA_CHAT: Api = Api {
    path: "/api/chat",
    plain: added_up::plain_ollama,
    added_up: |body| added_up::ollama(body, "message"),
};
const OLLAMA_GENERATE: Api = Api {
    path: "/api/generate",
    plain: added_up::plain_ollama,
    added_up: |body| added_up::ollama(body, "response"),
};

async fn ask(server: &Server, api: &Api, body: &Value, streams: bool) -> Outcome {
    let mut body = body.clone();
    body["stream"] = streams.into();
    if !streams {
        body.as_object_mut().expect("an object").remove("stream_options");
    }
    let answer = http::post(server.http, api.path, &body).await;
    if answer.status != 200 {
        assert_eq!(answer.status, 400, "{}: {body}", answer.text());
        return Outcome::Refusal(added_up::message_of(&answer.json()));
    }
    match streams {
        false => Outcome::Answer((api.plain)(answer.json())),
        true => match (api.added_up)(&answer.text()) {
            Ok(answer) => Outcome::Answer(answer),
            Err(refusal) => Outcome::Refusal(refusal),
        },
    }
}

/// Where the two answers differ. Streams say what was used only if asked.
fn difference(mut whole: Value, streamed: &Value) -> Option<String> {
    if streamed.get("usage").is_none() {
        whole.as_object_mut().expect("an object").remove("usage");
    }
    added_up::difference(&whole, streamed)
}

/// `draw` makes the requests. Returns how many had an answer.
async fn add_up(api: &Api, flags: &[&str], count: u64, draw: fn(&mut StdRng) -> Value) -> u64 {
    let server = Server::shared(flags);
    let mut num_answered = 0;
    for seed in 0..count {
        let body = draw(&mut StdRng::seed_from_u64(seed));
        let (whole, streamed) = tokio::join!(ask(&server, api, &body, false), ask(&server, api, &body, true));
        match (whole, streamed) {
            (Outcome::Answer(whole), Outcome::Answer(streamed)) => {
                num_answered += 1;
                if let Some(difference) = difference(whole, &streamed) {
                    panic!("{} seed {seed}: {difference}\nrequest: {body}", api.path);
                }
            }
            (Outcome::Refusal(whole), Outcome::Refusal(streamed)) => {
                assert_eq!(whole, streamed, "{} seed {seed}: {body}", api.path);
            }
            (whole, streamed) => panic!("{} seed {seed}: {whole:?}, but {streamed:?}: {body}", api.path),
        }
    }
    num_answered
}

const THINKS: &[&str] = &["--reasoning-parser", "deepseek_r1", "--stream-interval", "3"];

#[tokio::test]
async fn completions_add_up() {
    let num_answered = add_up(&COMPLETIONS, &[], 200, requests::completion).await;
    assert!(num_answered > 150, "{num_answered}");
}

#[tokio::test]
async fn chats_add_up() {
    let num_answered = add_up(&CHAT, &[], 200, requests::chat).await;
    assert!(num_answered > 130, "{num_answered}");
}

#[tokio::test]
async fn chats_with_thoughts_add_up() {
    let num_answered = add_up(&CHAT, THINKS, 120, requests::thinking_chat).await;
    assert!(num_answered > 80, "{num_answered}");
}

#[tokio::test]
async fn responses_add_up() {
    let num_answered = add_up(&RESPONSES, &[], 60, requests::response).await;
    let with_thoughts = add_up(&RESPONSES, THINKS, 60, requests::response).await;
    assert!(num_answered.min(with_thoughts) > 40, "{num_answered}, {with_thoughts}");
}

#[tokio::test]
async fn messages_add_up() {
    let num_answered = add_up(&MESSAGES, &[], 60, requests::message).await;
    let with_thoughts = add_up(&MESSAGES, THINKS, 60, requests::message).await;
    assert!(num_answered.min(with_thoughts) > 40, "{num_answered}, {with_thoughts}");
}

#[tokio::test]
async fn ollamas_answers_add_up() {
    let chats = add_up(&OLLAMA_CHAT, &[], 60, requests::ollama_chat).await;
    let with_thoughts = add_up(&OLLAMA_CHAT, THINKS, 40, requests::ollama_chat).await;
    let texts = add_up(&OLLAMA_GENERATE, &[], 60, requests::ollama_generate).await;
    assert!(chats.min(texts) > 40 && with_thoughts > 25, "{chats}, {with_thoughts}, {texts}");
}

/// Streams that are all there at once: chunks grow together where the reader is slow.
#[tokio::test]
async fn a_crowd_of_streams_adds_up() {
    let server = Server::shared(&[]);
    let mut rng = StdRng::seed_from_u64(1);
    let crowd: Vec<_> = (0..40)
        .map(|_| {
            let body = requests::completion(&mut StdRng::seed_from_u64(rng.random_range(0..200)));
            let server: Arc<Server> = server.clone();
            tokio::spawn(async move {
                let whole = ask(&server, &COMPLETIONS, &body, false).await;
                let streamed = ask(&server, &COMPLETIONS, &body, true).await;
                (whole, streamed, body)
            })
        })
        .collect();
    for member in crowd {
        let (whole, streamed, body) = member.await.expect("no panic");
        if let (Outcome::Answer(whole), Outcome::Answer(streamed)) = (whole, streamed) {
            assert_eq!(difference(whole, &streamed), None, "{body}");
        }
    }
}
