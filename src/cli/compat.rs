//! vLLM's flags that are not flags of Quire. One table each way:
//!
//! - [`ACCEPTED`]: what they ask for is what Quire does anyway. They are parsed, their values are checked
//!   against what is true, and `--help` lists them.
//! - [`REFUSED`]: what they ask for is not there. The refusal names the flag and says why.
//!
//! A deployment written for vLLM then either runs as it was meant, or says at start what it would miss.

use clap::builder::BoolishValueParser;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// The version of vLLM whose contracts are followed; what `vllm --version` answers.
pub(super) const VLLM_VERSION: &str = "0.33.0";

/// Which values are true of Quire.
enum Values {
    /// A switch that may only be on.
    On,
    /// A switch that may only be off.
    Off,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A JSON object with none but these entries, each with one of these values.
    Json(&'static [(&'static str, &'static [&'static str])]),
    /// Any: the flag limits something that never happens.
    Any,
}

struct Accepted {
    flag: &'static str,
    values: Values,
    /// Why it is true already.
    reason: &'static str,
}

const fn on(flag: &'static str, reason: &'static str) -> Accepted {
    Accepted { flag, values: Values::On, reason }
}
const fn off(flag: &'static str, reason: &'static str) -> Accepted {
    Accepted { flag, values: Values::Off, reason }
}
const fn one_of(flag: &'static str, words: &'static [&'static str], reason: &'static str) -> Accepted {
    Accepted { flag, values: Values::OneOf(words), reason }
}
const fn any(flag: &'static str, reason: &'static str) -> Accepted {
    Accepted { flag, values: Values::Any, reason }
}

const ONE_DEVICE: &str = "the model runs on one device, in one process";
const TEXT_IS_NOT_LOGGED: &str = "texts of requests are never logged";
const NO_ACCESS_LOG: &str = "there is no access log";

const ACCEPTED: &[Accepted] = &[
    on("async-scheduling", "steps are planned ahead wherever the device computes apart from the host"),
    on("enable-chunked-prefill", "prompts are always computed in chunks as the budget allows"),
    on("trust-remote-code", "a permission that is never used: no code of a model folder is run"),
    on("disable-log-requests", "requests are not logged unless --enable-log-requests is given"),
    on("disable-log-stats", "statistics are at /metrics, not in the log"),
    on("disable-uvicorn-access-log", NO_ACCESS_LOG),
    on("disable-frontend-multiprocessing", "everything is one process"),
    on("enable-server-load-tracking", "/load always answers"),
    any("disable-access-log-for-endpoints", NO_ACCESS_LOG),
    any("max-log-len", TEXT_IS_NOT_LOGGED),
    any("show-hidden-metrics-for-version", "no metric is hidden"),
    off("enable-log-outputs", TEXT_IS_NOT_LOGGED),
    one_of("tensor-parallel-size", &["1"], ONE_DEVICE),
    one_of("pipeline-parallel-size", &["1"], ONE_DEVICE),
    one_of("data-parallel-size", &["1"], ONE_DEVICE),
    one_of("nnodes", &["1"], ONE_DEVICE),
    one_of("node-rank", &["0"], ONE_DEVICE),
    any("api-server-count", "one process answers on all cores, as many servers would"),
    one_of("distributed-executor-backend", &["uni"], ONE_DEVICE),
    one_of("model-impl", &["auto"], "there is one implementation"),
    one_of("tokenizer-mode", &["auto", "hf"], "tokenizer.json is used"),
    one_of("config-format", &["auto", "hf"], "config.json is used"),
    one_of(
        "logprobs-mode",
        &["raw_logprobs"],
        "log-probabilities are those before penalties and temperature",
    ),
    one_of("prefill-schedule-interval", &["1"], "prompts may start in every step"),
    one_of("swap-space", &["0"], "KV blocks are computed again, not swapped"),
    one_of("cpu-offload-gb", &["0"], "weights stay where they are computed"),
    one_of("safetensors-load-strategy", &["lazy"], "weights are mapped into memory"),
    one_of(
        "guided-decoding-backend",
        &["auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer"],
        "there is one backend for the forms of answers, whatever it is called",
    ),
    Accepted {
        flag: "structured-outputs-config",
        values: Values::Json(&[
            (
                "backend",
                &[r#""auto""#, r#""guidance""#, r#""xgrammar""#, r#""outlines""#, r#""lm-format-enforcer""#],
            ),
            ("disable_fallback", &["true", "false"]),
            ("disable_any_whitespace", &["false"]),
            ("disable_additional_properties", &["false"]),
            ("enable_in_reasoning", &["false"]),
        ]),
        reason: "there is one backend, forms hold after the reasoning, and how JSON is written is the request's to say",
    },
    off("structured-outputs-config.disable_any_whitespace", "the request's structured_outputs says so"),
    off("structured-outputs-config.enable_in_reasoning", "forms hold after the reasoning"),
    one_of(
        "structured-outputs-config.backend",
        &["auto", "guidance", "xgrammar", "outlines", "lm-format-enforcer"],
        "there is one backend for the forms of answers, whatever it is called",
    ),
    one_of(
        "chat-template-content-format",
        &["auto", "string"],
        "templates get the content of a message as one text, its parts joined",
    ),
    off("fully-sharded-loras", ONE_DEVICE),
    off("specialize-active-lora", "there are no graphs to make for numbers of adapters"),
    off("enable-tower-connector-lora", TEXT_ONLY),
    off("enable-sleep-mode", "there is no sleep mode"),
    off("enable-expert-parallel", ONE_DEVICE),
];

const NO_PARALLEL: &str = "the model runs on one device, in one process; run several servers behind a router";
const NO_DOWNLOAD: &str = "nothing is downloaded; give the model's folder";
const NO_TRANSFER: &str = "KV blocks stay in this process";
const TEXT_ONLY: &str = "models take and give text only";
const NO_PYTHON: &str = "there is no Python to load it into";
const NO_COMPILER: &str = "there is no compiler to configure";
const NO_TRACES: &str = "traces are not exported";

const REFUSED: &[(&str, &str)] = &[
    ("revision", NO_DOWNLOAD),
    ("tokenizer-revision", NO_DOWNLOAD),
    ("code-revision", NO_DOWNLOAD),
    ("download-dir", NO_DOWNLOAD),
    ("hf-token", NO_DOWNLOAD),
    ("model-loader-extra-config", "loading has nothing to configure"),
    ("num-gpu-blocks-override", "give --kv-cache-memory-bytes"),
    ("max-num-active-seqs", "give --max-num-seqs"),
    ("max-num-queued-tokens", "give --max-num-queued-reqs"),
    ("max-seq-len-to-capture", "no graph is captured"),
    ("cudagraph-capture-sizes", "no graph is captured"),
    ("prefix-caching-hash-algo", "the hash of the prefix cache is fixed"),
    ("kv-offloading-size", NO_TRANSFER),
    ("kv-offloading-backend", NO_TRANSFER),
    ("kv-transfer-config", NO_TRANSFER),
    ("watermark", "a request is admitted when its whole prompt fits"),
    ("scheduler-cls", NO_PYTHON),
    ("worker-cls", NO_PYTHON),
    ("logits-processors", NO_PYTHON),
    ("middleware", NO_PYTHON),
    ("tool-parser-plugin", NO_PYTHON),
    ("io-processor-plugin", NO_PYTHON),
    ("compilation-config", NO_COMPILER),
    ("optimization-level", NO_COMPILER),
    ("performance-mode", "set --max-num-seqs and --max-num-batched-tokens"),
    ("attention-backend", "the device decides"),
    ("speculative-config", "speculative decoding is not supported"),
    ("default-mm-loras", TEXT_ONLY),
    ("lora-extra-vocab-size", "adapters do not add to the vocabulary"),
    ("task", "give --runner generate or --runner pooling"),
    ("override-pooler-config", "give --pooler-config"),
    ("tool-server", "the server calls no tools; clients do"),
    ("limit-mm-per-prompt", TEXT_ONLY),
    ("mm-processor-kwargs", TEXT_ONLY),
    ("trust-request-mm-kwargs", TEXT_ONLY),
    ("allowed-local-media-path", TEXT_ONLY),
    ("allowed-media-domains", TEXT_ONLY),
    ("log-error-stack", "errors name their cause in one line"),
    ("log-config-file", "use QUIRE_LOG and --log-format"),
    ("uvicorn-log-level", "use QUIRE_LOG or VLLM_LOGGING_LEVEL"),
    ("ssl-ciphers", "the suites of TLS 1.2 and 1.3 are those of rustls, all of them safe"),
    ("headless", NO_PARALLEL),
    ("data-parallel-size-local", NO_PARALLEL),
    ("data-parallel-rank", NO_PARALLEL),
    ("data-parallel-start-rank", NO_PARALLEL),
    ("data-parallel-address", NO_PARALLEL),
    ("data-parallel-rpc-port", NO_PARALLEL),
    ("data-parallel-backend", NO_PARALLEL),
    ("data-parallel-hybrid-lb", NO_PARALLEL),
    ("data-parallel-external-lb", NO_PARALLEL),
    ("data-parallel-multi-port-external-lb", NO_PARALLEL),
    ("decode-context-parallel-size", NO_PARALLEL),
    ("prefill-context-parallel-size", NO_PARALLEL),
    ("all2all-backend", NO_PARALLEL),
    ("enable-eplb", NO_PARALLEL),
    ("enable-dbo", NO_PARALLEL),
    ("master-addr", NO_PARALLEL),
    ("master-port", NO_PARALLEL),
    ("max-parallel-loading-workers", NO_PARALLEL),
    ("disable-custom-all-reduce", NO_PARALLEL),
    ("tokens-only", "send token ids as the prompt and set detokenize to false"),
    ("otlp-traces-endpoint", NO_TRACES),
    ("collect-detailed-traces", NO_TRACES),
];

/// vLLM's two-letter flags with one dash, which clap would read as two flags.
const SHORT: &[(&str, &str)] = &[
    ("-tp", "--tensor-parallel-size"),
    ("-pp", "--pipeline-parallel-size"),
    ("-dp", "--data-parallel-size"),
    ("-ep", "--enable-expert-parallel"),
    ("-cc", "--compilation-config"),
    ("-O", "--optimization-level"),
];

/// Adds the accepted flags to `quire serve`.
pub(super) fn extend(serve: Command) -> Command {
    serve.args(ACCEPTED.iter().map(|accepted| {
        let arg = Arg::new(accepted.flag)
            .long(accepted.flag)
            .help_heading("Compatibility (true already; accepted so that vLLM's command lines work)")
            .hide_short_help(true)
            .hide_possible_values(true)
            .value_name("VALUE")
            .action(ArgAction::Set);
        match accepted.values {
            Values::On | Values::Off => arg
                .help(format!("Must be {}: {}", matches!(accepted.values, Values::On), accepted.reason))
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(BoolishValueParser::new()),
            Values::OneOf(words) => {
                arg.help(format!("Must be {}: {}", listed(words), accepted.reason)).allow_hyphen_values(true)
            }
            Values::Json(entries) => arg.help(format!("At most {}: {}", object(entries), accepted.reason)),
            Values::Any => arg.help(format!("Any value: {}", accepted.reason)).allow_hyphen_values(true),
        }
    }))
}

/// Refuses accepted flags with a value that is not true of Quire.
pub(super) fn check(serve: &ArgMatches) -> Result<(), String> {
    for Accepted { flag, values, reason } in ACCEPTED {
        if !serve.contains_id(flag) {
            continue;
        }
        let (given, allowed) = match values {
            Values::Any => continue,
            Values::On | Values::Off => {
                let given = *serve.get_one::<bool>(flag).expect("it is there, and boolean");
                let allowed = matches!(values, Values::On);
                if given == allowed {
                    continue;
                }
                (given.to_string(), allowed.to_string())
            }
            Values::OneOf(words) => {
                let given = serve.get_one::<String>(flag).expect("it is there, and text");
                if words.contains(&given.as_str()) {
                    continue;
                }
                (given.clone(), listed(words))
            }
            Values::Json(entries) => {
                let given = serve.get_one::<String>(flag).expect("it is there, and text");
                if is_within(given, entries) {
                    continue;
                }
                (given.clone(), object(entries))
            }
        };
        return Err(format!("--{flag} {given} is not supported, only {allowed} is: {reason}"));
    }
    if serve.contains_id("disable-log-requests") && serve.get_one("enable_log_requests") == Some(&true) {
        return Err("--disable-log-requests contradicts --enable-log-requests".into());
    }
    Ok(())
}

/// Why one of vLLM's flags is not supported; `None` if it is not one of them.
pub(super) fn refusal(flag: &str) -> Option<String> {
    let name = flag.trim_start_matches('-');
    let name = name.split(['=', '.']).next().unwrap_or(name);
    let name = name.strip_prefix("no-").unwrap_or(name);
    let (name, reason) = REFUSED.iter().find(|(refused, _)| *refused == name)?;
    Some(format!("--{name} is a flag of vLLM that is not supported: {reason}"))
}

/// The long form of one of vLLM's two-letter flags.
pub(super) fn long_form(word: &str) -> Option<String> {
    let (flag, value) = word.split_once('=').map_or((word, None), |(flag, value)| (flag, Some(value)));
    let (_, long) = SHORT.iter().find(|(short, _)| *short == flag)?;
    Some(value.map_or_else(|| (*long).to_string(), |value| format!("{long}={value}")))
}

fn listed(words: &[&str]) -> String {
    let quoted = words.iter().map(|w| if w.is_empty() { "\"\"" } else { w });
    quoted.collect::<Vec<_>>().join(" or ")
}

fn object(entries: &[(&str, &[&str])]) -> String {
    let entries = entries.iter().map(|(name, values)| format!("{name:?}: {}", listed(values)));
    format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
}

/// Whether the text is a JSON object with none but these entries.
fn is_within(text: &str, entries: &[(&str, &[&str])]) -> bool {
    let allows = |name: &str, value: &serde_json::Value| {
        let value = value.to_string();
        entries.iter().any(|(known, values)| *known == name && values.contains(&value.as_str()))
    };
    serde_json::from_str::<serde_json::Map<_, _>>(text)
        .is_ok_and(|object| object.iter().all(|(name, value)| allows(name, value)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::layers::command;

    fn serve(args: &[&str]) -> Result<(), String> {
        let argv = ["quire", "serve"].into_iter().chain(args.iter().copied());
        let matches = command().try_get_matches_from(argv).map_err(|e| e.to_string())?;
        check(matches.subcommand_matches("serve").unwrap())
    }

    #[test]
    fn every_accepted_flag_takes_what_is_true_and_refuses_the_rest() {
        for Accepted { flag, values, .. } in ACCEPTED {
            let (good, bad): (Vec<String>, Option<String>) = match values {
                Values::On => {
                    (vec![format!("--{flag}"), format!("--{flag}=true")], Some(format!("--{flag}=false")))
                }
                Values::Off => (vec![format!("--{flag}=false")], Some(format!("--{flag}"))),
                Values::OneOf(words) => {
                    (words.iter().map(|w| format!("--{flag}={w}")).collect(), Some(format!("--{flag}=other")))
                }
                Values::Json(entries) => {
                    let each =
                        entries.iter().flat_map(|(name, values)| values.iter().map(move |v| (name, v)));
                    let good = each.map(|(name, value)| format!("--{flag}={{{name:?}: {value}}}"));
                    (good.collect(), Some(format!("--{flag}={{\"backend\": \"other\"}}")))
                }
                Values::Any => (vec![format!("--{flag}=7")], None),
            };
            for good in good {
                assert_eq!(serve(&[&good]), Ok(()), "{good}");
            }
            if let Some(bad) = bad {
                let error = serve(&[&bad]).unwrap_err();
                assert!(error.contains(flag), "{bad}: {error}");
            }
        }
    }

    #[test]
    fn no_flag_is_in_two_tables_or_also_our_own() {
        let command = command();
        let serve = command.find_subcommand("serve").unwrap();
        let known: Vec<_> = serve.get_arguments().filter_map(Arg::get_long).collect();
        let mut names: Vec<_> = REFUSED.iter().map(|(name, _)| *name).collect();
        for name in &names {
            assert!(!known.contains(name), "{name} is refused and accepted");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn two_letter_flags_and_refusals_are_found() {
        assert_eq!(long_form("-tp").as_deref(), Some("--tensor-parallel-size"));
        assert_eq!(long_form("-tp=2").as_deref(), Some("--tensor-parallel-size=2"));
        assert_eq!(long_form("-q"), None);
        for flag in ["--revision", "--no-enable-dbo", "--compilation-config.mode", "--middleware=x"] {
            assert!(refusal(flag).is_some(), "{flag}");
        }
        assert_eq!(refusal("--max-num-sqes"), None);
    }
}
