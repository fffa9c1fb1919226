//! The fuzz targets over their kept corpus, and over seeded changes of it: what a fuzzer once found stays
//! found, and a target that no longer compiles is seen here and not on the day it is needed.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const CHANGES: u64 = 40;

#[test]
fn the_corpus_is_clean() {
    for (name, run) in targets::ALL {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "fuzz/corpus/{name} is empty");
        for (file, input) in &inputs {
            attempt(&format!("fuzz/corpus/{name}/{file}"), *run, input);
        }
        for seed in 0..CHANGES {
            let mut rng = StdRng::seed_from_u64(seed);
            let (file, input) = &inputs[rng.random_range(0..inputs.len())];
            let (_, other) = &inputs[rng.random_range(0..inputs.len())];
            attempt(
                &format!("fuzz/corpus/{name}/{file}, changed by seed {seed}"),
                *run,
                &changed(input, other, &mut rng),
            );
        }
    }
}

#[test]
fn every_target_has_its_fuzzer() {
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).expect("fuzz/Cargo.toml");
    for (name, _) in targets::ALL {
        assert!(manifest.contains(&format!("fuzz_targets/{name}.rs")), "{name} is not in fuzz/Cargo.toml");
        let fuzzer = root().join(format!("fuzz/fuzz_targets/{name}.rs"));
        let source = std::fs::read_to_string(&fuzzer).expect(name);
        assert!(source.contains(&format!("targets::{name}::run")), "{} runs another", fuzzer.display());
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[track_caller]
fn attempt(what: &str, run: fn(&[u8]), input: &[u8]) {
    let ended = catch_unwind(AssertUnwindSafe(|| run(input)));
    assert!(ended.is_ok(), "{what}: {:?}", String::from_utf8_lossy(input));
}

fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("fuzz/corpus").join(name);
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("an entry").path();
            let file = path.file_name().expect("a name").to_string_lossy().into_owned();
            (file, std::fs::read(&path).expect("a file"))
        })
        .collect();
    inputs.sort();
    inputs
}

/// Some bytes set, some taken out, some of another input put in.
fn changed(input: &[u8], other: &[u8], rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..=bytes.len());
        match rng.random_range(0..3) {
            0 if at < bytes.len() => bytes[at] = rng.random(),
            1 => drop(bytes.drain(at..(at + rng.random_range(0..8)).min(bytes.len()))),
            _ => {
                let from = rng.random_range(0..=other.len());
                let piece = &other[from..(from + rng.random_range(0..24)).min(other.len())];
                bytes.splice(at..at, piece.iter().copied());
            }
        }
    }
    bytes
}
