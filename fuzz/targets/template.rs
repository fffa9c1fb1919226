//! Chat templates that people use, with messages, tools and keyword arguments that anybody may send: rendering
//! ends with a text or with an error, never with a panic, and within its limits.

use std::sync::OnceLock;

use quire::text::{ChatInput, ChatTemplate, SpecialTokens};
use serde_json::{Map, Value};

use super::input::Input;

/// Ways of writing templates: the plain loop, methods and slices, tests and filters, macros and namespaces,
/// JSON, and exceptions.
const TEMPLATES: &[&str] = &[
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "{% for m in messages %}{{ m['content'].split('</think>')[-1].lstrip('\\n') }}{{ m.role[::-1] }}{% endfor %}",
    "{%- macro part(x) %}{{ x | trim | upper }}{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages \
     %}{% set ns.n = ns.n + 1 %}{{ part(m.content) }}{{ ns.n }}{% endfor %}",
    "{% if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "{% if messages[0].role != 'system' %}{{ raise_exception('first a system message') }}{% endif %}{{ \
     messages[1:] | length }}{{ strftime_now('%d %b %Y') }}",
    "{% for m in messages if m.content is string and m.role in ['user', 'assistant'] %}{{ loop.index0 }}{{ \
     m.content.strip().replace('a', 'b') }}{% if loop.last %}{{ enable_thinking }}{% endif %}{% endfor %}",
];

/// One byte for the template, one of options, then messages, tools and keyword arguments as JSON.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let templates = templates();
    let template = &templates[usize::from(input.byte()) % templates.len()];
    let options = input.byte();
    let messages = list(input.piece());
    let tools = list(input.piece());
    let kwargs: Map<String, Value> = serde_json::from_slice(input.piece()).unwrap_or_default();
    let _ = template.render(&ChatInput {
        messages: &messages,
        tools: (options & 1 == 1).then_some(&tools),
        documents: (options & 2 == 2).then_some(&tools),
        add_generation_prompt: options & 4 == 4,
        continue_final_message: options & 8 == 8,
        kwargs: Some(&kwargs),
    });
}

fn list(json: &[u8]) -> Vec<Value> {
    serde_json::from_slice(json).unwrap_or_default()
}

fn templates() -> &'static [ChatTemplate] {
    static COMPILED: OnceLock<Vec<ChatTemplate>> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let special = SpecialTokens::default();
        let compile = |source: &&str| ChatTemplate::new(source, &special).expect("these are valid");
        TEMPLATES.iter().map(compile).collect()
    })
}
