//! Random requests and logits, and a scheduler of sorts that plays them.

use quire_scheduler::kv::BlockId;
use quire_scheduler::sim::ToyGrammar;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::device::Device;

/// Sequences get so long.
const MAX_LEN: u32 = 60;

pub struct Play {
    pub device: Device,
    seed: u64,
    rng: StdRng,
    step: u64,
    running: Vec<Option<Running>>,
}

/// One request, as its scheduler sees it.
struct Running {
    id: RequestId,
    num_computed: u32,
    /// Tokens known, or on their way.
    len: u32,
    failed: bool,
}

impl Play {
    pub fn new(device: Device, seed: u64) -> Self {
        let running = (0..device.limits.max_num_seqs).map(|_| None).collect();
        Self { device, seed, rng: StdRng::seed_from_u64(seed), step: 0, running }
    }

    /// Submits a step, and collects one or none or all.
    pub fn step(&mut self) {
        let plan = self.plan();
        let vocab_size = self.device.limits.vocab_size;
        let rng = &mut self.rng;
        self.device.submit(plan, |_| random_logits(rng, vocab_size));
        while self.device.num_in_flight() == 2
            || (self.device.num_in_flight() == 1 && self.rng.random_bool(0.3))
        {
            self.collect();
        }
    }

    pub fn finish(&mut self) {
        while self.device.num_in_flight() > 0 {
            self.collect();
        }
    }

    fn collect(&mut self) {
        let context = format!("seed {}, after step {}", self.seed, self.step);
        let (owners, results) = self.device.collect_with_owners(&context);
        for (owner, result) in owners.into_iter().zip(results) {
            let failed = self.running.iter_mut().flatten().find(|running| Some(running.id) == owner);
            if let Some(running) = failed.filter(|_| result.failure.is_some()) {
                running.failed = true;
            }
        }
    }

    fn plan(&mut self) -> SchedulerOutput {
        self.step += 1;
        let mut plan = SchedulerOutput { step: self.step, ..SchedulerOutput::default() };
        for slot in 0..self.running.len() {
            let rng = &mut self.rng;
            let leaves =
                |running: &mut Running| running.failed || running.len == MAX_LEN || rng.random_bool(0.1);
            if self.running[slot].as_mut().is_some_and(leaves) {
                self.running[slot] = None;
                plan.released_slots.push(slot as u32);
            }
            let is_new = self.running[slot].is_none();
            if is_new {
                if self.rng.random_bool(0.3) {
                    continue;
                }
                self.admit(slot, &mut plan);
            }
            let Some(running) = &mut self.running[slot] else { continue };
            if !is_new && self.rng.random_bool(0.1) {
                continue;
            }
            let left = running.len - running.num_computed;
            let num_tokens = if self.rng.random_bool(0.7) { left } else { self.rng.random_range(1..=left) };
            let samples = num_tokens == left;
            let (id, start) = (running.id, running.num_computed);
            plan.rows.push(ScheduledRow {
                slot: slot as u32,
                id,
                start,
                num_tokens,
                new_blocks: 0..0,
                samples,
            });
            running.num_computed += num_tokens;
            running.len += u32::from(samples);
        }
        plan
    }

    fn admit(&mut self, slot: usize, plan: &mut SchedulerOutput) {
        let vocab_size = self.device.limits.vocab_size as u32;
        let rng = &mut self.rng;
        let id = RequestId(self.step * 100 + slot as u64);
        let prompt_len = rng.random_range(1..12);
        let output_len = if rng.random_bool(0.2) { rng.random_range(1..6) } else { 0 };
        let mut tokens = |count| (0..count).map(|_| likely_token(rng, vocab_size)).collect::<Vec<u32>>();
        let (prompt, output) = (tokens(prompt_len), tokens(output_len));
        let len = prompt_len + output_len;
        self.running[slot] = Some(Running { id, num_computed: 0, len, failed: false });
        plan.admitted.push(AdmittedRequest {
            slot: slot as u32,
            id,
            prompt_token_ids: prompt.into(),
            output_token_ids: output,
            sampling: random_params(&mut self.rng, vocab_size).into(),
            adapter: None,
            block_ids: vec![BlockId(1); MAX_LEN as usize / 16 + 1],
        });
    }
}

/// The first tokens turn up again and again, so that penalties and bad words meet them.
fn likely_token(rng: &mut StdRng, vocab_size: u32) -> u32 {
    let end = if rng.random_bool(0.7) { 6 } else { vocab_size };
    rng.random_range(0..end)
}

/// Each parameter in force with some probability.
fn random_params(rng: &mut StdRng, vocab_size: u32) -> SamplingParams {
    let mut params = SamplingParams { seed: rng.random(), max_tokens: 100, ..SamplingParams::default() };
    params.temperature = pick(rng, &[0.0, 0.01, 0.5, 1.0, 1.0, 1.3, 2.0]);
    params.top_k = pick(rng, &[0, 0, 0, 1, 2, 20, 60, vocab_size, 1_000_000]);
    params.top_p = pick(rng, &[1.0, 1.0, 0.999, 0.9, 0.5, 0.1, 1e-6]);
    params.min_p = pick(rng, &[0.0, 0.0, 0.0, 0.01, 0.5, 1.0]);
    if rng.random_bool(0.4) {
        params.repetition_penalty = pick(rng, &[1.0, 1.3, 0.7, 1e-38]);
        params.frequency_penalty = pick(rng, &[0.0, 0.7, -0.9, 2.0]);
        params.presence_penalty = pick(rng, &[0.0, 1.1, -2.0]);
    }
    let mut tokens = |count: usize| (0..count).map(|_| likely_token(rng, vocab_size)).collect::<Vec<u32>>();
    let lists = [tokens(3), tokens(3), tokens(8), tokens(40)];
    let words: Vec<Vec<u32>> = (0..40).map(|i| tokens(1 + i % 3)).collect();
    let [eos, stop, biased, allowed] = lists;
    if rng.random_bool(0.3) {
        params.min_tokens = rng.random_range(0..8);
        params.eos_token_ids = eos.into();
        params.stop_token_ids = stop;
    }
    if rng.random_bool(0.3) {
        params.logit_bias = biased.into_iter().map(|token| (token, rng.random_range(-9.0..9.0))).collect();
    }
    if rng.random_bool(0.2) {
        let mut allowed = allowed;
        allowed.truncate(rng.random_range(1..40));
        allowed.sort_unstable();
        allowed.dedup();
        params.allowed_token_ids = Some(allowed);
    }
    if rng.random_bool(0.3) {
        params.bad_words = words;
        params.bad_words.truncate(rng.random_range(1..40));
    }
    // Which tokens it allows is the device's business (`give_masks`).
    let toy = ToyGrammar { seed: 0, vocab_size, eos: 0, failures: 0 };
    params.grammar = rng.random_bool(0.3).then(|| toy.grammar());
    params.logprobs = pick(rng, &[None, None, Some(0), Some(1), Some(5), Some(64), Some(65)]);
    if rng.random_bool(0.3) {
        let mut ids: Vec<u32> =
            (0..rng.random_range(1..20)).map(|_| rng.random_range(0..vocab_size)).collect();
        ids.sort_unstable();
        ids.dedup();
        params.logprob_token_ids = Some(ids.into());
    }
    params.prompt_logprobs = pick(rng, &[None, None, None, Some(0), Some(3), Some(100)]);
    params
}

/// Of every kind: smooth, with ties, flat, far apart, and now and then not finite.
pub fn random_logits(rng: &mut StdRng, vocab_size: usize) -> Vec<f32> {
    let kind = rng.random_range(0..20);
    let spread: f32 = pick(rng, &[0.01, 1.0, 5.0, 20.0, 1000.0]);
    let mut logits: Vec<f32> = (0..vocab_size)
        .map(|_| {
            // Nearly a normal distribution.
            let value = (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() * spread;
            match kind {
                0..4 => (value * 4.0 / spread.max(1.0)).round() / 4.0,
                4 => 1.25,
                5 => pick(rng, &[0.0, -0.0, 0.0, -1.0]),
                6 => value * 1e30,
                _ => value,
            }
        })
        .collect();
    if rng.random_bool(0.7) {
        for logit in logits.iter_mut().take(6) {
            *logit += 2.0 * spread;
        }
    }
    if rng.random_bool(0.02) {
        let place = rng.random_range(0..vocab_size);
        logits[place] = pick(rng, &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    }
    logits
}

fn pick<T: Copy>(rng: &mut StdRng, choices: &[T]) -> T {
    choices[rng.random_range(0..choices.len())]
}
