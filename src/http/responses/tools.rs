//! The tools of a request in chat's form: [`Tools`].
//!
//! A custom tool takes free text. No template knows such a thing, so the model gets a function with one
//! argument `input`, and its calls come back as items of the custom kind. A grammar for the text is shown
//! to the model; calls are not held to it.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use crate::chat::ToolChoice;
use crate::http::error::excerpt;
use crate::http::fields::{Fields, expected_got};
use crate::http::part::{Part, Wrong, each, none_of};

/// What the model may call.
#[derive(Debug, Default)]
pub(super) struct Tools {
    /// As chat templates expect them.
    pub(super) functions: Vec<Value>,
    /// Names of those that are custom tools.
    pub(super) custom: HashSet<String>,
    pub(super) choice: ToolChoice,
    /// As the client sent them, for the response.
    pub(super) sent: Vec<Value>,
    pub(super) sent_choice: Value,
}

impl Tools {
    /// Reads `tools` and `tool_choice`; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        let mut tools = Self::default();
        tools.sent = fields.list("tools").unwrap_or_default();
        if let Err(wrong) = each("tools", tools.sent.clone(), |tool| tools.add(tool)) {
            fields.wrong_part(wrong);
        }
        let choice = fields.take("tool_choice");
        tools.sent_choice = choice.clone().unwrap_or_else(|| "auto".into());
        if let Err(wrong) = tools.choose(choice) {
            fields.wrong_part(wrong.within("tool_choice"));
        }
        tools
    }

    fn add(&mut self, tool: Value) -> Result<(), Wrong> {
        let mut tool = Part::new(tool)?;
        let kind = tool.required_string("type")?;
        if !matches!(kind.as_str(), "function" | "custom") {
            let message = format!(
                "tools of type {:?} are not supported: only \"function\" and \"custom\", which the client runs itself",
                excerpt(&kind)
            );
            return Err(Wrong::new(".type", message));
        }
        let name = tool.name("name")?;
        let description = tool.string("description")?;
        let function = if kind == "custom" {
            self.custom.insert(name.clone());
            custom_function(&name, description, tool.take("format"))?
        } else {
            let mut function = Map::from_iter([("name".to_owned(), name.into())]);
            let description = description.map(|text| ("description".to_owned(), text.into()));
            let parameters = tool.object("parameters")?.unwrap_or_default();
            function.extend(description);
            function.insert("parameters".into(), parameters.into());
            if tool.flag("strict")? {
                function.insert("strict".into(), true.into());
            }
            function.into()
        };
        self.functions.push(json!({"type": "function", "function": function}));
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

fn custom_function(name: &str, description: Option<String>, format: Option<Value>) -> Result<Value, Wrong> {
    let mut what = "The text that the tool gets, as it is.".to_owned();
    if let Some(format) = format {
        let mut format = Part::new(format).map_err(|wrong| wrong.within(".format"))?;
        let within = |wrong: Wrong| wrong.within(".format");
        match format.required_string("type").map_err(within)?.as_str() {
            "text" => (),
            "grammar" => {
                let syntax = format.required_string("syntax").map_err(within)?;
                let definition = format.required_string("definition").map_err(within)?;
                what.push_str(&format!(" It must follow this grammar ({syntax}):\n{definition}"));
            }
            other => return Err(within(none_of("type", "\"text\" or \"grammar\"", other))),
        }
    }
    let parameters = json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": what}},
        "required": ["input"],
    });
    Ok(match description {
        Some(description) => json!({"name": name, "description": description, "parameters": parameters}),
        None => json!({"name": name, "parameters": parameters}),
    })
}
