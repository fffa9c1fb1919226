//! The release binary, as it is, with its CUDA backend over the stand-in driver: the answers of the CPU's, and what
//! the decode loop asks of the driver. Needs the binary: `cargo build --release` first.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use quire_cuda::emulator::library_dir;
use serde_json::{Value, json};

/// The release binary, beside which this test program lies.
fn binary() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.ancestors().nth(2).unwrap().join("quire");
    assert!(path.exists(), "{} is not there: cargo build --release", path.display());
    path
}

/// `quire` with these arguments and nothing from the environment.
fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).env_clear();
    command
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("quire-cuda-server-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A running server; killed when dropped.
struct Server {
    child: Child,
    address: String,
    folder: PathBuf,
}

impl Server {
    /// `quire serve` over the stand-in, or without it if `flags` say `--device cpu`.
    fn start(name: &str, flags: &[&str]) -> Self {
        let folder = folder(name);
        let mut command = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0"]);
        let mut child = command
            .args(["--max-num-batched-tokens", "128", "--max-num-seqs", "8"])
            .args(flags)
            .env("LD_LIBRARY_PATH", library_dir())
            .env("XDG_CACHE_HOME", &folder)
            .env("QUIRE_EMULATOR_LOG", folder.join("log"))
            .env("QUIRE_EMULATOR_SMS", "4")
            .env("QUIRE_EMULATOR_MEMORY_BYTES", "2000000000")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.unwrap_or_else(|| panic!("{flags:?}: no port in {line:?}"));
        Self { child, address: format!("127.0.0.1:{port}"), folder }
    }

    fn complete(&self, body: &Value) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let (body, host) = (body.to_string(), &self.address);
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(body).unwrap()
    }

    /// Token ids and log-probabilities of many requests at once.
    fn complete_all(&self, requests: &[Value]) -> Vec<Vec<(u64, f64)>> {
        let answers = std::thread::scope(|scope| {
            let threads: Vec<_> =
                requests.iter().map(|request| scope.spawn(|| self.complete(request))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let tokens = |answer: &Value| {
            let choice = &answer["choices"][0];
            let ids = choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
            let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
            ids.zip(logprobs.iter().map(|logprob| logprob.as_f64().unwrap())).collect()
        };
        answers.iter().map(tokens).collect()
    }

    /// What was asked of the driver so far.
    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Requests of every kind of sampling, greedy ones first: prompts of the golden file.
fn requests() -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/pebble/golden.json");
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap().iter().step_by(5);
    // Prompts of several steps are in, those of a thousand tokens would take the emulation minutes.
    let cases = cases.filter(|case| case["prompt_ids"].as_array().unwrap().len() < 300);
    cases
        .enumerate()
        .map(|(index, case)| {
            let mut request = json!({
                "model": "pebble", "prompt": case["prompt_ids"], "max_tokens": 16, "temperature": 0,
                "logprobs": 3, "return_token_ids": true, "seed": index,
            });
            let sampling = match index % 4 {
                0 | 1 => json!({}),
                2 => json!({"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}),
                _ => json!({"temperature": 1.1, "top_k": 20, "min_p": 0.02, "frequency_penalty": 0.4}),
            };
            request.as_object_mut().unwrap().extend(sampling.as_object().unwrap().clone());
            request
        })
        .collect()
}

#[test]
fn answers_are_those_of_the_cpu() {
    let requests = requests();
    let expected = Server::start("cpu", &["--device", "cpu"]).complete_all(&requests);
    for (name, flags) in [
        ("graphs", &["--dtype", "float32"][..]),
        ("eager", &["--dtype", "float32", "--enforce-eager"]),
        ("invariant", &["--dtype", "float32", "--batch-invariant"]),
    ] {
        let server = Server::start(name, &[&["--device", "cuda"], flags].concat());
        let found = server.complete_all(&requests);
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let ids = |tokens: &[(u64, f64)]| tokens.iter().map(|token| token.0).collect::<Vec<_>>();
            assert_eq!(ids(found), ids(expected), "{name}, request {index}");
            let close = found.iter().zip(expected).all(|(a, b)| (a.1 - b.1).abs() < 1e-3);
            assert!(close, "{name}, request {index}: {found:?} for {expected:?}");
        }
    }
}

#[test]
fn the_decode_loop_neither_waits_nor_allocates() {
    let server = Server::start("loop", &["--device", "cuda"]);
    let request = json!({"model": "pebble", "prompt": [5, 6, 7], "max_tokens": 40, "ignore_eos": true});
    server.complete(&request);
    let log = server.log();
    // Products are timed as graphs when the server starts; the last graph is the decode step's.
    let launch = log.iter().rev().find(|line| line.starts_with("cuGraphLaunch")).unwrap();
    let steps: Vec<usize> = (0..log.len()).filter(|line| log[*line] == *launch).collect();
    assert!(steps.len() >= 38, "{} graphs for 39 decode steps", steps.len());
    let decode = &log[steps[0]..=*steps.last().unwrap()];
    let verbs = |line: &String| line.split(' ').next().unwrap().to_owned();
    let allowed = [
        "cuGraphLaunch",
        "cuMemcpyHtoDAsync",
        "cuMemcpyDtoHAsync",
        "cuLaunchKernel",
        "cuEventRecord",
        "cuEventSynchronize",
    ];
    for line in decode {
        assert!(allowed.contains(&&*verbs(line)), "in the decode loop: {line}");
    }
    // One step: a copy to the device for what is new, the kernel that spreads it, the graph, the two kernels that
    // sample (apart, since grammars may have their say in between), one copy back.
    let of = |verb: &str| decode.iter().filter(|line| verbs(line) == verb).count();
    let num_steps = steps.len() - 1;
    assert_eq!(of("cuLaunchKernel"), 3 * num_steps, "kernels outside of graphs");
    assert_eq!(of("cuMemcpyDtoHAsync"), num_steps);
    let first_step = log.iter().position(|line| line.contains("kernel=prepare_step")).unwrap();
    assert_pinned_memory_is_left_alone(&log[first_step..]);
    // The next step is handed over before this one is waited for.
    let ahead =
        log.windows(2).any(|lines| lines[0].contains("kernel=sampling_choose") && lines[1].contains("DtoH"));
    assert!(ahead, "{decode:#?}");
}

/// Between two copies from the same pinned address, the event recorded behind the first was waited for.
fn assert_pinned_memory_is_left_alone(log: &[String]) {
    let field = |line: &str, name: &str| {
        line.split(' ').find_map(|word| word.strip_prefix(name)).map(str::to_owned).unwrap_or_default()
    };
    // By address: the event behind the last copy, once it is recorded, and whether it was waited for.
    let mut copies: HashMap<String, (Option<String>, bool)> = HashMap::new();
    for line in log {
        match line.split(' ').next().unwrap() {
            "cuMemcpyHtoDAsync" => {
                let from = field(line, "from=");
                if let Some((event, waited)) = copies.insert(from, (None, false)) {
                    assert!(event.is_some() && waited, "{line}: the copy before may still be under way");
                }
            }
            "cuEventRecord" => {
                let event = field(line, "event=");
                copies
                    .values_mut()
                    .filter(|copy| copy.0.is_none())
                    .for_each(|copy| copy.0 = Some(event.clone()));
            }
            "cuEventSynchronize" => {
                let event = field(line, "event=");
                let own = copies.values_mut().filter(|copy| copy.0.as_ref() == Some(&event));
                own.for_each(|copy| copy.1 = true);
            }
            _ => {}
        }
    }
    assert!(copies.len() >= 3, "a ring has at least three entries; copies came from {copies:?}");
}

#[test]
#[should_panic(expected = "may still be under way")]
fn an_entry_that_is_filled_too_early_is_noticed() {
    let copy = "cuMemcpyHtoDAsync bytes=4 to=0x1 from=0x2 stream=1 captured=0".to_owned();
    let record = "cuEventRecord event=0x3 stream=1".to_owned();
    assert_pinned_memory_is_left_alone(&[copy.clone(), record, copy]);
}

/// What `quire serve` says when it cannot start.
fn refusal(flags: &[&str], environment: &[(&str, &str)]) -> String {
    let Output { status, stderr, .. } = command(&["serve", "--port", "0", "--grpc-port", "0"])
        .args(flags)
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert!(!status.success(), "{flags:?} {environment:?}: {stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: "));
    error.unwrap_or_else(|| panic!("no error in {stderr}")).to_owned()
}

#[test]
fn what_is_missing_is_said_in_one_sentence() {
    let libraries = library_dir();
    let stand_in = ("LD_LIBRARY_PATH", libraries.to_str().unwrap());
    let cases = [
        (&["--device", "cuda:1"][..], vec![stand_in], "there is no GPU number 1"),
        (
            &["--device", "cuda"],
            vec![stand_in, ("QUIRE_EMULATOR_COMPUTE_CAPABILITY", "7.5")],
            "8.0 or more is needed",
        ),
        (
            &["--device", "cuda"],
            vec![stand_in, ("QUIRE_EMULATOR_CUDA_VERSION", "12080")],
            "is for CUDA 12.8; 13.0 or later is needed",
        ),
        (&["--device", "gpu"], vec![], "must be auto, cpu, cuda or cuda:N"),
        (
            &["--device", "cuda"],
            vec![stand_in, ("QUIRE_EMULATOR_MEMORY_BYTES", "600000000")],
            "no memory is left",
        ),
    ];
    for (flags, environment, expected) in cases {
        let said = refusal(flags, &environment);
        assert!(said.contains(expected), "{flags:?} {environment:?}: {said}");
        assert_eq!(said.matches(expected).count(), 1, "said twice: {said}");
    }
    // Without the stand-in: a machine has no driver, or is told to hide its GPUs.
    let said = refusal(&["--device", "cuda"], &[("CUDA_VISIBLE_DEVICES", "")]);
    assert!(said.contains("no NVIDIA driver") || said.contains("sees no GPU"), "{said}");
    let only_driver = folder("only-driver");
    for name in ["libcuda.so", "libcuda.so.1", "libnvrtc.so", "libnvrtc.so.13"] {
        std::os::unix::fs::symlink(libraries.join(name), only_driver.join(name)).unwrap();
    }
    let cache = ("XDG_CACHE_HOME", only_driver.to_str().unwrap());
    let said = refusal(
        &["--device", "cuda"],
        &[
            ("LD_LIBRARY_PATH", only_driver.to_str().unwrap()),
            cache,
            ("QUIRE_EMULATOR_MEMORY_BYTES", "2000000000"),
        ],
    );
    assert!(said.contains("libcublasLt"), "{said}");
    std::fs::remove_dir_all(only_driver).unwrap();
}
