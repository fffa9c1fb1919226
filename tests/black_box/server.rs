//! [`Server`]: one process of the release binary, as an operator would start it, and its end.
//!
//! Ports are chosen by the system and read from the line that the program prints when it is ready. What
//! it writes to stderr is kept, for assertions and for whoever reads the failure.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::http::PATIENCE;
use crate::metrics::Metrics;

/// Kernel ticks a second in `/proc/PID/stat` (USER_HZ, which Linux fixes for user space).
pub(crate) const TICKS_PER_SECOND: u64 = 100;

/// Flags for a KV cache that holds one request of the greatest length and little more, so that a few
/// dozen requests at once must be preempted. With float32 KV this is about 1,100 tokens.
pub(crate) const TINY_KV: &[&str] = &["--max-model-len", "1024", "--kv-cache-memory-bytes", "3400000"];

/// A running server; killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Mutex<Child>,
    pid: u32,
    flags: Vec<String>,
    stderr: Arc<Mutex<String>>,
    /// Where HTTP listens.
    pub(crate) http: SocketAddr,
    /// Where gRPC listens.
    pub(crate) grpc: SocketAddr,
    /// When the process was started.
    pub(crate) started: Instant,
}

impl Server {
    /// Starts `quire serve` with the demo model and these flags besides host and ports.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let started = Instant::now();
        let mut child = command(&["serve", "--host", "127.0.0.1", "--port", "0", "--grpc-port", "0"])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stderr = Arc::new(Mutex::new(String::new()));
        keep(child.stderr.take().expect("piped"), stderr.clone());
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut line).expect("stdout is readable");
        let Some((http, grpc)) = addresses(&line) else {
            let _ = child.kill();
            let status = child.wait();
            panic!("no ready line from `quire serve {flags:?}`: {line:?}, {status:?}\n{}", text(&stderr));
        };
        // Whatever else is printed must not fill the pipe and stop the server.
        keep(stdout, Arc::default());
        let pid = child.id();
        let flags = flags.iter().map(|&flag| flag.to_owned()).collect();
        Self { child: Mutex::new(child), pid, flags, stderr, http, grpc, started }
    }

    /// A server with these flags that other tests use too: ask it nothing about idleness, and leave it as
    /// it was found.
    pub(crate) fn shared(flags: &[&str]) -> Arc<Self> {
        static SERVERS: LazyLock<Mutex<HashMap<Vec<String>, Weak<Server>>>> = LazyLock::new(Mutex::default);
        let mut servers = SERVERS.lock().unwrap_or_else(PoisonError::into_inner);
        let key: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        if let Some(server) = servers.get(&key).and_then(Weak::upgrade) {
            return server;
        }
        let server = Arc::new(Self::start(flags));
        servers.insert(key, Arc::downgrade(&server));
        server
    }

    /// What the process wrote to stderr so far.
    pub(crate) fn stderr(&self) -> String {
        text(&self.stderr)
    }

    /// Sends a signal by name (`TERM`, `INT`).
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid)]).status();
        assert!(sent.expect("sh runs").success(), "kill -{name} failed");
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exit_status(&self) -> Option<ExitStatus> {
        self.lock().try_wait().expect("the child can be waited for")
    }

    /// Waits for the process to end by itself.
    pub(crate) async fn wait_for_exit(&self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exit_status() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {limit:?}\n{}", self.stderr());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// CPU time used so far by all threads, user and system, in kernel ticks.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).expect("the process lives");
        // The second field is the name in brackets, which may hold spaces.
        let fields: Vec<&str> = stat.rsplit_once(')').expect("has a name").1.split_whitespace().collect();
        let number = |index: usize| fields[index].parse::<u64>().expect("a number");
        // Fields 14 and 15 of proc(5), counted from 1; `fields` starts at field 3.
        number(11) + number(12)
    }

    /// Resident memory in bytes.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("the process lives");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("has VmRSS");
        let kib: u64 = line.split_whitespace().nth(1).expect("a figure").parse().expect("a number");
        kib * 1024
    }

    /// A scrape of `/metrics`.
    pub(crate) async fn metrics(&self) -> Metrics {
        let response = crate::http::get(self.http, "/metrics").await;
        assert_eq!(response.status, 200);
        Metrics::parse(&response.text())
    }

    /// Waits until no request is queued or running and no KV block is held.
    pub(crate) async fn until_idle(&self) {
        let start = Instant::now();
        loop {
            let metrics = self.metrics().await;
            let figures = metrics.load_figures();
            if figures == [0.0; 3] {
                return;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "not idle after {PATIENCE:?}: running, waiting, KV usage are {figures:?}\n{}",
                self.stderr()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut child = self.lock();
        let _ = child.kill();
        let _ = child.wait();
        drop(child);
        if std::thread::panicking() {
            let stderr = self.stderr();
            let tail: Vec<&str> = stderr.lines().rev().take(40).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            eprintln!("--- stderr of quire serve {:?} ---\n{}", self.flags, tail.join("\n"));
        }
    }
}

/// Runs `quire` with these arguments to its end, which must come by itself within this time.
pub(crate) fn run(args: &[&str], limit: Duration) -> Output {
    let mut command = command(args);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let deadline = Instant::now() + limit;
    while child.try_wait().expect("the child can be waited for").is_none() {
        if Instant::now() > deadline {
            let _ = child.kill();
            let output = child.wait_with_output().expect("killed");
            panic!(
                "`quire {args:?}` still runs after {limit:?}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("the child has ended")
}

/// The binary in a clean environment, in a directory that has nothing to do with it.
/// The program, with an environment that does not depend on who runs the tests.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quire"));
    command.args(args).env_clear().current_dir(std::env::temp_dir());
    // The suite is about the CPU on every machine, unless whoever runs it names another device.
    command.env("QUIRE_DEVICE", "cpu");
    let passed_on =
        |name: &str| name.starts_with("QUIRE_") || ["LD_LIBRARY_PATH", "XDG_CACHE_HOME"].contains(&name);
    command.envs(std::env::vars().filter(|(name, _)| passed_on(name)));
    command
}

/// Reads `Quire serves NAME on http://ADDR (OpenAI) and ADDR (gRPC)`.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let (_, served) =
        line.trim_end().split_once(" on http://").or_else(|| line.trim_end().split_once(" on https://"))?;
    let (http, grpc) = served.split_once(" (OpenAI) and ")?;
    Some((http.parse().ok()?, grpc.strip_suffix(" (gRPC)")?.parse().ok()?))
}

fn keep(mut from: impl Read + Send + 'static, to: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut buffer) {
            to.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
}

fn text(kept: &Mutex<String>) -> String {
    kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

#[test]
fn the_ready_line_is_understood() {
    let line = "Quire serves pebble on http://127.0.0.1:81 (OpenAI) and 127.0.0.1:82 (gRPC)\n";
    let expected = ("127.0.0.1:81".parse().unwrap(), "127.0.0.1:82".parse().unwrap());
    assert_eq!(addresses(line), Some(expected));
    assert_eq!(addresses("error: the address is in use\n"), None);
}
