//! Flags about what answers tell beyond what clients ask for, and what they mean: [`AnswerConfig`].

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

use super::resolve::{ConfigError, value};
use crate::config::{AnswerConfig, Fingerprint};

/// What answers tell.
#[derive(Debug, Args)]
#[command(next_help_heading = "Answers")]
pub(super) struct AnswerArgs {
    /// Every stream tells the usage, on each chunk and at the end
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_force_include_usage: bool,
    /// The usage tells how many tokens of the prompt were in the prefix cache (in vLLM, it does not unless asked to)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_prompt_tokens_details: bool,
    /// Answers of one choice tell how long they took, in `metrics`
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) enable_per_request_metrics: bool,
    /// Write every token in log-probabilities as token_id:7
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true",
          num_args = 0..=1, require_equals = true, value_parser = BoolishValueParser::new(), action = clap::ArgAction::Set)]
    pub(super) return_tokens_as_token_ids: bool,
    /// What system_fingerprint is: version and a hash of model and limits (full and hash: there is nothing parallel to
    /// tell of), the text of --fingerprint-value, or null
    #[arg(long, value_enum, default_value_t = FingerprintMode::Full)]
    pub(super) fingerprint_mode: FingerprintMode,
    /// With --fingerprint-mode custom
    #[arg(long, value_name = "TEXT")]
    pub(super) fingerprint_value: Option<String>,
    /// Role of the messages that answer chats
    #[arg(long, value_name = "ROLE", default_value = "assistant")]
    pub(super) response_role: String,
}

/// Value of `--fingerprint-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(super) enum FingerprintMode {
    Full,
    Hash,
    Custom,
    None,
}

impl AnswerArgs {
    pub(super) fn resolve(self) -> Result<AnswerConfig, ConfigError> {
        let fingerprint = match (self.fingerprint_mode, self.fingerprint_value) {
            (FingerprintMode::Custom, Some(text)) => Fingerprint::Custom(text),
            (FingerprintMode::Custom, None) => {
                return Err(value("fingerprint-mode", "custom", "needs --fingerprint-value"));
            }
            (_, Some(text)) => {
                return Err(value("fingerprint-value", text, "is for --fingerprint-mode custom"));
            }
            (FingerprintMode::Full | FingerprintMode::Hash, None) => Fingerprint::Hash,
            (FingerprintMode::None, None) => Fingerprint::None,
        };
        if self.response_role.trim().is_empty() {
            return Err(value("response-role", format!("{:?}", self.response_role), "must not be empty"));
        }
        Ok(AnswerConfig {
            force_include_usage: self.enable_force_include_usage,
            prompt_tokens_details: self.enable_prompt_tokens_details,
            request_metrics: self.enable_per_request_metrics,
            tokens_as_token_ids: self.return_tokens_as_token_ids,
            fingerprint,
            response_role: self.response_role,
        })
    }
}
