//! CPU time by thread name, from the kernel.

use std::collections::BTreeMap;
use std::path::Path;

/// Clock ticks a second in /proc: fixed at 100 for user space on Linux.
const TICKS_PER_S: f64 = 100.0;

/// Seconds of CPU (user and system) of this process's live threads, added up by name. Names are cut at 15
/// characters by the kernel.
///
/// # Errors
/// Where there is no /proc.
pub(super) fn thread_cpu_s() -> std::io::Result<BTreeMap<String, f64>> {
    let mut by_name = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/task")? {
        // A thread may end while we look.
        if let Some((name, seconds)) = read_thread(&entry?.path()) {
            *by_name.entry(name).or_insert(0.0) += seconds;
        }
    }
    Ok(by_name)
}

fn read_thread(task: &Path) -> Option<(String, f64)> {
    parse(&std::fs::read_to_string(task.join("stat")).ok()?)
}

/// `pid (name) state ppid ...`: after the name, user and system time are fields 12 and 13 (proc(5) counts
/// them as 14 and 15). The name may contain spaces and parentheses.
fn parse(stat: &str) -> Option<(String, f64)> {
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat[close + 1..].split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    Some((stat[open + 1..close].to_owned(), (ticks(11)? + ticks(12)?) / TICKS_PER_S))
}

#[cfg(test)]
mod tests {
    use super::{parse, thread_cpu_s};

    #[test]
    fn names_with_spaces_and_parentheses() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 10 0 0 0 250 50 0 0 20 0 9 0 100 0 0";
        assert_eq!(parse(stat), Some(("a (b) c".into(), 3.0)));
        assert_eq!(parse("garbage"), None);
    }

    #[test]
    fn work_shows_under_the_thread_that_did_it() {
        let work = || {
            let mut x = 1u64;
            while thread_cpu_s().unwrap()["busy-bee"] < 0.05 {
                x = (0..100_000).fold(x, |x, i| std::hint::black_box(x.wrapping_mul(i | 1)));
            }
            x
        };
        std::thread::Builder::new().name("busy-bee".into()).spawn(work).unwrap().join().unwrap();
        // The kernel takes a moment to forget a thread that has been joined.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while thread_cpu_s().unwrap().contains_key("busy-bee") {
            assert!(std::time::Instant::now() < deadline, "a joined thread is still there");
            std::thread::yield_now();
        }
    }
}
