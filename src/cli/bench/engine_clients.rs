//! The clients of `quire bench engine`: as cheap as can be, since they share the cores with what they measure.
//! Each keeps one stream open and asks again when it ends. All give the number of messages they received.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use quire_proto::vllm::inference_client::InferenceClient;
use quire_proto::vllm::{self, generate_request::Prompt};
use quire_scheduler::SamplingParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::engine::{EngineHandle, GenerateRequest, TextOptions};

/// Smallest token id of prompts; below are the demo model's special tokens.
const FIRST_TOKEN: u32 = 16;
/// Streams a gRPC connection carries; more would wait behind HTTP/2's default limit of some servers.
const STREAMS_PER_CONNECTION: u32 = 64;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) num_streams: u32,
    pub(super) num_prompts: u32,
    pub(super) input_len: u32,
    pub(super) output_len: u32,
}

impl Work {
    /// Prompts differ from the first token on, so that the prefix cache has nothing to give.
    fn prompt(&self, number: u32) -> Vec<u32> {
        let digit = |place: u32| FIRST_TOKEN + number.checked_shr(9 * place).unwrap_or(0) % 512;
        (0..self.input_len).map(digit).collect()
    }
}

/// Numbers of prompts, handed out to whoever is free.
#[derive(Debug, Clone)]
struct Prompts(Arc<AtomicU32>, Work);

impl Prompts {
    fn new(work: Work) -> Self {
        Self(Arc::new(AtomicU32::new(0)), work)
    }

    fn next(&self) -> Option<Vec<u32>> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        (number < self.1.num_prompts).then(|| self.1.prompt(number))
    }
}

/// Without sockets: reads each stream's mailbox.
pub(super) async fn through_engine(engine: EngineHandle, work: Work) -> anyhow::Result<u64> {
    let prompts = Prompts::new(work);
    let mut tasks = JoinSet::new();
    for _ in 0..work.num_streams {
        let (engine, prompts) = (engine.clone(), prompts.clone());
        tasks.spawn(async move {
            let mut num_messages = 0;
            while let Some(prompt) = prompts.next() {
                let mut stream = engine.submit(engine_request(&prompt, work.output_len))?;
                let mut num_tokens = 0;
                while let Some(delta) = stream.next().await {
                    num_messages += 1;
                    num_tokens += delta.token_ids.len() as u32;
                }
                ensure!(num_tokens == work.output_len, "{num_tokens} tokens instead of {}", work.output_len);
            }
            Ok(num_messages)
        });
    }
    sum(tasks).await
}

fn engine_request(prompt: &[u32], max_tokens: u32) -> GenerateRequest {
    GenerateRequest {
        external_id: "bench".into(),
        prompt_token_ids: prompt.into(),
        sampling: SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() },
        seeded: true,
        n: 1,
        priority: 0,
        cache_salt: None,
        bypass_prefix_cache: false,
        adapter: None,
        text: TextOptions::default(),
    }
}

/// `/v1/completions` with server-sent events, one connection a stream. Frames are counted, not parsed.
pub(super) async fn through_http(addr: SocketAddr, work: Work) -> anyhow::Result<u64> {
    let prompts = Prompts::new(work);
    let mut tasks = JoinSet::new();
    for _ in 0..work.num_streams {
        let prompts = prompts.clone();
        tasks.spawn(async move {
            let mut socket = TcpStream::connect(addr).await?;
            socket.set_nodelay(true)?;
            let mut buffer = Vec::with_capacity(1 << 16);
            let mut num_messages = 0;
            while let Some(prompt) = prompts.next() {
                let body = format!(
                    "{{\"prompt\":{prompt:?},\"max_tokens\":{},\"ignore_eos\":true,\"stream\":true}}",
                    work.output_len
                );
                let head = format!(
                    "POST /v1/completions HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
                     Content-Length: {}\r\n\r\n",
                    body.len()
                );
                socket.write_all((head + &body).as_bytes()).await?;
                num_messages += read_events(&mut socket, &mut buffer).await?;
            }
            Ok(num_messages)
        });
    }
    sum(tasks).await
}

/// Reads one chunked answer to its end; gives its number of frames, `[DONE]` not counted.
async fn read_events(socket: &mut TcpStream, buffer: &mut Vec<u8>) -> anyhow::Result<u64> {
    const FRAME: &[u8] = b"data: ";
    const END: &[u8] = b"\r\n0\r\n\r\n";
    buffer.clear();
    let (mut num_frames, mut counted, mut is_start) = (0, 0, true);
    loop {
        if socket.read_buf(buffer).await? == 0 {
            bail!("the server closed the connection: {}", String::from_utf8_lossy(buffer));
        }
        if std::mem::take(&mut is_start) {
            ensure!(buffer.starts_with(b"HTTP/1.1 200"), "refused: {}", String::from_utf8_lossy(buffer));
        }
        num_frames += memmem::find_iter(&buffer[counted..], FRAME).count() as u64;
        if buffer.ends_with(END) {
            return Ok(num_frames - 1);
        }
        // Only what may be the start of the end, or of a frame, is needed again.
        buffer.drain(..buffer.len().saturating_sub(END.len()));
        counted = buffer.len().saturating_sub(FRAME.len() - 1);
    }
}

/// `vllm.Inference/GenerateStream`.
pub(super) async fn through_grpc(addr: SocketAddr, work: Work) -> anyhow::Result<u64> {
    let prompts = Prompts::new(work);
    let mut tasks = JoinSet::new();
    let mut client = None;
    for stream in 0..work.num_streams {
        if stream % STREAMS_PER_CONNECTION == 0 {
            client =
                Some(InferenceClient::connect(format!("http://{addr}")).await.context("cannot connect")?);
        }
        let (mut client, prompts) = (client.clone().context("no connection")?, prompts.clone());
        tasks.spawn(async move {
            let mut num_messages = 0;
            while let Some(prompt) = prompts.next() {
                let mut stream =
                    client.generate_stream(grpc_request(prompt, work.output_len)).await?.into_inner();
                let mut num_tokens = 0;
                while let Some(message) = stream.message().await? {
                    num_messages += 1;
                    num_tokens += message.outputs.map_or(0, |outputs| outputs.num_tokens);
                }
                ensure!(num_tokens == work.output_len, "{num_tokens} tokens instead of {}", work.output_len);
            }
            Ok(num_messages)
        });
    }
    sum(tasks).await
}

fn grpc_request(prompt: Vec<u32>, max_new_tokens: u32) -> vllm::GenerateRequest {
    vllm::GenerateRequest {
        prompt: Some(Prompt::TokenIds(vllm::TokenIds { ids: prompt })),
        stopping: Some(vllm::StoppingCriteria { max_new_tokens, ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}

async fn sum(mut tasks: JoinSet<anyhow::Result<u64>>) -> anyhow::Result<u64> {
    let mut total = 0;
    while let Some(joined) = tasks.join_next().await {
        total += joined.context("a client panicked")??;
    }
    Ok(total)
}
