//! [`Sampler`]: the rules of [`quire_model::sample_row`] on the device, so that only token ids and the
//! log-probabilities asked for come back. The kernels are kernels/sampling.cu and kernels/sampling_choose.cu.
//!
//! What belongs to a request (parameters, rules for single logits, allowed tokens, what occurred) lies on the
//! device by slot and is sent when the request comes; a step sends 40 bytes a row. A choice is the host's, to
//! the token, except where the two machines' exp differ in the last place and the draw falls between the two
//! sums: about one draw in ten million.

mod masks;
mod results;
mod slot_state;
mod upload;

use quire_model::{BackendError, LogitsRow, RowResult, Slot, StepLimits};

use crate::driver::{CudaError, DeviceMemory, Function, Stream};
use crate::kernels::{KernelError, Kernels};
use crate::packet::Packet;
use crate::refusal::refusal;

use masks::MaskUpload;
use results::Results;
use upload::{Upload, UploadLayout};

pub use slot_state::{MAX_RULES, MAX_WORDS};

/// Alternatives a row that come from the device. A row that asks for more, or for tokens of its own choice, brings
/// its logits to the host, in
/// [`Sampler::read_wide_rows`].
pub const TOP_MAX: usize = 64;

/// Steps that may be between [`Sampler::upload`] and [`Sampler::collect`].
pub const MAX_IN_FLIGHT: usize = 2;

/// The largest vocabulary: sums of so many weights of 2^44 fit into 64 bits, and so many ids into their
/// digits.
pub const MAX_VOCAB_SIZE: usize = 1 << 19;

/// Logits of a row that one block of the first kernel works on; `PART_LOGITS` there.
const PART_LOGITS: usize = 8192;
const PROCESS_THREADS: u32 = 256;
const PROCESS_SHARED_BYTES: u32 = 64;
const PART_SUMMARY_BYTES: usize = 24;
const CHOOSE_SHARED_BYTES: u32 = 44_648;

/// Everything that sampling needs, allocated once.
///
/// A step calls [`Self::upload`]; once it is known what grammars allow, [`Self::send_masks`]; for each range of its
/// rows, after the model's work, [`Self::launch`] and [`Self::read_wide_rows`]; then [`Self::download`]; sooner or
/// later [`Self::collect`].
#[derive(Debug)]
pub struct Sampler {
    admit: Function,
    process: Function,
    choose: Function,
    choose_threads: u32,
    arrays: SamplingArrays,
    upload: Upload,
    masks: MaskUpload,
    results: Results,
    num_parts: u32,
    _memory: DeviceMemory,
}

/// Device addresses of everything; the mirror of `SamplingArrays` in kernels/sampling.cuh, which says their
/// shapes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct SamplingArrays {
    slots: u64,
    rules: u64,
    counts: u64,
    allowed: u64,
    masks: u64,
    last_tokens: u64,
    rows: u64,
    parts: u64,
    kept_logits: u64,
    results: u64,
    top: u64,
    vocab: u32,
    rules_per_slot: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct SampleParams {
    arrays: SamplingArrays,
    logits: u64,
    first_row: u32,
    num_parts: u32,
}

const _: () = {
    assert!(size_of::<SamplingArrays>() == 96);
    assert!(size_of::<SampleParams>() == 112);
};

impl Sampler {
    /// Bytes of device memory that [`Self::new`] takes: by slot mostly the occurrences of each token of the
    /// vocabulary (4 bytes each), by token of the largest step 1/2 KiB of results, which is little beside
    /// that token's activations.
    pub fn scratch_bytes(limits: &StepLimits) -> usize {
        Layout::new(limits).bytes
    }

    /// For steps within `limits`. `last_tokens` is the address of `[max_num_seqs]` words, by slot. `packet` is what each step's rows come in. Logits are at the address
    /// given to [`Self::launch`], a multiple of 16.
    pub fn new(
        stream: &Stream,
        kernels: &Kernels,
        limits: &StepLimits,
        last_tokens: u64,
        packet: &Packet,
    ) -> Result<Self, BackendError> {
        let vocab = limits.vocab_size;
        if vocab > MAX_VOCAB_SIZE {
            return Err(refusal(format!(
                "vocab_size {vocab}; sampling on the GPU takes up to {MAX_VOCAB_SIZE}"
            )));
        }
        let layout = Layout::new(limits);
        let memory = DeviceMemory::alloc(stream.context(), layout.bytes)?;
        let arrays = layout.arrays(memory.address(), limits, last_tokens, packet);
        let function = |name| -> Result<Function, KernelError> { kernels.function(name) };
        Ok(Self {
            admit: function("sampling_admit")?,
            process: function("sampling_process")?,
            choose: function("sampling_choose")?,
            choose_threads: choose_threads(vocab),
            upload: Upload::new(stream.context(), limits, layout.upload, layout.image(memory.address()))?,
            masks: MaskUpload::new(stream.context(), limits, arrays.masks)?,
            results: Results::new(stream.context(), layout.rows, arrays.results, arrays.top)?,
            num_parts: num_parts(vocab) as u32,
            arrays,
            _memory: memory,
        })
    }

    /// Words of a packet at most.
    pub fn max_words(limits: &StepLimits) -> usize {
        max_rows(limits) * slot_state::ROW_WORDS
    }

    /// Starts a step whose logits are for `rows`: adds them to the packet, which must be empty, and tells the device
    /// of the requests among them that it does not know. `slots` is by [`LogitsRow::slot`].
    ///
    /// Enqueues nothing if all are known. Waits for the device only if what is new does not fit into one entry of a
    /// ring (very long prompts with penalties).
    pub fn upload(
        &mut self,
        stream: &Stream,
        packet: &mut Packet,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        self.results.begin(rows, slots, self.arrays.vocab as usize)?;
        self.masks.begin(rows, slots);
        self.upload.push_rows(packet, rows, slots);
        self.upload.send(stream, &self.admit, &self.arrays, rows, slots)
    }

    /// Sends the masks of the step's rows, which their slots have by now. To be called once a step, before the first
    /// [`Self::launch`]; enqueues nothing if no row has a grammar.
    pub fn send_masks(&mut self, stream: &Stream, slots: &[Slot]) -> Result<(), CudaError> {
        self.masks.send(stream, slots)
    }

    /// Enqueues the kernels for the step's rows `first_row ..  first_row + num_rows`, at most
    /// `max_logits_rows`, whose logits `[num_rows][vocab_size]` are at `logits`. They write the results, the
    /// slots' last tokens and occurrences, and leave rows with log-probabilities as they were. May be
    /// recorded in a graph.
    pub fn launch(
        &self,
        stream: &Stream,
        logits: u64,
        first_row: usize,
        num_rows: usize,
    ) -> Result<(), CudaError> {
        let params = SampleParams {
            arrays: self.arrays,
            logits,
            first_row: first_row as u32,
            num_parts: self.num_parts,
        };
        let rows = num_rows as u32;
        stream.launch(
            &self.process,
            [self.num_parts, rows, 1],
            PROCESS_THREADS,
            PROCESS_SHARED_BYTES,
            &params,
        )?;
        stream.launch(&self.choose, [rows, 1, 1], self.choose_threads, CHOOSE_SHARED_BYTES, &params)
    }

    /// After the kernels of these rows: takes the alternatives of those that ask for more than [`TOP_MAX`], or for
    /// certain tokens, from their logits, on the host. Waits for the device if there are such rows, and does nothing if there
    /// are none.
    pub fn read_wide_rows(
        &mut self,
        stream: &Stream,
        logits: u64,
        first_row: usize,
        num_rows: usize,
    ) -> Result<(), CudaError> {
        let vocab = self.arrays.vocab as usize;
        self.results.read_wide_rows(stream, logits, vocab, first_row..first_row + num_rows)
    }

    /// Enqueues the way back of the results of all rows of the step.
    pub fn download(&mut self, stream: &Stream) -> Result<(), CudaError> {
        self.results.download(stream)
    }

    /// Waits for the oldest step that was downloaded and not collected: a result for each of its rows.
    pub fn collect(&mut self) -> Result<&[RowResult], BackendError> {
        self.results.collect()
    }
}

fn num_parts(vocab_size: usize) -> usize {
    vocab_size.div_ceil(PART_LOGITS)
}

/// Threads of the block that chooses: up to eight logits each for small vocabularies, as many as there are
/// for large ones. What is chosen does not depend on it.
fn choose_threads(vocab_size: usize) -> u32 {
    (vocab_size.div_ceil(8)).next_multiple_of(32).clamp(128, 1024) as u32
}

/// Where the arrays lie in the one allocation.
struct Layout {
    offsets: [usize; 9],
    bytes: usize,
    /// Rows that a step can have.
    rows: usize,
    upload: UploadLayout,
}

const ALIGNMENT: usize = 256;

/// Rows that a step can have.
fn max_rows(limits: &StepLimits) -> usize {
    limits.max_num_batched_tokens.max(limits.max_logits_rows)
}

impl Layout {
    fn new(limits: &StepLimits) -> Self {
        let (vocab, num_slots) = (limits.vocab_size, limits.max_num_seqs);
        let rows = max_rows(limits);
        let upload = UploadLayout::new(limits);
        let sizes = [
            num_slots * 4 * slot_state::PARAMS_WORDS,
            num_slots * MAX_RULES * 4 * slot_state::RULE_WORDS,
            num_slots * vocab * 4,
            num_slots * vocab.div_ceil(32) * 4,
            MaskUpload::max_words(limits) * 4,
            upload.bytes(),
            limits.max_logits_rows * (num_parts(vocab) * PART_SUMMARY_BYTES + MAX_RULES * 4),
            rows * results::RESULT_BYTES,
            rows * TOP_MAX * results::TOP_ENTRY_BYTES,
        ];
        let mut bytes = 0;
        let offsets = sizes.map(|size| {
            let offset = bytes;
            bytes += size.next_multiple_of(ALIGNMENT);
            offset
        });
        Self { offsets, bytes, rows, upload }
    }

    /// Where news of slots come to lie.
    fn image(&self, start: u64) -> u64 {
        start + self.offsets[5] as u64
    }

    fn arrays(&self, start: u64, limits: &StepLimits, last_tokens: u64, packet: &Packet) -> SamplingArrays {
        let [slots, rules, counts, allowed, masks, _image, parts, results, top] =
            self.offsets.map(|offset| start + offset as u64);
        let parts_bytes = limits.max_logits_rows * num_parts(limits.vocab_size) * PART_SUMMARY_BYTES;
        SamplingArrays {
            slots,
            rules,
            counts,
            allowed,
            masks,
            last_tokens,
            rows: packet.address(),
            parts,
            kept_logits: parts + parts_bytes as u64,
            results,
            top,
            vocab: limits.vocab_size as u32,
            rules_per_slot: MAX_RULES as u32,
        }
    }
}
