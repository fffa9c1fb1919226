//! [`Metrics`]: a scrape of `/metrics`, read by the rules of the Prometheus text format.

use std::collections::BTreeMap;

/// One line of a scrape.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sample {
    /// With suffixes such as `_total` or `_bucket`.
    pub(crate) name: String,
    /// By name.
    pub(crate) labels: BTreeMap<String, String>,
    /// The value.
    pub(crate) value: f64,
}

/// All samples and the declared types.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// In the order of the scrape.
    pub(crate) samples: Vec<Sample>,
    /// Family name to `counter`, `gauge` or `histogram`.
    pub(crate) types: BTreeMap<String, String>,
}

impl Metrics {
    /// Panics on anything that a Prometheus server would not take.
    pub(crate) fn parse(text: &str) -> Self {
        let mut metrics = Self::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').expect("name and kind");
                let old = metrics.types.insert(name.to_owned(), kind.to_owned());
                assert_eq!(old, None, "{name} is declared twice");
            } else if !line.starts_with('#') {
                metrics.samples.push(sample(line));
            }
        }
        metrics
    }

    /// Sum over all label sets; panics if there is no such sample.
    pub(crate) fn value(&self, name: &str) -> f64 {
        self.value_where(name, &[])
    }

    /// Sum over the label sets that have these labels; panics if there is none.
    pub(crate) fn value_where(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name && labels.iter().all(|&(k, v)| sample.labels.get(k).is_some_and(|l| l == v))
        };
        let found: Vec<f64> = self.samples.iter().filter(has).map(|sample| sample.value).collect();
        assert!(!found.is_empty(), "no sample {name} with {labels:?}");
        found.iter().sum()
    }

    /// Requests running, requests waiting, share of KV blocks in use.
    pub(crate) fn load_figures(&self) -> [f64; 3] {
        ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"]
            .map(|name| self.value(name))
    }
}

fn sample(line: &str) -> Sample {
    let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value in {line:?}"));
    let value = value.parse().unwrap_or_else(|_| panic!("not a number in {line:?}"));
    let Some((name, rest)) = key.split_once('{') else {
        return Sample { name: key.to_owned(), labels: BTreeMap::new(), value };
    };
    let rest = rest.strip_suffix('}').unwrap_or_else(|| panic!("labels do not end in {line:?}"));
    let label = |pair: &str| {
        let (name, value) = pair.split_once("=\"").unwrap_or_else(|| panic!("bad label in {line:?}"));
        (name.trim_start_matches(',').to_owned(), value.to_owned())
    };
    // No label of ours holds a quote, so that a quote always ends a value.
    let labels = rest.split_terminator('"').collect::<Vec<_>>();
    let labels = labels.chunks(2).map(|pair| label(&pair.join("\""))).collect();
    Sample { name: name.to_owned(), labels, value }
}

#[test]
fn samples_and_labels_are_read() {
    let metrics = Metrics::parse(
        "# HELP a b\n# TYPE a counter\na_total{x=\"1,2\",y=\"z\"} 2\na_total{x=\"q\"} 3.5\nb 1e3\n",
    );
    assert_eq!(metrics.types["a"], "counter");
    assert_eq!(metrics.value("a_total"), 5.5);
    assert_eq!(metrics.value_where("a_total", &[("x", "1,2"), ("y", "z")]), 2.0);
    assert_eq!(metrics.value("b"), 1000.0);
}
