//! [`ChatSetup`]: how the served model writes tool calls and thoughts, and what the operator wants of chats;
//! settled once at start.

use std::sync::Arc;

use quire_scheduler::TokenId;

use super::conversation::Conversation;
use super::harmony_messages;
use super::reasoning::ReasoningFormat;
use super::thought_count::ThoughtMarks;
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
    thinking: Option<ThinkingMarks>,
    pub(super) thought_marks: ThoughtMarks,
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
    /// One of the two parsers reads all of an answer, the other does not know.
    #[error(
        "--tool-call-parser openai and --reasoning-parser openai_gptoss read one and the same format: give both or \
         neither"
    )]
    Channels,
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
        let mut tool_name = config.tool_call_parser.as_deref();
        let mut reasoning_name = config.reasoning_parser.as_deref();
        // What comes in channels comes in channels altogether.
        match (tool_name, reasoning_name) {
            (Some("openai"), None) => reasoning_name = Some("openai_gptoss"),
            (None, Some("openai_gptoss")) => tool_name = Some("openai"),
            _ => (),
        }
        let tool_name = tool_name.or_else(|| tool_format_of(template));
        let reasoning_name = reasoning_name.or_else(|| reasoning_format_of(template));
        let unknown = |flag, given: &str, known: Vec<&str>| ChatSetupError::Unknown {
            flag,
            given: given.into(),
            known: known.join(", "),
        };
        let tools = tool_name.map(|name| {
            let known = ToolFormat::names;
            ToolFormat::of_model(name, tokenizer).ok_or_else(|| unknown("tool-call-parser", name, known()))
        });
        let reasoning = reasoning_name.map(|name| {
            let known = ReasoningFormat::names;
            ReasoningFormat::of_model(name, tokenizer)
                .ok_or_else(|| unknown("reasoning-parser", name, known()))
        });
        let (tools, reasoning) = (tools.transpose()?, reasoning.transpose()?);
        if tools.is_some_and(ToolFormat::is_in_channels)
            != reasoning.is_some_and(ReasoningFormat::is_in_channels)
        {
            return Err(ChatSetupError::Channels);
        }
        if config.enable_auto_tool_choice && tools.is_none() {
            return Err(ChatSetupError::NoToolParser { known: ToolFormat::names().join(", ") });
        }
        // Some markers are several tokens.
        let special = |markers: &mut dyn Iterator<Item = &'static str>| {
            let ids = markers.flat_map(|marker| tokenizer.encode(marker, false).unwrap_or_default());
            ids.filter(|&id| tokenizer.is_special(id)).collect()
        };
        Ok(Self {
            tool_tokens: tools.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            reasoning_tokens: reasoning.map_or_else(|| [].into(), |format| special(&mut format.markers())),
            thinking: thinking_marks(reasoning, config.reasoning.as_ref(), tokenizer),
            thought_marks: reasoning.map(|format| thought_marks(format, tokenizer)).unwrap_or_default(),
            tools,
            reasoning,
            tool_name: tool_name.map(String::from),
            reasoning_name: reasoning_name.map(String::from),
            config,
        })
    }

    /// Makes the conversation what the template and the operator want it to be. `calls` = the model may call its
    /// tools.
    pub(crate) fn complete(&self, conversation: &mut Conversation, calls: bool) {
        if self.tools.is_some_and(ToolFormat::is_in_channels) {
            conversation.messages = harmony_messages::arrange(std::mem::take(&mut conversation.messages));
        }
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

fn thought_marks(format: &ReasoningFormat, tokenizer: &Tokenizer) -> ThoughtMarks {
    let begin = |marker: &&str| {
        if let Some(id) = tokenizer.token_to_id(marker) {
            return Some(vec![id]);
        }
        let ids = tokenizer.encode(marker, false).unwrap_or_default();
        // Text after a special token is always cut alike.
        Some(ids).filter(|ids| ids.first().is_some_and(|id| tokenizer.is_special(*id)))
    };
    ThoughtMarks {
        begin: format.begins().iter().find_map(begin).unwrap_or_default().into(),
        ends: format.ends().iter().filter_map(|marker| tokenizer.token_to_id(marker)).collect(),
    }
}

/// What the template's own text says of tool calls. Templates write calls of earlier answers, and most tell the
/// model how to write them.
fn tool_format_of(template: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    let tests = [
        ("openai", has("<|channel|>analysis<|message|>")),
        ("kimi_k2", has("<|tool_calls_section_begin|>")),
        ("kimi_k3", has("<|open|>") && has("<|sep|>")),
        ("deepseek_v32", has("｜DSML｜") && has("function_calls>")),
        ("deepseek_v4", has("｜DSML｜") && has("tool_calls>")),
        ("deepseek_v41", has("｜DSML｜") && has(" calls>")),
        ("deepseek_v3", has("<｜tool▁call▁begin｜>") && has("```json")),
        ("deepseek_v31", has("<｜tool▁call▁begin｜>")),
        ("step3", has("<steptml:invoke")),
        ("minimax_m2", has("<minimax:tool_call>")),
        ("seed_oss", has("<seed:tool_call>")),
        ("hy_v3", has("<tool_sep") && has("<arg_key")),
        ("hy_v4", has("<tool_calls") && has("<arg_key")),
        ("glm45", has("<arg_key>")),
        ("k2_horizon", has("<ifm|tool_call>")),
        ("plamo3", has("<|plamo:begin_tool_request:plamo|>")),
        ("dots", has("<dots_function_call>")),
        ("minicpm5", has("<function name=") && has("<param name=")),
        ("gemma4", has("<|tool_call>call:")),
        ("functiongemma", has("<start_function_call>")),
        ("cohere_command3", has("<|START_ACTION|>")),
        ("apertus", has("<|tools_prefix|>")),
        ("gigachat3", has("function call") && has("<|role_sep|>")),
        ("gigachat3", has("<|function_call|>")),
        ("qwen3_coder", has("<tool_call>") && has("<function=")),
        ("mistral", has("[TOOL_CALLS]")),
        ("internlm", has("<|plugin|>") && has("<|action_start|>")),
        ("lfm2", has("<|tool_call_start|>") || has("List of tools: ")),
        ("llama4_pythonic", has("<|python_start|>") || has("[func_name1(") && has("<|header_start|>")),
        ("pythonic", has("[func_name1(")),
        ("olmo3", has("<function_calls>") && !has("<invoke")),
        ("granite", has("<|tool_call|>")),
        ("granite-20b-fc", has("<function_call>")),
        ("longcat", has("<longcat_tool_call>")),
        ("hunyuan_a13b", has("<tool_calls>")),
        ("phi4_mini_json", has("functools[")),
        ("xlam", has("[{\"name\": \"tool_call_name\", \"arguments\":")),
        ("hermes", has("<tool_call>") && (has("\"arguments\"") || has("\\\"arguments\\\""))),
        ("llama3_json", has("<|python_tag|>") && has("\"parameters\"")),
        ("llama3_json", has("{\"name\": function name, \"parameters\":")),
    ];
    tests.into_iter().find_map(|(name, found)| found.then_some(name))
}

/// What the template's own text says of thoughts.
fn reasoning_format_of(template: &str) -> Option<&'static str> {
    let has = |mark: &str| template.contains(mark);
    let thinks = has("<think>") && has("</think>");
    let tests = [
        ("openai_gptoss", has("<|channel|>analysis<|message|>")),
        ("seed_oss", has("<seed:think>")),
        ("minimax_m3", has("<mm:think>")),
        ("k2_horizon", has("<ifm|think>")),
        ("plamo3", has("<|plamo:begin_think:plamo|>")),
        ("kimi_k3", has("<|open|>") && has("<|sep|>")),
        ("gemma4", has("<|channel>") && has("<channel|>")),
        ("cohere_command3", has("<|START_THINKING|>")),
        ("mistral", has("[THINK]") && has("[/THINK]")),
        ("hy_v3", has("<think{}>") || has("<think:opensource>")),
        ("hunyuan_a13b", thinks && (has("<answer>") || (has("<tool_calls>") && !has("<arg_key>")))),
        ("kimi_k2", thinks && has("<|tool_calls_section_begin|>")),
        ("minimax_m2", thinks && has("<minimax:tool_call>")),
        ("ernie45", thinks && has("<response>")),
        ("deepseek_v4", thinks && has("｜DSML｜") && has("tool_calls>")),
        ("deepseek_v41", thinks && has("｜DSML｜") && has(" calls>")),
        ("deepseek_r1", has("</think>") && has("<｜Assistant｜>")),
        ("qwen3", thinks),
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
            ("'<|channel|>analysis<|message|>' 'functions.'", Some("openai"), Some("openai_gptoss")),
            (
                "'｜DSML｜' '<' + dsml + 'function_calls>' '</think><｜Assistant｜>'",
                Some("deepseek_v32"),
                Some("deepseek_r1"),
            ),
            ("'<|open|>call' '<|sep|>'", Some("kimi_k3"), Some("kimi_k3")),
            (
                "'<｜DSML｜tool_calls>' '<think></think>' '<｜Assistant｜>'",
                Some("deepseek_v4"),
                Some("deepseek_v4"),
            ),
            ("'<｜DSML｜ calls>' '<think></think>'", Some("deepseek_v41"), Some("deepseek_v41")),
            (
                "'<tool_calls{}>' '<tool_call{}>' '<tool_sep{}>' '<arg_key{}>' '<think{}>'",
                Some("hy_v3"),
                Some("hy_v3"),
            ),
            ("'<tool_calls>' '<tool_call>' + name + '<arg_key>'", Some("hy_v4"), None),
            ("'<ifm|tool_call>' '<ifm|think>'", Some("k2_horizon"), Some("k2_horizon")),
            ("'<|tool_call>call:' '<|channel>thought\\n<channel|>'", Some("gemma4"), Some("gemma4")),
            ("<start_function_call>call:{{ name }}{", Some("functiongemma"), None),
            ("'<|START_ACTION|>' '<|START_THINKING|>'", Some("cohere_command3"), Some("cohere_command3")),
            ("'<|tools_prefix|>['", Some("apertus"), None),
            ("'function call<|role_sep|>\\n'", Some("gigachat3"), None),
            ("<dots_function_call><invoke name=", Some("dots"), None),
            ("'<function name=' '<param name='", Some("minicpm5"), None),
            ("'<|plamo:begin_tool_request:plamo|>'", Some("plamo3"), None),
            ("'<|tool_call|>' + calls|tojson", Some("granite"), None),
            ("'<function_call> ' + call|tojson", Some("granite-20b-fc"), None),
            ("<tool_calls>[{\"name\": <think></think><answer>", Some("hunyuan_a13b"), Some("hunyuan_a13b")),
            ("formatted as functools[{", Some("phi4_mini_json"), None),
            (
                r#"Respond in the format {"name": function name, "parameters": dict}"#,
                Some("llama3_json"),
                None,
            ),
            ("[func_name1(params_name1=params_value1)]", Some("pythonic"), None),
            ("<|header_start|> [func_name1(params_name1=params_value1)]", Some("llama4_pythonic"), None),
            ("'<mm:think>'", None, Some("minimax_m3")),
            ("'<think></think>\\n<response>'", None, Some("ernie45")),
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
