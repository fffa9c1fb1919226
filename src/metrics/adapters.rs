//! [`AdapterSeries`]: `vllm:lora_requests_info`, by which routers find the servers that have an adapter at work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus::{GaugeVec, Opts, Registry};

/// Sequences of each adapter that has some. The series has one sample, whose value is the time it was made (seconds
/// since 1970) and whose labels are all that it tells: `max_lora`, and names joined by commas.
#[derive(Debug)]
pub(super) struct AdapterSeries {
    max_loras: String,
    info: GaugeVec,
    counts: Mutex<BTreeMap<Arc<str>, Counts>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    waiting: u32,
    running: u32,
}

impl AdapterSeries {
    pub(super) fn new(registry: &Registry, max_loras: u32) -> Self {
        let help = "Time of the newest sample; its labels say which adapters have requests.";
        let labels = ["max_lora", "waiting_lora_adapters", "running_lora_adapters"];
        let info = GaugeVec::new(Opts::new("vllm:lora_requests_info", help), &labels).expect("valid names");
        registry.register(Box::new(info.clone())).expect("registered once");
        Self { max_loras: max_loras.to_string(), info, counts: Mutex::default() }
    }

    /// A sequence was taken.
    pub(super) fn begin(&self, adapter: &Arc<str>) {
        self.lock().entry(adapter.clone()).or_default().waiting += 1;
    }

    /// It was scheduled for the first time.
    pub(super) fn schedule(&self, adapter: &Arc<str>) {
        let mut counts = self.lock();
        let counts = counts.entry(adapter.clone()).or_default();
        counts.waiting = counts.waiting.saturating_sub(1);
        counts.running += 1;
    }

    /// It ended.
    pub(super) fn end(&self, adapter: &Arc<str>, was_scheduled: bool) {
        let mut all = self.lock();
        let Some(counts) = all.get_mut(adapter) else { return };
        let count = if was_scheduled { &mut counts.running } else { &mut counts.waiting };
        *count = count.saturating_sub(1);
        if counts.waiting + counts.running == 0 {
            all.remove(adapter);
        }
    }

    /// Makes the sample for a rendering.
    pub(super) fn set(&self) {
        let (waiting, running) = {
            let counts = self.lock();
            let names = |of: fn(&Counts) -> u32| {
                let names = counts.iter().filter(|(_, counts)| of(counts) > 0).map(|(name, _)| &**name);
                names.collect::<Vec<_>>().join(",")
            };
            (names(|counts| counts.waiting), names(|counts| counts.running))
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.info.reset();
        self.info.with_label_values(&[&self.max_loras, &waiting, &running]).set(now.as_secs_f64());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Counts>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::TextEncoder;

    use super::*;

    #[test]
    fn who_waits_and_who_runs_is_in_the_labels() {
        let registry = Registry::new();
        let series = AdapterSeries::new(&registry, 3);
        let render = || {
            series.set();
            let text = TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
            let mut samples = text.lines().filter(|line| !line.starts_with('#')).map(String::from);
            let sample = samples.next().unwrap();
            assert_eq!(samples.next(), None, "one sample");
            sample.rsplit_once(' ').map(|(labels, _)| labels.to_owned()).unwrap()
        };
        let labels = |running, waiting| {
            format!(
                "vllm:lora_requests_info{{max_lora=\"3\",running_lora_adapters=\"{running}\",\
                 waiting_lora_adapters=\"{waiting}\"}}"
            )
        };
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!(render(), labels("", ""));
        [&a, &a, &b].into_iter().for_each(|name| series.begin(name));
        series.schedule(&a);
        assert_eq!(render(), labels("a", "a,b"));
        series.schedule(&b);
        series.end(&a, false);
        assert_eq!(render(), labels("a,b", ""));
        series.end(&a, true);
        series.end(&b, true);
        assert_eq!(render(), labels("", ""));
    }
}
