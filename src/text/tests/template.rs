//! Chat templates: Python's ways, and limits on what a template may cost.

use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::super::{ChatInput, ChatTemplate, SpecialTokens, TextError};

fn special() -> SpecialTokens {
    SpecialTokens { bos_token: Some("<s>".into()), eos_token: Some("</s>".into()), ..Default::default() }
}

fn render(source: &str, input: &ChatInput) -> Result<String, TextError> {
    ChatTemplate::new(source, &special())?.render(input)
}

/// The fixture is written by `fixtures/templates.py` with Jinja2 under Python.
#[test]
fn renders_as_jinja2_under_python() {
    let fixture: Value = serde_json::from_str(include_str!("fixtures/templates.json")).unwrap();
    let mut wrong = Vec::new();
    for case in fixture["cases"].as_array().unwrap() {
        let now = UNIX_EPOCH + Duration::from_secs(case["now_s"].as_u64().unwrap());
        let list = |name: &str| case[name].as_array().map(Vec::as_slice);
        let flag = |name: &str| case[name].as_bool().unwrap_or(false);
        let chat_input = ChatInput {
            messages: fixture["messages"][case["messages"].as_str().unwrap()].as_array().unwrap(),
            tools: list("tools"),
            documents: list("documents"),
            add_generation_prompt: flag("add_generation_prompt"),
            continue_final_message: flag("continue_final_message"),
            kwargs: case["kwargs"].as_object(),
        };
        let rendered = ChatTemplate::new(case["template"].as_str().unwrap(), &special())
            .and_then(|template| template.render_at(&chat_input, now));
        let is_right = match (&rendered, case.get("expected"), case.get("raises")) {
            (Ok(text), Some(expected), _) => text == expected,
            (Err(TextError::TemplateRaised { message }), _, Some(raised)) => message == raised,
            (Err(TextError::TemplateRaised { .. }), _, None) => false,
            (Err(_), None, None) => true,
            _ => false,
        };
        if !is_right {
            wrong.push(format!(
                "{}:\n{rendered:#?}\nbut Python has\n{:#?}",
                case["name"],
                case.get("expected")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn a_syntax_error_names_its_line() {
    let error = ChatTemplate::new("fine\n{% for %}", &special()).unwrap_err();
    assert!(matches!(error, TextError::TemplateSyntax { line: 2, .. }), "{error}");
}

#[test]
fn kwargs_cannot_replace_the_request() {
    for name in ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"] {
        let kwargs = Map::from_iter([(name.to_string(), json!([]))]);
        let error = render("x", &ChatInput { kwargs: Some(&kwargs), ..Default::default() }).unwrap_err();
        assert!(matches!(error, TextError::ReservedKwarg { name: found } if found == name));
    }
}

#[test]
fn hostile_input_ends_with_an_error_in_bounded_time() {
    let started = Instant::now();
    let kwargs =
        Map::from_iter([("n".to_string(), json!(99_999)), ("s".to_string(), json!("x".repeat(1 << 20)))]);
    let input = ChatInput { kwargs: Some(&kwargs), ..Default::default() };
    let loops = "{% for i in range(n) %}{% for j in range(n) %}{{ i }}{% endfor %}{% endfor %}";
    let error = render(loops, &input).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { unit: "steps", .. }), "{error}");

    let error = render("{% for i in range(n) %}{{ s }}{% endfor %}", &input).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { unit: "bytes of text", .. }), "{error}");

    let recursion = "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}";
    assert!(matches!(render(recursion, &input), Err(TextError::TemplateRender { .. })));

    let mut nested = json!(1);
    for _ in 0..100_000 {
        nested = Value::Array(vec![nested]);
    }
    let messages = [nested];
    let error =
        render("{{ messages }}", &ChatInput { messages: &messages, ..Default::default() }).unwrap_err();
    assert!(matches!(error, TextError::TemplateLimit { unit: "levels of nested JSON", .. }), "{error}");
    // serde_json drops values recursively: take this one apart by hand.
    let [mut nested] = messages;
    while let Value::Array(mut items) = nested {
        nested = items.pop().unwrap_or_default();
    }
    assert!(started.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_long_conversation_stays_within_the_limits() {
    let template = ChatTemplate::from_tokenizer(&super::pebble()).unwrap().unwrap();
    let roles = ["user", "assistant"];
    let messages: Vec<Value> =
        (0..10_000).map(|index| json!({"role": roles[index % 2], "content": "x".repeat(100)})).collect();
    let text = template.render(&ChatInput { messages: &messages, ..Default::default() }).unwrap();
    assert!(text.len() > 10_000 * 100);
}

#[test]
fn a_panic_of_the_template_engine_is_an_error_of_the_request() {
    // minijinja 2.24 panics here; a later version may return the empty list.
    let rendered = render("{{ [][::-1] | list }}", &ChatInput::default());
    assert!(matches!(rendered.as_deref(), Ok("[]") | Err(TextError::TemplateRender { .. })));
}

#[test]
fn tools_select_the_tool_template() {
    let config = json!({"chat_template": [
        {"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "tools"},
    ]});
    let tokenizer_json = std::fs::read(super::asset("model/tokenizer.json")).unwrap();
    let tokenizer =
        super::Tokenizer::from_bytes(&tokenizer_json, Some(config.to_string().as_bytes())).unwrap();
    let template = ChatTemplate::from_tokenizer(&tokenizer).unwrap().unwrap();
    let tools = [json!({"type": "function"})];
    assert_eq!(template.render(&ChatInput::default()).unwrap(), "plain");
    assert_eq!(template.render(&ChatInput { tools: Some(&tools), ..Default::default() }).unwrap(), "tools");
}

#[test]
fn an_empty_final_message_can_be_continued() {
    let messages = [json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": ""})];
    let source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}";
    let input = ChatInput { messages: &messages, continue_final_message: true, ..Default::default() };
    assert_eq!(render(source, &input).unwrap(), "<user>a</s><assistant>");
    let both = ChatInput { add_generation_prompt: true, ..input };
    assert!(matches!(render(source, &both), Err(TextError::ContinueFinalMessage { .. })));
}
