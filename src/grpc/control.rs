//! `vllm.Control`: questions about the server, aborts by name, and refusals.

use std::sync::Arc;

use quire_proto::VLLM_PROTO_VERSION;
use quire_proto::vllm::control_server;
use quire_proto::vllm::*;
use tonic::{Request, Response, Status};

use crate::app::App;

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
            max_loras: 0,
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
            supports_lora: false,
            supports_multimodal: false,
            reasoning_parser: self.app.chat.reasoning_parser().into(),
            tool_call_parser: self.app.chat.tool_call_parser().into(),
        }))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        let message = "this server is ended by a signal to its process (SIGTERM), not by a call";
        Err(Status::failed_precondition(message))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Answer<AbortResponse> {
        for id in &request.get_ref().request_ids {
            self.app.engine.abort(id);
        }
        Ok(Response::new(AbortResponse {}))
    }

    async fn load_lora(&self, _: Request<LoadLoraRequest>) -> Answer<LoadLoraResponse> {
        Err(no_lora())
    }

    async fn unload_lora(&self, _: Request<UnloadLoraRequest>) -> Answer<UnloadLoraResponse> {
        Err(no_lora())
    }

    async fn list_loras(&self, _: Request<ListLorasRequest>) -> Answer<ListLorasResponse> {
        Ok(Response::new(ListLorasResponse { adapters: Vec::new() }))
    }

    async fn get_kv_event_sources(
        &self,
        _: Request<GetKvEventSourcesRequest>,
    ) -> Answer<GetKvEventSourcesResponse> {
        Ok(Response::new(GetKvEventSourcesResponse { sources: Vec::new() }))
    }

    async fn pause_generation(&self, _: Request<PauseGenerationRequest>) -> Answer<PauseGenerationResponse> {
        Err(no_pause())
    }

    async fn resume_generation(
        &self,
        _: Request<ResumeGenerationRequest>,
    ) -> Answer<ResumeGenerationResponse> {
        Err(no_pause())
    }

    async fn is_paused(&self, _: Request<IsPausedRequest>) -> Answer<IsPausedResponse> {
        Ok(Response::new(IsPausedResponse { paused: false }))
    }

    async fn sleep(&self, _: Request<SleepRequest>) -> Answer<SleepResponse> {
        Err(no_sleep())
    }

    async fn wake_up(&self, _: Request<WakeUpRequest>) -> Answer<WakeUpResponse> {
        Err(no_sleep())
    }

    async fn is_sleeping(&self, _: Request<IsSleepingRequest>) -> Answer<IsSleepingResponse> {
        Ok(Response::new(IsSleepingResponse { sleeping: false }))
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

fn no_lora() -> Status {
    Status::failed_precondition("LoRA adapters are not supported by this server")
}

fn no_pause() -> Status {
    Status::unimplemented("pausing generation is not supported by this server")
}

fn no_sleep() -> Status {
    Status::unimplemented("sleep mode is not supported by this server")
}

fn no_weight_updates() -> Status {
    Status::unimplemented("weight updates are not supported by this server")
}
