//! Log lines: to standard error, as text (coloured on a terminal) or as JSON, one a line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::args::LogFormat;

/// Sets up logging for the process. `QUIRE_LOG` takes tracing's directives (`quire=debug,hyper=warn`);
/// else `VLLM_LOGGING_LEVEL` takes vLLM's level names; else it is info.
pub(super) fn init(format: LogFormat) -> anyhow::Result<()> {
    let directives = match (std::env::var("QUIRE_LOG"), std::env::var("VLLM_LOGGING_LEVEL")) {
        (Ok(directives), _) if !directives.is_empty() => directives,
        (_, Ok(level)) if !level.is_empty() => vllm_level(&level)?.into(),
        _ => "info".into(),
    };
    let filter = EnvFilter::try_new(&directives).map_err(|e| {
        anyhow::anyhow!("QUIRE_LOG: {e}; it takes directives like info or quire=debug,hyper=warn")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // https://no-color.org: any value turns colours off.
    let ansi = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let set = match format {
        LogFormat::Text => builder.with_ansi(ansi).with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    set.map_err(|e| anyhow::anyhow!("logging was set up twice: {e}"))
}

fn vllm_level(level: &str) -> anyhow::Result<&'static str> {
    Ok(match level.to_ascii_uppercase().as_str() {
        "DEBUG" => "debug",
        "INFO" => "info",
        "WARNING" | "WARN" => "warn",
        "ERROR" | "CRITICAL" | "FATAL" => "error",
        _ => anyhow::bail!("VLLM_LOGGING_LEVEL: {level:?} is none of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    })
}
