//! [`Ask`]: one question that can be put through every [`Door`] of the server, and the [`Answer`] in one
//! form, so that answers of different doors and circumstances can be compared bit for bit.

use std::net::SocketAddr;

use quire_proto::vllm;
use serde_json::{Value, json};

use crate::{grpc, http};

/// The model's own end tokens, `<|im_end|>` and `<|endoftext|>`.
pub(crate) const EOS_TOKEN_IDS: [u32; 2] = [2, 0];

/// A way into the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    Completions,
    CompletionsStream,
    Chat,
    ChatStream,
    Grpc,
    GrpcStream,
}

impl Door {
    /// Those that take token ids.
    pub(crate) const FOR_TOKENS: [Self; 4] =
        [Self::Completions, Self::CompletionsStream, Self::Grpc, Self::GrpcStream];
    /// Those that take messages.
    pub(crate) const FOR_MESSAGES: [Self; 2] = [Self::Chat, Self::ChatStream];
}

/// What to continue.
#[derive(Debug, Clone)]
pub(crate) enum Prompt {
    Tokens(Vec<u32>),
    /// `messages` and, possibly null, `tools`.
    Messages(Value, Value),
}

/// A question. Always asks for token ids and log-probabilities.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    pub(crate) prompt: Prompt,
    pub(crate) max_tokens: u32,
    pub(crate) ignore_eos: bool,
    pub(crate) temperature: f32,
    pub(crate) seed: i64,
    pub(crate) top_p: f32,
    pub(crate) top_k: u32,
    pub(crate) min_p: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) repetition_penalty: f32,
    /// Alternatives a token.
    pub(crate) logprobs: u32,
}

impl Ask {
    /// Greedy, five alternatives a token.
    pub(crate) fn greedy(prompt: Prompt, max_tokens: u32) -> Self {
        Self {
            prompt,
            max_tokens,
            ignore_eos: false,
            temperature: 0.0,
            seed: 0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logprobs: 5,
        }
    }

    /// Puts the question. Panics on anything but an answer.
    pub(crate) async fn via(&self, door: Door, server: &crate::server::Server) -> Answer {
        match door {
            Door::Completions => {
                let body = self.completion_body();
                Answer::of_completions(&[http::post(server.http, "/v1/completions", &body).await.ok()])
            }
            Door::CompletionsStream => {
                let body = self.completion_body();
                Answer::of_completions(&http::stream(server.http, "/v1/completions", &body).await)
            }
            Door::Chat => {
                let body = self.chat_body();
                Answer::of_chat(&[http::post(server.http, "/v1/chat/completions", &body).await.ok()])
            }
            Door::ChatStream => {
                let body = self.chat_body();
                Answer::of_chat(&http::stream(server.http, "/v1/chat/completions", &body).await)
            }
            Door::Grpc => Answer::of_grpc(&[grpc::generate(server.grpc, self.grpc_request()).await]),
            Door::GrpcStream => Answer::of_grpc(&self.grpc_stream(server.grpc).await),
        }
        .sorted(self.logprobs as usize)
    }

    async fn grpc_stream(&self, addr: SocketAddr) -> Vec<vllm::GenerateResponse> {
        grpc::generate_stream(addr, self.grpc_request()).await
    }

    fn completion_body(&self) -> Value {
        let Prompt::Tokens(ids) = &self.prompt else { panic!("completions take tokens here") };
        let mut body = self.common_body();
        body["prompt"] = json!(ids);
        body["logprobs"] = self.logprobs.into();
        body
    }

    fn chat_body(&self) -> Value {
        let Prompt::Messages(messages, tools) = &self.prompt else { panic!("chat takes messages") };
        let mut body = self.common_body();
        body["messages"] = messages.clone();
        body["logprobs"] = true.into();
        body["top_logprobs"] = self.logprobs.into();
        if !tools.is_null() {
            // The template shows them to the model; what it says stays text.
            body["tools"] = tools.clone();
            body["tool_choice"] = "none".into();
        }
        body
    }

    fn common_body(&self) -> Value {
        json!({
            "max_tokens": self.max_tokens,
            "ignore_eos": self.ignore_eos,
            "temperature": self.temperature,
            "seed": self.seed,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "return_token_ids": true,
            "return_tokens_as_token_ids": true,
        })
    }

    fn grpc_request(&self) -> vllm::GenerateRequest {
        let Prompt::Tokens(ids) = &self.prompt else { panic!("gRPC takes tokens here") };
        let top_n = vllm::candidate_tokens::Select::TopN(self.logprobs);
        vllm::GenerateRequest {
            prompt: Some(grpc::tokens(ids)),
            temperature: Some(self.temperature),
            sampling: Some(vllm::RandomSampling {
                top_k: Some(self.top_k),
                top_p: Some(self.top_p),
                min_p: Some(self.min_p),
                seed: Some(self.seed),
                ..Default::default()
            }),
            decoding: Some(vllm::DecodingParameters {
                presence_penalty: self.presence_penalty,
                frequency_penalty: self.frequency_penalty,
                repetition_penalty: self.repetition_penalty,
                ..Default::default()
            }),
            stopping: Some(vllm::StoppingCriteria {
                max_new_tokens: self.max_tokens,
                ignore_eos: self.ignore_eos,
                ..Default::default()
            }),
            response: Some(vllm::ResponseOptions {
                prompt_token_ids: true,
                output_token_ids: true,
                output_logprobs: true,
                output_candidates: Some(vllm::CandidateTokens { select: Some(top_n) }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// What came of an [`Ask`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    /// As the server saw the prompt.
    pub(crate) prompt_token_ids: Vec<u32>,
    /// A final stop token included.
    pub(crate) token_ids: Vec<u32>,
    /// Of `token_ids`; JSON numbers are read back as the 32-bit numbers they were made from.
    pub(crate) logprobs: Vec<f32>,
    /// Alternatives for each of `token_ids`, best first.
    pub(crate) top: Vec<Vec<(u32, f32)>>,
    /// The words of HTTP.
    pub(crate) finish_reason: String,
    /// All text.
    pub(crate) text: String,
}

impl Answer {
    fn of_completions(bodies: &[Value]) -> Self {
        let mut answer = Self::default();
        for choice in bodies.iter().flat_map(choices) {
            answer.take_common(choice);
            answer.extend_ids_of_prompt(&choice["prompt_token_ids"]);
            answer.text.push_str(choice["text"].as_str().expect("text"));
            let logprobs = &choice["logprobs"];
            answer.logprobs.extend(list(&logprobs["token_logprobs"]).iter().map(number));
            for position in list(&logprobs["top_logprobs"]) {
                let position = position.as_object().expect("one object a token");
                answer.top.push(position.iter().map(|(token, lp)| (token_id(token), number(lp))).collect());
            }
        }
        answer
    }

    fn of_chat(bodies: &[Value]) -> Self {
        let mut answer = Self::default();
        for body in bodies {
            answer.extend_ids_of_prompt(&body["prompt_token_ids"]);
            for choice in choices(body) {
                answer.take_common(choice);
                let message = if choice["message"].is_null() { &choice["delta"] } else { &choice["message"] };
                answer.text.push_str(message["content"].as_str().unwrap_or_default());
                for entry in list(&choice["logprobs"]["content"]) {
                    answer.logprobs.push(number(&entry["logprob"]));
                    let alternative =
                        |t: &Value| (token_id(t["token"].as_str().expect("a token")), number(&t["logprob"]));
                    answer.top.push(list(&entry["top_logprobs"]).iter().map(alternative).collect());
                }
            }
        }
        answer
    }

    fn of_grpc(messages: &[vllm::GenerateResponse]) -> Self {
        let mut answer = Self::default();
        for message in messages {
            if let Some(prompt) = &message.prompt_info {
                answer.prompt_token_ids.extend(&prompt.token_ids);
            }
            let Some(output) = &message.outputs else { continue };
            answer.token_ids.extend(&output.token_ids);
            answer.logprobs.extend(&output.logprobs);
            let ids = |c: &vllm::CandidateTokenInfo| c.tokens.iter().map(|t| (t.id, t.logprob)).collect();
            answer.top.extend(output.candidate_tokens.iter().map(ids));
            answer.text.push_str(&output.text);
            if let Some(finish) = &output.finish_info {
                assert_eq!(answer.finish_reason, "", "ended twice");
                answer.finish_reason = grpc::finish_reason(finish).to_owned();
            }
        }
        answer
    }

    fn take_common(&mut self, choice: &Value) {
        self.token_ids.extend(list(&choice["token_ids"]).iter().map(id));
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert_eq!(self.finish_reason, "", "ended twice");
            self.finish_reason = reason.to_owned();
        }
    }

    fn extend_ids_of_prompt(&mut self, ids: &Value) {
        self.prompt_token_ids.extend(list(ids).iter().map(id));
    }

    /// Doors differ in whether a sampled token outside the best comes with the alternatives.
    fn sorted(mut self, len: usize) -> Self {
        for top in &mut self.top {
            top.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            top.truncate(len);
        }
        self
    }
}

fn choices(body: &Value) -> &[Value] {
    assert!(body.get("error").is_none(), "{body}");
    list(&body["choices"])
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn id(value: &Value) -> u32 {
    value.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_else(|| panic!("no token id: {value}"))
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap_or_else(|| panic!("not a number: {value}")) as f32
}

fn token_id(token: &str) -> u32 {
    let id = token.strip_prefix("token_id:").and_then(|id| id.parse().ok());
    id.unwrap_or_else(|| panic!("not of the form token_id:N: {token:?}"))
}
