//! [`ChatSetup`]: how the served model writes tool calls and thoughts, and what the operator wants of chats;
//! settled once at start.

use std::sync::Arc;

use quire_scheduler::TokenId;

use super::conversation::Conversation;
use super::reasoning::ReasoningFormat;
use super::tools::ToolFormat;
use crate::config::ChatConfig;
use crate::text::Tokenizer;

/// The formats of the served model's answers, and the operator's settings.
#[derive(Debug, Clone, Default)]
pub struct ChatSetup {
    pub(crate) tools: Option<&'static ToolFormat>,
    pub(crate) reasoning: Option<&'static ReasoningFormat>,
    /// The names under which they were chosen.
    tool_name: Option<String>,
    reasoning_name: Option<String>,
    /// Special tokens that mark calls.
    pub(crate) tool_tokens: Arc<[TokenId]>,
    /// Special tokens that mark thoughts.
    pub(crate) reasoning_tokens: Arc<[TokenId]>,
    /// The tokens that begin and end thoughts, where they are one token each.
    pub(crate) reasoning_ends: (Option<TokenId>, Option<TokenId>),
    config: ChatConfig,
}

/// A flag names a parser that there is not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatSetupError {
    /// `--tool-call-parser` or `--reasoning-parser`.
    #[error("--{flag} {given}: there is no such parser; there are {known}")]
    Unknown {
        /// Without the dashes.
        flag: &'static str,
        /// As typed.
        given: String,
        /// What could have been typed.
        known: String,
    },
    /// `--enable-auto-tool-choice` without a parser.
    #[error(
        "--enable-auto-tool-choice needs to know how the model writes tool calls, and its chat template does not \
         tell: give --tool-call-parser, one of {known}"
    )]
    NoToolParser {
        /// What could be typed.
        known: String,
    },
}

impl ChatSetup {
    /// Takes the formats that the operator named; the others are read off the chat template where it leaves no
    /// doubt.
    ///
    /// # Errors
    /// [`ChatSetupError`]
    pub fn new(
        config: ChatConfig,
        template: Option<&str>,
        tokenizer: &Tokenizer,
    ) -> Result<Self, ChatSetupError> {
        let template = template.unwrap_or_default();
        let tool_name = config.tool_call_parser.as_deref().or_else(|| tool_format_of(template));
        let reasoning_name = config.reasoning_parser.as_deref().or_else(|| reasoning_format_of(template));
        let unknown = |flag, given: &str, known: Vec<&str>| ChatSetupError::Unknown {
            flag,
            given: given.into(),
            known: known.join(", "),
        };
        let tools = tool_name.map(|name| {
            ToolFormat::named(name).ok_or_else(|| unknown("tool-call-parser", name, ToolFormat::names()))
        });
        let reasoning = reasoning_name.map(|name| {
            let known = ReasoningFormat::names;
            ReasoningFormat::named(name).ok_or_else(|| unknown("reasoning-parser", name, known()))
        });
        let (tools, reasoning) = (tools.transpose()?, reasoning.transpose()?);
        if config.enable_auto_tool_choice && tools.is_none() {
            return Err(ChatSetupError::NoToolParser { known: ToolFormat::names().join(", ") });
        }
        let special = |markers: &mut dyn Iterator<Item = &'static str>| {
            markers
                .filter_map(|marker| tokenizer.token_to_id(marker))
                .filter(|&id| tokenizer.is_special(id))
                .collect()
        };
        let token = |markers: &[&str]| markers.iter().find_map(|marker| tokenizer.token_to_id(marker));
        Ok(Self {
            tool_tokens: tools.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            reasoning_tokens: reasoning.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            reasoning_ends: reasoning.map_or((None, None), |f| (token(f.begins()), token(f.ends()))),
            tools,
            reasoning,
            tool_name: tool_name.map(String::from),
            reasoning_name: reasoning_name.map(String::from),
            config,
        })
    }

    /// Adds what the operator wants to the conversation. `calls` = the model may call its tools.
    pub(crate) fn complete(&self, conversation: &mut Conversation, calls: bool) {
        for (name, value) in &self.config.default_chat_template_kwargs {
            conversation.kwargs.entry(name).or_insert_with(|| value.clone());
        }
        if self.config.exclude_tools_when_tool_choice_none && !calls {
            conversation.tools = None;
        }
    }

    /// vLLM's name for how the model writes tool calls; empty if that is not known.
    pub fn tool_call_parser(&self) -> &str {
        self.tool_name.as_deref().unwrap_or_default()
    }

    /// vLLM's name for how the model marks thoughts; empty if it has none or that is not known.
    pub fn reasoning_parser(&self) -> &str {
        self.reasoning_name.as_deref().unwrap_or_default()
    }
}

/// What the template's own text says of tool calls.
fn tool_format_of(template: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    Some(if has("<tool_call>") && (has("\"arguments\"") || has("\\\"arguments\\\"")) {
        "hermes"
    } else {
        return None;
    })
}

/// What the template's own text says of thoughts.
fn reasoning_format_of(_template: &str) -> Option<&'static str> {
    None
}
