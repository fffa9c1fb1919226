//! [`Gemm`]: the model's matrix products, by cuBLASLt.
//!
//! Everything that takes time is done in [`Gemm::new`]: descriptors are made once for each shape, and for each
//! range of rows one algorithm is chosen, among those the library proposes, by timing them (or read from the
//! table of an earlier start), and checked for every number of rows it may be used with. [`Gemm::run`] then looks
//! one up, sets a few attributes and enqueues: no allocation, no search, no wait, fit for capture into graphs.
//!
//! # The same bits
//!
//! NVIDIA documents that cuBLAS gives the same bits from run to run on one GPU model, and makes one exception:
//! several streams that share a workspace. Here every call passes the same memory, allocated once, on the one
//! stream; so with one table the results are reproducible.
//!
//! They depend on how many rows are computed together, as another number of rows may mean another algorithm, and
//! another algorithm sums in another order. With [`GemmOptions::batch_invariant`] a shape has one algorithm for all
//! numbers of rows, without split-k, without a reduction and without workspace (which rules out algorithms that
//! divide tiles among multiprocessors and add the pieces). Then every element of the output is the sum over `k`
//! of one tile, in the order that is compiled into the kernel. That the order does not change with the number of
//! rows is plausible and what other servers build on, but nothing up to CUDA 13.3 promises it. So
//! [`Gemm::new`] does not believe it: it computes one row at many places of many batches, and takes only an
//! algorithm whose results agree bit for bit.

mod bench;
mod choose;
mod table;

use std::fmt;
use std::path::PathBuf;

use quire_model::{BackendError, Dtype};

use crate::cublaslt::{ALIGNMENT_BYTES, CublasLt, Operation};
use crate::driver::{CudaError, DeviceMemory, Stream};

pub use crate::cublaslt::{Algorithm, CublasLtError, Operands};

/// What NVIDIA recommends for Hopper; less elsewhere, but nowhere worth saving.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

/// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ (+ bias[n])`, all contiguous, sums in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GemmShape {
    /// Columns of the output.
    pub n: u32,
    /// Columns of the input.
    pub k: u32,
    /// Type of `x` and the weight.
    pub input: Dtype,
    /// Type of `out` and the bias: `input`, or f32.
    pub output: Dtype,
    /// Whether a bias is added.
    pub bias: bool,
    /// The most rows there will be.
    pub rows_max: u32,
}

/// How algorithms are chosen.
#[derive(Debug, Clone, Default)]
pub struct GemmOptions {
    /// One algorithm for all numbers of rows, such that a row's result does not depend on the other rows.
    pub batch_invariant: bool,
    /// `None`: the first that the library proposes, which starts at once.
    pub tuning: Option<GemmTuning>,
}

/// Choosing by timing.
#[derive(Debug, Clone)]
pub struct GemmTuning {
    /// Where choices are kept between starts; `None` keeps none.
    pub table_directory: Option<PathBuf>,
    /// After so many seconds the rest gets the library's first proposal, and is timed at the next start.
    pub seconds_max: f64,
}

/// What [`Gemm::new`] did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GemmReport {
    /// Ranges of rows, over all shapes, whose algorithm came from the table.
    pub from_table: usize,
    /// Those whose algorithm was chosen by timing.
    pub timed: usize,
    /// Those that got the library's first proposal.
    pub first_proposals: usize,
    /// How long it took.
    pub seconds: f64,
    /// What the reader of the log should know, in lines.
    pub warnings: Vec<String>,
}

/// Why a product cannot be prepared or enqueued.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GemmError {
    /// cuBLASLt or the driver.
    #[error(transparent)]
    Library(#[from] CublasLtError),
    /// cuBLASLt, for a product.
    #[error("{shape}: {error}")]
    Product {
        /// Which.
        shape: GemmShape,
        /// What.
        error: CublasLtError,
    },
    /// There is no such product.
    #[error("{shape}: {reason}")]
    Shape {
        /// Which.
        shape: GemmShape,
        /// In words.
        reason: &'static str,
    },
    /// The library cannot compute it.
    #[error("{shape}: cuBLASLt has no algorithm for {first} to {last} rows that {which}")]
    NoAlgorithm {
        /// Which.
        shape: GemmShape,
        /// The smallest number of rows.
        first: u32,
        /// The largest.
        last: u32,
        /// What it would have to be.
        which: &'static str,
    },
    /// More rows than were announced.
    #[error("{shape}: {rows} rows, prepared for 1 to {}", .shape.rows_max)]
    Rows {
        /// Which.
        shape: GemmShape,
        /// How many.
        rows: u32,
    },
    /// Addresses that do not fit the shape.
    #[error("{shape}: {operand} is {found}, must be {allowed}")]
    Operand {
        /// Which.
        shape: GemmShape,
        /// Which of the operands.
        operand: &'static str,
        /// As it is.
        found: String,
        /// As it must be.
        allowed: &'static str,
    },
}

/// One of the products given to [`Gemm::new`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GemmId(usize);

/// All products of a model, ready to run.
#[derive(Debug)]
pub struct Gemm {
    products: Vec<Product>,
    /// None in the batch-invariant mode.
    workspace: Option<DeviceMemory>,
}

/// One product and its algorithms.
#[derive(Debug)]
struct Product {
    shape: GemmShape,
    operation: Operation,
    /// By rising `rows_last`; the last one's is `shape.rows_max`.
    choices: Vec<Choice>,
}

/// The algorithm from the row behind the previous choice's to `rows_last`.
#[derive(Debug, Clone, Copy)]
struct Choice {
    rows_last: u32,
    algorithm: Algorithm,
}

impl Gemm {
    /// Prepares products. Shapes that differ in `rows_max` alone are one product, of the larger. Takes device memory
    /// for the time of the call: the largest weight (with tuning, at least four times the level 2 cache), the largest
    /// input and the largest output. So it belongs before the KV cache.
    pub fn new(
        stream: &Stream,
        shapes: &[GemmShape],
        options: &GemmOptions,
    ) -> Result<(Self, GemmReport), GemmError> {
        let library = CublasLt::open(stream.context())?;
        let workspace = match options.batch_invariant {
            true => None,
            false => {
                Some(DeviceMemory::alloc(stream.context(), WORKSPACE_BYTES).map_err(CublasLtError::from)?)
            }
        };
        let mut products: Vec<Product> = Vec::new();
        for shape in shapes {
            shape.validate()?;
            match products.iter_mut().find(|product| product.shape.is_but_for_rows(shape)) {
                Some(same) => same.shape.rows_max = same.shape.rows_max.max(shape.rows_max),
                None => products.push(Product::new(&library, *shape)?),
            }
        }
        let mut gemm = Self { products, workspace };
        let report = choose::choose(&mut gemm, &library, stream, options)?;
        Ok((gemm, report))
    }

    /// The product of that shape, whatever its `rows_max`; `None` if it was not prepared.
    pub fn find(&self, shape: &GemmShape) -> Option<GemmId> {
        self.products.iter().position(|product| product.shape.is_but_for_rows(shape)).map(GemmId)
    }

    /// Enqueues a product. Of no rows, it does nothing. May be captured: every algorithm has run once in
    /// [`Self::new`], so that no kernel must be loaded.
    pub fn run(
        &mut self,
        stream: &Stream,
        id: GemmId,
        rows: u32,
        operands: &Operands,
    ) -> Result<(), GemmError> {
        let workspace = self.workspace();
        let Product { shape, operation, choices } = &mut self.products[id.0];
        if rows == 0 {
            return Ok(());
        }
        shape.validate_operands(operands)?;
        let at = choices.partition_point(|choice| choice.rows_last < rows);
        let choice = choices.get(at).ok_or(GemmError::Rows { shape: *shape, rows })?;
        operation
            .enqueue(stream, rows, &choice.algorithm, operands, workspace)
            .map_err(|error| GemmError::Product { shape: *shape, error })
    }

    /// The 64 bytes that stand for the algorithm of so many rows, for tests and reports.
    pub fn algorithm(&self, id: GemmId, rows: u32) -> Option<Algorithm> {
        let choices = &self.products[id.0].choices;
        choices.get(choices.partition_point(|choice| choice.rows_last < rows)).map(|choice| choice.algorithm)
    }

    fn workspace(&self) -> (u64, usize) {
        self.workspace.as_ref().map_or((0, 0), |memory| (memory.address(), memory.len()))
    }
}

impl Product {
    fn new(library: &std::sync::Arc<CublasLt>, shape: GemmShape) -> Result<Self, GemmError> {
        let GemmShape { n, k, input, output, bias, rows_max: _ } = shape;
        let operation = Operation::new(library, (n, k), input, output, bias)
            .map_err(|error| GemmError::Product { shape, error })?;
        Ok(Self { shape, operation, choices: Vec::new() })
    }
}

impl GemmShape {
    fn is_but_for_rows(&self, other: &Self) -> bool {
        Self { rows_max: 0, ..*self } == Self { rows_max: 0, ..*other }
    }

    fn validate(&self) -> Result<(), GemmError> {
        let reason = if self.n == 0 || self.k == 0 || self.rows_max == 0 {
            "n, k and the largest number of rows must be at least 1"
        } else if self.output != self.input && self.output != Dtype::F32 {
            "the output must have the input's type or f32"
        } else {
            return Ok(());
        };
        Err(GemmError::Shape { shape: *self, reason })
    }

    fn validate_operands(&self, operands: &Operands) -> Result<(), GemmError> {
        let Operands { x, weight, bias, out } = *operands;
        let wrong =
            |operand, found, allowed| Err(GemmError::Operand { shape: *self, operand, found, allowed });
        match (self.bias, bias) {
            (true, None) => return wrong("the bias", "missing".to_owned(), "given"),
            (false, Some(_)) => return wrong("the bias", "given".to_owned(), "left out"),
            _ => (),
        }
        for (operand, address) in
            [("x", x), ("the weight", weight), ("the bias", bias.unwrap_or(ALIGNMENT_BYTES)), ("out", out)]
        {
            if address == 0 || address % ALIGNMENT_BYTES != 0 {
                return wrong(
                    operand,
                    format!("at address {address:#x}"),
                    "at a multiple of 16 and not at 0",
                );
            }
        }
        Ok(())
    }
}

/// How types are written in names of kernels and in tables.
pub(crate) fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::F16 => "f16",
    }
}

impl fmt::Display for GemmShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { n, k, input, output, bias, rows_max: _ } = self;
        let bias = if *bias { " + bias" } else { "" };
        let (input, output) = (dtype_name(*input), dtype_name(*output));
        write!(f, "matrix product [rows][{k}] x [{n}][{k}]{bias} of {input} to {output}")
    }
}

impl From<CudaError> for GemmError {
    fn from(error: CudaError) -> Self {
        Self::Library(CublasLtError::Cuda(error))
    }
}

impl From<GemmError> for BackendError {
    fn from(error: GemmError) -> Self {
        let fatal = match &error {
            GemmError::Library(error) | GemmError::Product { error, .. } => error.is_fatal(),
            _ => false,
        };
        Self { device: "cuda", fatal, reason: error.to_string() }
    }
}
