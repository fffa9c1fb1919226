//! `quire chat` and `quire complete`: a terminal talks to a running server, and answers stream.
//!
//! Ctrl-C stops the answer that is being written (dropping the connection aborts it on the server), or
//! leaves if there is none. Ctrl-D leaves.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::signal::ctrl_c;
use tokio::sync::mpsc;

use super::args::{ChatArgs, CompleteArgs, RemoteArgs};
use super::client::{Client, ClientError, EventStream, error_message};

const DEFAULT_URL: &str = "http://localhost:8000/v1";

/// Runs `quire chat`.
pub(super) async fn chat(args: ChatArgs) -> anyhow::Result<()> {
    let remote = Remote::find(&args.server).await?;
    let system = args.system_prompt.map(|text| json!({"role": "system", "content": text}));
    let mut messages: Vec<Value> = system.into_iter().collect();
    let mut lines = remote.greet("Ask anything.");
    while let Some(text) = remote.next_text(&mut lines).await {
        messages.push(json!({"role": "user", "content": text}));
        match remote.answer("/chat/completions", "messages", json!(messages), "max_completion_tokens").await {
            Ok(answer) => messages.push(json!({"role": "assistant", "content": answer})),
            Err(error) if remote.quick.is_some() => return Err(error.into()),
            Err(error) => {
                // The question did not become part of the conversation.
                messages.pop();
                eprintln!("{error}");
            }
        }
    }
    Ok(())
}

/// Runs `quire complete`.
pub(super) async fn complete(args: CompleteArgs) -> anyhow::Result<()> {
    let remote = Remote::find(&args.server).await?;
    let mut lines = remote.greet("Begin a text, and the model goes on.");
    while let Some(text) = remote.next_text(&mut lines).await {
        match remote.answer("/completions", "prompt", json!(text), "max_tokens").await {
            Ok(_) => (),
            Err(error) if remote.quick.is_some() => return Err(error.into()),
            Err(error) => eprintln!("{error}"),
        }
    }
    Ok(())
}

/// The server, the model, and how to ask.
struct Remote {
    client: Arc<Client>,
    model: String,
    quick: Option<String>,
    max_tokens: Option<u32>,
    stats: bool,
}

impl Remote {
    async fn find(args: &RemoteArgs) -> anyhow::Result<Self> {
        let url = args.url.as_deref().unwrap_or(DEFAULT_URL);
        let client = Arc::new(Client::new(url, args.api_key.as_deref())?);
        let models = match client.models("/models").await {
            Ok(models) => models,
            Err(error @ ClientError::Connect { .. }) if args.url.is_none() => anyhow::bail!(
                "{error}\nStart a server in another terminal with `quire` (the demo model) or `quire serve FOLDER`, \
                 or name one with --url."
            ),
            Err(error) => return Err(error.into()),
        };
        let model = args.model_name.clone().unwrap_or_else(|| models[0].clone());
        Ok(Self { client, model, quick: args.quick.clone(), max_tokens: args.max_tokens, stats: args.stats })
    }

    /// Says hello, unless there is one question only, and starts to read lines.
    fn greet(&self, invitation: &str) -> Lines {
        if let Some(text) = &self.quick {
            return Lines::Once(Some(text.clone()));
        }
        if std::io::stdin().is_terminal() {
            eprintln!("{}. {invitation} Ctrl-C stops an answer, Ctrl-D leaves.", self.model);
        }
        let (sender, receiver) = mpsc::channel(1);
        // A thread of its own, since a read of the terminal cannot be cancelled; it ends with the process.
        std::thread::spawn(move || {
            for line in std::io::stdin().lines() {
                let Ok(line) = line else { return };
                if sender.blocking_send(line).is_err() {
                    return;
                }
            }
        });
        Lines::Typed(receiver)
    }

    /// The next line that says something; `None` at the end, or on Ctrl-C.
    async fn next_text(&self, lines: &mut Lines) -> Option<String> {
        loop {
            let text = match lines {
                Lines::Once(text) => return text.take(),
                Lines::Typed(receiver) => {
                    if std::io::stdin().is_terminal() {
                        print!("> ");
                        let _ = std::io::stdout().flush();
                    }
                    tokio::select! {
                        line = receiver.recv() => line,
                        _ = ctrl_c() => None,
                    }
                }
            };
            match text {
                Some(text) if text.trim().is_empty() => continue,
                Some(text) => return Some(text),
                None => {
                    println!();
                    return None;
                }
            }
        }
    }

    /// Asks, prints the answer as it comes, and gives it back. A stopped answer is what has come so far.
    async fn answer(
        &self,
        path: &str,
        input_field: &str,
        input: Value,
        limit_field: &str,
    ) -> Result<String, ClientError> {
        let mut body =
            json!({"model": self.model, "stream": true, "stream_options": {"include_usage": true}});
        body[input_field] = input;
        if let Some(limit) = self.max_tokens {
            body[limit_field] = limit.into();
        }
        let mut answer = Answer { started: Instant::now(), first: None, text: String::new(), tokens: None };
        let whole = async {
            let mut stream = self.client.post(path, body.to_string().into()).await?;
            answer.read(&mut stream).await
        };
        let stopped = tokio::select! {
            ended = whole => ended.map(|()| false)?,
            _ = ctrl_c() => true,
        };
        println!();
        if stopped {
            eprintln!("(stopped)");
        } else if self.stats {
            answer.print_stats();
        }
        Ok(answer.text)
    }
}

enum Lines {
    Once(Option<String>),
    Typed(mpsc::Receiver<String>),
}

struct Answer {
    started: Instant,
    first: Option<Duration>,
    text: String,
    /// From the usage at the end.
    tokens: Option<u64>,
}

impl Answer {
    async fn read(&mut self, stream: &mut EventStream) -> Result<(), ClientError> {
        while stream.receive().await? {
            while let Some(event) = stream.next_event() {
                if event == b"[DONE]" {
                    continue;
                }
                let event: Value =
                    serde_json::from_slice(event).map_err(|e| ClientError::Answer(e.to_string()))?;
                if event.get("error").is_some() {
                    return Err(ClientError::InStream(error_message(event.to_string().as_bytes())));
                }
                self.tokens = event["usage"]["completion_tokens"].as_u64().or(self.tokens);
                let choice = &event["choices"][0];
                if let Some(text) = choice["delta"]["content"].as_str().or(choice["text"].as_str()) {
                    self.first.get_or_insert_with(|| self.started.elapsed());
                    self.text.push_str(text);
                    print!("{text}");
                    let _ = std::io::stdout().flush();
                }
            }
        }
        Ok(())
    }

    fn print_stats(&self) {
        let (seconds, tokens) = (self.started.elapsed().as_secs_f64(), self.tokens.unwrap_or(0));
        let first_ms = self.first.unwrap_or_default().as_secs_f64() * 1e3;
        eprintln!(
            "({tokens} tokens in {seconds:.2} s: {:.1} tokens/s, the first after {first_ms:.0} ms)",
            tokens as f64 / seconds
        );
    }
}
