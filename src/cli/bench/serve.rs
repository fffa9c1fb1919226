//! `quire bench serve`: a client that loads a server as asked, and reports what the server's clients see.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use bytes::Bytes;
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::signal::ctrl_c;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until};

use super::arrivals::arrival_times_s;
use super::measure::{Api, Outcome, Sender};
use super::report::Report;
use super::result_file;
use super::serve_args::ServeBench;
use super::vocabulary::Vocabulary;
use super::workload::{Sample, samples};
use crate::cli::client::Client;
use crate::cli::progress_bar;
use crate::text::Tokenizer;

/// Between two looks whether the server is there.
const READY_CHECK_INTERVAL: Duration = Duration::from_millis(500);
/// Sets the arrivals' random numbers apart from the prompts'.
const ARRIVALS_STREAM: u64 = 0x6172_7269_7661_6c73;

/// Runs it: loads the server, prints the report, saves it if asked to. Ctrl-C ends the run early, with a
/// report of what has ended by then. It is an error if no request was answered.
pub(crate) fn run(args: &ServeBench) -> anyhow::Result<()> {
    // One thread: the client shall leave the other cores to the server.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (sent, model) = runtime.block_on(measure(args))?;
    let report = Report::new(&sent.outcomes, sent.duration, &args.report.options());
    println!("{}", report.table(args.load.max_concurrency, args.load.request_rate));
    if sent.interrupted {
        eprintln!(
            "(interrupted: of {} requests, the report has those that had ended)",
            args.dataset.num_prompts
        );
    }
    result_file::save(args, &model, &report, &sent.outcomes)?;
    match sent.outcomes.iter().find_map(|outcome| outcome.error.as_deref()) {
        Some(error) if report.completed() == 0 => bail!("all requests failed; the first: {error}"),
        Some(error) => eprintln!("the first error: {error}"),
        None if report.completed() == 0 => bail!("no request had ended"),
        None => (),
    }
    Ok(())
}

/// What became of the requests.
#[derive(Debug)]
pub(super) struct Sent {
    /// In the order of sending. Requests without an end are not among them.
    pub(super) outcomes: Vec<Outcome>,
    /// From the start to the last end, or to the interruption.
    pub(super) duration: Duration,
    /// Ctrl-C cut the run short.
    pub(super) interrupted: bool,
}

/// Makes the workload, waits for the server, warms it up, and sends everything. Also says which model was
/// asked for.
pub(super) async fn measure(args: &ServeBench) -> anyhow::Result<(Sent, String)> {
    let client = Arc::new(client(args)?);
    let model = match &args.model {
        Some(model) => model.clone(),
        None => match client.models("/v1/models").await {
            Ok(mut models) => models.swap_remove(0),
            Err(error) => {
                bail!("--model was not given, and asking the server for its models failed: {error}")
            }
        },
    };
    let with_ready_check = args.load.ready_check_timeout_sec > 0;
    let num_extra = args.load.num_warmups + u32::from(with_ready_check);
    let mut samples = workload(args, num_extra)?;
    let extra_fields = args.sampling.fields();
    let name = args.served_model_name.as_deref().unwrap_or(&model);
    let request = |sample: &Sample| (args.backend.body(name, sample, &extra_fields), sample.prompt_len);
    let mut extra: Vec<_> =
        samples.split_off(args.dataset.num_prompts as usize).iter().map(request).collect();
    let requests: Vec<_> = samples.iter().map(request).collect();
    drop(samples);

    let sender = Arc::new(Sender {
        client,
        api: args.backend,
        endpoint: args.endpoint.clone().unwrap_or_else(|| args.backend.endpoint().into()),
        keep_text: args.report.save_detailed,
    });
    if with_ready_check && let Some((body, _)) = extra.pop() {
        let patience = Duration::from_secs(args.load.ready_check_timeout_sec);
        wait_until_ready(&sender, body, patience).await?;
    }
    let warmup =
        Load { times_s: vec![0.0; extra.len()], requests: extra, max_concurrency: args.load.max_concurrency };
    if warmup.send(&sender, &ProgressBar::hidden()).await.interrupted {
        bail!("interrupted while warming up");
    }
    let mut rng = StdRng::seed_from_u64(args.load.seed ^ ARRIVALS_STREAM);
    let times_s = arrival_times_s(requests.len(), args.load.request_rate, args.load.burstiness, &mut rng);
    let bar = match args.report.disable_tqdm {
        true => ProgressBar::hidden(),
        false => progress_bar(requests.len() as u64, "{bar:40} {pos}/{len} requests [{elapsed} < {eta}]"),
    };
    let load = Load { requests, times_s, max_concurrency: args.load.max_concurrency };
    let sent = load.send(&sender, &bar).await;
    bar.finish_and_clear();
    Ok((sent, model))
}

fn client(args: &ServeBench) -> anyhow::Result<Client> {
    let url = match &args.base_url {
        Some(url) => url.clone(),
        None => format!("http://{}:{}", args.host, args.port),
    };
    let mut client = Client::new(&url, args.api_key.as_deref())?;
    for (name, value) in &args.header {
        client.add_header(name, value)?;
    }
    Ok(client)
}

fn workload(args: &ServeBench, num_extra: u32) -> anyhow::Result<Vec<Sample>> {
    let tokenizer = args.tokenizer.as_deref().map(Tokenizer::from_dir).transpose()?;
    let vocabulary = match (&tokenizer, args.backend) {
        (Some(tokenizer), _) => Vocabulary::texts_of(tokenizer.clone()),
        (None, Api::OpenaiChat) => Vocabulary::words(args.vocab_size),
        (None, Api::Openai | Api::Vllm) => Vocabulary::ids(args.vocab_size),
    };
    samples(&args.dataset, num_extra, args.load.seed, &vocabulary, tokenizer.as_ref())
}

/// Sends one request again and again until it is answered.
async fn wait_until_ready(sender: &Sender, body: Bytes, patience: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    loop {
        let Some(error) = sender.send(body.clone(), 0, start).await.error else { return Ok(()) };
        if start.elapsed() >= patience {
            bail!("the server was not ready within {} s: {error}", patience.as_secs());
        }
        sleep(READY_CHECK_INTERVAL).await;
    }
}

/// What to send, and when.
struct Load {
    /// Bodies, and the tokens of their prompts.
    requests: Vec<(Bytes, u32)>,
    /// One a request, ascending.
    times_s: Vec<f64>,
    /// Requests open together at most.
    max_concurrency: Option<u32>,
}

impl Load {
    /// Sends each request at its time, or as soon after it as there may be one more.
    async fn send(self, sender: &Arc<Sender>, bar: &ProgressBar) -> Sent {
        let outcomes = Arc::new(Mutex::new(vec![None; self.requests.len()]));
        let limit = self.max_concurrency.map_or(Semaphore::MAX_PERMITS, |limit| limit as usize);
        let permits = Arc::new(Semaphore::new(limit));
        let epoch = Instant::now();
        let whole = async {
            let mut running = JoinSet::new();
            for (index, ((body, prompt_len), time_s)) in
                self.requests.into_iter().zip(self.times_s).enumerate()
            {
                let due = epoch + Duration::from_secs_f64(time_s);
                if due > Instant::now() {
                    sleep_until(due.into()).await;
                }
                let permit = permits.clone().acquire_owned().await.expect("it is never closed");
                let (sender, outcomes, bar) = (sender.clone(), outcomes.clone(), bar.clone());
                running.spawn(async move {
                    let outcome = sender.send(body, prompt_len, epoch).await;
                    drop(permit);
                    lock(&outcomes)[index] = Some(outcome);
                    bar.inc(1);
                });
            }
            while running.join_next().await.is_some() {}
        };
        let interrupted = tokio::select! {
            () = whole => false,
            _ = ctrl_c() => true,
        };
        let duration = epoch.elapsed();
        let outcomes = std::mem::take(&mut *lock(&outcomes)).into_iter().flatten().collect();
        Sent { outcomes, duration, interrupted }
    }
}

fn lock(outcomes: &Mutex<Vec<Option<Outcome>>>) -> MutexGuard<'_, Vec<Option<Outcome>>> {
    outcomes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::Value;

    use super::*;
    use crate::http::tests::{Settings, start};

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        bench: ServeBench,
    }

    async fn bench(words: &str) -> (ServeBench, Sent, String) {
        let server = start(Settings::default()).await;
        let words = format!("bench --base-url http://{} {words}", server.address);
        let args = Flags::parse_from(words.split_whitespace()).bench;
        let (sent, model) = measure(&args).await.unwrap();
        server.wait_until_idle().await;
        (args, sent, model)
    }

    #[tokio::test]
    async fn a_server_is_measured() {
        let (args, sent, model) = bench(
            "--num-prompts 40 --random-input-len 30 --random-output-len 12 --random-range-ratio 0.5 --ignore-eos --temperature 0 \
             --max-concurrency 5 --num-warmups 2 --ready-check-timeout-sec 5 --request-rate 400 --seed 3 \
             --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,99 --goodput e2el:60000 --save-detailed",
        )
        .await;
        assert_eq!((sent.outcomes.len(), sent.interrupted, model.as_str()), (40, false, "pebble"));
        let asked = workload(&args, 3).unwrap();
        for (outcome, asked) in sent.outcomes.iter().zip(&asked) {
            assert_eq!(outcome.error, None);
            assert_eq!((outcome.prompt_tokens, outcome.output_tokens), (asked.prompt_len, asked.output_len));
            assert!(!outcome.text.is_empty(), "{outcome:?}");
            assert!(outcome.itls.len() < asked.output_len as usize, "{outcome:?}");
            assert!(outcome.start + outcome.latency <= sent.duration);
        }
        let json = Report::new(&sent.outcomes, sent.duration, &args.report.options()).to_json();
        assert!(json["max_concurrent_requests"].as_u64().unwrap() <= 5);
        assert_eq!(json["request_goodput"], json["request_throughput"]);
        assert!(json.values().all(Value::is_number), "{json:?}");
        // Not before the last one was due.
        assert!(sent.duration >= Duration::from_millis(100));
    }

    #[tokio::test]
    async fn chat_is_measured_from_the_first_text() {
        let words = "--backend openai-chat --num-prompts 6 --input-len 20 --output-len 8 --ignore-eos";
        let (_, sent, _) = bench(words).await;
        assert_eq!(sent.outcomes.len(), 6);
        for outcome in &sent.outcomes {
            assert_eq!((&outcome.error, outcome.output_tokens), (&None, 8));
            // The server's count, which has the chat template in it.
            assert!(outcome.prompt_tokens > 20);
            assert!(outcome.itls.len() < 8, "the chunk that names the role is not a token");
        }
    }

    #[tokio::test]
    async fn failures_are_counted_and_told() {
        let (args, sent, _) = bench("--num-prompts 3 --input-len 20 --model nobody").await;
        let report = Report::new(&sent.outcomes, sent.duration, &args.report.options());
        assert_eq!((report.completed(), sent.outcomes.len()), (0, 3));
        let error = sent.outcomes[0].error.as_deref().unwrap();
        assert!(error.contains("404") && error.contains("nobody"), "{error}");
    }
}
