//! From the words of the command line, the environment and the config file to one set of arguments.
//!
//! What a lower layer says is put before the words that were typed, and only for flags that no higher
//! layer sets: command line, then environment, then file, then defaults. Each layer is first checked by
//! itself, so that an error says where the wrong value comes from.

use std::collections::HashSet;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};

use super::args::Cli;
use super::{compat, config_file};

/// Why the words cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum UsageError {
    /// clap's own answer: an error with its usage line, or the text of `--help` and `--version`.
    #[error("{0}")]
    Clap(#[from] clap::Error),
    /// A flag that is not supported, or with a value that is not.
    #[error("{0}")]
    Unsupported(String),
    /// A value of the environment or of the config file.
    #[error("in {layer}: {problem}")]
    Layer {
        /// Where it was said.
        layer: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The config file itself.
    #[error(transparent)]
    ConfigFile(#[from] config_file::ConfigFileError),
}

/// The command with all its flags, vLLM's included.
pub(super) fn command() -> Command {
    Cli::command().mut_subcommand("serve", compat::extend)
}

/// Parses `argv` (its first word is the program), with `env` to look up variables.
pub(super) fn parse(argv: Vec<OsString>, env: &dyn Fn(&str) -> Option<String>) -> Result<Cli, UsageError> {
    let command = command();
    let mut argv = normalise(with_subcommand(argv), &command);
    if argv.get(1).is_some_and(|word| word == "serve") {
        argv = layered(argv, &command, env)?;
    }
    let matches = matches(&command, &argv)?;
    Ok(Cli::from_arg_matches(&matches)?)
}

fn matches(command: &Command, argv: &[OsString]) -> Result<ArgMatches, UsageError> {
    let matches = command.clone().try_get_matches_from(argv).map_err(explain)?;
    if let Some(serve) = matches.subcommand_matches("serve") {
        compat::check(serve).map_err(UsageError::Unsupported)?;
    }
    Ok(matches)
}

/// Says of one of vLLM's flags why it is unknown.
fn explain(error: clap::Error) -> UsageError {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && let Some(reason) = compat::refusal(flag)
    {
        return UsageError::Unsupported(reason);
    }
    UsageError::Clap(error)
}

/// `quire` and `quire --port 9000` mean `quire serve ...`.
fn with_subcommand(mut argv: Vec<OsString>) -> Vec<OsString> {
    let serves = match argv.get(1).and_then(|word| word.to_str()) {
        None => argv.len() <= 1,
        Some(word) => word.starts_with("--") && !["--help", "--version"].contains(&word),
    };
    if serves {
        argv.insert(1.min(argv.len()), "serve".into());
    }
    argv
}

/// vLLM's ways of writing flags: underscores for dashes, `--no-X` for switches, two-letter short flags.
fn normalise(argv: Vec<OsString>, command: &Command) -> Vec<OsString> {
    let subcommand = argv.get(1).and_then(|word| command.find_subcommand(word));
    let nested = subcommand.and_then(|subcommand| subcommand.find_subcommand(argv.get(2)?));
    let subcommand = nested.or(subcommand);
    let is_switch = |name: &str| {
        subcommand.is_some_and(|s| {
            s.get_arguments().any(|arg| arg.get_long() == Some(name) && arg.is_require_equals_set())
        })
    };
    let mut only_values = false;
    let mut word = |word: OsString| {
        only_values |= word == "--";
        let Some(text) = word.to_str().filter(|_| !only_values) else { return word };
        if let Some(long) = compat::long_form(text) {
            return long.into();
        }
        let Some(flag) = text.strip_prefix("--") else { return word };
        let (name, value) = flag.split_once('=').map_or((flag, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        match (name.strip_prefix("no-").filter(|name| is_switch(name)), value) {
            (Some(name), None) => format!("--{name}=false").into(),
            (_, None) => format!("--{name}").into(),
            (_, Some(value)) => format!("--{name}={value}").into(),
        }
    };
    argv.into_iter().enumerate().map(|(index, text)| if index == 0 { text } else { word(text) }).collect()
}

/// Puts what environment and config file say before the words typed.
fn layered(
    argv: Vec<OsString>,
    command: &Command,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<OsString>, UsageError> {
    let typed = matches(command, &argv)?;
    let typed = typed.subcommand_matches("serve").expect("the first word is serve");
    let serve = command.find_subcommand("serve").expect("there is a command serve");
    let is_typed = |arg: &Arg| typed.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    let mut set: HashSet<&str> = serve.get_arguments().filter(|arg| is_typed(arg)).map(flag_name).collect();

    let from_env = env_words(serve, &mut set, env);
    check_layer(command, &from_env, "the environment")?;
    let config = typed.get_one::<PathBuf>("config").cloned();
    let config = config.or_else(|| env(&env_name("config")).map(PathBuf::from));
    let mut from_file = Vec::new();
    if let Some(path) = config {
        let layer = format!("--config {}", path.display());
        from_file = file_words(serve, config_file::read(&path)?, &set, &layer)?;
        check_layer(command, &from_file, &layer)?;
    }
    let (program, rest) = argv.split_at(2);
    Ok([program, &from_file, &from_env, rest].concat())
}

/// The model is one thing with two spellings.
fn flag_name(arg: &Arg) -> &str {
    if arg.get_id() == "model_tag" { "model" } else { arg.get_long().unwrap_or_default() }
}

fn env_name(flag: &str) -> String {
    format!("QUIRE_{}", flag.replace('-', "_").to_uppercase())
}

/// vLLM's variables that stand for a flag of ours.
fn vllm_env_name(flag: &str) -> Option<&'static str> {
    match flag {
        "api-key" => Some("VLLM_API_KEY"),
        "allow-runtime-lora-updating" => Some("VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
        "stall-timeout" => Some("VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"),
        _ => None,
    }
}

fn env_words<'a>(
    serve: &'a Command,
    set: &mut HashSet<&'a str>,
    env: &dyn Fn(&str) -> Option<String>,
) -> Vec<OsString> {
    let mut words = Vec::new();
    for arg in serve.get_arguments() {
        let Some(flag) = arg.get_long().filter(|&flag| flag != "config") else { continue };
        let ours = env(&env_name(flag)).filter(|value| !is_service_link(value));
        let Some(value) = ours.or_else(|| env(vllm_env_name(flag)?)).filter(|value| !value.is_empty()) else {
            continue;
        };
        if !set.insert(flag) {
            continue;
        }
        if is_list(arg) {
            words.extend(value.split(',').map(|value| format!("--{flag}={}", value.trim()).into()));
        } else {
            words.push(format!("--{flag}={value}").into());
        }
    }
    words
}

/// Kubernetes gives each pod `<SERVICE>_PORT=tcp://...` for every service of its namespace; with a service
/// named `quire`, that is not what the operator meant by QUIRE_PORT.
fn is_service_link(value: &str) -> bool {
    value.starts_with("tcp://") || value.starts_with("udp://")
}

fn file_words(
    serve: &Command,
    entries: Vec<config_file::Entry>,
    set: &HashSet<&str>,
    layer: &str,
) -> Result<Vec<OsString>, UsageError> {
    let problem = |problem: String| UsageError::Layer { layer: layer.into(), problem };
    let mut words = Vec::new();
    for config_file::Entry { flag, values } in entries {
        let arg = serve.get_arguments().find(|arg| arg.get_long() == Some(&flag) && flag != "config");
        let Some(arg) = arg else {
            let reason = compat::refusal(&flag);
            return Err(problem(reason.unwrap_or_else(|| format!("`{flag}` is not a flag of quire serve"))));
        };
        if values.len() > 1 && !is_list(arg) {
            return Err(problem(format!("`{flag}` takes one value, not a list")));
        }
        if !set.contains(flag.as_str()) {
            words.extend(values.iter().map(|value| format!("--{flag}={value}").into()));
        }
    }
    Ok(words)
}

fn is_list(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.max_values() > 1)
}

fn check_layer(command: &Command, words: &[OsString], layer: &str) -> Result<(), UsageError> {
    let argv = [&["quire".into(), "serve".into()], words].concat();
    let problem = match matches(command, &argv) {
        Ok(_) => return Ok(()),
        // The first line; the usage that follows is about a command line that nobody typed.
        Err(UsageError::Clap(error)) => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_string()
        }
        Err(other) => other.to_string(),
    };
    Err(UsageError::Layer { layer: layer.into(), problem })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Command, ServeArgs};
    use crate::config::MaxModelLen;

    fn serve_with(args: &str, vars: &[(&str, &str)]) -> Result<ServeArgs, String> {
        let argv = std::iter::once("quire").chain(args.split_whitespace()).map(OsString::from).collect();
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, value)| value.to_string());
        match parse(argv, &env).map_err(|e| e.to_string())?.command {
            Command::Serve(args) => Ok(*args),
            other => Err(format!("{other:?}")),
        }
    }

    fn serve(args: &str) -> Result<ServeArgs, String> {
        serve_with(args, &[])
    }

    #[test]
    fn quire_alone_serves_with_vllms_defaults() {
        for args in ["", "serve", "--port 8000"] {
            let a = serve(args).unwrap();
            assert_eq!((a.listen.port, a.listen.grpc_port, a.listen.grpc), (8000, 50051, true));
            assert_eq!((a.scheduling.block_size, a.scheduling.max_num_batched_tokens), (16, None));
            assert!(a.scheduling.enable_prefix_caching && !a.listen.enable_log_requests);
            assert_eq!((a.model.max_model_len, a.model_tag), (None, None));
        }
    }

    #[test]
    fn vllms_spellings_are_understood() {
        let a = serve("serve m --max_model_len=4k --no-enable-prefix-caching --no_grpc -tp 1 --dtype half")
            .unwrap();
        assert_eq!(a.model.max_model_len, Some(MaxModelLen::Tokens(4000)));
        assert!(!a.scheduling.enable_prefix_caching && !a.listen.grpc);
        let a = serve("serve --served-model-name a b --api-key x --api-key y --max-model-len -1").unwrap();
        assert_eq!(a.model.served_model_name, ["a", "b"]);
        assert_eq!(a.listen.api_key, ["x", "y"]);
        assert_eq!(a.model.max_model_len, Some(MaxModelLen::Fitting));
        let a = serve("serve --port 1 --port 2").unwrap();
        assert_eq!(a.listen.port, 2);
    }

    #[test]
    fn errors_name_the_flag() {
        let cases = [
            ("serve --download-dir x", "--download-dir"),
            ("serve -tp 2", "--tensor-parallel-size 2"),
            ("serve --no-enable-chunked-prefill", "--enable-chunked-prefill"),
            ("serve --max-num-seqs 0", "--max-num-seqs"),
            ("serve --port 70000", "--port"),
            ("serve --kv-cache-memory-bytes lots", "--kv-cache-memory-bytes"),
            ("serve --flag-of-nobody", "--flag-of-nobody"),
            ("serve --enable-log-requests --disable-log-requests", "--disable-log-requests"),
        ];
        for (args, flag) in cases {
            let error = serve(args).unwrap_err();
            assert!(error.contains(flag), "{args}: {error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_environment_over_the_file_over_defaults() {
        let path = std::env::temp_dir().join(format!("quire-layers-{}.yaml", std::process::id()));
        let file = "port: 1\ngrpc_port: 11\nmax-num-seqs: 111\nserved-model-name: [f, g]\nmodel: from-file\nenforce-eager: true\n";
        std::fs::write(&path, file).unwrap();
        let config = format!("serve --config {}", path.display());
        let vars = [
            ("QUIRE_PORT", "2"),
            ("QUIRE_GRPC_PORT", "22"),
            ("QUIRE_SERVED_MODEL_NAME", "d,e"),
            ("QUIRE_GRPC", "0"),
            ("VLLM_API_KEY", "secret"),
        ];
        let a = serve_with(&format!("{config} --port 3 --served-model-name c"), &vars).unwrap();
        assert_eq!((a.listen.port, a.listen.grpc_port, a.scheduling.max_num_seqs), (3, 22, Some(111)));
        assert_eq!((a.scheduling.block_size, a.listen.grpc), (16, false));
        assert_eq!(
            (a.model.served_model_name, a.listen.api_key),
            (vec!["c".to_string()], vec!["secret".to_string()])
        );
        assert_eq!(a.model.model.as_deref(), Some("from-file"));
        let a = serve_with(&config, &vars).unwrap();
        assert_eq!((a.listen.port, a.model.served_model_name), (2, vec!["d".to_string(), "e".to_string()]));
        let a = serve_with(&format!("{config} typed"), &[]).unwrap();
        assert_eq!((a.model_tag.as_deref(), a.model.model), (Some("typed"), None));

        for (line, told) in [
            ("prot: 1", "`prot`"),
            ("middleware: x", "--middleware"),
            ("port: many", "--port"),
            ("port: [1, 2]", "`port`"),
        ] {
            std::fs::write(&path, line).unwrap();
            let error = serve(&config).unwrap_err();
            assert!(error.contains(told) && error.contains("quire-layers"), "{line}: {error}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_wrong_value_in_the_environment_is_named_and_service_links_are_not_values() {
        let error = serve_with("", &[("QUIRE_PORT", "many")]).unwrap_err();
        assert!(error.contains("environment") && error.contains("--port"), "{error}");
        let a = serve_with("", &[("QUIRE_PORT", "tcp://10.0.0.1:8000")]).unwrap();
        assert_eq!(a.listen.port, 8000);
    }
}
