//! What models write, one example a format or more.

/// For each format: a text with content, a call of `get_weather` and one of `now`, and what the arguments of the
/// first are as text.
pub(super) const EXAMPLES: &[(&str, &str, &str)] = &[
    (
        "hermes",
        "Let me see.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         </tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "longcat",
        "Let me see. <longcat_tool_call>{\"arguments\":{\"city\":\"Paris\",\"days\":[1,2]}, \"name\":\"get_weather\"}\
         </longcat_tool_call><longcat_tool_call>{\"name\": \"now\"}</longcat_tool_call>",
        r#"{"city":"Paris","days":[1,2]}"#,
    ),
    (
        "llama3_json",
        "Let me see.<|python_tag|>{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \
         \"days\": [1, 2]}}; {\"name\": \"now\", \"parameters\": {}}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "mistral",
        "Let me see.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\", \"days\": [1, 2]}[TOOL_CALLS]now{}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "mistral",
        "Let me see.[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": {}}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "llama4_pythonic",
        "Let me see.<|python_start|>[get_weather(city='Paris', days=[1, 2]), now()]<|python_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "olmo3",
        "Let me see.\n<function_calls>\nget_weather(city=\"Paris\", days=(1, 2,))\nnow()\n</function_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "lfm2",
        "Let me see.<|tool_call_start|>[get_weather(city=\"Paris\",days=[1,2]), now()]<|tool_call_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "qwen3_coder",
        "Let me see.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n[1, 2]\n\
         </parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "seed_oss",
        "Let me see.<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>[1, 2]\
         </parameter>\n</function>\n</seed:tool_call><seed:tool_call><function=now></function></seed:tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "minimax_m2",
        "Let me see.\n<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n\
         <parameter name=\"days\">[1, 2]</parameter>\n</invoke>\n<invoke name=\"now\">\n</invoke>\n</minimax:tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "glm45",
        "Let me see.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n<arg_key>days</arg_key>\n\
         <arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>now\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "glm47",
        "Let me see.<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key>\
         <arg_value>[1, 2]</arg_value></tool_call><tool_call>now</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v32",
        "Let me see.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" \
         string=\"true\">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">[1, 2]</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "step3",
        "Let me see.<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"get_weather\">\n\
         <steptml:parameter name=\"city\">Paris</steptml:parameter><steptml:parameter name=\"days\">[1, 2]</steptml:parameter>\
         </steptml:invoke><｜tool_call_end｜>\n<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name=\"now\">\
         </steptml:invoke><｜tool_call_end｜><｜tool_calls_end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v3",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n\
         {\"city\": \"Paris\", \"days\": [1, 2]}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n\
         ```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v31",
        "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\", \"days\": [1, 2]}\
         <｜tool▁call▁end｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "kimi_k2",
        "Let me see.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>\
         {\"city\": \"Paris\", \"days\": [1, 2]}<|tool_call_end|><|tool_call_begin|>functions.now:1\
         <|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "granite",
        "Let me see.<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": null}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "granite-20b-fc",
        "Let me see.<function_call> {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         <function_call> {\"name\": \"now\", \"arguments\": {}}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "jamba",
        "Let me see.<tool_calls>[\n{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\", \\\"days\\\": [1, 2]}\"},\n\
         {\"name\": \"now\", \"arguments\": {}}\n]</tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "phi4_mini_json",
        "Let me see. functools[{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": \
         {\"city\": \"Paris\", \"days\": [1, 2]}}}, {\"name\": \"now\", \"arguments\": {}}]",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "internlm",
        "Let me see.<|action_start|><|plugin|>\n{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\", \"days\": [1, 2]}}\n\
         <|action_end|>\n<|action_start|> <|plugin|>{\"name\": \"now\", \"parameters\": {}}<|action_end|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "xlam",
        "Let me see.\n```json\n[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": [1, 2]}}, \
         {\"name\": \"now\", \"arguments\": {}}]\n```",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "mimo",
        "Let me see.<tool_call><function=get_weather><parameter=city>Paris</parameter><parameter=days>[1, 2]</parameter>\
         </function></tool_call><tool_call>\n<function=now>\n</function>\n</tool_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "dots",
        "Let me see.\n<dots_function_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n\
         <parameter name=\"days\">[1, 2]</parameter>\n</invoke>\n</dots_function_call>\n<dots_function_call>\n\
         <invoke name=\"now\"></invoke>\n</dots_function_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "minicpm5",
        "Let me see.<function name=\"get_weather\"><param name=\"city\">Paris</param><param name=\"days\">[1, 2]</param>\
         </function>\n<function name=\"now\"></function>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "hy_v3",
        "Let me see.<tool_calls>\n<tool_call>get_weather<tool_sep>\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n\
         <arg_key>days</arg_key>\n<arg_value>[1, 2]</arg_value>\n</tool_call>\n<tool_call>now<tool_sep>\n</tool_call>\n\
         </tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "hy_v4",
        "Let me see.<tool_calls><tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days\
         </arg_key><arg_value>[1, 2]</arg_value></tool_call><tool_call>now</tool_call></tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v4",
        "Let me see.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">\n<｜DSML｜parameter name=\"city\" \
         string=\"true\">Paris</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">[1, 2]</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "deepseek_v41",
        "Let me see.\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name=\"get_weather\">\n<｜DSML｜ parameter name=\"city\" \
         string=\"true\">Paris</｜DSML｜ parameter>\n<｜DSML｜ parameter name=\"days\" string=\"false\">[1, 2]\
         </｜DSML｜ parameter>\n</｜DSML｜ invoke>\n<｜DSML｜ invoke name=\"now\">\n</｜DSML｜ invoke>\n</｜DSML｜ calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "kimi_k3",
        "Let me see.<|open|>tools<|sep|><|open|>call tool=\"get_weather\" index=\"1\"<|sep|><|open|>argument key=\"city\" \
         type=\"string\"<|sep|>Paris<|close|>argument<|sep|><|open|>argument key=\"days\" type=\"array\"<|sep|>[1, 2]\
         <|close|>argument<|sep|><|close|>call<|sep|><|open|>call tool=\"now\" index=\"2\"<|sep|><|close|>call<|sep|>\
         <|close|>tools<|sep|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "k2_horizon",
        "Let me see.<ifm|tool_calls><ifm|tool_call>get_weather<ifm|arg_key>city</ifm|arg_key><ifm|arg_type>string\
         </ifm|arg_type><ifm|arg_value>Paris</ifm|arg_value><ifm|arg_key>days</ifm|arg_key><ifm|arg_type>array[int]</ifm|arg_type><ifm|arg_value>[1, 2]\
         </ifm|arg_value></ifm|tool_call>\n<ifm|tool_call>now</ifm|tool_call></ifm|tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "k2_horizon",
        "Let me see.<ifm|tool_calls><ifm|tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \
         \"days\": [1, 2]}}</ifm|tool_call><ifm|tool_call>{\"name\": \"now\", \"arguments\": {}}</ifm|tool_call>\
         </ifm|tool_calls>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "gigachat3",
        "Let me see.\n\nfunction call<|role_sep|>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \
         \"days\": [1, 2]}}\n<|function_call|>{\"name\": \"now\", \"arguments\": {}}",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "cohere_command3",
        "Let me see.<|START_ACTION|>\n[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": \
         {\"city\": \"Paris\", \"days\": [1, 2]}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"now\", \"parameters\": {}}\n\
         ]\n<|END_ACTION|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "apertus",
        "Let me see. <|tools_prefix|>[{\"get_weather\": {\"city\": \"Paris\", \"days\": [1, 2]}}, {\"now\": {}}]\
         <|tools_suffix|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "plamo3",
        "Let me see.<|plamo:begin_tool_requests:plamo|><|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>\
         get_weather<|plamo:end_tool_name:plamo|><|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>\
         {\"city\": \"Paris\", \"days\": [1, 2]}<|plamo:end_tool_arguments:plamo|><|plamo:end_tool_request:plamo|>\
         <|plamo:begin_tool_request:plamo|><|plamo:begin_tool_name:plamo|>now<|plamo:end_tool_name:plamo|>\
         <|plamo:begin_tool_arguments:plamo|><|plamo:constrain|>json<|plamo:msg|>{}<|plamo:end_tool_arguments:plamo|>\
         <|plamo:end_tool_request:plamo|><|plamo:end_tool_requests:plamo|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "gemma4",
        "Let me see.<|tool_call>call:get_weather{city:<|\"|>Paris<|\"|>,days:[1,2]}<tool_call|><|tool_call>call:now{}<tool_call|>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
    (
        "functiongemma",
        "Let me see.<start_function_call>call:get_weather{city:<escape>Paris<escape>,days:<escape>[1, 2]<escape>}\
         <end_function_call>\n<start_function_call>call:now{}<end_function_call>",
        r#"{"city": "Paris", "days": [1, 2]}"#,
    ),
];
