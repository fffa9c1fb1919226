//! The JSON file of `quire bench serve`: what was asked for and what came out, under vLLM's keys.

use std::fs::{OpenOptions, create_dir_all};
use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use serde_json::{Map, Value, json};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use super::measure::Outcome;
use super::report::{Report, details};
use super::serve_args::ServeBench;

/// Writes the file, if one was asked for, and says where it is.
pub(crate) fn save(
    args: &ServeBench,
    model: &str,
    report: &Report,
    outcomes: &[Outcome],
) -> anyhow::Result<()> {
    let flags = &args.report;
    if !(flags.save_result || flags.append_result) {
        return Ok(());
    }
    let date = date();
    let mut json = asked_for(args, model, &date);
    json.extend(report.to_json());
    if flags.save_detailed {
        json.extend(details(outcomes));
    }
    let path = path(args, model, &date);
    let mut line = Value::Object(json).to_string();
    line.push('\n');
    write(&path, &line, flags.append_result).with_context(|| format!("cannot write {}", path.display()))?;
    println!("Result: {}", path.display());
    Ok(())
}

fn asked_for(args: &ServeBench, model: &str, date: &str) -> Map<String, Value> {
    let backend = args.backend.as_str();
    let rate = args.load.request_rate;
    let fields = json!({
        "date": date,
        "endpoint_type": backend,
        "backend": backend,
        "label": args.report.label,
        "model_id": model,
        "tokenizer_id": args.tokenizer.as_ref().map(|folder| folder.display().to_string()),
        "num_prompts": args.dataset.num_prompts,
    });
    let load = json!({
        // JSON has no infinity.
        "request_rate": if rate.is_finite() { json!(rate) } else { json!("inf") },
        "burstiness": args.load.burstiness,
        "max_concurrency": args.load.max_concurrency,
    });
    let metadata = args.report.metadata.iter().map(|(name, value)| (name.clone(), json!(value)));
    let mut json = Map::new();
    json.extend(fields.as_object().cloned().unwrap_or_default());
    json.extend(metadata);
    json.extend(load.as_object().cloned().unwrap_or_default());
    json
}

fn path(args: &ServeBench, model: &str, date: &str) -> PathBuf {
    let flags = &args.report;
    let name = flags.result_filename.clone().unwrap_or_else(|| {
        let label = flags.label.as_deref().unwrap_or(args.backend.as_str());
        let concurrency = args.load.max_concurrency.map(|limit| format!("-concurrency{limit}"));
        let model = model.rsplit('/').next().unwrap_or(model);
        format!(
            "{label}-{}qps{}-{model}-{date}.json",
            args.load.request_rate,
            concurrency.unwrap_or_default()
        )
    });
    flags.result_dir.clone().unwrap_or_default().join(name)
}

fn write(path: &PathBuf, line: &str, append: bool) -> std::io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).write(true).append(append).truncate(!append).open(path)?;
    file.write_all(line.as_bytes())
}

/// The time in UTC, like `20260131-235959`.
fn date() -> String {
    let mut text = String::new();
    // The logger's clock knows the calendar: 2026-01-31T23:59:59.
    SystemTime.format_time(&mut Writer::new(&mut text)).expect("strings can be written to");
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_digit).take(14).collect();
    let digits = String::from_utf8(digits).expect("digits are ASCII");
    format!("{}-{}", &digits[..8], &digits[8..])
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        bench: ServeBench,
    }

    #[test]
    fn a_file_has_vllms_keys_and_can_grow() {
        let folder = std::env::temp_dir().join(format!("quire-result-{}", std::process::id()));
        let words = format!(
            "bench --save-result --append-result --result-dir {} --label mine --metadata version=7 gpu=none",
            folder.display()
        );
        let args = Flags::parse_from(words.split_whitespace()).bench;
        let outcomes = [Outcome { latency: Duration::from_secs(1), output_tokens: 1, ..Outcome::default() }];
        let report = Report::new(&outcomes, Duration::from_secs(1), &args.report.options());
        save(&args, "org/model", &report, &outcomes).unwrap();
        let path = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("mine-infqps-model-2") && name.ends_with(".json"), "{name}");
        write(&path, "{}\n", true).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        let json: Map<String, Value> = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let keys = "date backend label model_id num_prompts version gpu request_rate burstiness max_concurrency \
                    duration completed mean_ttft_ms p99_itl_ms";
        for key in keys.split_whitespace() {
            assert!(json.contains_key(key), "{key}");
        }
        assert!(!json.contains_key("itls"));
        assert_eq!((&json["request_rate"], &json["version"]), (&json!("inf"), &json!("7")));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn dates_are_digits() {
        let date = date();
        assert_eq!((date.len(), date.find('-')), (15, Some(8)), "{date}");
    }
}
