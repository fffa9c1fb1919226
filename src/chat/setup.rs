//! [`ChatSetup`]: how the served model writes tool calls and thoughts, and what the operator wants of chats;
//! settled once at start.

use std::sync::Arc;

use quire_scheduler::TokenId;

use super::conversation::Conversation;
use super::reasoning::ReasoningFormat;
use super::tools::ToolFormat;
use crate::config::{ChatConfig, ReasoningConfig};
use crate::grammar::ThinkingMarks;
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
    /// The token that begins thoughts, where it is one.
    pub(crate) reasoning_begin: Option<TokenId>,
    thinking: Option<ThinkingMarks>,
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
        // Some markers are several tokens.
        let special = |markers: &mut dyn Iterator<Item = &'static str>| {
            let ids = markers.flat_map(|marker| tokenizer.encode(marker, false).unwrap_or_default());
            ids.filter(|&id| tokenizer.is_special(id)).collect()
        };
        let token = |markers: &[&str]| markers.iter().find_map(|marker| tokenizer.token_to_id(marker));
        Ok(Self {
            tool_tokens: tools.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            reasoning_tokens: reasoning.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            reasoning_begin: reasoning.and_then(|format| token(format.begins())),
            thinking: thinking_marks(reasoning, config.reasoning.as_ref(), tokenizer),
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

    /// How thoughts are told from the rest by their tokens; `None` if the model has none.
    pub fn thinking(&self) -> Option<&ThinkingMarks> {
        self.thinking.as_ref()
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

/// The markers of the format, and those that the operator gave besides.
fn thinking_marks(
    format: Option<&ReasoningFormat>,
    given: Option<&ReasoningConfig>,
    tokenizer: &Tokenizer,
) -> Option<ThinkingMarks> {
    let begins = format.into_iter().flat_map(ReasoningFormat::begins).copied().map(String::from);
    let ends = format.into_iter().flat_map(ReasoningFormat::all_ends).map(String::from);
    let own_end = format.and_then(|format| format.ends().last().copied());
    let forced = given.map(|given| &*given.end).or(own_end)?;
    let begins = begins.chain(given.map(|given| given.begin.clone()));
    ThinkingMarks::new(begins, ends, forced, tokenizer)
}

/// What the template's own text says of tool calls. Templates write calls of earlier answers, and most tell the
/// model how to write them.
fn tool_format_of(template: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    let tests: [(&str, bool); 15] = [
        ("kimi_k2", has("<|tool_calls_section_begin|>")),
        ("deepseek_v32", has("｜DSML｜function_calls")),
        ("deepseek_v3", has("<｜tool▁call▁begin｜>") && has("```json")),
        ("deepseek_v31", has("<｜tool▁call▁begin｜>")),
        ("step3", has("<steptml:invoke")),
        ("minimax_m2", has("<minimax:tool_call>")),
        ("seed_oss", has("<seed:tool_call>")),
        ("glm45", has("<arg_key>")),
        ("qwen3_coder", has("<tool_call>") && has("<function=")),
        ("mistral", has("[TOOL_CALLS]")),
        ("internlm", has("<|plugin|>") && has("<|action_start|>")),
        ("lfm2", has("<|tool_call_start|>")),
        ("llama4_pythonic", has("<|python_start|>")),
        ("hermes", has("<tool_call>") && (has("\"arguments\"") || has("\\\"arguments\\\""))),
        ("llama3_json", has("<|python_tag|>") && has("\"parameters\"")),
    ];
    tests.into_iter().find_map(|(name, found)| found.then_some(name))
}

/// What the template's own text says of thoughts.
fn reasoning_format_of(template: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    let tests: [(&str, bool); 6] = [
        ("seed_oss", has("<seed:think>")),
        ("mistral", has("[THINK]") && has("[/THINK]")),
        ("kimi_k2", has("<think>") && has("<|tool_calls_section_begin|>")),
        ("minimax_m2", has("<think>") && has("<minimax:tool_call>")),
        ("deepseek_r1", has("</think>") && has("<｜Assistant｜>")),
        ("qwen3", has("<think>") && has("</think>")),
    ];
    tests.into_iter().find_map(|(name, found)| found.then_some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_tell_the_formats() {
        for (template, tools, reasoning) in [
            ("{{ messages[0].content }}", None, None),
            (r#"'<tool_call>\n{"name": "' + name + '", "arguments": '"#, Some("hermes"), None),
            (
                r#"<tool_call>\n{\"name\": <function-name>, \"arguments\": <args>}</tool_call>"#,
                Some("hermes"),
                None,
            ),
            ("<tool_call>\n<function=example>\n<parameter=a>", Some("qwen3_coder"), None),
            (
                "'<tool_call>' + name + '<arg_key>' + key + '</arg_key>' '<think></think>'",
                Some("glm45"),
                Some("qwen3"),
            ),
            ("'[TOOL_CALLS]' + name + '[ARGS]' '[THINK]' '[/THINK]'", Some("mistral"), Some("mistral")),
            (r#"'<|python_tag|>' '{"name": "f", "parameters": '"#, Some("llama3_json"), None),
            ("'<|python_start|>' + calls + '<|python_end|>'", Some("llama4_pythonic"), None),
            (
                "'<｜tool▁call▁begin｜>' + '```json' '<｜Assistant｜>' '</think>'",
                Some("deepseek_v3"),
                Some("deepseek_r1"),
            ),
            ("'<｜tool▁call▁begin｜>' '<｜Assistant｜></think>'", Some("deepseek_v31"), Some("deepseek_r1")),
            ("'<|tool_calls_section_begin|>' '<think>' '</think>'", Some("kimi_k2"), Some("kimi_k2")),
            ("'<minimax:tool_call>' '<think>' '</think>'", Some("minimax_m2"), Some("minimax_m2")),
            ("'<seed:tool_call><function=' '<seed:think>'", Some("seed_oss"), Some("seed_oss")),
            ("'<think>\\n\\n</think>\\n\\n'", None, Some("qwen3")),
        ] {
            assert_eq!(
                (tool_format_of(template), reasoning_format_of(template)),
                (tools, reasoning),
                "{template}"
            );
            assert!(tools.is_none_or(|name| ToolFormat::named(name).is_some()), "{template}");
            assert!(reasoning.is_none_or(|name| ReasoningFormat::named(name).is_some()), "{template}");
        }
    }
}
