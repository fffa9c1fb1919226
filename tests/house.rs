//! The rules of the house, checked on the sources themselves: which crate may know which (invariants 2 and
//! 11), what files look like, and that every invariant has its tests. Each rule is a function from text to
//! complaints, and each is shown a planted violation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Crates of the workspace by folder, and what each may depend on. There are no other arrows.
const ARROWS: &[(&str, &[&str])] = &[
    (".", &["quire-proto", "quire-model", "quire-scheduler", "quire-cpu", "quire-cuda"]),
    ("proto", &[]),
    ("scheduler", &[]),
    ("model", &["quire-scheduler"]),
    ("cpu", &["quire-model"]),
    ("cuda", &["quire-model"]),
];

/// A workspace of its own, of which nothing is in the product.
const APART: &str = "fuzz";

/// What tests alone may name besides: the CPU backend is the CUDA backend's oracle.
const TEST_ARROWS: &[(&str, &str)] = &[("cuda", "quire-cpu")];

/// Words that code under a path must not contain, and why. Comments are not looked at.
const BOUNDARIES: &[(&str, &[&str], &str)] = &[
    (
        "src/engine/",
        &["axum", "tonic", "hyper", "candle", "cudarc", "serde_json"],
        "the engine knows no wire and no device",
    ),
    (
        "scheduler/src/",
        &["Instant", "SystemTime", "std::thread", "std::net", "std::fs", "tokio", "HashMap::new"],
        "the scheduler is a function: no clock, no thread, no socket, no random order",
    ),
    (
        "model/src/",
        &["axum", "tonic", "cudarc", "std::net", "quire_cpu"],
        "a model knows no wire and no device",
    ),
    (
        "cpu/src/",
        &["axum", "tonic", "std::net", "quire_scheduler", "candle_core"],
        "a device knows no request",
    ),
    (
        "cuda/kernels/",
        &["asm ", "asm(", "#include <"],
        "only hardware.cuh names the hardware: the same files are compiled by nvcc, by NVRTC and for the host",
    ),
    ("src/http/", &["tonic", "candle", "cudarc"], "HTTP knows only itself"),
    ("src/grpc/", &["axum", "candle", "cudarc"], "gRPC knows only itself"),
    ("src/validate.rs", &["axum", "tonic", "StatusCode"], "limits are the same on every wire"),
];

/// The simulated runner stands in for a device, whose steps take real time.
const PLAYS_A_DEVICE: &str = "scheduler/src/sim/runner.rs";

/// What the other files of kernels need of the machine.
const NAMES_THE_HARDWARE: &str = "cuda/kernels/hardware.cuh";

/// The languages people write in here, by how names of files end.
const LANGUAGES: &[&str] = &[".rs", ".cu", ".cuh", ".cc", ".h"];

const MAX_LINES: usize = 600;
const MAX_FILE_BYTES: u64 = 10 << 20;
const NUM_INVARIANTS: u32 = 13;
/// Those that no test can hold: 3 is a rule for reviews, 13 is about figures.
const NOT_TESTABLE: [u32; 2] = [3, 13];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of the project, by its path from the root.
fn files() -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folders can be read") {
            let path = entry.expect("entries can be read").path();
            let name = path.file_name().and_then(|name| name.to_str()).expect("names are UTF-8");
            let ours = !["target", ".git", ".cuda", "__pycache__", "shared"].contains(&name);
            if path.is_dir() && ours {
                folders.push(path);
            } else if path.is_file() {
                let from_root = path.strip_prefix(root()).expect("under the root");
                found.push((from_root.to_str().expect("UTF-8").to_owned(), path));
            }
        }
    }
    found.sort();
    found
}

/// Rust files that people wrote.
fn sources() -> Vec<(String, String)> {
    texts(&[".rs"])
}

/// Files that people wrote whose names end so.
fn texts(endings: &[&str]) -> Vec<(String, String)> {
    let ours = |path: &str| endings.iter().any(|end| path.ends_with(end)) && !path.contains("/generated/");
    let read = |path: &Path| std::fs::read_to_string(path).expect("sources are UTF-8");
    files().into_iter().filter(|(path, _)| ours(path)).map(|(name, path)| (name, read(&path))).collect()
}

#[track_caller]
fn assert_none(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

/// Our crates in a manifest: (whether only for tests, name).
fn own_dependencies(manifest: &str) -> BTreeSet<(bool, String)> {
    let mut found = BTreeSet::new();
    let mut section = String::new();
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = header.to_owned();
        }
        // `[dependencies.quire-cpu]` is another way to write an entry.
        let entry = section.rsplit_once("dependencies.").map(|(_, name)| name).unwrap_or(line);
        let is_list = section.ends_with("dependencies") && !section.starts_with("workspace");
        if (is_list || section.contains("dependencies.")) && entry.starts_with("quire-") {
            let name = entry.split(['.', ' ', '=']).next().expect("split gives one");
            found.insert((section.contains("dev-dependencies"), name.to_owned()));
        }
    }
    found
}

/// What can be reached along allowed arrows: tests may name it, since the crate is compiled with it anyway.
fn reachable(folder: &str) -> BTreeSet<&'static str> {
    let arrows: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut found: BTreeSet<&str> = BTreeSet::new();
    let mut next: Vec<&str> = arrows[folder].to_vec();
    while let Some(name) = next.pop() {
        if found.insert(name) {
            next.extend(arrows[name.strip_prefix("quire-").expect("ours")]);
        }
    }
    found
}

fn wrong_arrows(folder: &str, manifest: &str) -> Vec<String> {
    let allowed = ARROWS.iter().find(|(name, _)| *name == folder).expect("a folder of ours").1;
    let forbidden = |(dev, name): &(bool, String)| {
        let for_tests = TEST_ARROWS.contains(&(folder, &**name)) || reachable(folder).contains(&**name);
        !(allowed.contains(&&**name) || *dev && for_tests)
    };
    let dependencies = own_dependencies(manifest);
    let wrong = dependencies.iter().filter(|dependency| forbidden(dependency));
    wrong.map(|(_, name)| format!("{folder}/Cargo.toml: {folder} must not depend on {name}")).collect()
}

/// Code without comments and without string literals' neighbours: good enough to look for names of crates.
fn code_of(source: &str) -> String {
    let without_comment = |line: &str| {
        let end = line.match_indices("//").map(|(at, _)| at).find(|&at| !line[..at].ends_with(':'));
        line[..end.unwrap_or(line.len())].to_owned()
    };
    source.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

fn crossed_boundaries(path: &str, source: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let exempt = path.contains("/tests") || path == PLAYS_A_DEVICE || path == NAMES_THE_HARDWARE;
    for (under, words, why) in BOUNDARIES.iter().filter(|(under, ..)| path.starts_with(under) && !exempt) {
        let code = code_of(source);
        let code = code.split("#[cfg(test)]").next().expect("split gives one");
        let found = words.iter().filter(|word| code.contains(**word));
        complaints.extend(found.map(|word| format!("{path} names {word}, but under {under} {why}")));
    }
    complaints
}

fn badly_formed(path: &str, source: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let opening = if path.ends_with(".rs") { "//! " } else { "// " };
    if !source.starts_with(opening) {
        complaints.push(format!("{path} does not begin with what it owns and why ({opening})"));
    }
    let lines = source.lines().count();
    if lines > MAX_LINES {
        complaints.push(format!("{path} has {lines} lines, more than {MAX_LINES}"));
    }
    let unfinished = [concat!("to", "do!("), concat!("unimpl", "emented!("), concat!("db", "g!(")];
    let code = code_of(source);
    let found = unfinished.iter().filter(|word| code.contains(**word));
    complaints.extend(found.map(|word| format!("{path} contains {word}")));
    complaints
}

/// Numbers that test names bear: `invariant_5_6_8_hold_...` bears three.
fn borne_numbers(source: &str) -> BTreeSet<u32> {
    let mut numbers = BTreeSet::new();
    for name in source.split("fn invariant_").skip(1) {
        let parts = name.split('_').map_while(|part| part.parse::<u32>().ok());
        numbers.extend(parts);
    }
    numbers
}

/// Names of tests in backticks: those that a document refers to.
fn named_tests(document: &str) -> BTreeSet<String> {
    let quoted = document.split('`').skip(1).step_by(2);
    let names =
        quoted.filter_map(|name| name.rsplit("::").next()).filter(|name| name.starts_with("invariant_"));
    names.map(str::to_owned).collect()
}

/// Invariants that the document's section lists, as `1.` or `| 1 |` at the start of a line.
fn listed_invariants(document: &str) -> BTreeSet<u32> {
    let section = document.split("\n## Invariants").nth(1).unwrap_or_default();
    let section = section.split("\n## ").next().expect("split gives one");
    let number = |line: &str| {
        let line = line.trim_start_matches(['|', ' ', '*']);
        let digits = line.split(|c: char| !c.is_ascii_digit()).next()?;
        let rest = line[digits.len()..].trim_start_matches(['*', ' ']);
        rest.starts_with(['.', '|']).then(|| digits.parse().ok())?
    };
    section.lines().filter_map(number).collect()
}

#[test]
fn invariant_11_crates_depend_only_where_arrows_are_drawn() {
    let manifest = |folder: &str| {
        std::fs::read_to_string(root().join(folder).join("Cargo.toml")).expect("each crate has a manifest")
    };
    assert_none(ARROWS.iter().flat_map(|(folder, _)| wrong_arrows(folder, &manifest(folder))).collect());
    // A crate that is not in the list would not have been looked at.
    let members: BTreeSet<&str> = ARROWS.iter().map(|(folder, _)| *folder).collect();
    for (path, _) in files().iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let folder = path.strip_suffix("Cargo.toml").expect("it ends so").trim_end_matches('/');
        let folder = if folder.is_empty() { "." } else { folder };
        assert!(members.contains(folder) || folder == APART, "{path} is not known to this test");
    }
}

#[test]
fn invariant_11_code_stays_within_its_boundaries() {
    let sources = texts(LANGUAGES);
    assert_none(sources.iter().flat_map(|(path, source)| crossed_boundaries(path, source)).collect());
    for (under, ..) in BOUNDARIES {
        assert!(sources.iter().any(|(path, _)| path.starts_with(under)), "nothing is under {under} any more");
    }
}

#[test]
fn invariant_10_candle_is_never_built_with_cuda() {
    for (path, file) in files().iter().filter(|(path, _)| path.ends_with("Cargo.toml")) {
        let manifest = std::fs::read_to_string(file).expect("UTF-8");
        let wrong = manifest.lines().any(|line| line.starts_with("candle") && line.contains("cuda"));
        assert!(!wrong, "{path} builds candle with cuda");
    }
}

#[test]
fn files_are_well_formed() {
    assert_none(texts(LANGUAGES).iter().flat_map(|(path, source)| badly_formed(path, source)).collect());
    let large = |path: &PathBuf| std::fs::metadata(path).expect("it is there").len() > MAX_FILE_BYTES;
    assert_none(
        files()
            .iter()
            .filter(|(_, path)| large(path))
            .map(|(name, _)| format!("{name} is over 10 MiB"))
            .collect(),
    );
}

#[test]
fn every_invariant_is_written_down_and_tested() {
    let sources = sources();
    let document = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("it is there");
    let all: BTreeSet<u32> = (1..=NUM_INVARIANTS).collect();
    let listed = listed_invariants(&document);
    assert!(listed.is_superset(&all), "ARCHITECTURE.md lists only the invariants {listed:?}");
    let borne: BTreeSet<u32> = sources.iter().flat_map(|(_, source)| borne_numbers(source)).collect();
    let untested: Vec<u32> =
        all.iter().copied().filter(|n| !borne.contains(n) && !NOT_TESTABLE.contains(n)).collect();
    assert!(untested.is_empty(), "no test bears the invariants {untested:?}");
    for name in named_tests(&document) {
        // A name that ends in `_` stands for all that begin so.
        let found = sources.iter().any(|(_, source)| source.contains(&format!("fn {name}")));
        assert!(found, "ARCHITECTURE.md names a test that does not exist: {name}");
    }
}

#[test]
fn planted_violations_are_found() {
    let arrow =
        "[package]\nname = \"quire-cpu\"\n[dependencies]\nquire-proto.workspace = true\nhalf = \"2\"\n";
    assert_eq!(wrong_arrows("cpu", arrow), ["cpu/Cargo.toml: cpu must not depend on quire-proto"]);
    for form in [
        "[dependencies]\nquire-cpu = { path = \"../cpu\" }",
        "[dependencies.quire-cpu]\npath = \"../cpu\"",
        "[build-dependencies]\nquire-cpu.workspace = true",
        "[dev-dependencies]\nquire-cpu.workspace = true",
        "[target.'cfg(unix)'.dependencies]\nquire-cpu.workspace = true",
    ] {
        assert_eq!(wrong_arrows("scheduler", form).len(), 1, "{form}");
    }
    assert!(wrong_arrows("cpu", "[dev-dependencies]\nquire-scheduler.workspace = true").is_empty());
    assert_eq!(wrong_arrows("cpu", "[dependencies]\nquire-scheduler.workspace = true").len(), 1);
    assert!(wrong_arrows("cuda", "[dev-dependencies]\nquire-cpu.workspace = true").is_empty());
    assert_eq!(wrong_arrows("cuda", "[dependencies]\nquire-cpu.workspace = true").len(), 1);
    assert!(wrong_arrows("model", "[workspace.dependencies]\nquire-cpu = { path = \"cpu\" }").is_empty());

    assert_eq!(crossed_boundaries("src/engine/core.rs", "use axum::Router;").len(), 1);
    assert_eq!(crossed_boundaries("scheduler/src/queue.rs", "let t = Instant::now();").len(), 1);
    assert!(crossed_boundaries("src/engine/core.rs", "//! Unlike axum.\nlet a = 1; // not tonic").is_empty());
    assert!(crossed_boundaries("src/http/mod.rs", "use axum::Router;").is_empty());
    assert_eq!(crossed_boundaries("cuda/kernels/norm.cu", "    asm volatile(\"\");").len(), 1);
    assert_eq!(crossed_boundaries("cuda/kernels/norm.cu", "#include <cuda_bf16.h>").len(), 1);
    assert!(crossed_boundaries(NAMES_THE_HARDWARE, "asm volatile(\"\");").is_empty());

    assert_eq!(badly_formed("a.rs", "use std::fmt;").len(), 1);
    assert_eq!(badly_formed("a.rs", &format!("//! A.\n{}", "\n".repeat(MAX_LINES))).len(), 1);
    assert_eq!(badly_formed("a.rs", concat!("//! A.\nfn a() { to", "do!() }")).len(), 1);
    assert_eq!(badly_formed("a.rs", concat!("//! A.\nfn a() { db", "g!(1); }")).len(), 1);
    assert!(badly_formed("a.rs", "//! A.\nfn a() {}").is_empty());
    assert_eq!(badly_formed("a.cu", "#pragma once").len(), 1);
    assert_eq!(badly_formed("a.cuh", &format!("// A.\n{}", "\n".repeat(MAX_LINES))).len(), 1);
    assert!(badly_formed("a.cc", "// A.\n#include <stdio.h>").is_empty());

    assert_eq!(borne_numbers("fn invariant_5_6_8_hold() fn invariant_12_x()"), [5, 6, 8, 12].into());
    assert!(named_tests("see `black_box::soak::invariant_6_x` and `other`").contains("invariant_6_x"));
    let document = "\n## Invariants, and tests\n\n1. One\n| 2 | Two |\n**3.** Three\n2026 is no number\n\n## Other\n4. Four\n";
    assert_eq!(listed_invariants(document), [1, 2, 3].into());
}
