//! `vllm.grpc.engine.VllmEngine`: the interface of `vllm serve --grpc`, which the Shepherd Model Gateway and
//! llm-d speak.
//!
//! Its clients tokenise prompts and turn tokens into text themselves: prompts mostly come as ids, answers always
//! go as ids, and the tokenizer's files can be had from here.

mod embed;
mod generate;
mod kv_events;
mod load;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::stream;
use quire_model::SamplingDefaults;
use quire_proto::smg::grpc::common::*;
use quire_proto::vllm::grpc::engine::vllm_engine_server;
use quire_proto::vllm::grpc::engine::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};
use tonic::{Request, Response, Status};

use super::admin::permit;
use super::call::{Caller, Messages, check_rank_number, guarded, messages};
use super::health::health_problem;
use super::status::{invalid_field, not_tokenized};
use crate::app::App;

/// Bytes of an archive in a message.
const CHUNK_BYTES: usize = 64 << 10;
/// How long `FlushCache` waits at most for requests to end.
const MAX_FLUSH_WAIT: Duration = Duration::from_secs(3600);
/// How often it looks.
const FLUSH_POLL: Duration = Duration::from_millis(100);

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub(super) struct VllmEngine(Arc<App>);

impl VllmEngine {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self(app)
    }
}

#[tonic::async_trait]
impl vllm_engine_server::VllmEngine for VllmEngine {
    type GenerateStream = Messages<GenerateResponse>;

    async fn generate(&self, request: Request<GenerateRequest>) -> Answer<Self::GenerateStream> {
        let (metadata, _, mut request) = request.into_parts();
        let caller = Caller::read(&metadata, std::mem::take(&mut request.request_id))?;
        let call = guarded(generate::submit(&self.0, request, &caller)).await?;
        Ok(caller.answer(messages(Box::new(call), |mut call| async move { (call.next().await, call) })))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Answer<EmbedResponse> {
        let (metadata, _, mut request) = request.into_parts();
        let caller = Caller::read(&metadata, std::mem::take(&mut request.request_id))?;
        let answer = guarded(embed::embed(&self.0, request, &caller)).await?;
        Ok(caller.answer(answer))
    }

    async fn health_check(&self, _: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        let problem = health_problem(&self.0);
        let healthy = problem.is_none();
        Ok(Response::new(HealthCheckResponse { healthy, message: problem.unwrap_or("healthy".into()) }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<AbortResponse> {
        for id in &request.get_ref().request_ids {
            self.0.engine.abort(id);
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Answer<GetModelInfoResponse> {
        let (model, limits) = (&self.0.model, &self.0.limits);
        let id = |id: Option<u32>| id.map_or(0, |id| id as i32);
        Ok(Response::new(GetModelInfoResponse {
            model_path: model.root.clone(),
            is_generation: self.0.pooler.is_none(),
            max_context_length: limits.max_model_len,
            vocab_size: limits.vocab_size,
            supports_vision: false,
            served_model_name: model.name().into(),
            tokenizer_path: model.root.clone(),
            model_type: String::new(),
            architectures: vec![model.architecture.clone()],
            eos_token_ids: limits.eos_token_ids.iter().map(|&id| id as i32).collect(),
            pad_token_id: id(self.0.tokenizer.pad_token_id()),
            bos_token_id: id(self.0.tokenizer.bos_token_id()),
            max_req_input_len: limits.max_model_len as i32,
            default_sampling_params_json: default_sampling_params(&limits.defaults),
        }))
    }

    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Answer<GetServerInfoResponse> {
        let (model, engine) = (&self.0.model, &self.0.engine);
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(GetServerInfoResponse {
            active_requests: u32::try_from(engine.num_in_flight()).unwrap_or(u32::MAX),
            is_paused: engine.is_paused(),
            last_receive_timestamp: since_1970.as_secs_f64(),
            uptime_seconds: engine.stats().uptime().as_secs_f64(),
            server_type: "vllm-grpc".into(),
            data_parallel_size: 1,
            block_size: model.block_size as i32,
            max_num_seqs: model.max_num_seqs as i32,
            constrained_decoding_start: "first_token".into(),
            // No connector, no shared memory, no media: what is not there is left empty, as the gateway reads it.
            ..Default::default()
        }))
    }

    async fn get_loads(&self, request: Request<GetLoadsRequest>) -> Answer<GetLoadsResponse> {
        if let Some(rank) = request.get_ref().dp_rank {
            check_rank_number("dp_rank", rank.into())?;
        }
        Ok(Response::new(GetLoadsResponse {
            timestamp: prost_types::Timestamp::from(SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
            dp_rank_count: 1,
            loads: vec![load::scheduler_load(&self.0)],
        }))
    }

    async fn flush_cache(&self, request: Request<FlushCacheRequest>) -> Answer<FlushCacheResponse> {
        permit(&self.0, "FlushCache")?;
        let timeout_s = request.get_ref().timeout_s;
        let Some(timeout) = Duration::try_from_secs_f32(timeout_s).ok().filter(|t| *t <= MAX_FLUSH_WAIT)
        else {
            let message =
                format!("must be between 0 and {} seconds, got {timeout_s}", MAX_FLUSH_WAIT.as_secs());
            return Err(invalid_field("timeout_s", &message));
        };
        let until = Instant::now() + timeout;
        let mut success = self.0.engine.reset_prefix_cache().await;
        while !success && Instant::now() < until {
            sleep(FLUSH_POLL).await;
            success = self.0.engine.reset_prefix_cache().await;
        }
        let message = if success { "the prefix cache is empty" } else { "requests hold blocks of the cache" };
        Ok(Response::new(FlushCacheResponse { success, message: message.into() }))
    }

    async fn start_profile(&self, _: Request<StartProfileRequest>) -> Answer<ProfileResponse> {
        Err(no_profiler())
    }

    async fn stop_profile(&self, _: Request<StopProfileRequest>) -> Answer<ProfileResponse> {
        Err(no_profiler())
    }

    type GetTokenizerStream = Messages<GetTokenizerChunk>;

    async fn get_tokenizer(&self, _: Request<GetTokenizerRequest>) -> Answer<Self::GetTokenizerStream> {
        let files = self.0.tokenizer_files.clone();
        let archive = self.0.text_pool.run(move || files.archive()).await;
        let archive = archive.map_err(|error| not_tokenized(&error, ""))?;
        let archive = archive.map_err(|error| Status::internal(format!("the tokenizer's files: {error}")))?;
        let sha256 = hex(&Sha256::digest(&archive));
        let archive = Bytes::from(archive);
        let last = archive.len().div_ceil(CHUNK_BYTES).saturating_sub(1);
        let chunk = move |at: usize| {
            let piece = &archive[at * CHUNK_BYTES..archive.len().min((at + 1) * CHUNK_BYTES)];
            let sha256 = if at == last { sha256.clone() } else { String::new() };
            Ok(GetTokenizerChunk { data: piece.to_vec(), sha256 })
        };
        Ok(Response::new(Box::pin(stream::iter((0..=last).map(chunk)))))
    }

    type SubscribeKvEventsStream = Messages<KvEventBatch>;

    async fn subscribe_kv_events(
        &self,
        request: Request<SubscribeKvEventsRequest>,
    ) -> Answer<Self::SubscribeKvEventsStream> {
        Ok(Response::new(kv_events::subscribe(&self.0, &request.into_inner())?))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn no_profiler() -> Status {
    Status::unimplemented("there is no profiler in this server")
}

/// What generation_config.json recommends, under vLLM's names.
fn default_sampling_params(defaults: &SamplingDefaults) -> String {
    let fields = [
        ("temperature", defaults.temperature.map(Value::from)),
        ("top_p", defaults.top_p.map(Value::from)),
        ("top_k", defaults.top_k.map(Value::from)),
        ("min_p", defaults.min_p.map(Value::from)),
        ("repetition_penalty", defaults.repetition_penalty.map(Value::from)),
    ];
    let given: serde_json::Map<_, _> =
        fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
    if given.is_empty() { String::new() } else { Value::Object(given).to_string() }
}
