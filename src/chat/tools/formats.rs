//! The table of formats. The comment over each is what a model of that family writes.

use super::calls::Ids;
use super::format::{Kind, ToolFormat, Writes};
use super::gemma_call::GemmaQuotes;
use super::heads;
use super::tag_sets::{ARG_TAGS, DSML_TAGS, FUNCTION_TAGS, INVOKE_TAGS};
use super::xml_call::{Edges, XmlTags};
use crate::text::Tokenizer;

/// A call is a JSON object; they come one by one or in a list.
const JSON: ToolFormat = ToolFormat {
    names: &[],
    open: &[],
    bare: None,
    close: "",
    call_open: &[],
    between: &["[", "]", ","],
    within: &[],
    kind: Kind::Json,
    ids: Ids::Long,
    writes: &[],
};

const PYTHON: ToolFormat = ToolFormat { kind: Kind::Python, ..JSON };

/// Objects in a list.
const LIST: Writes =
    Writes { call: ["{\"name\": \"", "\", \"arguments\": ", "}"], between: ", ", ..Writes::NONE };

/// What is asked of models that have no format of their own that a grammar can describe: vLLM's list.
///
/// ```text
/// [{"name": "get_weather", "parameters": {"city": "Paris"}}]
/// ```
pub(crate) static JSON_LIST: ToolFormat = ToolFormat {
    bare: Some('['),
    writes: &[Writes { first: "[", call: ["{\"name\": \"", "\", \"parameters\": ", "}"], last: "]", ..LIST }],
    ..JSON
};

static FORMATS: &[ToolFormat] = &[
    // <tool_call>
    // {"name": "get_weather", "arguments": {"city": "Paris"}}
    // </tool_call>
    ToolFormat {
        names: &["hermes", "qwen3_json", "granite4", "ernie45"],
        open: &["<tool_call>"],
        close: "</tool_call>",
        writes: &[Writes {
            call: ["<tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</tool_call>"],
            between: "\n",
            ..Writes::NONE
        }],
        ..JSON
    },
    // <longcat_tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</longcat_tool_call>
    ToolFormat {
        names: &["longcat"],
        open: &["<longcat_tool_call>"],
        close: "</longcat_tool_call>",
        writes: &[Writes {
            call: ["<longcat_tool_call>\n{\"name\": \"", "\", \"arguments\": ", "}\n</longcat_tool_call>"],
            between: "\n",
            ..Writes::NONE
        }],
        ..JSON
    },
    // {"name": "get_weather", "parameters": {"city": "Paris"}}; {"name": ...}
    // with or without <|python_tag|> before it
    ToolFormat {
        names: &["llama3_json", "llama4_json"],
        open: &["<|python_tag|>"],
        bare: Some('{'),
        between: &[";", ",", "[", "]"],
        writes: &[Writes {
            call: ["{\"name\": \"", "\", \"parameters\": ", "}"],
            between: "; ",
            ..Writes::NONE
        }],
        ..JSON
    },
    // [TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}
    // and before that form: [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}]
    ToolFormat {
        names: &["mistral"],
        open: &["[TOOL_CALLS]"],
        between: &["[", "]", ",", "[TOOL_CALLS]"],
        within: &["[ARGS]", "[CALL_ID]"],
        kind: Kind::JsonOrHeaded(heads::mistral),
        ids: Ids::Nine,
        writes: &[
            Writes { needs: "[ARGS]", call: ["[TOOL_CALLS]", "[ARGS]", ""], ..Writes::NONE },
            Writes { first: "[TOOL_CALLS][", last: "]", ..LIST },
        ],
        ..JSON
    },
    // [get_weather(city="Paris"), get_time(city="Paris")]
    ToolFormat { names: &["pythonic"], bare: Some('['), ..PYTHON },
    // <|python_start|>[get_weather(city="Paris")]<|python_end|>, or without the markers
    ToolFormat {
        names: &["llama4_pythonic"],
        open: &["<|python_start|>"],
        close: "<|python_end|>",
        bare: Some('['),
        ..PYTHON
    },
    // <function_calls>
    // get_weather(city="Paris")
    // </function_calls>
    ToolFormat { names: &["olmo3"], open: &["<function_calls>"], close: "</function_calls>", ..PYTHON },
    // <|tool_call_start|>[get_weather(city="Paris")]<|tool_call_end|>
    ToolFormat { names: &["lfm2"], open: &["<|tool_call_start|>"], close: "<|tool_call_end|>", ..PYTHON },
    // <tool_call>
    // <function=get_weather>
    // <parameter=city>
    // Paris
    // </parameter>
    // </function>
    // </tool_call>
    ToolFormat {
        names: &["qwen3_coder", "qwen3_xml", "step3p5", "step5"],
        open: &["<tool_call>"],
        close: "</tool_call>",
        call_open: &["<function="],
        between: &[],
        kind: Kind::Xml(&FUNCTION_TAGS),
        ..JSON
    },
    // The same without line breaks; those in values are part of them.
    ToolFormat {
        names: &["mimo"],
        open: &["<tool_call>"],
        close: "</tool_call>",
        call_open: &["<function="],
        between: &[],
        kind: Kind::Xml(&XmlTags { edges: Edges::Kept, ..FUNCTION_TAGS }),
        ..JSON
    },
    // <seed:tool_call>
    // <function=get_weather>
    // <parameter=city>Paris</parameter>
    // </function>
    // </seed:tool_call>
    ToolFormat {
        names: &["seed_oss"],
        open: &["<seed:tool_call>"],
        close: "</seed:tool_call>",
        call_open: &["<function="],
        between: &[],
        kind: Kind::Xml(&FUNCTION_TAGS),
        ..JSON
    },
    // <minimax:tool_call>
    // <invoke name="get_weather">
    // <parameter name="city">Paris</parameter>
    // </invoke>
    // </minimax:tool_call>
    ToolFormat {
        names: &["minimax_m2"],
        open: &["<minimax:tool_call>"],
        close: "</minimax:tool_call>",
        call_open: &["<invoke name=\""],
        between: &[],
        kind: Kind::Xml(&INVOKE_TAGS),
        ..JSON
    },
    // <dots_function_call>, and the same within
    ToolFormat {
        names: &["dots"],
        open: &["<dots_function_call>"],
        close: "</dots_function_call>",
        call_open: &["<invoke name=\""],
        between: &[],
        kind: Kind::Xml(&INVOKE_TAGS),
        ..JSON
    },
    // <function name="get_weather"><param name="city">Paris</param></function>
    ToolFormat {
        names: &["minicpm5"],
        call_open: &["<function name=\""],
        between: &[],
        kind: Kind::Xml(&XmlTags {
            key_open: "<param name=\"",
            value_close: "</param>",
            call_close: "</function>",
            ..INVOKE_TAGS
        }),
        ..JSON
    },
    // <tool_call>get_weather
    // <arg_key>city</arg_key>
    // <arg_value>Paris</arg_value>
    // </tool_call>
    ToolFormat {
        names: &["glm45", "glm47", "ling3", "poolside_v1"],
        call_open: &["<tool_call>"],
        between: &[],
        kind: Kind::Xml(&ARG_TAGS),
        ..JSON
    },
    // <tool_calls>
    // <tool_call>get_weather<tool_sep>
    // <arg_key>city</arg_key>
    // <arg_value>Paris</arg_value>
    // </tool_call>
    // </tool_calls>
    // hy_v4 has neither the separator nor the line breaks.
    ToolFormat {
        names: &["hy_v3", "hy_v4"],
        open: &["<tool_calls>"],
        close: "</tool_calls>",
        call_open: &["<tool_call>"],
        between: &[],
        kind: Kind::Xml(&XmlTags { name_end: "<tool_sep>", ..ARG_TAGS }),
        ..JSON
    },
    // The same as in the models that are published.
    ToolFormat {
        names: &["hy_v3", "hy_v4"],
        open: &["<tool_calls:opensource>"],
        close: "</tool_calls:opensource>",
        call_open: &["<tool_call:opensource>"],
        between: &[],
        kind: Kind::Xml(&XmlTags {
            name_end: "<tool_sep:opensource>",
            key_open: "<arg_key:opensource>",
            key_close: "</arg_key:opensource>",
            value_open: &[("<arg_value:opensource>", None)],
            value_close: "</arg_value:opensource>",
            call_close: "</tool_call:opensource>",
            ..ARG_TAGS
        }),
        ..JSON
    },
    // <｜DSML｜function_calls>
    // <｜DSML｜invoke name="get_weather">
    // <｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>
    // </｜DSML｜invoke>
    // </｜DSML｜function_calls>
    ToolFormat {
        names: &["deepseek_v32"],
        open: &["<｜DSML｜function_calls>"],
        close: "</｜DSML｜function_calls>",
        call_open: &["<｜DSML｜invoke name=\""],
        between: &[],
        kind: Kind::Xml(&DSML_TAGS),
        ..JSON
    },
    // <｜DSML｜tool_calls>, and the same within
    ToolFormat {
        names: &["deepseek_v4"],
        open: &["<｜DSML｜tool_calls>", "<｜DSML｜toolcalls>", "<｜DSML｜tool>"],
        close: "</｜DSML｜tool_calls>",
        call_open: &["<｜DSML｜invoke name=\""],
        between: &[],
        kind: Kind::Xml(&DSML_TAGS),
        ..JSON
    },
    // <｜DSML｜ calls>
    // <｜DSML｜ invoke name="get_weather">
    // <｜DSML｜ parameter name="city" string="true">Paris</｜DSML｜ parameter>
    // </｜DSML｜ invoke>
    // </｜DSML｜ calls>
    ToolFormat {
        names: &["deepseek_v41"],
        open: &["<｜DSML｜ calls>"],
        close: "</｜DSML｜ calls>",
        call_open: &["<｜DSML｜ invoke name=\""],
        between: &[],
        kind: Kind::Xml(&XmlTags {
            key_open: "<｜DSML｜ parameter name=\"",
            value_close: "</｜DSML｜ parameter>",
            call_close: "</｜DSML｜ invoke>",
            ..DSML_TAGS
        }),
        ..JSON
    },
    // <|open|>tools<|sep|><|open|>call tool="get_weather" index="1"<|sep|>
    // <|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>
    // <|close|>call<|sep|><|close|>tools<|sep|>
    ToolFormat {
        names: &["kimi_k3"],
        open: &["<|open|>tools<|sep|>"],
        close: "<|close|>tools<|sep|>",
        call_open: &["<|open|>call tool=\""],
        between: &[],
        kind: Kind::Xml(&XmlTags {
            name_end: "\"",
            head_end: "<|sep|>",
            key_open: "<|open|>argument key=\"",
            key_close: "\"",
            value_open: &[("type=\"string\"<|sep|>", Some(true)), ("<|sep|>", Some(false))],
            skips_to_value: true,
            value_close: "<|close|>argument<|sep|>",
            call_close: "<|close|>call<|sep|>",
            edges: Edges::Kept,
        }),
        ..JSON
    },
    // <ifm|tool_calls><ifm|tool_call>get_weather<ifm|arg_key>city</ifm|arg_key>
    // <ifm|arg_type>string</ifm|arg_type><ifm|arg_value>Paris</ifm|arg_value></ifm|tool_call></ifm|tool_calls>
    // with or without the type; or an object: <ifm|tool_call>{"name": "get_weather", "arguments": {...}}</ifm|tool_call>
    ToolFormat {
        names: &["k2_horizon"],
        open: &["<ifm|tool_calls>"],
        close: "</ifm|tool_calls>",
        call_open: &["<ifm|tool_call>"],
        between: &["</ifm|tool_call>"],
        kind: Kind::JsonOrXml(&XmlTags {
            name_end: "\n",
            head_end: "",
            key_open: "<ifm|arg_key>",
            key_close: "</ifm|arg_key>",
            value_open: &[
                ("<ifm|arg_value>", None),
                ("<ifm|arg_type>string</ifm|arg_type><ifm|arg_value>", Some(true)),
            ],
            skips_to_value: true,
            value_close: "</ifm|arg_value>",
            call_close: "</ifm|tool_call>",
            edges: Edges::Kept,
        }),
        ..JSON
    },
    // <｜tool_calls_begin｜>
    // <｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="get_weather">
    // <steptml:parameter name="city">Paris</steptml:parameter>
    // </steptml:invoke><｜tool_call_end｜>
    // <｜tool_calls_end｜>
    ToolFormat {
        names: &["step3"],
        open: &["<｜tool_calls_begin｜>"],
        close: "<｜tool_calls_end｜>",
        call_open: &["<steptml:invoke name=\""],
        between: &["<｜tool_call_begin｜>", "function", "<｜tool_sep｜>", "<｜tool_call_end｜>"],
        kind: Kind::Xml(&XmlTags {
            name_end: "\">",
            key_open: "<steptml:parameter name=\"",
            key_close: "\">",
            value_close: "</steptml:parameter>",
            call_close: "</steptml:invoke>",
            edges: Edges::Blanks,
            ..FUNCTION_TAGS
        }),
        ..JSON
    },
    // <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather
    // ```json
    // {"city": "Paris"}
    // ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>
    ToolFormat {
        names: &["deepseek_v3"],
        between: &["```", "<｜tool▁call▁end｜>"],
        kind: Kind::Headed(heads::deepseek_v3),
        writes: &[Writes {
            first: "<｜tool▁calls▁begin｜>",
            call: ["<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>"],
            between: "\n",
            last: "<｜tool▁calls▁end｜>",
            ..Writes::NONE
        }],
        ..DEEPSEEK
    },
    // <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
    ToolFormat {
        names: &["deepseek_v31"],
        kind: Kind::Headed(heads::deepseek_v31),
        writes: &[Writes {
            first: "<｜tool▁calls▁begin｜>",
            call: ["<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"],
            last: "<｜tool▁calls▁end｜>",
            ..Writes::NONE
        }],
        ..DEEPSEEK
    },
    // <|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "Paris"}
    // <|tool_call_end|><|tool_calls_section_end|>
    ToolFormat {
        names: &["kimi_k2"],
        open: &["<|tool_calls_section_begin|>"],
        close: "<|tool_calls_section_end|>",
        call_open: &["<|tool_call_begin|>"],
        between: &["<|tool_call_end|>"],
        within: &["<|tool_call_argument_begin|>"],
        kind: Kind::Headed(heads::kimi_k2),
        writes: &[Writes {
            first: "<|tool_calls_section_begin|>",
            call: [
                "<|tool_call_begin|>functions.",
                ":{index}<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            ],
            last: "<|tool_calls_section_end|>",
            ..Writes::NONE
        }],
        ..JSON
    },
    // <|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris"}}], or <tool_call>[...]
    ToolFormat {
        names: &["granite"],
        open: &["<|tool_call|>", "<tool_call>"],
        writes: &[
            Writes { needs: "<|tool_call|>", first: "<|tool_call|>[", last: "]", ..LIST },
            Writes { first: "<tool_call>[", last: "]", ..LIST },
        ],
        ..JSON
    },
    // <function_call> {"name": "get_weather", "arguments": {"city": "Paris"}}
    ToolFormat {
        names: &["granite-20b-fc"],
        open: &["<function_call>"],
        writes: &[Writes {
            call: ["<function_call> {\"name\": \"", "\", \"arguments\": ", "}"],
            between: "\n",
            ..Writes::NONE
        }],
        ..JSON
    },
    // <tool_calls>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_calls>
    ToolFormat {
        names: &["jamba", "hunyuan_a13b"],
        open: &["<tool_calls>"],
        close: "</tool_calls>",
        writes: &[Writes { first: "<tool_calls>[\n", between: ",\n", last: "\n]</tool_calls>", ..LIST }],
        ..JSON
    },
    // functools[{"name": "get_weather", "arguments": {"city": "Paris"}}]
    ToolFormat {
        names: &["phi4_mini_json"],
        open: &["functools["],
        writes: &[Writes { first: "functools[", last: "]", ..LIST }],
        ..JSON
    },
    // <|action_start|><|plugin|>
    // {"name": "get_weather", "parameters": {"city": "Paris"}}<|action_end|>
    ToolFormat {
        names: &["internlm"],
        open: &["<|action_start|><|plugin|>", "<|action_start|> <|plugin|>"],
        close: "<|action_end|>",
        writes: &[Writes {
            call: ["<|action_start|><|plugin|>\n{\"name\": \"", "\", \"parameters\": ", "}<|action_end|>"],
            between: "\n",
            ..Writes::NONE
        }],
        ..JSON
    },
    // [{"name": "get_weather", "arguments": {"city": "Paris"}}], bare, in a block of code, or after a marker
    ToolFormat {
        names: &["xlam"],
        open: &["[TOOL_CALLS]", "<tool_call>", "```json"],
        close: "</tool_call>",
        bare: Some('['),
        between: &["[", "]", ",", "```"],
        writes: &[Writes { first: "[", last: "]", ..LIST }],
        ..JSON
    },
    // function call<|role_sep|>
    // {"name": "get_weather", "arguments": {"city": "Paris"}}
    // or <|function_call|>{...}
    ToolFormat { names: &["gigachat3"], open: &["function call<|role_sep|>\n", "<|function_call|>"], ..JSON },
    // <|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_weather", "parameters": {"city": "Paris"}}]<|END_ACTION|>
    ToolFormat {
        names: &["cohere_command3", "cohere_command4"],
        open: &["<|START_ACTION|>"],
        close: "<|END_ACTION|>",
        ..JSON
    },
    // <|tools_prefix|>[{"get_weather": {"city": "Paris"}}]<|tools_suffix|>
    ToolFormat {
        names: &["apertus"],
        open: &["<|tools_prefix|>"],
        close: "<|tools_suffix|>",
        between: &["[", "]", ",", "{", "}"],
        kind: Kind::Headed(heads::apertus),
        writes: &[Writes {
            first: "<|tools_prefix|>[",
            call: ["{\"", "\": ", "}"],
            between: ", ",
            last: "]<|tools_suffix|>",
            ..Writes::NONE
        }],
        ..JSON
    },
    // <|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|>
    // <|plamo:begin_tool_name:plamo|>get_weather<|plamo:end_tool_name:plamo|>
    // <|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>{"city": "Paris"}
    // <|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|><|plamo:end_tool_requests:plamo|>
    ToolFormat {
        names: &["plamo3"],
        open: &["<|plamo:begin_tool_requests:plamo|>"],
        close: "<|plamo:end_tool_requests:plamo|>",
        call_open: &["<|plamo:begin_tool_request:plamo|>"],
        between: &["<|plamo:end_tool_arguments:plamo|>", "<|plamo:end_tool_request:plamo|>"],
        within: &[
            "<|plamo:begin_tool_name:plamo|>",
            "<|plamo:end_tool_name:plamo|>",
            "<|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>",
        ],
        kind: Kind::Headed(heads::plamo),
        ..JSON
    },
    // <|tool_call>call:get_weather{city:<|"|>Paris<|"|>,days:[1,2]}<tool_call|>
    ToolFormat {
        names: &["gemma4"],
        call_open: &["<|tool_call>call:", "<|tool_call>:"],
        between: &["<tool_call|>"],
        kind: Kind::Gemma(&GemmaQuotes { quote: "<|\"|>", around_all: false }),
        ..JSON
    },
    // <start_function_call>call:get_weather{city:<escape>Paris<escape>}<end_function_call>
    ToolFormat {
        names: &["functiongemma"],
        call_open: &["<start_function_call>call:"],
        between: &["<end_function_call>"],
        kind: Kind::Gemma(&GemmaQuotes { quote: "<escape>", around_all: true }),
        ..JSON
    },
    // <|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>
    ToolFormat {
        names: &["openai"],
        between: &[],
        kind: Kind::Channels,
        writes: &[Writes {
            needs: "<|channel|>",
            call: ["<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", ""],
            between: "<|end|><|start|>assistant",
            answer: "<|channel|>final <|constrain|>json<|message|>",
            ..Writes::NONE
        }],
        ..JSON
    },
];

const DEEPSEEK: ToolFormat = ToolFormat {
    open: &["<｜tool▁calls▁begin｜>"],
    close: "<｜tool▁calls▁end｜>",
    call_open: &["<｜tool▁call▁begin｜>"],
    between: &["<｜tool▁call▁end｜>"],
    within: &["<｜tool▁sep｜>"],
    ..JSON
};

impl ToolFormat {
    /// The format of that name; the first of several.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        FORMATS.iter().find(|format| format.names.contains(&name))
    }

    /// The format of that name; of several, the one whose marker is a token of the model.
    pub(crate) fn of_model(name: &str, tokenizer: &Tokenizer) -> Option<&'static Self> {
        let is_token =
            |format: &&Self| tokenizer.token_to_id(format.openers().next().unwrap_or_default()).is_some();
        let mut named = FORMATS.iter().filter(|format| format.names.contains(&name));
        named.clone().find(is_token).or(named.next())
    }

    /// All names, sorted.
    pub(crate) fn names() -> Vec<&'static str> {
        let mut names: Vec<_> = FORMATS.iter().flat_map(|format| format.names).copied().collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
