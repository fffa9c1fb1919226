//! The runner on the CPU: one bad request fails alone, plans that contradict it are refused, and a step of
//! running requests allocates nothing.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;

use candle_core::{Device, Tensor, safetensors};
use quire_cpu::{CpuBackend, CpuOptions};
use quire_model::{Checkpoint, Model, ModelSpec, Runner, RunnerConfig};
use quire_scheduler::kv::BlockId;
use quire_scheduler::{
    FinishReason, Grammar, GrammarError, GrammarMatcher, ModelRunner, SamplingParams, SchedulerOutput,
    StepTicket, TokenId,
};
use support::{Planner, Sequence, load_runner, pebble};

/// Counts the allocations of the thread that asks.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: hands every call on to the system's allocator unchanged.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CONFIG: RunnerConfig = RunnerConfig {
    max_num_seqs: 4,
    max_num_batched_tokens: 64,
    max_model_len: 256,
    block_size: 16,
    num_blocks: 60,
};

fn greedy() -> SamplingParams {
    SamplingParams { temperature: 0.0, max_tokens: 100, ..SamplingParams::default() }
}

#[test]
fn invariant_1_a_decode_step_allocates_nothing() {
    let mut runner = load_runner(&pebble().join("model"), CpuOptions::default(), CONFIG);
    let mut planner = Planner::new(CONFIG.block_size, (1..60).collect());
    let random = SamplingParams {
        temperature: 0.9,
        top_k: 40,
        top_p: 0.9,
        repetition_penalty: 1.1,
        frequency_penalty: 0.2,
        max_tokens: 100,
        ..SamplingParams::default()
    };
    let grammar = Some(Grammar::new(|| Box::new(EvenThenForced { num_tokens: 0 })));
    let with_grammar = SamplingParams { grammar, ..random.clone() };
    let mut sequences = [
        Sequence::new(0, 1, &[1, 282, 207], greedy()),
        Sequence::new(2, 2, &[1, 300, 301, 302], random),
        Sequence::new(3, 3, &[1, 300], with_grammar),
    ];
    for step in 0..60 {
        planner.begin();
        for sequence in &mut sequences {
            let left = sequence.len() - sequence.computed;
            planner.add(sequence, left);
        }
        let before = ALLOCATIONS.get();
        let ticket = runner.submit(&planner.plan).unwrap();
        let output = runner.collect(ticket).unwrap();
        // The first steps fill buffers that stay.
        let allocations = ALLOCATIONS.get() - before;
        assert!(step < 3 || allocations == 0, "step {step}: {allocations} allocations");
        assert!(output.failed_rows.is_empty());
        assert_eq!(output.forced, if step % 2 == 0 { vec![] } else { vec![FORCED] });
        let sampled = output.sampled.iter();
        sequences.iter_mut().zip(sampled).for_each(|(sequence, token)| sequence.output.push(*token));
        sequences[2].output.extend(&output.forced);
    }
    assert!(sequences[2].output.iter().all(|token| token % 2 == 0 || *token == FORCED));
}

const FORCED: TokenId = 301;

/// Two even tokens, one that is forced, and again. What a grammar allocates on its own threads is its business;
/// this one lets the test see that nobody allocates for it on the engine thread.
#[derive(Debug)]
struct EvenThenForced {
    num_tokens: usize,
}

impl GrammarMatcher for EvenThenForced {
    fn fill_mask(&mut self, mask: &mut [u32]) -> Result<bool, GrammarError> {
        mask.fill(0x5555_5555);
        Ok(true)
    }

    fn accept(&mut self, _: TokenId) -> Result<(), GrammarError> {
        self.num_tokens += 1;
        Ok(())
    }

    fn take_forced(&mut self, out: &mut Vec<TokenId>) -> Result<(), GrammarError> {
        if self.num_tokens % 3 == 2 {
            out.push(FORCED);
            self.num_tokens += 1;
        }
        Ok(())
    }
}

/// The fixture with one token's embedding made to be not a number.
fn poisoned_runner(token: usize) -> Runner<CpuBackend> {
    let dir = std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../model/tests/fixtures/llama-bias-llama3");
    let file = dir.join("model.safetensors");
    let mut tensors: HashMap<String, Tensor> = safetensors::load(&file, &Device::Cpu).unwrap();
    let embedding = tensors.get_mut("model.embed_tokens.weight").unwrap();
    let (width, dtype) = (embedding.dim(1).unwrap(), embedding.dtype());
    let bad = Tensor::full(f32::NAN, (1, width), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    *embedding = embedding.slice_scatter0(&bad, token).unwrap();
    let scratch = std::env::temp_dir().join(format!("quire-poisoned-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).unwrap();
    safetensors::save(&tensors, scratch.join("model.safetensors")).unwrap();
    let mut backend = CpuBackend::new(CpuOptions::default()).unwrap();
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&scratch).unwrap();
    let model = Model::load(&mut backend, spec, &checkpoint, &mut |_| {}).unwrap();
    std::fs::remove_dir_all(&scratch).unwrap();
    Runner::new(backend, model, RunnerConfig { max_model_len: 96, ..CONFIG }).unwrap()
}

#[test]
fn invariant_12_a_request_with_damaged_numbers_fails_alone() {
    let mut runner = poisoned_runner(50);
    let mut planner = Planner::new(CONFIG.block_size, (1..60).collect());
    let with_logprobs = SamplingParams { logprobs: Some(2), prompt_logprobs: Some(0), ..greedy() };
    let mut sequences = [
        Sequence::new(0, 1, &[5, 6, 7], with_logprobs.clone()),
        Sequence::new(1, 2, &[5, 50, 7, 8], with_logprobs.clone()),
        Sequence::new(2, 3, &[5, 6, 7], with_logprobs),
    ];
    planner.begin();
    for sequence in &mut sequences {
        let len = sequence.len();
        planner.add(sequence, len);
    }
    let output = planner.run(&mut runner, &mut sequences);
    assert_eq!(output.sampled.len(), 3);
    assert_eq!(output.sampled[0], output.sampled[2]);
    assert_eq!(output.failed_rows.len(), 1);
    assert_eq!(output.failed_rows[0].0, 1);
    assert_eq!(output.failed_rows[0].1, FinishReason::Error("the model's logits are not finite".into()));
    let healthy: Vec<u32> = output.logprobs.iter().filter(|l| l.row != 1).map(|l| l.position).collect();
    assert_eq!(healthy, [1, 2, 3, 1, 2, 3]);
    assert!(output.logprobs.iter().all(|l| l.logprob.is_finite()));
    // Their blocks are given to others afterwards: what is left in them must not matter.
    planner.begin();
    planner.release(&mut sequences[1]);
    let mut next = [Sequence::new(1, 4, &[5, 6, 7], greedy())];
    planner.add(&mut next[0], 3);
    let again = planner.run(&mut runner, &mut next).sampled[0];
    assert_eq!(again, sequences[0].output[0]);
}

/// Spoils a plan.
type Change = fn(&mut SchedulerOutput);

#[test]
fn plans_that_contradict_the_runner_are_refused() {
    let mut runner = load_runner(&pebble().join("model"), CpuOptions::default(), CONFIG);
    let good = || {
        let mut planner = Planner::new(CONFIG.block_size, (1..60).collect());
        planner.begin();
        planner.add(&mut Sequence::new(0, 1, &[5; 20], greedy()), 20);
        planner.plan
    };
    let refused: [(&str, Change); 8] = [
        ("a slot that is not there", |plan| plan.admitted[0].slot = 4),
        ("a row of somebody else", |plan| plan.rows[0].id.0 = 9),
        ("tokens beyond the sequence", |plan| plan.rows[0].num_tokens = 21),
        ("no tokens", |plan| plan.rows[0].num_tokens = 0),
        ("too few blocks", |plan| plan.rows[0].new_blocks = 0..1),
        ("a block that is not there", |plan| plan.new_block_ids[1] = BlockId(60)),
        ("a cached block that is not there", |plan| plan.admitted[0].block_ids.push(BlockId(60))),
        ("a token that is not there", |plan| plan.admitted[0].prompt_token_ids = [5000; 20].into()),
    ];
    for (what, change) in refused {
        let mut plan = good();
        change(&mut plan);
        let error = runner.submit(&plan).expect_err(what);
        assert!(!error.fatal, "{what}: {error}");
    }
    // It is as good as new afterwards, and takes one plan at a time.
    let ticket = runner.submit(&good()).unwrap();
    assert!(runner.submit(&good()).is_err());
    assert_eq!(runner.collect(ticket).unwrap().sampled.len(), 1);
    assert!(runner.collect(StepTicket(1)).unwrap_err().fatal);
}
