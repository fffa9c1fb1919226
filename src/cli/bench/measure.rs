//! One request as its client sees it: sent, and every event of the answer stamped on arrival.
//!
//! The client shares the machine with the server it measures, so a chunk is read into the few fields that
//! matter, and its text is kept only if the report will have it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value, json};

use super::vocabulary::Prompt;
use super::workload::Sample;
use crate::cli::client::{Client, ClientError, error_message};

/// Value of `--backend`: which API is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Api {
    /// `/v1/completions`.
    Openai,
    /// The same.
    Vllm,
    /// `/v1/chat/completions`.
    OpenaiChat,
}

impl Api {
    /// The name in flags and reports.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Openai => "openai",
            Self::Vllm => "vllm",
            Self::OpenaiChat => "openai-chat",
        }
    }

    /// Where it is served.
    pub(crate) fn endpoint(self) -> &'static str {
        match self {
            Self::Openai | Self::Vllm => "/v1/completions",
            Self::OpenaiChat => "/v1/chat/completions",
        }
    }

    /// The request for one sample. `extra` is put into it last and may replace anything.
    pub(crate) fn body(self, model: &str, sample: &Sample, extra: &Map<String, Value>) -> Bytes {
        let prompt = match &sample.prompt {
            Prompt::Text(text) => json!(text),
            Prompt::Ids(ids) => json!(ids),
        };
        let mut body = match self {
            Self::Openai | Self::Vllm => json!({
                "model": model,
                "prompt": prompt,
                // As vLLM's client: a model's own default would slow sampling down.
                "repetition_penalty": 1.0,
                "max_tokens": sample.output_len,
            }),
            Self::OpenaiChat => json!({
                "model": model,
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": sample.output_len,
            }),
        };
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        for (name, value) in extra {
            body[name] = value.clone();
        }
        body.to_string().into()
    }
}

/// How one request went.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// From the start of the run to the sending of the request.
    pub start: Duration,
    /// From sending to the first chunk that counts; zero if none came.
    pub ttft: Duration,
    /// Between successive chunks that count.
    pub itls: Vec<Duration>,
    /// From sending to the last chunk that counts.
    pub latency: Duration,
    /// As the server counted, or the client where the server does not.
    pub prompt_tokens: u32,
    /// As the server counted, or else one a chunk.
    pub output_tokens: u32,
    /// Kept only if asked for.
    pub text: String,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// How requests are sent and what is kept of their answers.
#[derive(Debug)]
pub(crate) struct Sender {
    /// The server.
    pub client: Arc<Client>,
    /// Which API.
    pub api: Api,
    /// Path of it.
    pub endpoint: String,
    /// Whether to keep the generated text.
    pub keep_text: bool,
}

impl Sender {
    /// Sends one request and reads its answer to the end. `prompt_len` stands where the server tells no
    /// usage; `epoch` is the start of the run.
    pub(crate) async fn send(&self, body: Bytes, prompt_len: u32, epoch: Instant) -> Outcome {
        let sent = Instant::now();
        let mut outcome = Outcome { start: sent - epoch, prompt_tokens: prompt_len, ..Outcome::default() };
        let ended = self.read_answer(body, sent, &mut outcome).await;
        outcome.error = match ended {
            Err(error) => Some(error.to_string()),
            Ok(()) if outcome.latency.is_zero() => Some("the server sent no token".into()),
            Ok(()) => None,
        };
        outcome
    }

    async fn read_answer(
        &self,
        body: Bytes,
        sent: Instant,
        outcome: &mut Outcome,
    ) -> Result<(), ClientError> {
        let mut stream = self.client.post(&self.endpoint, body).await?;
        let mut usage = None;
        while stream.receive().await? {
            let since_sent = sent.elapsed();
            while let Some(event) = stream.next_event() {
                if event == b"[DONE]" {
                    continue;
                }
                let chunk: Chunk =
                    serde_json::from_slice(event).map_err(|error| ClientError::Answer(error.to_string()))?;
                if chunk.error.is_some() {
                    return Err(ClientError::InStream(error_message(event)));
                }
                usage = chunk.usage.or(usage);
                for choice in chunk.choices.into_iter().take(1) {
                    if self.counts(&choice) {
                        outcome.record(since_sent);
                    }
                    if self.keep_text {
                        outcome.text.push_str(choice.text());
                    }
                }
            }
        }
        match usage {
            Some(usage) => {
                outcome.prompt_tokens = usage.prompt_tokens;
                outcome.output_tokens = usage.completion_tokens;
            }
            None if outcome.latency.is_zero() => (),
            None => outcome.output_tokens = outcome.itls.len() as u32 + 1,
        }
        Ok(())
    }

    /// Any chunk of a completion counts. A chat begins with one that only says whose turn it is.
    fn counts(&self, choice: &Choice) -> bool {
        match self.api {
            Api::Openai | Api::Vllm => true,
            Api::OpenaiChat => !choice.text().is_empty() || choice.finish_reason.is_some(),
        }
    }
}

impl Outcome {
    fn record(&mut self, since_sent: Duration) {
        if self.latency.is_zero() {
            self.ttft = since_sent;
        } else {
            self.itls.push(since_sent - self.latency);
        }
        self.latency = since_sent;
    }
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Choice {
    text: Option<String>,
    delta: Option<Delta>,
    finish_reason: Option<IgnoredAny>,
}

impl Choice {
    fn text(&self) -> &str {
        let delta = self.delta.as_ref();
        let in_delta = || {
            let texts = delta.map(|delta| [&delta.content, &delta.reasoning, &delta.reasoning_content]);
            texts.into_iter().flatten().flatten().find(|text| !text.is_empty())
        };
        self.text.as_ref().or_else(in_delta).map_or("", String::as_str)
    }
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    /// Older servers call it `reasoning_content`.
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
struct Usage {
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_fields_come_last() {
        let sample = Sample { prompt: Prompt::Ids(vec![11, 12]), prompt_len: 2, output_len: 5 };
        let extra = json!({"ignore_eos": true, "max_tokens": 9});
        let body = Api::Openai.body("m", &sample, extra.as_object().unwrap());
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["prompt"], json!([11, 12]));
        assert_eq!((&body["ignore_eos"], &body["max_tokens"]), (&json!(true), &json!(9)));
        assert_eq!(body["stream_options"]["include_usage"], true);
    }

    #[test]
    fn text_is_found_wherever_it_is() {
        let text = |json: &str| serde_json::from_str::<Choice>(json).unwrap().text().to_owned();
        assert_eq!(text(r#"{"index": 0, "text": "a", "finish_reason": null}"#), "a");
        assert_eq!(text(r#"{"delta": {"role": "assistant", "content": "b"}}"#), "b");
        assert_eq!(text(r#"{"delta": {"content": "", "reasoning": "c"}}"#), "c");
        assert_eq!(text(r#"{"delta": {"content": null, "reasoning_content": "d"}}"#), "d");
        assert_eq!(text(r#"{"delta": {}, "finish_reason": "stop"}"#), "");
    }

    #[test]
    fn times_are_of_chunks() {
        let mut outcome = Outcome::default();
        for ms in [5, 7, 12] {
            outcome.record(Duration::from_millis(ms));
        }
        assert_eq!(outcome.ttft, Duration::from_millis(5));
        assert_eq!(outcome.itls, [2, 5].map(Duration::from_millis));
        assert_eq!(outcome.latency, Duration::from_millis(12));
    }
}
