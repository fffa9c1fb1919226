//! [`Results`]: what comes back from the device, for up to two steps at a time.

use std::ops::Range;
use std::sync::Arc;

use quire_model::{
    BackendError, LogitsRow, RowFailure, RowResult, Slot, capture_logprob, capture_logprobs_of,
};

use super::slot_state::device_top;
use super::{MAX_IN_FLIGHT, TOP_MAX};
use crate::driver::{Context, CudaError, Event, PinnedMemory, Stream};
use crate::refusal::refusal;

/// `SamplingResult` in kernels/sampling.cuh: token, logprob, rank, failure.
pub(super) const RESULT_BYTES: usize = 16;
/// `TopEntry` there: token, logprob.
pub(super) const TOP_ENTRY_BYTES: usize = 8;

/// Steps in turn: the one that is being enqueued is number `downloaded`.
#[derive(Debug)]
pub(super) struct Results {
    steps: [PendingStep; MAX_IN_FLIGHT],
    downloaded: usize,
    collected: usize,
    /// Device addresses.
    results: u64,
    top: u64,
    max_rows: usize,
    rows: Vec<RowResult>,
}

/// One step's results on their way.
#[derive(Debug)]
struct PendingStep {
    memory: PinnedMemory,
    arrived: Event,
    /// By row: alternatives asked for, if any log-probability. Empty once collected.
    wanted_top: Vec<Option<u32>>,
    /// By row: the tokens to tell instead of the best.
    wanted_ids: Vec<Option<Arc<[u32]>>>,
    /// By row: alternatives from the device.
    num_top: Vec<usize>,
    /// By row: what it means that nothing is left to choose from.
    nothing_left: Vec<RowFailure>,
    /// Rows with other alternatives, or more, than come from the device, and these.
    wide: Vec<(usize, Vec<(u32, f32)>)>,
}

impl Results {
    /// For steps of up to `max_rows` rows, whose results the kernels write at these device addresses.
    pub(super) fn new(
        context: &Arc<Context>,
        max_rows: usize,
        results: u64,
        top: u64,
    ) -> Result<Self, CudaError> {
        Ok(Self {
            steps: [PendingStep::new(context, max_rows)?, PendingStep::new(context, max_rows)?],
            downloaded: 0,
            collected: 0,
            results,
            top,
            max_rows,
            rows: vec![RowResult::default(); max_rows],
        })
    }

    /// Remembers what the rows of a new step ask for. A step that was begun and not downloaded is forgotten:
    /// it could not be enqueued.
    pub(super) fn begin(
        &mut self,
        rows: &[LogitsRow],
        slots: &[Slot],
        vocab_size: usize,
    ) -> Result<(), BackendError> {
        if self.downloaded - self.collected == MAX_IN_FLIGHT {
            return Err(refusal(format!("{MAX_IN_FLIGHT} steps are in flight already")));
        }
        let step = &mut self.steps[self.downloaded % MAX_IN_FLIGHT];
        step.wide.clear();
        step.wanted_top.clear();
        step.wanted_top.extend(rows.iter().map(|row| row.wanted_top(&slots[row.slot as usize])));
        step.wanted_ids.clear();
        step.wanted_ids.extend(rows.iter().map(|row| row.wanted_ids(&slots[row.slot as usize]).cloned()));
        step.nothing_left.clear();
        let nothing_left = |row: &LogitsRow| RowFailure::NothingAllowed.under(&slots[row.slot as usize]);
        step.nothing_left.extend(rows.iter().map(nothing_left));
        step.num_top.clear();
        step.num_top.extend(step.wanted_top.iter().map(|wanted| device_top(*wanted, vocab_size)));
        Ok(())
    }

    /// See [`super::Sampler::read_wide_rows`]; of the step begun last.
    pub(super) fn read_wide_rows(
        &mut self,
        stream: &Stream,
        logits: u64,
        vocab_size: usize,
        range: Range<usize>,
    ) -> Result<(), CudaError> {
        let step = &mut self.steps[self.downloaded % MAX_IN_FLIGHT];
        let first = range.start;
        for index in first..range.end.min(step.wanted_top.len()) {
            let wanted_ids = step.wanted_ids[index].as_deref();
            let is_wide = |count: &u32| wanted_ids.is_some() || *count as usize > TOP_MAX;
            let Some(count) = step.wanted_top[index].filter(is_wide) else { continue };
            let mut result = [0; RESULT_BYTES];
            stream.read_bytes(self.results + (index * RESULT_BYTES) as u64, &mut result)?;
            let [token, _, _, failure] = words(&result);
            if failure != 0 {
                continue;
            }
            let row_bytes = vocab_size * size_of::<f32>();
            let mut bytes = vec![0; row_bytes];
            stream.read_bytes(logits + ((index - first) * row_bytes) as u64, &mut bytes)?;
            let values: Vec<f32> =
                bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            let mut top = Vec::new();
            match wanted_ids {
                Some(ids) => capture_logprobs_of(&values, token, ids, &mut top),
                None => capture_logprob(&values, token, count, &mut top),
            };
            step.wide.push((index, top));
        }
        Ok(())
    }

    pub(super) fn download(&mut self, stream: &Stream) -> Result<(), CudaError> {
        let step = &mut self.steps[self.downloaded % MAX_IN_FLIGHT];
        let results_bytes = step.num_top.len() * RESULT_BYTES;
        if results_bytes > 0 {
            stream.copy_to_host(&mut step.memory, 0..results_bytes, self.results)?;
        }
        let top_bytes = step.num_top.iter().sum::<usize>() * TOP_ENTRY_BYTES;
        if top_bytes > 0 {
            let start = self.max_rows * RESULT_BYTES;
            stream.copy_to_host(&mut step.memory, start..start + top_bytes, self.top)?;
        }
        stream.record(&step.arrived)?;
        self.downloaded += 1;
        Ok(())
    }

    pub(super) fn collect(&mut self) -> Result<&[RowResult], BackendError> {
        if self.collected == self.downloaded {
            return Err(refusal("no step is in flight".into()));
        }
        let step = &mut self.steps[self.collected % MAX_IN_FLIGHT];
        step.arrived.synchronize()?;
        self.collected += 1;
        let (results, top) = step.memory.bytes().split_at(self.max_rows * RESULT_BYTES);
        let mut top = top.as_chunks::<TOP_ENTRY_BYTES>().0;
        let asked = step.num_top.iter().zip(&step.nothing_left);
        for ((row, (num_top, nothing_left)), bytes) in
            self.rows.iter_mut().zip(asked).zip(results.as_chunks::<RESULT_BYTES>().0)
        {
            let (own, rest) = top.split_at(*num_top);
            top = rest;
            read_result(row, bytes, own, *nothing_left);
        }
        for (index, top) in step.wide.drain(..) {
            self.rows[index].top = top;
        }
        step.wanted_top.clear();
        Ok(&self.rows[..step.num_top.len()])
    }
}

impl PendingStep {
    fn new(context: &Arc<Context>, max_rows: usize) -> Result<Self, CudaError> {
        Ok(Self {
            memory: PinnedMemory::alloc(context, max_rows * (RESULT_BYTES + TOP_MAX * TOP_ENTRY_BYTES))?,
            arrived: Event::new(context)?,
            wanted_top: Vec::with_capacity(max_rows),
            wanted_ids: Vec::with_capacity(max_rows),
            num_top: Vec::with_capacity(max_rows),
            nothing_left: Vec::with_capacity(max_rows),
            wide: Vec::new(),
        })
    }
}

fn words<const BYTES: usize, const WORDS: usize>(bytes: &[u8; BYTES]) -> [u32; WORDS] {
    std::array::from_fn(|i| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    })
}

fn read_result(
    row: &mut RowResult,
    bytes: &[u8; RESULT_BYTES],
    top: &[[u8; TOP_ENTRY_BYTES]],
    nothing_left: RowFailure,
) {
    let [token, logprob, rank, failure] = words(bytes);
    (row.token, row.logprob, row.rank) = (token, f32::from_bits(logprob), rank);
    row.failure = match failure {
        0 => None,
        1 => Some(RowFailure::NotFinite),
        _ => Some(nothing_left),
    };
    row.top.clear();
    if row.failure.is_none() {
        row.top.extend(top.iter().map(|entry| {
            let [token, logprob] = words(entry);
            (token, f32::from_bits(logprob))
        }));
    }
}
