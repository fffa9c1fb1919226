//! Routes of vLLM's that Quire does not have: what is asked for there is known, so the answer is 501 and says
//! what is missing, where an unknown path is a 404.

use super::error::{ApiError, excerpt};

/// Says what is missing, if this is a path of vLLM's.
pub(crate) fn refusal(path: &str) -> Option<ApiError> {
    let (_, missing) = ABSENT.iter().find(|(absent, _)| *absent == path)?;
    Some(ApiError::not_implemented(format!("{} is not implemented: {missing}", excerpt(path))))
}

const SPEECH: &str = "the model reads and writes text only";
const LABELS: &str = "structured decisions are not built; see /generative_scoring";
const COHERE: &str = "Cohere's dialect is not spoken; see /v1/chat/completions and /v1/embeddings";
const WEIGHTS: &str = "weights stay as they were loaded";
const ONE_DEVICE: &str = "the model runs on one device";
const PROFILER: &str = "there is no profiler in the server; see /metrics";
const MEDIA: &str = "there is no cache for media: the model reads text only";
const DERENDER: &str = "see /detokenize";
const RENDER: &str = "see /tokenize, which takes a conversation too";

const ABSENT: &[(&str, &str)] = &[
    ("/cohere/v2/chat", COHERE),
    ("/collective_rpc", ONE_DEVICE),
    ("/fault_tolerance/apply", ONE_DEVICE),
    ("/fault_tolerance/status", ONE_DEVICE),
    ("/finish_weight_update", WEIGHTS),
    ("/get_world_size", ONE_DEVICE),
    ("/init_weight_transfer_engine", WEIGHTS),
    ("/is_scaling_elastic_ep", ONE_DEVICE),
    ("/release_kv_cache_memory", "the KV cache stays in memory while the server lives"),
    ("/reset_encoder_cache", MEDIA),
    ("/reset_mm_cache", MEDIA),
    ("/scale_elastic_ep", ONE_DEVICE),
    ("/shutdown_weight_transfer_engine", WEIGHTS),
    ("/start_draft_weight_update", WEIGHTS),
    ("/start_profile", PROFILER),
    ("/start_weight_update", WEIGHTS),
    ("/stop_profile", PROFILER),
    ("/update_weight_version", WEIGHTS),
    ("/update_weights", WEIGHTS),
    ("/v1/audio/transcriptions", SPEECH),
    ("/v1/audio/translations", SPEECH),
    ("/v1/chat/completions/derender", DERENDER),
    ("/v1/chat/completions/render", RENDER),
    ("/v1/completions/derender", DERENDER),
    ("/v1/completions/render", RENDER),
    ("/v1/decisions", LABELS),
    ("/v1/messages/render", "see /v1/messages/count_tokens"),
    ("/v1/realtime", SPEECH),
    ("/v1/responses/render", RENDER),
    ("/v1/systemone", LABELS),
    ("/weight_checker", WEIGHTS),
    ("/weight_info", WEIGHTS),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_sorted_and_unique() {
        assert!(ABSENT.is_sorted_by(|(a, _), (b, _)| a < b));
    }
}
