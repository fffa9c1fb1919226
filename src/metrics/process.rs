//! `process_*`: what the operating system knows about this process, under the names that Prometheus'
//! client libraries share. Read from `/proc`; on systems without it the series do not exist.

use std::fs;

use prometheus::{Counter, Gauge, Opts, Registry};

use super::families::register;
use super::raise_by_fraction;

/// Times in `/proc/self/stat` are in units of 1/100 s on every Linux that this program runs on (USER_HZ,
/// proc(5)).
const TICKS_PER_SECOND: f64 = 100.0;

#[derive(Debug)]
pub(super) struct ProcessMetrics(Option<Series>);

#[derive(Debug)]
struct Series {
    cpu_seconds: Counter,
    resident_bytes: Gauge,
    virtual_bytes: Gauge,
    open_fds: Gauge,
}

/// What `/proc/self/stat` says.
struct Stat {
    cpu_s: f64,
    virtual_bytes: f64,
    /// Since the machine was started.
    started_s: f64,
}

impl ProcessMetrics {
    pub(super) fn new(registry: &Registry) -> Self {
        let (Some(stat), Some(boot_s)) = (stat(), boot_s()) else { return Self(None) };
        let gauge = |name, help| register(registry, Gauge::with_opts(Opts::new(name, help)));
        gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.")
            .set(boot_s + stat.started_s);
        if let Some(max) = max_fds() {
            gauge("process_max_fds", "File descriptors the process may have open.").set(max);
        }
        let opts = Opts::new("process_cpu_seconds_total", "CPU time, user and system.");
        Self(Some(Series {
            cpu_seconds: register(registry, Counter::with_opts(opts)),
            resident_bytes: gauge("process_resident_memory_bytes", "Memory in RAM."),
            virtual_bytes: gauge("process_virtual_memory_bytes", "Address space in use."),
            open_fds: gauge("process_open_fds", "Open file descriptors."),
        }))
    }

    /// Brings the series up to date.
    pub(super) fn read(&self) {
        let Some(series) = &self.0 else { return };
        if let Some(stat) = stat() {
            raise_by_fraction(&series.cpu_seconds, stat.cpu_s);
            series.virtual_bytes.set(stat.virtual_bytes);
        }
        if let Some(bytes) = resident_bytes() {
            series.resident_bytes.set(bytes);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            series.open_fds.set(entries.count().saturating_sub(1) as f64);
        }
    }
}

fn stat() -> Option<Stat> {
    let text = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets and may contain anything.
    let (_, rest) = text.rsplit_once(')')?;
    let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3)?.parse::<f64>().ok();
    Some(Stat {
        cpu_s: (field(14)? + field(15)?) / TICKS_PER_SECOND,
        started_s: field(22)? / TICKS_PER_SECOND,
        virtual_bytes: field(23)?,
    })
}

fn boot_s() -> Option<f64> {
    number_after(&fs::read_to_string("/proc/stat").ok()?, "btime")
}

fn resident_bytes() -> Option<f64> {
    let kib = number_after(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")?;
    Some(kib * 1024.0)
}

fn max_fds() -> Option<f64> {
    number_after(&fs::read_to_string("/proc/self/limits").ok()?, "Max open files")
}

/// The number that follows `key` at the start of a line.
fn number_after(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}
