//! A sampler on the device beside the host's rule: plans go to both, and every result is compared.

use std::collections::VecDeque;

use quire_cuda::driver::{Context, DeviceMemory, Stream};
use quire_cuda::packet::Packet;
use quire_cuda::sampling::{MAX_IN_FLIGHT, Sampler};
use quire_cuda::{Kernels, emulator};
use quire_model::{
    InputBatch, LogitsRow, LogitsTask, RowResult, SamplerScratch, Slot, StepLimits, capture_logprob,
    capture_logprobs_of, sample_row,
};
use quire_scheduler::{RequestId, SchedulerOutput};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::reference::{is_within_tolerance, processed};

pub struct Device {
    pub stream: Stream,
    pub sampler: Sampler,
    packet: Packet,
    pub limits: StepLimits,
    logits: DeviceMemory,
    last_tokens: DeviceMemory,
    /// As the host sees it when it submits: without the tokens of steps in flight.
    ahead: InputBatch,
    /// As it is: every token of earlier steps is known.
    reference: InputBatch,
    in_flight: VecDeque<Step>,
    /// Rows compared, and among them draws that differ though within what the last places explain.
    pub num_rows: usize,
    pub num_different_draws: usize,
}

struct Step {
    plan: SchedulerOutput,
    rows: Vec<LogitsRow>,
    owners: Vec<Option<RequestId>>,
    logits: Vec<Vec<f32>>,
}

impl Device {
    pub fn new(max_num_seqs: usize, max_logits_rows: usize, vocab_size: usize) -> Self {
        Self::with_tokens(512, max_num_seqs, max_logits_rows, vocab_size)
    }

    /// For steps of so many tokens.
    pub fn with_tokens(
        max_num_batched_tokens: usize,
        max_num_seqs: usize,
        max_logits_rows: usize,
        vocab_size: usize,
    ) -> Self {
        emulator::use_stand_in();
        let limits = StepLimits {
            max_num_seqs,
            max_num_batched_tokens,
            max_blocks_per_seq: 4096,
            block_size: 16,
            max_logits_rows,
            vocab_size,
            heads_per_group: 1,
            num_kv_groups: 1,
        };
        let context = Context::new(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        let logits = DeviceMemory::alloc(&context, max_logits_rows * vocab_size * 4).unwrap();
        let last_tokens = DeviceMemory::alloc(&context, (max_num_seqs + 1) * 4).unwrap();
        stream.fill(last_tokens.address(), 0, last_tokens.len()).unwrap();
        let packet = Packet::new(&context, Sampler::max_words(&limits)).unwrap();
        let sampler = Sampler::new(&stream, &kernels, &limits, last_tokens.address(), &packet).unwrap();
        Self {
            stream,
            sampler,
            packet,
            logits,
            last_tokens,
            ahead: InputBatch::new(limits),
            reference: InputBatch::new(limits),
            limits,
            in_flight: VecDeque::new(),
            num_rows: 0,
            num_different_draws: 0,
        }
    }

    /// Submits a step whose logits are what `logits` gives for each row.
    pub fn submit(&mut self, plan: SchedulerOutput, mut logits: impl FnMut(&LogitsRow) -> Vec<f32>) {
        assert!(self.in_flight.len() < MAX_IN_FLIGHT);
        self.ahead.apply(&plan).unwrap();
        let rows = self.ahead.logits_rows().to_vec();
        let logits: Vec<Vec<f32>> = rows.iter().map(&mut logits).collect();
        self.packet.begin().unwrap();
        let packet = &mut self.packet;
        self.sampler.upload(&self.stream, packet, &rows, self.ahead.slots()).unwrap();
        packet.send(&self.stream).unwrap();
        // As late as grammars may be.
        give_masks(&mut self.ahead, self.limits.vocab_size);
        self.sampler.send_masks(&self.stream, self.ahead.slots()).unwrap();
        for first in (0..rows.len()).step_by(self.limits.max_logits_rows) {
            let count = self.limits.max_logits_rows.min(rows.len() - first);
            let of_launch = logits[first..first + count].concat();
            let bytes: Vec<u8> = of_launch.iter().flat_map(|logit| logit.to_le_bytes()).collect();
            self.stream.write_bytes(self.logits.address(), &bytes).unwrap();
            self.sampler.launch(&self.stream, self.logits.address(), first, count).unwrap();
            self.sampler.read_wide_rows(&self.stream, self.logits.address(), first, count).unwrap();
        }
        self.sampler.download(&self.stream).unwrap();
        let owners = rows.iter().map(|row| self.ahead.slots()[row.slot as usize].id()).collect();
        self.ahead.expect_tokens();
        self.in_flight.push_back(Step { plan, rows, owners, logits });
    }

    pub fn num_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Compares the oldest step's results with the host's. Panics with `context` where they differ.
    pub fn collect(&mut self, context: &str) -> Vec<RowResult> {
        self.collect_with_owners(context).1
    }

    /// The same, with the requests that the rows belong to.
    pub fn collect_with_owners(&mut self, context: &str) -> (Vec<Option<RequestId>>, Vec<RowResult>) {
        let step = self.in_flight.pop_front().expect("a step is in flight");
        self.reference.apply(&step.plan).unwrap();
        give_masks(&mut self.reference, self.limits.vocab_size);
        assert_eq!(self.reference.logits_rows(), step.rows);
        let results = self.sampler.collect().unwrap().to_vec();
        assert_eq!(results.len(), step.rows.len());
        let mut scratch = SamplerScratch::new(self.limits.vocab_size);
        for ((row, result), logits) in step.rows.iter().zip(&results).zip(&step.logits) {
            let slot = &self.reference.slots()[row.slot as usize];
            let context = format!("{context}, {row:?}, {:?}", slot.params());
            let mut expected = RowResult::default();
            sample_row(row, &mut logits.clone(), slot, &mut scratch, &mut expected);
            self.num_rows += 1;
            if expected.token != result.token && expected.failure == result.failure {
                self.num_different_draws += 1;
                expect_within_tolerance(row, slot, logits, result, &mut expected, &context);
            }
            compare(result, &expected, &context);
        }
        self.reference.expect_tokens();
        for ((row, owner), result) in step.rows.iter().zip(&step.owners).zip(&results) {
            if row.task == LogitsTask::Sample {
                self.reference.set_token(row.slot, row.position, result.token);
                if self.ahead.slots()[row.slot as usize].id() == *owner {
                    self.ahead.set_token(row.slot, row.position, result.token);
                }
            }
        }
        (step.owners, results)
    }

    /// The device's own last tokens; nothing may be in flight.
    pub fn last_tokens(&self) -> Vec<u32> {
        let mut bytes = vec![0; self.last_tokens.len()];
        self.stream.read_bytes(self.last_tokens.address(), &mut bytes).unwrap();
        bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()
    }
}

/// What grammars allow in this test: a function of the request and the position, no mask at all among it, and now
/// and then nothing.
fn give_masks(batch: &mut InputBatch, vocab_size: usize) {
    let (rows, slots) = batch.rows_and_slots();
    for row in rows.iter().filter(|row| row.task == LogitsTask::Sample) {
        let slot = &mut slots[row.slot as usize];
        if slot.params().grammar.is_none() {
            continue;
        }
        let seed = slot.id().map_or(0, |id| id.0) << 32 | u64::from(row.position);
        let rng = &mut StdRng::seed_from_u64(seed);
        let share = [0.0, 0.01, 0.1, 0.5, 1.0][rng.random_range(0..5)];
        let mut words = || (0..32).fold(0, |word, bit| word | u32::from(rng.random_bool(share)) << bit);
        let mut mask: Vec<u32> = (0..vocab_size.div_ceil(32)).map(|_| words()).collect();
        if rng.random_bool(0.8) {
            mask[0] |= 1;
        }
        slot.set_mask(rng.random_bool(0.9).then_some(&mut mask));
    }
}

/// The device drew another token: that must be within what the last places explain, and everything else is
/// then expected of that token.
fn expect_within_tolerance(
    row: &LogitsRow,
    slot: &Slot,
    logits: &[f32],
    result: &RowResult,
    expected: &mut RowResult,
    context: &str,
) {
    let output_position = row.position as usize - slot.prompt_len();
    let drawn_from = processed(logits, slot, output_position);
    assert!(
        slot.params().temperature > 0.0
            && is_within_tolerance(&drawn_from, slot.params(), output_position as u32, result.token),
        "{context}: token {} for {}",
        result.token,
        expected.token
    );
    expected.token = result.token;
    if expected.rank > 0 {
        let count = slot.params().logprobs.unwrap();
        let own = match row.wanted_ids(slot) {
            Some(ids) => capture_logprobs_of(logits, result.token, ids, &mut expected.top),
            None => capture_logprob(logits, result.token, count, &mut expected.top),
        };
        (expected.logprob, expected.rank) = (own.logprob, own.rank);
    }
}

fn compare(found: &RowResult, expected: &RowResult, context: &str) {
    assert_eq!(found.failure, expected.failure, "{context}");
    if expected.failure.is_some() {
        return;
    }
    let close = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
    assert_eq!((found.token, found.rank), (expected.token, expected.rank), "{context}");
    assert!(close(found.logprob, expected.logprob), "{context}: {} for {}", found.logprob, expected.logprob);
    let tokens = |result: &RowResult| result.top.iter().map(|entry| entry.0).collect::<Vec<_>>();
    assert_eq!(tokens(found), tokens(expected), "{context}");
    let all_close = found.top.iter().zip(&expected.top).all(|(a, b)| close(a.1, b.1));
    assert!(all_close, "{context}: {:?} for {:?}", found.top, expected.top);
}
