//! The tools of a request in chat's form: [`Tools`].
//!
//! No template knows custom tools, which take free text, nor namespaces of tools. So the model gets a function
//! with one argument `input` for the one, a longer name for the other, and [`CalledAs`] says what its calls
//! mean to the client. A grammar for the text of a custom tool is shown to the model; calls are not held to it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::chat::ToolChoice;
use crate::http::chat::check_tools;
use crate::http::error::excerpt;
use crate::http::fields::{Fields, expected_got};
use crate::http::part::{Part, Wrong, each, none_of};

/// What the model may call.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As chat templates expect them.
    pub(super) functions: Vec<Value>,
    /// By the name that the model knows; what is not in here is a function that the client calls the same.
    pub(super) called_as: HashMap<String, CalledAs>,
    pub(super) choice: ToolChoice,
    /// As the client sent them, for the response.
    pub(super) sent: Vec<Value>,
    pub(super) sent_choice: Value,
}

/// What the call of a function is to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CalledAs {
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    /// Its input is text.
    pub(super) custom: bool,
}

/// The name by which the model knows a tool of a namespace.
pub(super) fn name_in(namespace: Option<&str>, name: &str) -> String {
    match namespace {
        // Those of MCP servers bring the separator along.
        Some(namespace) if namespace.ends_with("__") => format!("{namespace}{name}"),
        Some(namespace) => format!("{namespace}__{name}"),
        None => name.to_owned(),
    }
}

impl Tools {
    /// Reads `tools` and `tool_choice`; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        let mut tools = Self { sent: fields.list("tools").unwrap_or_default(), ..Self::default() };
        if let Err(wrong) = each("tools", tools.sent.clone(), |tool| tools.add(tool, None)) {
            fields.wrong_part(wrong);
        }
        check_tools(&tools.functions, fields);
        let choice = fields.take("tool_choice");
        tools.sent_choice = choice.clone().unwrap_or_else(|| "auto".into());
        if let Err(wrong) = tools.choose(choice) {
            fields.wrong_part(wrong.within("tool_choice"));
        }
        tools
    }

    fn add(&mut self, tool: Value, namespace: Option<&str>) -> Result<(), Wrong> {
        let mut tool = Part::new(tool)?;
        let kind = tool.required_string("type")?;
        match kind.as_str() {
            "namespace" if namespace.is_none() => {
                let name = tool.name("name")?;
                let tools = tool.list("tools")?.ok_or_else(|| Part::missing("tools"))?;
                return each(".tools", tools, |tool| self.add(tool, Some(&name))).map(drop);
            }
            "function" | "custom" => (),
            // Codex offers a search that is not to leave the house. It is none, and nothing is lost by it.
            "web_search" if tool.take("external_web_access") == Some(false.into()) => return Ok(()),
            other => {
                let message = format!(
                    "tools of type {:?} are not supported: only \"function\" and \"custom\", which the client runs \
                     itself, and namespaces of them",
                    excerpt(other)
                );
                return Err(Wrong::new(".type", message));
            }
        }
        let (name, custom) = (tool.name("name")?, kind == "custom");
        let known = name_in(namespace, &name);
        let function = if custom { custom_function(&known, tool)? } else { plain_function(&known, tool)? };
        self.functions.push(json!({"type": "function", "function": function}));
        if custom || namespace.is_some() {
            let called_as = CalledAs { namespace: namespace.map(String::from), name, custom };
            self.called_as.insert(known, called_as);
        }
        Ok(())
    }

    fn choose(&mut self, choice: Option<Value>) -> Result<(), Wrong> {
        let choice = match choice {
            None => "auto".into(),
            Some(choice) => choice,
        };
        self.choice = match choice {
            Value::String(word) => self.choose_by_word(&word)?,
            Value::Object(_) => {
                let mut choice = Part::new(choice)?;
                match choice.required_string("type")?.as_str() {
                    "function" | "custom" => self.named(choice.name("name")?)?,
                    "allowed_tools" => self.restrict(choice)?,
                    other => {
                        return Err(none_of("type", "\"function\", \"custom\" or \"allowed_tools\"", other));
                    }
                }
            }
            other => return Err(Wrong::new("", expected_got("a string or an object", &other))),
        };
        Ok(())
    }

    fn choose_by_word(&self, word: &str) -> Result<ToolChoice, Wrong> {
        match word {
            "none" => Ok(ToolChoice::None),
            "auto" if self.functions.is_empty() => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" if self.functions.is_empty() => {
                Err(Wrong::new("", "\"required\" is allowed only when tools are given"))
            }
            "required" => Ok(ToolChoice::Required),
            other => {
                let message =
                    format!("expected \"none\", \"auto\" or \"required\", got {:?}", excerpt(other));
                Err(Wrong::new("", message))
            }
        }
    }

    fn named(&self, name: String) -> Result<ToolChoice, Wrong> {
        if self.functions.iter().any(|tool| tool["function"]["name"] == *name) {
            return Ok(ToolChoice::Named(name));
        }
        Err(Wrong::new(".name", format!("there is no tool {:?} in tools", excerpt(&name))))
    }

    /// `allowed_tools`: the model sees only these.
    fn restrict(&mut self, mut choice: Part) -> Result<ToolChoice, Wrong> {
        let mode = choice.string("mode")?.unwrap_or_else(|| "auto".into());
        let allowed = choice.list("tools")?.ok_or_else(|| Part::missing("tools"))?;
        let allowed = each(".tools", allowed, |tool| {
            let name = Part::new(tool)?.name("name")?;
            self.named(name.clone()).map(|_| name)
        })?;
        self.functions.retain(|tool| allowed.iter().any(|name| tool["function"]["name"] == **name));
        self.choose_by_word(&mode).map_err(|wrong| wrong.within(".mode"))
    }
}

fn plain_function(name: &str, mut tool: Part) -> Result<Value, Wrong> {
    let mut function = Map::from_iter([("name".to_owned(), name.into())]);
    if let Some(description) = tool.string("description")? {
        function.insert("description".into(), description.into());
    }
    let parameters = tool.object("parameters")?.unwrap_or_default();
    function.insert("parameters".into(), parameters.into());
    if tool.flag("strict")? {
        function.insert("strict".into(), true.into());
    }
    Ok(function.into())
}

fn custom_function(name: &str, mut tool: Part) -> Result<Value, Wrong> {
    let mut what = "The text that the tool gets, as it is.".to_owned();
    if let Some(format) = tool.take("format")
        && let Some(grammar) = read_format(format).map_err(|wrong| wrong.within(".format"))?
    {
        what.push_str(&grammar);
    }
    let parameters = json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": what}},
        "required": ["input"],
    });
    Ok(match tool.string("description")? {
        Some(description) => json!({"name": name, "description": description, "parameters": parameters}),
        None => json!({"name": name, "parameters": parameters}),
    })
}

/// What to tell the model of the form of a custom tool's input, if there is anything to tell.
fn read_format(format: Value) -> Result<Option<String>, Wrong> {
    let mut format = Part::new(format)?;
    match format.required_string("type")?.as_str() {
        "text" => Ok(None),
        "grammar" => {
            let (syntax, definition) =
                (format.required_string("syntax")?, format.required_string("definition")?);
            Ok(Some(format!(" It must follow this grammar ({syntax}):\n{definition}")))
        }
        other => Err(none_of("type", "\"text\" or \"grammar\"", other)),
    }
}
