//! `vllm.Control`: questions about the server, aborts by name, and what operators may order.

use std::sync::Arc;

use quire_proto::VLLM_PROTO_VERSION;
use quire_proto::vllm::PauseMode as WirePauseMode;
use quire_proto::vllm::control_server;
use quire_proto::vllm::*;
use tonic::{Request, Response, Status};

use super::admin::{self, permit};
use super::lora;
use super::status::invalid_field;
use crate::adapters::AdapterInfo;
use crate::app::App;
use crate::engine::PauseMode;

type Answer<T> = Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub(super) struct Control {
    app: Arc<App>,
    /// Tells one start of the process from another.
    instance_id: String,
}

impl Control {
    pub(super) fn new(app: Arc<App>) -> Self {
        Self { app, instance_id: uuid::Uuid::new_v4().to_string() }
    }
}

#[tonic::async_trait]
impl control_server::Control for Control {
    async fn get_server_info(&self, _: Request<GetServerInfoRequest>) -> Answer<ServerInfo> {
        let model = &self.app.model;
        Ok(Response::new(ServerInfo {
            engine_version: env!("CARGO_PKG_VERSION").into(),
            // The dialect, which clients check; not the program.
            api_version: "vllm".into(),
            instance_id: self.instance_id.clone(),
            parallelism: Some(ParallelismInfo {
                tensor_parallel_size: 1,
                pipeline_parallel_size: 1,
                data_parallel_size: 1,
                data_parallel_rank: 0,
                decode_context_parallel_size: 1,
                world_size: 1,
                data_parallel_size_local: 1,
            }),
            max_model_len: self.app.limits.max_model_len,
            kv_block_size: model.block_size,
            total_kv_blocks: model.num_blocks.into(),
            max_running_requests: model.max_num_seqs.into(),
            max_batched_tokens: model.max_num_batched_tokens.into(),
            max_loras: lora::max_loras(&self.app),
            rl_capabilities: Some(RlCapabilities::default()),
            proto_version: VLLM_PROTO_VERSION.into(),
            effective_attention_block_size: Some(model.block_size.into()),
        }))
    }

    async fn get_model_info(&self, _: Request<GetModelInfoRequest>) -> Answer<ModelInfo> {
        let model = &self.app.model;
        Ok(Response::new(ModelInfo {
            model_id: model.root.clone(),
            served_model_name: model.name().into(),
            served_model_aliases: model.served_names[1..].to_vec(),
            supports_text_input: true,
            supports_token_ids_input: true,
            supports_lora: self.app.adapters.is_some(),
            supports_multimodal: false,
            reasoning_parser: self.app.chat.reasoning_parser().into(),
            tool_call_parser: self.app.chat.tool_call_parser().into(),
        }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        permit(&self.app, "Shutdown")?;
        self.app.shutdown.notify_one();
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<AbortResponse> {
        for id in &request.get_ref().request_ids {
            self.app.engine.abort(id);
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn load_lora(&self, request: Request<LoadLoraRequest>) -> Answer<LoadLoraResponse> {
        let LoadLoraRequest { lora_name, source_path } = request.into_inner();
        let info = lora::load(&self.app, ("lora_name", &lora_name), ("source_path", &source_path)).await?;
        Ok(Response::new(LoadLoraResponse { adapter: Some(lora_adapter(info)) }))
    }

    async fn unload_lora(&self, request: Request<UnloadLoraRequest>) -> Answer<UnloadLoraResponse> {
        let info = lora::unload(&self.app, "lora_name", &request.get_ref().lora_name).await?;
        Ok(Response::new(UnloadLoraResponse { adapter: Some(lora_adapter(info)) }))
    }

    async fn list_loras(&self, _: Request<ListLorasRequest>) -> Answer<ListLorasResponse> {
        let adapters = lora::list(&self.app).into_iter().map(lora_adapter).collect();
        Ok(Response::new(ListLorasResponse { adapters }))
    }

    async fn get_kv_event_sources(
        &self,
        _: Request<GetKvEventSourcesRequest>,
    ) -> Answer<GetKvEventSourcesResponse> {
        Ok(Response::new(GetKvEventSourcesResponse { sources: Vec::new() }))
    }

    async fn pause_generation(
        &self,
        request: Request<PauseGenerationRequest>,
    ) -> Answer<PauseGenerationResponse> {
        permit(&self.app, "PauseGeneration")?;
        let request = request.get_ref();
        admin::pause(&self.app, pause_mode(request.mode()), request.clear_cache).await?;
        Ok(Response::new(PauseGenerationResponse {}))
    }

    async fn resume_generation(
        &self,
        _: Request<ResumeGenerationRequest>,
    ) -> Answer<ResumeGenerationResponse> {
        permit(&self.app, "ResumeGeneration")?;
        self.app.engine.resume().await;
        Ok(Response::new(ResumeGenerationResponse {}))
    }

    async fn is_paused(&self, _: Request<IsPausedRequest>) -> Answer<IsPausedResponse> {
        Ok(Response::new(IsPausedResponse { paused: self.app.engine.is_paused() }))
    }

    /// Level 0 is a pause. The levels above, of which 1 is the default, give memory back, which is not built.
    async fn sleep(&self, request: Request<SleepRequest>) -> Answer<SleepResponse> {
        permit(&self.app, "Sleep")?;
        let request = request.get_ref();
        match request.level.unwrap_or(1) {
            0 => admin::pause(&self.app, pause_mode(request.mode()), Some(false)).await?,
            level @ (1 | 2) => {
                return Err(Status::unimplemented(format!(
                    "sleep level {level} is not supported: weights and KV cache stay in memory while the server \
                     lives; level 0 pauses the engine"
                )));
            }
            level => return Err(invalid_field("level", &format!("must be 0, 1 or 2, got {level}"))),
        }
        Ok(Response::new(SleepResponse {}))
    }

    /// The end of a sleep of level 0, whatever the tags: nothing has been given back.
    async fn wake_up(&self, _: Request<WakeUpRequest>) -> Answer<WakeUpResponse> {
        permit(&self.app, "WakeUp")?;
        self.app.engine.resume().await;
        Ok(Response::new(WakeUpResponse {}))
    }

    async fn is_sleeping(&self, _: Request<IsSleepingRequest>) -> Answer<IsSleepingResponse> {
        Ok(Response::new(IsSleepingResponse { sleeping: self.app.engine.is_paused() }))
    }

    async fn init_weight_transfer_engine(
        &self,
        _: Request<InitWeightTransferEngineRequest>,
    ) -> Answer<InitWeightTransferEngineResponse> {
        Err(no_weight_updates())
    }

    async fn start_weight_update(
        &self,
        _: Request<StartWeightUpdateRequest>,
    ) -> Answer<StartWeightUpdateResponse> {
        Err(no_weight_updates())
    }

    async fn start_draft_weight_update(
        &self,
        _: Request<StartDraftWeightUpdateRequest>,
    ) -> Answer<StartDraftWeightUpdateResponse> {
        Err(no_weight_updates())
    }

    async fn update_weights(&self, _: Request<UpdateWeightsRequest>) -> Answer<UpdateWeightsResponse> {
        Err(no_weight_updates())
    }

    async fn finish_weight_update(
        &self,
        _: Request<FinishWeightUpdateRequest>,
    ) -> Answer<FinishWeightUpdateResponse> {
        Err(no_weight_updates())
    }

    async fn update_weight_version(
        &self,
        _: Request<UpdateWeightVersionRequest>,
    ) -> Answer<UpdateWeightVersionResponse> {
        Err(no_weight_updates())
    }

    async fn get_weight_version(
        &self,
        _: Request<GetWeightVersionRequest>,
    ) -> Answer<GetWeightVersionResponse> {
        // Nobody has named the weights: they are those that were loaded at the start.
        Ok(Response::new(GetWeightVersionResponse { weight_version: String::new() }))
    }
}

fn lora_adapter(info: AdapterInfo) -> LoraAdapter {
    LoraAdapter { lora_id: info.id, lora_name: info.name, source_path: info.path }
}

fn pause_mode(mode: WirePauseMode) -> PauseMode {
    match mode {
        // vLLM's default.
        WirePauseMode::Unspecified | WirePauseMode::Abort => PauseMode::Abort,
        WirePauseMode::Wait => PauseMode::Wait,
        WirePauseMode::Keep => PauseMode::Keep,
    }
}

fn no_weight_updates() -> Status {
    Status::unimplemented("weight updates are not supported by this server")
}
