//! `openengine.v1.Control`: questions about the server and orders to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quire_proto::openengine::v1::abort_request::Target;
use quire_proto::openengine::v1::*;
use tokio::time::timeout;
use tonic::{Request, Response, Status};

use super::super::admin::permit;
use super::super::call::{Caller, Messages, checked};
use super::super::health::health_problem;
use super::super::lora;
use super::super::status::{invalid_field, no_such_model};
use super::kv_events;
use crate::adapters::AdapterInfo;
use crate::app::App;
use crate::validate::{RequestFields, SamplingFields};

/// Of the contract.
const SCHEMA_REVISION: u32 = 1;
/// How long the engine may take for a token when it is asked to prove that it works.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// All that the contract has.
const GUIDED_MODES: [GuidedDecodingMode; 6] = [
    GuidedDecodingMode::JsonSchema,
    GuidedDecodingMode::Regex,
    GuidedDecodingMode::EbnfGrammar,
    GuidedDecodingMode::StructuralTag,
    GuidedDecodingMode::Choice,
    GuidedDecodingMode::JsonObject,
];

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub(in crate::grpc) struct Control {
    app: Arc<App>,
    /// Tells one start of the process from another.
    instance_id: String,
}

impl Control {
    pub(in crate::grpc) fn new(app: Arc<App>) -> Self {
        Self { app, instance_id: uuid::Uuid::new_v4().to_string() }
    }

    fn check_model(&self, model: &str) -> Result<(), Status> {
        if self.app.serves(model) { Ok(()) } else { Err(no_such_model(&self.app, model)) }
    }

    /// Whether a token can be had.
    async fn probe(&self) -> Result<(), String> {
        let app = &*self.app;
        let fields = RequestFields {
            external_id: "health probe".into(),
            prompt_token_ids: vec![0],
            bypass_prefix_cache: true,
            ..RequestFields::default()
        };
        let sampling = SamplingFields { max_tokens: Some(1), detokenize: Some(false), ..Default::default() };
        let say = |status: Status| status.message().to_owned();
        let caller = Caller::read(&tonic::metadata::MetadataMap::new(), String::new()).map_err(say)?;
        let request = checked(app, fields, sampling, |path| path).map_err(say)?;
        let mut generation = caller.submit(app, request).map_err(say)?;
        let ended = async {
            while generation.next().await.map_err(|failure| say(failure.into()))?.is_some() {}
            Ok(())
        };
        timeout(PROBE_TIMEOUT, ended)
            .await
            .unwrap_or_else(|_| Err(format!("no token within {} s", PROBE_TIMEOUT.as_secs())))
    }
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Answer<ServerInfo> {
        let model = &self.app.model;
        Ok(Response::new(ServerInfo {
            engine_name: "quire".into(),
            engine_version: env!("CARGO_PKG_VERSION").into(),
            engine_role: EngineRole::Aggregated.into(),
            instance_id: self.instance_id.clone(),
            supported_models: model.served_names.clone(),
            parallelism: Some(ParallelismInfo {
                tensor_parallel_size: Some(1),
                pipeline_parallel_size: Some(1),
                data_parallel_size: Some(1),
                data_parallel_rank: Some(0),
                data_parallel_start_rank: Some(0),
                decode_context_parallel_size: Some(1),
            }),
            kv_connector: Some(KvConnectorInfo { enabled: Some(false), ..Default::default() }),
            schema_revision: SCHEMA_REVISION,
            minimum_client_revision: SCHEMA_REVISION,
            schema_release: String::new(),
            capacity: Some(DeploymentCapacity {
                kv_block_size: Some(model.block_size),
                total_kv_blocks: Some(model.num_blocks.into()),
                max_running_requests: Some(model.max_num_seqs.into()),
                max_batched_tokens: Some(model.max_num_batched_tokens.into()),
                max_loras: Some(lora::max_loras(&self.app)),
            }),
            extra: None,
        }))
    }

    async fn get_model_info(&self, request: Request<GetModelInfoRequest>) -> Answer<ModelInfo> {
        self.check_model(&request.get_ref().model)?;
        let (model, limits) = (&self.app.model, &self.app.limits);
        let logprobs = LogprobCapabilities {
            supported: Some(true),
            candidate_selection_modes: [
                Some(CandidateTokenSelectionMode::TopN),
                limits.max_logprobs.is_none().then_some(CandidateTokenSelectionMode::All),
            ]
            .into_iter()
            .flatten()
            .map(i32::from)
            .collect(),
            max_top_n: Some(limits.max_logprobs.unwrap_or(limits.vocab_size)),
        };
        Ok(Response::new(ModelInfo {
            model_id: model.root.clone(),
            served_model_name: model.name().into(),
            served_model_aliases: model.served_names[1..].to_vec(),
            max_context_length: Some(limits.max_model_len),
            max_output_tokens: Some(limits.max_model_len - 1),
            tokenizer_modes: vec!["hf".into()],
            supports_text_input: Some(true),
            supports_token_ids_input: Some(true),
            generation: Some(GenerationCapabilities {
                prompt_logprobs: Some(logprobs.clone()),
                output_logprobs: Some(logprobs),
                guided_decoding: Some(GuidedDecodingCapabilities {
                    supported: Some(true),
                    modes: GUIDED_MODES.map(i32::from).to_vec(),
                }),
                max_num_sequences: Some(crate::validate::MAX_N),
                supports_priority: Some(true),
                supports_stop_in_output: Some(true),
                supports_cache_salt: Some(true),
                supports_prefix_cache_bypass: Some(true),
            }),
            supports_lora: Some(self.app.adapters.is_some()),
            supports_multimodal: Some(false),
            ..Default::default()
        }))
    }

    async fn get_load(&self, request: Request<GetLoadRequest>) -> Answer<LoadInfo> {
        let stats = self.app.engine.stats().scheduler();
        let running = Some(stats.num_running);
        let queued = Some(stats.num_waiting_capacity + stats.num_waiting_deferred);
        let used_kv_blocks = Some(u64::from(stats.num_blocks_total - stats.num_blocks_free));
        let total_kv_blocks = Some(u64::from(stats.num_blocks_total));
        let rank = RankLoadInfo {
            data_parallel_rank: Some(0),
            running_requests: running,
            queued_requests: queued,
            used_kv_blocks,
            total_kv_blocks,
            prefill_batch_size: None,
            decode_batch_size: None,
        };
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Response::new(LoadInfo {
            instance_id: self.instance_id.clone(),
            timestamp_unix_nanos: u64::try_from(since_1970.as_nanos()).ok(),
            running_requests: running,
            queued_requests: queued,
            used_kv_blocks,
            total_kv_blocks,
            ranks: if request.get_ref().include_per_rank { vec![rank] } else { Vec::new() },
            ..Default::default()
        }))
    }

    async fn health(&self, request: Request<HealthRequest>) -> Answer<HealthResponse> {
        let request = request.get_ref();
        self.check_model(&request.model)?;
        let mut checks = Vec::new();
        let mut check = |name: &str, state: HealthState, message: String| {
            checks.push(HealthCheck { name: name.into(), state: state.into(), message });
            state
        };
        let mut state = match health_problem(&self.app) {
            None => check("engine", HealthState::Ready, String::new()),
            Some(problem) if self.app.engine.is_draining() => check("engine", HealthState::Draining, problem),
            Some(problem) => check("engine", HealthState::NotReady, problem),
        };
        if state == HealthState::Ready
            && let EngineRole::Prefill | EngineRole::Decode = request.role()
        {
            let message = "this engine computes prompts and outputs both; it has no other role";
            state = check("role", HealthState::NotReady, message.into());
        }
        if state == HealthState::Ready && request.include_inference_probe {
            state = match self.probe().await {
                Ok(()) => check("inference", HealthState::Ready, String::new()),
                Err(problem) => check("inference", HealthState::Degraded, problem),
            };
        }
        Ok(Response::new(HealthResponse { state: state.into(), checks }))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<AbortResponse> {
        let num_aborted = match request.into_inner().target {
            Some(Target::RequestId(id)) => self.app.engine.abort(&id),
            Some(Target::AllRequests(AllRequests {})) => {
                permit(&self.app, "Abort of all requests")?;
                let num_in_flight = self.app.engine.num_in_flight();
                self.app.engine.abort_all();
                num_in_flight
            }
            Some(Target::KvSession(_)) => {
                return Err(invalid_field("kv_session", "KV transfer is not supported"));
            }
            None => return Err(invalid_field("target", "one of request_id and all_requests is needed")),
        };
        let (status, message) = match num_aborted {
            0 => (AbortStatus::AlreadyFinished, "there is no such request in the engine".into()),
            n => (AbortStatus::Aborted, format!("{n} sequences are ended")),
        };
        Ok(Response::new(AbortResponse { status: status.into(), message }))
    }

    /// The number of an adapter is the server's to give.
    async fn load_lora(&self, request: Request<LoadLoraRequest>) -> Answer<LoadLoraResponse> {
        let asked = request.into_inner().adapter.unwrap_or_default();
        if asked.lora_id != 0 {
            return Err(invalid_field("adapter.lora_id", "must be left out: the server gives it"));
        }
        let (name, path) =
            (("adapter.lora_name", &*asked.lora_name), ("adapter.source_path", &*asked.source_path));
        let same = |info: &AdapterInfo| info.name == name.1 && info.path == path.1;
        let (info, already_loaded) = match lora::list(&self.app).into_iter().find(same) {
            Some(info) => (info, true),
            None => (lora::load(&self.app, name, path).await?, false),
        };
        Ok(Response::new(LoadLoraResponse { adapter: Some(lora_adapter(info)), already_loaded }))
    }

    async fn unload_lora(&self, request: Request<UnloadLoraRequest>) -> Answer<UnloadLoraResponse> {
        let info = lora::unload(&self.app, "lora_name", &request.get_ref().lora_name).await?;
        Ok(Response::new(UnloadLoraResponse { adapter: Some(lora_adapter(info)) }))
    }

    async fn list_loras(&self, _: Request<ListLorasRequest>) -> Answer<ListLorasResponse> {
        let adapters = lora::list(&self.app).into_iter().map(lora_adapter).collect();
        Ok(Response::new(ListLorasResponse { adapters }))
    }

    /// None: events are not published elsewhere, they come by `SubscribeKvEvents`.
    async fn get_kv_event_sources(
        &self,
        _: Request<GetKvEventSourcesRequest>,
    ) -> Answer<GetKvEventSourcesResponse> {
        Ok(Response::new(GetKvEventSourcesResponse { sources: Vec::new() }))
    }

    type SubscribeKvEventsStream = Messages<SubscribeKvEventsResponse>;

    async fn subscribe_kv_events(
        &self,
        request: Request<SubscribeKvEventsRequest>,
    ) -> Answer<Self::SubscribeKvEventsStream> {
        Ok(Response::new(kv_events::subscribe(&self.app, request.into_inner())?))
    }
}

fn lora_adapter(info: AdapterInfo) -> LoraAdapter {
    LoraAdapter { lora_id: info.id, lora_name: info.name, source_path: info.path }
}
