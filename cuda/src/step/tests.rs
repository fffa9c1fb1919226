//! The step's arrays as kernels find them, against a model of them on the host: random steps, with more block writes
//! than one packet holds, tokens that are not known yet, and padding.

use std::sync::Arc;

use quire_model::{InputBatch, LogitsTask, PLACEHOLDER_BIT, StepInputs, StepLimits};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{AdmittedRequest, RequestId, SamplingParams, ScheduledRow, SchedulerOutput};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

use super::StepBuffers;
use crate::driver::Stream;
use crate::kernels::Kernels;
use crate::packet::Packet;

const LIMITS: StepLimits = StepLimits {
    max_num_seqs: 9,
    max_num_batched_tokens: 20,
    max_blocks_per_seq: 30,
    block_size: 4,
    max_logits_rows: 9,
    vocab_size: 50,
    heads_per_group: 1,
    num_kv_groups: 1,
};

/// Words of another's section at the beginning of each packet, at most.
const MAX_WORDS_BEFORE: usize = 40;

/// The device's arrays and what must be in them.
struct Bench {
    stream: Stream,
    buffers: StepBuffers,
    packet: Packet,
    tables: Vec<u32>,
    last_tokens: Vec<u32>,
}

impl Bench {
    fn new(rng: &mut StdRng) -> Self {
        crate::emulator::use_stand_in();
        let context = crate::open_gpu(0).unwrap();
        let stream = Stream::new(&context).unwrap();
        let kernels = Kernels::open(&context, None).unwrap();
        let buffers = StepBuffers::new(&context, &stream, &kernels, &LIMITS).unwrap();
        let max_words = MAX_WORDS_BEFORE + StepBuffers::max_words(&LIMITS);
        let packet = Packet::new(&context, max_words).unwrap();
        let last_tokens: Vec<u32> = (0..=LIMITS.max_num_seqs).map(|_| rng.random_range(0..50)).collect();
        let bytes: Vec<u8> = last_tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        stream.write_bytes(buffers.last_tokens(), &bytes).unwrap();
        let tables = vec![0; (LIMITS.max_num_seqs + 1) * LIMITS.max_blocks_per_seq];
        Self { stream, buffers, packet, tables, last_tokens }
    }

    fn assert_holds(&self, address: u64, expected: &[u32], what: &str) {
        let mut bytes = vec![0; 4 * expected.len()];
        self.stream.read_bytes(address, &mut bytes).unwrap();
        let found: Vec<u32> = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        assert_eq!(found, expected, "{what}");
    }

    /// Uploads and compares everything.
    fn check(&mut self, rng: &mut StdRng, inputs: &StepInputs, padded_rows: usize, what: &str) {
        let Self { stream, buffers, packet, .. } = self;
        buffers.send_excess(stream, packet, inputs).unwrap();
        packet.begin().unwrap();
        packet.push(rng.random_range(0..=MAX_WORDS_BEFORE)).0.fill(0xdead);
        buffers.send(stream, packet, inputs, padded_rows).unwrap();
        for [slot, index, block] in inputs.block_writes() {
            self.tables[*slot as usize * LIMITS.max_blocks_per_seq + *index as usize] = *block;
        }
        let num_rows = inputs.row_slots().len();
        let padding = padded_rows - num_rows;
        let padded = |words: &[u32], word: u32| [words, &vec![word; padding]].concat();
        let padding_slot = LIMITS.max_num_seqs as u32;
        let token = |word: &u32| match word & PLACEHOLDER_BIT {
            0 => *word,
            _ => self.last_tokens[(word & !PLACEHOLDER_BIT) as usize],
        };
        let token_ids: Vec<u32> = inputs.token_ids().iter().map(token).collect();
        let slots: Vec<u32> =
            inputs.token_rows().iter().map(|row| inputs.row_slots()[*row as usize]).collect();
        let mut starts = vec![0];
        starts.extend(inputs.row_ends());
        let positions: Vec<u32> =
            starts[..num_rows].iter().map(|start| inputs.positions()[*start as usize]).collect();
        let (tokens, logits) = (inputs.num_tokens() as u32, inputs.logits_tokens().len() as u32);
        starts.extend((1..=padding as u32).map(|row| tokens + row));
        let logits_tokens: Vec<u32> =
            inputs.logits_tokens().iter().copied().chain(tokens..tokens + padding as u32).collect();
        let pointers = self.buffers.pointers();
        let more = padding as u32;
        self.assert_holds(pointers.counts, &[tokens + more, padded_rows as u32, logits + more], what);
        self.assert_holds(pointers.token_ids, &padded(&token_ids, 0), what);
        self.assert_holds(pointers.positions, &padded(inputs.positions(), 0), what);
        self.assert_holds(pointers.token_slots, &padded(&slots, padding_slot), what);
        self.assert_holds(pointers.row_slots, &padded(inputs.row_slots(), padding_slot), what);
        self.assert_holds(pointers.row_starts, &starts, what);
        self.assert_holds(pointers.row_positions, &padded(&positions, 0), what);
        self.assert_holds(pointers.logits_tokens, &logits_tokens, what);
        self.assert_holds(pointers.block_tables, &self.tables, what);
        self.assert_holds(self.buffers.last_tokens(), &self.last_tokens, what);
    }
}

/// Blocks of one request, and how much of it is computed.
struct Request {
    len: u32,
    computed: u32,
    blocks: u32,
}

/// A plan that admits requests with long cached prefixes, or goes on with those there are. Without `prompts`, it is
/// one token each.
fn random_plan(
    rng: &mut StdRng,
    step: u64,
    requests: &mut [Option<Request>],
    prompts: bool,
) -> SchedulerOutput {
    let mut plan = SchedulerOutput { step, ..SchedulerOutput::default() };
    let mut slots: Vec<usize> = (0..requests.len()).collect();
    slots.shuffle(rng);
    let block = |rng: &mut StdRng| BlockId(rng.random_range(0..1000));
    for slot in slots {
        let room = LIMITS.max_num_batched_tokens as u32 - plan.num_tokens;
        if room == 0 || rng.random_bool(0.2) {
            continue;
        }
        let id = RequestId(slot as u64);
        if prompts && (requests[slot].is_none() || rng.random_bool(0.3)) {
            let cached = rng.random_range(0..29);
            let len = 4 * cached + rng.random_range(1..4);
            if requests[slot].take().is_some() {
                plan.released_slots.push(slot as u32);
            }
            plan.admitted.push(AdmittedRequest {
                slot: slot as u32,
                id,
                prompt_token_ids: (0..len).map(|_| rng.random_range(0..50)).collect(),
                output_token_ids: Vec::new(),
                sampling: Arc::new(SamplingParams::default()),
                adapter: None,
                block_ids: (0..cached).map(|_| block(rng)).collect(),
            });
            requests[slot] = Some(Request { len, computed: 4 * cached, blocks: cached });
        }
        let Some(request) = &mut requests[slot] else { continue };
        if request.len == 4 * LIMITS.max_blocks_per_seq as u32 {
            continue;
        }
        let most = (request.len - request.computed).min(room);
        let num_tokens = if prompts { rng.random_range(1..=most) } else { 1 };
        let end = request.computed + num_tokens;
        let first = plan.new_block_ids.len() as u32;
        while 4 * request.blocks < end {
            plan.new_block_ids.push(block(rng));
            request.blocks += 1;
        }
        let samples = end == request.len;
        plan.rows.push(ScheduledRow {
            slot: slot as u32,
            id,
            start: request.computed,
            num_tokens,
            new_blocks: first..plan.new_block_ids.len() as u32,
            samples,
        });
        plan.num_tokens += num_tokens;
        request.computed = end;
        request.len += u32::from(samples);
    }
    plan
}

#[test]
fn steps_are_spread_and_padded_as_the_host_would() {
    let (mut in_pieces, mut padded_steps, mut unknown) = (0, 0, 0);
    for seed in 0..25 {
        let rng = &mut StdRng::seed_from_u64(seed);
        let mut bench = Bench::new(rng);
        let mut batch = InputBatch::new(LIMITS);
        let mut requests: Vec<Option<Request>> = (0..LIMITS.max_num_seqs).map(|_| None).collect();
        for step in 1..12 {
            let prompts = step == 1 || rng.random_bool(0.5);
            let plan = random_plan(rng, step, &mut requests, prompts);
            if plan.rows.is_empty() {
                continue;
            }
            batch.apply(&plan).unwrap();
            let inputs = batch.inputs();
            let rows = plan.rows.len();
            let is_decode = inputs.num_tokens() == rows && inputs.logits_tokens().len() == rows;
            let padded_rows = if is_decode { rng.random_range(rows..=LIMITS.max_num_seqs) } else { rows };
            in_pieces += u32::from(inputs.block_writes().len() > super::max_block_writes(&LIMITS));
            padded_steps += u32::from(padded_rows > rows);
            unknown += u32::from(inputs.token_ids().iter().any(|word| word & PLACEHOLDER_BIT != 0));
            bench.check(rng, inputs, padded_rows, &format!("seed {seed}, step {step}"));
            batch.expect_tokens();
            // Some tokens are told in time, others not.
            for row in batch.logits_rows().to_vec() {
                assert_eq!(row.task, LogitsTask::Sample);
                if rng.random_bool(0.3) {
                    batch.set_token(row.slot, row.position, rng.random_range(0..50));
                }
            }
        }
    }
    assert!(in_pieces > 10 && padded_steps > 10 && unknown > 10, "{in_pieces} {padded_steps} {unknown}");
}
