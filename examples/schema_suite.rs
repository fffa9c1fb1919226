//! Holds the JSON-Schema-Test-Suite (or any folder of its form) against the grammars: which schemas are compiled,
//! whether what they let through is valid by an independent validator, and whether they let through what the
//! suite calls valid and nothing that it calls invalid.
//!
//! ```text
//! git clone https://github.com/json-schema-org/JSON-Schema-Test-Suite
//! cargo run --release --example schema_suite -- JSON-Schema-Test-Suite/tests draft2020-12 draft7 ...
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use boon::{Compiler, Draft, SchemaIndex, Schemas};
use quire::demo;
use quire::grammar::{Constraint, GrammarCompiler};
use quire::text::Tokenizer;
use quire::validate::RequestLimits;
use quire_model::SamplingDefaults;
use quire_scheduler::{Grammar, TokenId};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::Value;

/// Texts drawn for each schema, and tokens of each.
const DRAWS: u64 = 10;
const MAX_TOKENS: usize = 400;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = arguments.next().context("the folder of the suite's tests is needed")?;
    let suite = Suite::new()?;
    for draft in arguments {
        let mut count = Count::default();
        let mut files: Vec<_> =
            std::fs::read_dir(Path::new(&root).join(&draft))?.collect::<Result<_, _>>()?;
        files.sort_by_key(std::fs::DirEntry::path);
        for file in files.iter().filter(|file| file.path().extension().is_some_and(|ext| ext == "json")) {
            let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(file.path())?)?;
            for case in cases {
                let name = format!("{draft}/{}: {}", file.file_name().display(), case["description"]);
                suite.check(&name, &case, &draft, &mut count);
            }
        }
        println!("{draft}: {count:#?}");
    }
    Ok(())
}

#[derive(Debug, Default)]
struct Count {
    schemas: u32,
    compiled: u32,
    refused: BTreeMap<String, u32>,
    drawn: u32,
    drawn_and_invalid: u32,
    valid_instances: u32,
    valid_and_rejected: u32,
    invalid_instances: u32,
    invalid_and_accepted: u32,
}

struct Suite {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
    vocab_size: u32,
    end: TokenId,
}

impl Suite {
    fn new() -> anyhow::Result<Self> {
        let tokenizer = Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG))?;
        let (vocab_size, end) = (tokenizer.vocab_size() as u32, tokenizer.eos_token_id().unwrap_or_default());
        let limits = RequestLimits {
            max_model_len: 4096,
            vocab_size,
            max_logprobs: None,
            eos_token_ids: Arc::new([end]),
            defaults: SamplingDefaults::default(),
            stream_interval: 1,
            thinking: None,
        };
        Ok(Self { compiler: GrammarCompiler::new(&tokenizer, &limits), tokenizer, vocab_size, end })
    }

    fn check(&self, name: &str, case: &Value, draft: &str, count: &mut Count) {
        count.schemas += 1;
        let grammar = match self.compiler.compile(&Constraint::JsonSchema(case["schema"].clone())) {
            Ok(grammar) => grammar,
            Err(why) => {
                let why: String = why.to_string().chars().take(70).collect();
                *count.refused.entry(why).or_default() += 1;
                return;
            }
        };
        count.compiled += 1;
        match validator(&case["schema"], draft) {
            Err(why) => println!("{name}: the validator does not take it: {why}"),
            Ok((schemas, index)) => {
                for text in (0..DRAWS).filter_map(|seed| self.draw(&grammar, seed)) {
                    count.drawn += 1;
                    let valid = serde_json::from_str::<Value>(&text)
                        .is_ok_and(|value| schemas.validate(&value, index).is_ok());
                    if !valid {
                        count.drawn_and_invalid += 1;
                        println!("{name}: drawn and invalid: {text}");
                    }
                }
            }
        }
        for test in case["tests"].as_array().into_iter().flatten() {
            let (text, is_valid) = (test["data"].to_string(), test["valid"] == true);
            let accepted = self.accepts(&grammar, &text);
            *(if is_valid { &mut count.valid_instances } else { &mut count.invalid_instances }) += 1;
            if is_valid && !accepted {
                count.valid_and_rejected += 1;
                println!("{name}: valid and rejected: {text}: {}", case["schema"]);
            } else if accepted && !is_valid {
                count.invalid_and_accepted += 1;
                println!("{name}: invalid and accepted: {text}: {}", case["schema"]);
            }
        }
    }

    /// A text drawn at random, unless it had no end.
    fn draw(&self, grammar: &Grammar, seed: u64) -> Option<String> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut matcher = grammar.matcher();
        let mut mask = vec![0u32; self.vocab_size.div_ceil(32) as usize];
        let mut output = Vec::new();
        while output.len() < MAX_TOKENS {
            matcher.fill_mask(&mut mask).ok()?;
            let is_allowed = |id: &TokenId| mask[*id as usize / 32] >> (id % 32) & 1 == 1;
            let allowed: Vec<TokenId> = (0..self.vocab_size).filter(is_allowed).collect();
            let closes = |id: &TokenId| {
                *id == self.end || matches!(self.tokenizer.token_bytes(*id)[..], [b'"' | b'}' | b']'])
            };
            let closing: Vec<_> = allowed.iter().copied().filter(closes).collect();
            let from = if !closing.is_empty() && rng.random_bool(0.4) { &closing } else { &allowed };
            let token = *from.choose(&mut rng)?;
            if token == self.end {
                return Some(self.tokenizer.decode(&output, false));
            }
            matcher.accept(token).ok()?;
            output.push(token);
        }
        None
    }

    /// Byte by byte, as masks have no other way to write a forced text than its own tokens.
    fn accepts(&self, grammar: &Grammar, text: &str) -> bool {
        let Ok(tokens) = self.tokenizer.encode(text, false) else { return false };
        let mut matcher = grammar.matcher();
        let mut mask = vec![0u32; self.vocab_size.div_ceil(32) as usize];
        for token in tokens {
            if matcher.accept(token).is_err() {
                return false;
            }
        }
        matcher.fill_mask(&mut mask).is_ok() && mask[self.end as usize / 32] >> (self.end % 32) & 1 == 1
    }
}

fn validator(schema: &Value, draft: &str) -> anyhow::Result<(Schemas, SchemaIndex)> {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    compiler.set_default_draft(match draft.split('/').next() {
        Some("draft4") => Draft::V4,
        Some("draft6") => Draft::V6,
        Some("draft7") => Draft::V7,
        Some("draft2019-09") => Draft::V2019_09,
        _ => Draft::V2020_12,
    });
    compiler.enable_format_assertions();
    let wrong = |error: &dyn std::fmt::Display| anyhow::anyhow!("{error}");
    compiler.add_resource("schema.json", schema.clone()).map_err(|error| wrong(&error))?;
    let index = compiler.compile("schema.json", &mut schemas).map_err(|error| wrong(&error))?;
    Ok((schemas, index))
}
