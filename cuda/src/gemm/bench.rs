//! [`Bench`]: the place where algorithms are timed and compared, with matrices of its own.

use half::{bf16, f16};
use quire_model::Dtype;

use super::{GemmError, GemmShape, Product};
use crate::cublaslt::{Algorithm, CublasLtError, Operands};
use crate::driver::{DeviceMemory, Event, Graph, Stream};

/// Random elements made by the host and repeated over a matrix.
const PATTERN_ELEMENTS: usize = 1 << 20;
/// Algorithms measured again and again after a first look at all...
const FINALISTS_MAX: usize = 5;
/// ...if the first look did not show them so much slower than the fastest.
const FINALIST_RATIO: f32 = 1.2;
/// Measurements of a finalist, of which the median counts.
const ROUNDS: usize = 5;
/// What one measurement should last: well above the resolution of events (0.5 µs).
const MEASUREMENT_MS: f32 = 0.2;
/// Launches of one measurement at most.
const LAUNCHES_MAX: f32 = 16.0;
/// A single launch that takes longer than this, and so much longer than the fastest, is not measured again. Short
/// ones always are: what takes microseconds is not seen in single launches.
const HOPELESS_MS: f32 = 0.1;
const HOPELESS_RATIO: f32 = 1.5;
/// Different columns of the output when rows are compared; the others repeat them.
const CANCELLING_COLUMNS: usize = 64;
/// At most so many rows of a result are compared, spread over it.
const ROWS_COMPARED_MAX: u32 = 32;

/// Scratch matrices as large as the largest of all shapes.
///
/// Weights are read cold, as in a step, where the other layers lie between two uses of one: the memory for them
/// is at least four times the level 2 cache, holds as many copies of a weight as fit, and each launch reads the
/// next one. The input stays warm, which it is in a step too, just written by the kernel before. Random values,
/// not zeros, with which the chip draws less power and runs faster.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    stream: &'a Stream,
    workspace: (u64, usize),
    x: DeviceMemory,
    weights: DeviceMemory,
    bias: DeviceMemory,
    out: DeviceMemory,
    begin: Event,
    end: Event,
    /// Counts launches.
    turn: u64,
    /// What the matrices were filled for.
    filled_for: Option<GemmShape>,
}

/// Launches that are timed together. Several are one graph, as in a decode step: the host takes longer to enqueue a
/// small product than the device to compute it, so launches one by one would time the host.
#[derive(Debug)]
struct Burst {
    algorithm: Algorithm,
    launches: u32,
    /// `None` if there is one launch.
    graph: Option<Graph>,
}

impl<'a> Bench<'a> {
    /// Room for all `shapes`. `workspace` is an address and a size in bytes. Only timing needs `cold` weights.
    pub fn new(
        stream: &'a Stream,
        shapes: &[GemmShape],
        workspace: (u64, usize),
        cold: bool,
    ) -> Result<Self, GemmError> {
        let context = stream.context();
        let weights_least = if cold { 4 * context.attributes().l2_bytes as usize } else { 1 };
        let alloc = |bytes: &dyn Fn(&GemmShape) -> usize, least| {
            let most = shapes.iter().map(bytes).max().unwrap_or_default();
            DeviceMemory::alloc(context, most.max(least))
        };
        Ok(Self {
            stream,
            workspace,
            x: alloc(&|s| s.rows_max as usize * s.k as usize * s.input.bytes(), 1)?,
            weights: alloc(&weight_bytes, weights_least)?,
            bias: alloc(&|s| s.n as usize * s.output.bytes(), 1)?,
            out: alloc(&|s| s.rows_max as usize * s.n as usize * s.output.bytes(), 1)?,
            begin: Event::new(context)?,
            end: Event::new(context)?,
            turn: 0,
            filled_for: None,
        })
    }

    /// Milliseconds that each algorithm takes for `rows` rows; infinite for one that the library refuses to run.
    /// The times of the fastest are good to a few percent, those of others were measured once.
    pub fn times(
        &mut self,
        product: &mut Product,
        rows: u32,
        algorithms: &[Algorithm],
    ) -> Result<Vec<f32>, GemmError> {
        self.fill(&product.shape)?;
        let mut times = vec![f32::INFINITY; algorithms.len()];
        let mut bursts = Vec::new();
        let mut fastest_ms = f32::INFINITY;
        for (i, algorithm) in algorithms.iter().copied().enumerate() {
            // The first launch loads the kernel.
            if !self.runs(product, rows, &algorithm)? {
                continue;
            }
            let single = Burst { algorithm, launches: 1, graph: None };
            times[i] = self.measure(product, rows, &single)?;
            if times[i] > HOPELESS_MS.max(HOPELESS_RATIO * fastest_ms) {
                continue;
            }
            let burst = self.burst(product, rows, algorithm, times[i])?;
            times[i] = self.measure(product, rows, &burst)?;
            fastest_ms = fastest_ms.min(times[i]);
            bursts.push((i, burst, [0.0; ROUNDS]));
        }
        bursts.sort_by(|a, b| times[a.0].total_cmp(&times[b.0]));
        let close = bursts.iter().take_while(|(i, ..)| times[*i] <= fastest_ms * FINALIST_RATIO).count();
        bursts.truncate(close.min(FINALISTS_MAX));
        for round in 0..ROUNDS {
            for (_, burst, samples) in &mut bursts {
                samples[round] = self.measure(product, rows, burst)?;
            }
        }
        for (i, _, samples) in &mut bursts {
            samples.sort_by(f32::total_cmp);
            times[*i] = samples[ROUNDS / 2];
        }
        Ok(times)
    }

    /// Launches once and waits; false if the library refuses.
    pub fn runs(
        &mut self,
        product: &mut Product,
        rows: u32,
        algorithm: &Algorithm,
    ) -> Result<bool, GemmError> {
        match self.launch(product, rows, algorithm) {
            Ok(()) => self.stream.synchronize().map(|()| true).map_err(GemmError::from),
            Err(GemmError::Product { error: CublasLtError::Call { .. }, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the algorithm gives a row the same bits at every place of batches of every size: an input whose
    /// rows are all the same must give an output whose rows are all the same.
    pub fn treats_rows_alike(
        &mut self,
        product: &mut Product,
        algorithm: &Algorithm,
    ) -> Result<bool, GemmError> {
        let shape = product.shape;
        self.fill_cancelling(&shape)?;
        let out_bytes = shape.n as usize * shape.output.bytes();
        let mut expected = Vec::new();
        let mut row = vec![0; out_bytes];
        for rows in row_counts(shape.rows_max) {
            // Not-a-numbers, lest a row that is never written passes for the one of the batch before.
            self.stream.fill(self.out.address(), 0xff, rows as usize * out_bytes)?;
            // The same weight each time.
            self.turn = 0;
            self.launch(product, rows, algorithm)?;
            let compared = rows.min(ROWS_COMPARED_MAX);
            for i in 0..compared {
                let at = u64::from(i) * u64::from(rows - 1) / u64::from((compared - 1).max(1));
                self.stream.read_bytes(self.out.address() + at * out_bytes as u64, &mut row)?;
                if expected.is_empty() {
                    expected.clone_from(&row);
                }
                if row != expected || row.iter().all(|byte| *byte == 0xff) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Enough launches, one of which takes about `estimate_ms`, for a measurement.
    fn burst(
        &mut self,
        product: &mut Product,
        rows: u32,
        algorithm: Algorithm,
        estimate_ms: f32,
    ) -> Result<Burst, GemmError> {
        let launches = (MEASUREMENT_MS / estimate_ms).clamp(1.0, LAUNCHES_MAX) as u32;
        if launches == 1 {
            return Ok(Burst { algorithm, launches, graph: None });
        }
        self.stream.begin_capture()?;
        let launched = (0..launches).try_for_each(|_| self.launch(product, rows, &algorithm));
        let graph = self.stream.end_capture();
        launched?;
        let burst = Burst { algorithm, launches, graph: Some(graph?) };
        // The first launch of a graph uploads it.
        self.measure(product, rows, &burst)?;
        Ok(burst)
    }

    /// Milliseconds that one product of a burst takes.
    fn measure(&mut self, product: &mut Product, rows: u32, burst: &Burst) -> Result<f32, GemmError> {
        self.stream.record(&self.begin)?;
        match &burst.graph {
            Some(graph) => self.stream.launch_graph(graph)?,
            None => self.launch(product, rows, &burst.algorithm)?,
        }
        self.stream.record(&self.end)?;
        self.end.synchronize()?;
        Ok(self.end.elapsed_ms(&self.begin)? / burst.launches as f32)
    }

    fn launch(&mut self, product: &mut Product, rows: u32, algorithm: &Algorithm) -> Result<(), GemmError> {
        let Product { shape, operation, .. } = product;
        let stride = weight_bytes(shape).next_multiple_of(256);
        let copies = (self.weights.len() / stride).max(1) as u64;
        let operands = Operands {
            x: self.x.address(),
            weight: self.weights.address() + self.turn % copies * stride as u64,
            bias: shape.bias.then(|| self.bias.address()),
            out: self.out.address(),
        };
        self.turn += 1;
        operation
            .enqueue(self.stream, rows, algorithm, &operands, self.workspace)
            .map_err(|error| GemmError::Product { shape: *shape, error })
    }

    /// Random elements between -1 and 1 for everything that is read.
    fn fill(&mut self, shape: &GemmShape) -> Result<(), GemmError> {
        if self.filled_for == Some(*shape) {
            return Ok(());
        }
        let input = random_elements(shape.input);
        for memory in [&self.x, &self.weights] {
            self.write_repeated(memory, &input)?;
        }
        self.write_repeated(&self.bias, &random_elements(shape.output))?;
        self.filled_for = Some(*shape);
        Ok(())
    }

    /// Rows of the input that are all the same, and a weight with which every sum is exactly 0: each term has its
    /// opposite somewhere else. What is computed is what rounding leaves, which is another number in another order
    /// of summation. (Ordinary sums differ in the last bits of f32, which an output of 16 bits seldom shows.)
    fn fill_cancelling(&mut self, shape: &GemmShape) -> Result<(), GemmError> {
        self.filled_for = None;
        let mut random = Random(1);
        let k = shape.k as usize;
        let mut order: Vec<usize> = (0..k).collect();
        for i in 1..k {
            order.swap(i, random.below(i + 1));
        }
        let columns = CANCELLING_COLUMNS.min(shape.n as usize);
        let (mut x, mut weight) = (vec![0.0; k], vec![0.0; columns * k]);
        for pair in order.chunks_exact(2) {
            let value = random.element();
            x[pair[0]] = value;
            x[pair[1]] = value;
            for row in weight.chunks_exact_mut(k) {
                let value = random.element();
                row[pair[0]] = value;
                row[pair[1]] = -value;
            }
        }
        let (x, weight) = (encode(shape.input, &x), encode(shape.input, &weight));
        self.stream.write_bytes(self.x.address(), &x)?;
        self.repeat(self.x.address(), x.len(), x.len() * shape.rows_max as usize)?;
        self.stream.write_bytes(self.weights.address(), &weight)?;
        self.repeat(self.weights.address(), weight.len(), weight_bytes(shape))?;
        Ok(self.stream.fill(self.bias.address(), 0, self.bias.len())?)
    }

    fn write_repeated(&self, to: &DeviceMemory, bytes: &[u8]) -> Result<(), GemmError> {
        let len = bytes.len().min(to.len());
        self.stream.write_bytes(to.address(), &bytes[..len])?;
        self.repeat(to.address(), len, to.len())
    }

    /// Repeats the first `period` bytes up to `len`.
    fn repeat(&self, address: u64, period: usize, len: usize) -> Result<(), GemmError> {
        let mut done = period;
        while done < len {
            let more = done.min(len - done);
            self.stream.copy_on_device(address + done as u64, address, more)?;
            done += more;
        }
        Ok(())
    }
}

fn weight_bytes(shape: &GemmShape) -> usize {
    shape.n as usize * shape.k as usize * shape.input.bytes()
}

/// Powers of two, and next to them numbers that fill no tile.
fn row_counts(rows_max: u32) -> Vec<u32> {
    let mut counts: Vec<u32> =
        (0..u32::BITS).flat_map(|bit| [1 << bit, (1 << bit) + (1 << (bit / 2))]).collect();
    counts.push(rows_max);
    counts.retain(|count| *count <= rows_max);
    counts.sort_unstable();
    counts.dedup();
    counts
}

/// Knuth's MMIX generator; the upper bits are random enough for a matrix.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    /// Between -1 and 1.
    fn element(&mut self) -> f32 {
        self.next() as f32 / (1_u64 << 30) as f32 - 1.0
    }

    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }
}

fn random_elements(dtype: Dtype) -> Vec<u8> {
    let mut random = Random(1);
    let values: Vec<f32> = (0..PATTERN_ELEMENTS).map(|_| random.element()).collect();
    encode(dtype, &values)
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Dtype::Bf16 => values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_counts_reach_from_one_row_to_all() {
        assert_eq!(row_counts(1), [1]);
        assert_eq!(row_counts(12), [1, 2, 3, 4, 6, 8, 10, 12]);
        let counts = row_counts(8192);
        assert_eq!((counts[0], counts[counts.len() - 1]), (1, 8192));
        assert!(counts.contains(&4096) && counts.contains(&(4096 + 64)));
        assert_eq!(row_counts(u32::MAX).last(), Some(&u32::MAX));
    }
}
