//! The fields of `/v1/messages` that we know and do not act on.

use crate::http::unsupported::{Harmless, TEXT_ONLY, Table, refused};

/// Of `/v1/messages` and `/v1/messages/count_tokens`.
pub(super) static MESSAGES: Table = Table {
    refused: &[
        refused("container", Harmless::Empty, "nothing here runs code"),
        refused(
            "context_management",
            Harmless::KeepsAll,
            "conversations are not edited; leave out what is too much",
        ),
        refused("kv_transfer_params", Harmless::Empty, "transfer of KV caches is not built yet"),
        refused("mcp_servers", Harmless::Empty, "the server calls no tools itself"),
        refused("mm_payload", Harmless::Empty, TEXT_ONLY),
        refused("response_format", Harmless::TextType, "here it is called output_config.format"),
        refused("speed", Harmless::Word("standard"), "there is one speed"),
        refused("stop", Harmless::Empty, "here it is called stop_sequences"),
        refused("watermarking", Harmless::Bool(false), "watermarking is not supported"),
    ],
    labels: &[
        "cache_control",
        "diagnostics",
        "inference_geo",
        "metadata",
        "service_tier",
        "user_profile_id",
        "workspace_id",
    ],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_in_one_list_once() {
        assert!(MESSAGES.is_consistent());
    }
}
