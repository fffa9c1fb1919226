//! The published models by the facts of their config.json: each is understood, and has as many parameters as its
//! authors say. The facts and totals are in fixtures/published/, with the script that counted.

use std::collections::BTreeMap;

use quire_model::{KvDtype, KvLayout, ModelSpec};
use serde_json::Value;

fn published() -> BTreeMap<String, Value> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/published");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .map(|path| {
            let facts = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), facts)
        })
        .collect()
}

fn spec(facts: &Value) -> Result<ModelSpec, String> {
    ModelSpec::from_json(&facts["config"].to_string(), None).map_err(|error| error.to_string())
}

#[test]
fn every_published_model_is_understood_and_has_its_number_of_parameters() {
    let published = published();
    assert!(published.len() >= 60, "only {} files", published.len());
    let mut wrong = Vec::new();
    for (name, facts) in &published {
        match spec(facts) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(spec) => {
                let (found, expected) =
                    (spec.num_parameters() as u64, facts["num_parameters"].as_u64().unwrap());
                if found != expected {
                    wrong.push(format!("{name}: {found} parameters, not {expected}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// What authors and model cards say, in billions: a second opinion on the counts.
#[test]
fn the_totals_are_the_published_ones() {
    let published = published();
    for (name, total) in [
        ("llama-2-7b", 6_738_415_616),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.3-70b", 70_553_706_496),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mistral-nemo-2407", 12_247_782_400),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-8b", 8_190_735_360),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("phi-3-mini-4k", 3_821_079_552),
        ("phi-4", 14_659_507_200),
        ("phi-3.5-moe", 41_873_153_344),
        ("gemma-2-9b", 9_241_705_984),
        ("gemma-3-1b", 999_885_952),
        ("olmo-2-7b", 7_298_617_344),
        ("olmoe-1b-7b", 6_919_161_856),
        ("deepseek-v2-lite", 15_706_484_224u64),
        ("smollm2-135m", 134_515_008),
        ("stablelm-2-1.6b", 1_644_515_328),
        ("gpt2", 124_439_808),
        ("gpt-neox-20b", 20_554_567_680),
        ("command-r-v01", 34_980_831_232),
        ("gpt-oss-20b", 20_914_757_184),
        ("gpt-oss-120b", 116_829_156_672),
    ] {
        assert_eq!(published[name]["num_parameters"].as_u64(), Some(total), "{name}");
    }
}

/// Bytes of KV cache for a token, in bfloat16, as published or by the papers' formulas.
#[test]
fn a_token_takes_as_much_of_the_cache_as_its_model_says() {
    let published = published();
    for (name, bytes) in [
        ("llama-2-7b", 2 * 32 * 32 * 128 * 2),
        ("llama-3.1-8b", 2 * 32 * 8 * 128 * 2),
        ("gemma-2b", 2 * 18 * 256 * 2),
        ("qwen3-0.6b", 2 * 28 * 8 * 128 * 2),
        ("falcon-7b", 2 * 32 * 64 * 2),
        // One latent of 512 and a rotated key of 64, whatever the number of heads.
        ("deepseek-v2-lite", 27 * 576 * 2),
        ("deepseek-v3", 61 * 576 * 2),
        ("openelm-270m", 2 * (5 * 3 + 7 * 4 + 4 * 5) * 64 * 2),
    ] {
        let layout = KvLayout::new(&spec(&published[name]).unwrap(), 1);
        assert_eq!(layout.block_bytes(KvDtype::Bf16), bytes, "{name}");
    }
}
