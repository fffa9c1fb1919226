//! What is sent: prompts and how many tokens to answer each with, by vLLM's datasets and their flags.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::vocabulary::{Prompt, Vocabulary};
use crate::text::Tokenizer;

/// Tokens of an answer where a line of a custom file does not say.
const CUSTOM_OUTPUT_LEN: u32 = 256;
/// Conversations with turns shorter than this are left out, as vLLM does.
const MIN_SHAREGPT_LEN: usize = 4;
/// And those whose prompt, or prompt and answer together, are longer than these.
const MAX_SHAREGPT_PROMPT_LEN: usize = 1024;
const MAX_SHAREGPT_TOTAL_LEN: usize = 2048;

/// Flags that choose the workload.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Workload")]
pub(crate) struct DatasetArgs {
    /// Where prompts come from: made up, made up with shared prefixes, or a file
    #[arg(long, value_enum, default_value_t = DatasetName::Random)]
    pub dataset_name: DatasetName,
    /// sharegpt: a JSON list of {"conversations": [{"value": ...}, ...]}; custom: lines of
    /// {"prompt": ..., "output_tokens": ...}
    #[arg(long, value_name = "FILE")]
    pub dataset_path: Option<PathBuf>,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_prompts: u32,
    /// random: tokens of a prompt, without its prefix
    #[arg(long, visible_alias = "input-len", value_name = "TOKENS", default_value_t = 1024,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub random_input_len: u32,
    /// random: tokens of an answer
    #[arg(long, visible_alias = "output-len", value_name = "TOKENS", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub random_output_len: u32,
    /// random: lengths are drawn evenly from so much less to so much more than asked for: 0.2 is 80 % to 120 %
    #[arg(long, value_name = "RATIO", default_value = "0", value_parser = parse_ratio)]
    pub random_range_ratio: f64,
    /// random: tokens that all prompts begin with
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub random_prefix_len: u32,
    /// prefix_repetition: tokens of a shared prefix
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prefix_repetition_prefix_len: u32,
    /// prefix_repetition: tokens of its own at the end of each prompt
    #[arg(long, value_name = "TOKENS", default_value_t = 256)]
    pub prefix_repetition_suffix_len: u32,
    /// prefix_repetition: different prefixes
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefix_repetition_num_prefixes: u32,
    /// prefix_repetition: tokens of an answer
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub prefix_repetition_output_len: u32,
    /// sharegpt: tokens of an answer [default: as many as the second turn has, by --tokenizer]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub sharegpt_output_len: Option<u32>,
    /// custom: tokens of an answer [default: the line's output_tokens, or else 256]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub custom_output_len: Option<u32>,
}

/// Value of `--dataset-name`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs, reason = "the names are the values")]
pub(crate) enum DatasetName {
    Random,
    Sharegpt,
    #[value(name = "prefix_repetition", alias = "prefix-repetition")]
    PrefixRepetition,
    Custom,
}

/// One request to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sample {
    /// What is asked.
    pub prompt: Prompt,
    /// Tokens of the prompt, as far as they can be counted here; 0 = only the server knows.
    pub prompt_len: u32,
    /// Tokens to generate at most.
    pub output_len: u32,
}

/// Makes `--num-prompts` samples and `extra` more. `seed` decides everything that is drawn; `tokenizer`
/// counts the tokens of texts from files.
pub(crate) fn samples(
    args: &DatasetArgs,
    extra: u32,
    seed: u64,
    vocabulary: &Vocabulary,
    tokenizer: Option<&Tokenizer>,
) -> anyhow::Result<Vec<Sample>> {
    let count = args.num_prompts.saturating_add(extra) as usize;
    let rng = &mut StdRng::seed_from_u64(seed);
    match args.dataset_name {
        DatasetName::Random => random(args, count, vocabulary, rng),
        DatasetName::PrefixRepetition => prefix_repetition(args, count, vocabulary, rng),
        DatasetName::Sharegpt => repeated(sharegpt(args, tokenizer, rng)?, count),
        DatasetName::Custom => repeated(custom(args, tokenizer, rng)?, count),
    }
}

fn random(
    args: &DatasetArgs,
    count: usize,
    vocabulary: &Vocabulary,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Sample>> {
    let prefix = vocabulary.draw(args.random_prefix_len, rng);
    let ratio = args.random_range_ratio;
    let length = |mean: u32, rng: &mut StdRng| {
        let (low, high) = (f64::from(mean) * (1.0 - ratio), f64::from(mean) * (1.0 + ratio));
        rng.random_range((low.floor() as u32).max(1)..=(high.ceil() as u32).max(1))
    };
    let mut sample = || {
        let (input_len, output_len) =
            (length(args.random_input_len, rng), length(args.random_output_len, rng));
        let ids = [prefix.clone(), vocabulary.draw(input_len, rng)].concat();
        let (prompt, prompt_len) = vocabulary.prompt(ids, rng)?;
        Ok(Sample { prompt, prompt_len, output_len })
    };
    (0..count).map(|_| sample()).collect()
}

/// Prompt `i` has prefix `i % prefixes`; then all are shuffled.
fn prefix_repetition(
    args: &DatasetArgs,
    count: usize,
    vocabulary: &Vocabulary,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Sample>> {
    let (prefix_len, suffix_len) = (args.prefix_repetition_prefix_len, args.prefix_repetition_suffix_len);
    ensure!(
        prefix_len.saturating_add(suffix_len) > 0,
        "--prefix-repetition-prefix-len and --prefix-repetition-suffix-len must not both be 0"
    );
    let num_prefixes = args.prefix_repetition_num_prefixes as usize;
    let prefixes: Vec<_> = (0..num_prefixes).map(|_| vocabulary.draw(prefix_len, rng)).collect();
    let mut samples = Vec::with_capacity(count);
    for index in 0..count {
        let ids = [prefixes[index % num_prefixes].clone(), vocabulary.draw(suffix_len, rng)].concat();
        let (prompt, prompt_len) = vocabulary.prompt(ids, rng)?;
        samples.push(Sample { prompt, prompt_len, output_len: args.prefix_repetition_output_len });
    }
    samples.shuffle(rng);
    Ok(samples)
}

#[derive(Debug, Deserialize)]
struct Conversation {
    #[serde(default)]
    conversations: Vec<Turn>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    value: String,
}

/// The first turn is the prompt, the second says how long the answer is.
fn sharegpt(
    args: &DatasetArgs,
    tokenizer: Option<&Tokenizer>,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Sample>> {
    ensure!(
        tokenizer.is_some() || args.sharegpt_output_len.is_some(),
        "--dataset-name sharegpt needs --tokenizer or --sharegpt-output-len to know how long the answers are"
    );
    let (path, text) = read(args)?;
    let conversations: Vec<Conversation> = parse(path, &text)?;
    let mut samples = Vec::new();
    for conversation in conversations {
        let mut turns = conversation.conversations.into_iter();
        let (Some(question), Some(answer)) = (turns.next(), turns.next()) else { continue };
        let prompt_len = count_tokens(tokenizer, &question.value)?;
        let output_len = match args.sharegpt_output_len {
            Some(length) => length as usize,
            None => count_tokens(tokenizer, &answer.value)?,
        };
        // A length that was asked for is not judged, nor can one be that is not known.
        let too_short = prompt_len < MIN_SHAREGPT_LEN
            || (args.sharegpt_output_len.is_none() && output_len < MIN_SHAREGPT_LEN);
        let too_long =
            prompt_len > MAX_SHAREGPT_PROMPT_LEN || prompt_len + output_len > MAX_SHAREGPT_TOTAL_LEN;
        if tokenizer.is_none() || !(too_short || too_long) {
            let (prompt_len, output_len) = (prompt_len as u32, output_len as u32);
            samples.push(Sample { prompt: Prompt::Text(question.value), prompt_len, output_len });
        }
    }
    samples.shuffle(rng);
    Ok(samples)
}

#[derive(Debug, Deserialize)]
struct CustomLine {
    prompt: String,
    output_tokens: Option<u32>,
}

fn custom(
    args: &DatasetArgs,
    tokenizer: Option<&Tokenizer>,
    rng: &mut StdRng,
) -> anyhow::Result<Vec<Sample>> {
    let (path, text) = read(args)?;
    let mut samples = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let line: CustomLine = parse(path, line).with_context(|| format!("line {}", index + 1))?;
        let prompt_len = count_tokens(tokenizer, &line.prompt)? as u32;
        let output_len = args.custom_output_len.or(line.output_tokens).unwrap_or(CUSTOM_OUTPUT_LEN);
        samples.push(Sample { prompt: Prompt::Text(line.prompt), prompt_len, output_len });
    }
    samples.shuffle(rng);
    Ok(samples)
}

/// As many as asked for, again from the start where a file has fewer.
fn repeated(samples: Vec<Sample>, count: usize) -> anyhow::Result<Vec<Sample>> {
    ensure!(!samples.is_empty(), "the file of --dataset-path has no prompt that can be used");
    Ok(samples.iter().cycle().take(count).cloned().collect())
}

fn count_tokens(tokenizer: Option<&Tokenizer>, text: &str) -> anyhow::Result<usize> {
    Ok(tokenizer.map(|tokenizer| tokenizer.encode(text, false)).transpose()?.map_or(0, |ids| ids.len()))
}

fn read(args: &DatasetArgs) -> anyhow::Result<(&Path, String)> {
    let Some(path) = &args.dataset_path else { bail!("--dataset-name of this kind needs --dataset-path") };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok((path, text))
}

fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).with_context(|| format!("{} is not in the form expected", path.display()))
}

fn parse_ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse::<f64>().ok().filter(|ratio| (0.0..1.0).contains(ratio));
    ratio.ok_or_else(|| "must be at least 0 and below 1".into())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        dataset: DatasetArgs,
    }

    fn args(words: &str) -> DatasetArgs {
        Flags::parse_from(std::iter::once("bench").chain(words.split_whitespace())).dataset
    }

    fn made(words: &str, seed: u64) -> Vec<Sample> {
        samples(&args(words), 0, seed, &Vocabulary::ids(1000), None).unwrap()
    }

    fn ids(sample: &Sample) -> &[u32] {
        match &sample.prompt {
            Prompt::Ids(ids) => ids,
            Prompt::Text(text) => panic!("{text}"),
        }
    }

    #[test]
    fn random_lengths_are_as_asked_and_by_seed() {
        for seed in 0..4 {
            let words = "--num-prompts 400 --random-input-len 100 --random-output-len 10 --random-range-ratio 0.3 \
                         --random-prefix-len 7";
            let made_now = made(words, seed);
            assert_eq!(made_now, made(words, seed), "seed {seed}");
            assert_ne!(made_now, made(words, seed + 1), "seed {seed}");
            assert_eq!(made_now.len(), 400);
            let prefix = &ids(&made_now[0])[..7];
            for sample in &made_now {
                assert!((77..=137).contains(&sample.prompt_len), "seed {seed}: {}", sample.prompt_len);
                assert!((7..=13).contains(&sample.output_len), "seed {seed}: {}", sample.output_len);
                assert_eq!(&ids(sample)[..7], prefix);
                assert!(ids(sample).iter().all(|id| (10..1000).contains(id)));
            }
            let mean = made_now.iter().map(|sample| f64::from(sample.prompt_len)).sum::<f64>() / 400.0;
            assert!((mean - 107.0).abs() < 5.0, "seed {seed}: {mean}");
            assert!(made_now.iter().any(|sample| sample.prompt_len < 82), "seed {seed}");
        }
        assert!(made("--num-prompts 9", 0).iter().all(|s| (s.prompt_len, s.output_len) == (1024, 128)));
    }

    #[test]
    fn prefixes_are_repeated() {
        let words = "--dataset-name prefix_repetition --num-prompts 50 --prefix-repetition-prefix-len 20 \
                     --prefix-repetition-suffix-len 5 --prefix-repetition-num-prefixes 7";
        let made = made(words, 1);
        let mut by_prefix = std::collections::HashMap::<_, usize>::new();
        for sample in &made {
            assert_eq!((sample.prompt_len, sample.output_len), (25, 128));
            *by_prefix.entry(&ids(sample)[..20]).or_default() += 1;
        }
        assert_eq!(by_prefix.len(), 7);
        assert!(by_prefix.values().all(|count| [7, 8].contains(count)), "{by_prefix:?}");
    }

    #[test]
    fn files_are_read_and_repeated() {
        let path = std::env::temp_dir().join(format!("quire-workload-{}", std::process::id()));
        std::fs::write(&path, "{\"prompt\": \"one\"}\n\n{\"prompt\": \"two\", \"output_tokens\": 9}\n")
            .unwrap();
        let file = path.display();
        let lengths = |words: &str| {
            let mut lengths: Vec<_> = made(words, 0).iter().map(|sample| sample.output_len).collect();
            lengths.sort_unstable();
            lengths
        };
        let words = format!("--dataset-name custom --num-prompts 4 --dataset-path {file}");
        assert_eq!(lengths(&words), [9, 9, 256, 256]);
        assert_eq!(lengths(&format!("{words} --custom-output-len 3")), [3; 4]);
        let turns = r#"[{"conversations": [{"value": "only one"}]},
            {"conversations": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]}]"#;
        std::fs::write(&path, turns).unwrap();
        let words = format!("--dataset-name sharegpt --num-prompts 2 --dataset-path {file}");
        let error = samples(&args(&words), 0, 0, &Vocabulary::ids(1000), None).unwrap_err();
        assert!(error.to_string().contains("--sharegpt-output-len"), "{error}");
        let made = made(&format!("{words} --sharegpt-output-len 5"), 0);
        let question = Sample { prompt: Prompt::Text("a question".into()), prompt_len: 0, output_len: 5 };
        assert_eq!(made, [question.clone(), question]);
        std::fs::remove_file(path).unwrap();
    }
}
