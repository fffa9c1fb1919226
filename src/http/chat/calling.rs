//! [`Calling`]: what the tools of a request mean for its answers: how calls in them are read, and what grammar
//! makes the model call where it must, or keep to the schemas of strict tools where it may.

use std::sync::Arc;

use serde_json::Value;

use crate::app::App;
use crate::chat::{self, ChatParser, Tool, ToolChoice, ToolFormat};
use crate::grammar::Constraint;
use crate::http::error::ApiError;

/// What a request says of its tools.
#[derive(Debug)]
pub(super) struct Calling<'a> {
    /// As they go to the template.
    pub(super) tools: Option<&'a [Value]>,
    pub(super) choice: &'a ToolChoice,
    /// At most one call.
    pub(super) single: bool,
}

/// A form of the answer, and the field that asks for it.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) constraint: Constraint,
    pub(super) param: String,
}

/// How answers are read, and what they must look like.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) parser: ChatParser,
    pub(super) asked: Option<Asked>,
    /// Markers that are special tokens and must stay in the text.
    pub(super) kept_special_tokens: Arc<[u32]>,
}

impl Calling<'_> {
    /// `asked` = the form that the request wants besides.
    pub(super) fn reading(&self, asked: Option<Asked>, app: &App) -> Result<Reading, ApiError> {
        let chat = &app.chat;
        let (Some(tools), true) = (self.tools, *self.choice != ToolChoice::None) else {
            let kept_special_tokens = chat.reasoning_tokens.clone();
            return Ok(Reading { parser: ChatParser::default(), asked, kept_special_tokens });
        };
        let tools = read(tools)?;
        let (format, asked) = match self.choice {
            ToolChoice::Named(name) => {
                let named: Vec<_> = tools.iter().filter(|tool| tool.name == *name).cloned().collect();
                if named.is_empty() {
                    let message = format!("there is no tool {name:?} among the tools");
                    return Err(ApiError::bad_param("tool_choice", message));
                }
                must_call(&named, true, asked, app)?
            }
            ToolChoice::Required => must_call(&tools, self.single, asked, app)?,
            ToolChoice::Auto | ToolChoice::None => self.may_call(&tools, asked, app)?,
        };
        let parser = ChatParser::default().with_tools(format, tools, self.single);
        let kept_special_tokens = chat.reasoning_tokens.iter().chain(&*chat.tool_tokens).copied().collect();
        Ok(Reading { parser, asked, kept_special_tokens })
    }

    fn may_call(
        &self,
        tools: &[Tool],
        asked: Option<Asked>,
        app: &App,
    ) -> Result<(&'static ToolFormat, Option<Asked>), ApiError> {
        let format = app.chat.tools.ok_or_else(|| {
            let message = "it is not known how this model writes tool calls, see --tool-call-parser; tool_choice \
                           \"required\" or a function makes it call, \"none\" answer in text";
            ApiError::bad_param("tool_choice", message)
        })?;
        if let Some(asked) = asked {
            return Ok((format, Some(answer_or_call(format, tools, self.single, asked, app)?)));
        }
        let Some(strict) = tools.iter().position(|tool| tool.strict) else { return Ok((format, None)) };
        let param = format!("tools[{strict}].function.strict");
        let tag = chat::strict_tag(format, tools, &app.tokenizer).ok_or_else(|| {
            let message = format!(
                "{param}: calls that the model makes of its own accord (tool_choice \"auto\") cannot be kept to a \
                 schema in this model's format; leave strict out, or set tool_choice to \"required\""
            );
            ApiError::bad_param("tools", message)
        })?;
        Ok((format, Some(Asked { constraint: Constraint::StructuralTag(tag), param })))
    }
}

/// The tools as every API has put them into the conversation.
fn read(tools: &[Value]) -> Result<Arc<[Tool]>, ApiError> {
    let read = |(index, tool)| {
        Tool::read(tool).map_err(|wrong| {
            let at = format!("tools[{index}]{}", wrong.at);
            let message = format!("{at}: {}", wrong.message);
            ApiError::bad_param(at, message)
        })
    };
    tools.iter().enumerate().map(read).collect()
}

fn must_call(
    tools: &[Tool],
    single: bool,
    asked: Option<Asked>,
    app: &App,
) -> Result<(&'static ToolFormat, Option<Asked>), ApiError> {
    if let Some(asked) = asked {
        let message = format!("{}: an answer that must be a tool call cannot have another form", asked.param);
        return Err(ApiError::bad_param(outermost(&asked.param), message));
    }
    let format = chat::writable(app.chat.tools, &app.tokenizer);
    let grammar = format!("start: calls\n{}", chat::grammar(format, tools, single, &app.tokenizer));
    Ok((format, Some(Asked { constraint: Constraint::Grammar(grammar), param: "tools".into() })))
}

/// The answer has the form that was asked for, or is made of calls.
fn answer_or_call(
    format: &'static ToolFormat,
    tools: &[Tool],
    single: bool,
    asked: Asked,
    app: &App,
) -> Result<Asked, ApiError> {
    let schema = match &asked.constraint {
        Constraint::JsonSchema(schema) => schema.to_string(),
        Constraint::JsonObject => r#"{"type": "object"}"#.into(),
        _ => String::new(),
    };
    let writable = std::ptr::eq(chat::writable(Some(format), &app.tokenizer), format);
    if schema.is_empty() || !writable {
        let message = format!(
            "{}: it cannot be had together with tools that the model may call; set tool_choice to \"none\"",
            asked.param
        );
        return Err(ApiError::bad_param(outermost(&asked.param), message));
    }
    let calls = chat::grammar(format, tools, single, &app.tokenizer);
    let answer = chat::answer(format, &schema, &app.tokenizer);
    let grammar = format!("start: answer | calls\n{answer}{calls}");
    Ok(Asked { constraint: Constraint::Grammar(grammar), param: asked.param })
}

fn outermost(param: &str) -> &str {
    param.split('.').next().unwrap_or(param)
}
