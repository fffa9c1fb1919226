//! [`CublasLt`]: NVIDIA's library of matrix products as Rust values, no more of it than [`crate::gemm`] needs.
//!
//! Descriptors are made by the library's own `...Create` functions rather than on the stack: the size of the
//! opaque structs differs between versions (a layout has 64 bytes in 13.0 and 112 in 13.4), and the library that
//! is found at run time need not be the one the bindings were made from. What changes from call to call (rows,
//! the address of the bias) is an attribute of them, which is set without allocating.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{self, cublasLtMatmulDescAttributes_t as DescAttribute};
use quire_model::Dtype;

use crate::driver::{Context, CudaError, Stream};

/// What cuBLASLt answered, or that it is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CublasLtError {
    /// The library cannot be opened.
    #[error(
        "cuBLASLt is missing: the loader finds no libcublasLt.so.13 (or .12); install the cuBLAS of CUDA 13 or 12 \
         (it comes with the toolkit, or alone as the Python package nvidia-cublas) and put the directory that \
         holds the file into LD_LIBRARY_PATH"
    )]
    Missing,
    /// A call was refused.
    #[error("{call} failed: {}", status_name(*.status))]
    Call {
        /// The library's function.
        call: &'static str,
        /// `cublasStatus_t`.
        status: u32,
    },
    /// The driver refused a call.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl CublasLtError {
    /// Nothing on this device will work any more in this process.
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::Cuda(error) => error.is_fatal(),
            Self::Call { status, .. } => {
                *status == sys::cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED as u32
            }
            Self::Missing => false,
        }
    }
}

/// Whether the library can be opened on this machine.
pub fn is_present() -> bool {
    // SAFETY: opens a library and looks up nothing.
    #[allow(unsafe_code)]
    unsafe {
        sys::is_culib_present()
    }
}

/// The library, opened for one device. Freed with the last operation made from it.
#[derive(Debug)]
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    context: Arc<Context>,
}

// SAFETY: the library's functions may be called from several threads, with the same handle too.
#[allow(unsafe_code)]
unsafe impl Send for CublasLt {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for CublasLt {}

impl CublasLt {
    /// Opens the library on the device.
    pub fn open(context: &Arc<Context>) -> Result<Arc<Self>, CublasLtError> {
        if !is_present() {
            return Err(CublasLtError::Missing);
        }
        context.bind()?;
        let handle = result::create_handle().named("cublasLtCreate")?;
        Ok(Arc::new(Self { handle, context: context.clone() }))
    }

    /// Version of the library: major * 10000 + minor * 100 + patch.
    pub fn version(&self) -> u64 {
        // SAFETY: the library is open.
        #[allow(unsafe_code)]
        let version = unsafe { sys::cublasLtGetVersion() };
        version as u64
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `open`, destroyed once; every operation holds on to `self`.
            #[allow(unsafe_code)]
            let _ = unsafe { result::destroy_handle(self.handle) };
        }
    }
}

/// One way of computing an operation, as the library describes it: 64 bytes that mean something to the same
/// version of the library only, and may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Algorithm(pub [u64; 8]);

/// Which algorithms to look for.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// Scratch memory that there is, in bytes.
    pub workspace_bytes: usize,
    /// Whether the sum over `k` may be cut into parts that are computed apart and then added (in f32).
    pub split_k: bool,
    /// How many to return at most.
    pub results_max: usize,
}

/// Device addresses of one product. All are multiples of [`ALIGNMENT_BYTES`].
#[derive(Debug, Clone, Copy)]
pub struct Operands {
    /// `[rows][k]`
    pub x: u64,
    /// `[n][k]`
    pub weight: u64,
    /// `[n]`, of the output's type; for operations with a bias only.
    pub bias: Option<u64>,
    /// `[rows][n]`
    pub out: u64,
}

/// What addresses must be multiples of. The widest access of any kernel, and what the search is told.
pub const ALIGNMENT_BYTES: u64 = 16;

/// `out[rows][n] = x[rows][k] · weight[n][k]ᵀ (+ bias[n])` for one `n`, `k` and choice of types, any `rows`.
///
/// To the library, which counts columns first, it is `D[n × rows] = Aᵀ[n × k] · B[k × rows]` with the weight as
/// `A`: rows are its columns, so their number is no leading dimension and changes no alignment.
#[derive(Debug)]
pub struct Operation {
    library: Arc<CublasLt>,
    desc: sys::cublasLtMatmulDesc_t,
    weight: Layout,
    x: Layout,
    out: Layout,
    bias: bool,
    rows: u32,
}

// SAFETY: the descriptors are plain memory of the host with one owner.
#[allow(unsafe_code)]
unsafe impl Send for Operation {}

impl Operation {
    /// Describes the operation. `x` and the weight are `input`, `out` and the bias `output`; sums are in f32.
    pub fn new(
        library: &Arc<CublasLt>,
        (n, k): (u32, u32),
        input: Dtype,
        output: Dtype,
        bias: bool,
    ) -> Result<Self, CublasLtError> {
        // Without FAST_TF32: products of f32 are products of f32.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let weight = Layout::new(input, k, n)?;
        let x = Layout::new(input, k, 1)?;
        let out = Layout::new(output, n, 1)?;
        let desc = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F)
            .named("cublasLtMatmulDescCreate")?;
        let mut operation = Self { library: library.clone(), desc, weight, x, out, bias, rows: 1 };
        operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &TRANSPOSED)?;
        if bias {
            let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32;
            operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            // Searches and checks do not read it, but take its alignment from it.
            operation.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &ALIGNMENT_BYTES)?;
        }
        Ok(operation)
    }

    /// The algorithms that the library proposes for so many rows, those it believes fast first.
    pub fn search(&mut self, rows: u32, search: &Search) -> Result<Vec<Algorithm>, CublasLtError> {
        self.set_rows(rows)?;
        let preference = Preference::new(search)?;
        let mut found = vec![EMPTY_RESULT; search.results_max];
        let mut count = 0;
        // SAFETY: all descriptors are alive; the library writes at most `found.len()` results.
        #[allow(unsafe_code)]
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.library.handle,
                self.desc,
                self.weight.0,
                self.x.0,
                self.out.0,
                self.out.0,
                preference.0,
                found.len() as i32,
                found.as_mut_ptr(),
                &raw mut count,
            )
        };
        match status {
            sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED => return Ok(Vec::new()),
            status => status.result().named("cublasLtMatmulAlgoGetHeuristic")?,
        }
        found.truncate(count.max(0) as usize);
        found.retain(|result| result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        Ok(found.iter().map(|result| Algorithm(result.algo.data)).collect())
    }

    /// Bytes of workspace that the algorithm needs to compute so many rows; `None` if it cannot.
    pub fn check(&mut self, rows: u32, algorithm: &Algorithm) -> Result<Option<usize>, CublasLtError> {
        self.set_rows(rows)?;
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.0 };
        let mut found = EMPTY_RESULT;
        // SAFETY: all descriptors are alive; the library writes one result.
        #[allow(unsafe_code)]
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(
                self.library.handle,
                self.desc,
                self.weight.0,
                self.x.0,
                self.out.0,
                self.out.0,
                &raw const algorithm,
                &raw mut found,
            )
        };
        let accepted = status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
            && found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        Ok(accepted.then_some(found.workspaceSize))
    }

    /// Enqueues the product of so many rows. Allocates nothing and waits for nothing; may be captured.
    /// `workspace` is the address and size in bytes of scratch memory that nothing else uses meanwhile.
    pub fn enqueue(
        &mut self,
        stream: &Stream,
        rows: u32,
        algorithm: &Algorithm,
        operands: &Operands,
        workspace: (u64, usize),
    ) -> Result<(), CublasLtError> {
        debug_assert_eq!(operands.bias.is_some(), self.bias);
        self.set_rows(rows)?;
        if let Some(bias) = operands.bias {
            self.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let (one, zero) = (1.0_f32, 0.0_f32);
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.0 };
        // SAFETY: all descriptors are alive, and the factors are read before the call returns (pointer mode
        // HOST, the default). Device addresses are the device's business; see `driver`. C is D and unread, as
        // its factor is 0.
        #[allow(unsafe_code)]
        unsafe {
            result::matmul(
                self.library.handle,
                self.desc,
                (&raw const one).cast(),
                (&raw const zero).cast(),
                operands.weight as *const c_void,
                self.weight.0,
                operands.x as *const c_void,
                self.x.0,
                operands.out as *const c_void,
                self.out.0,
                operands.out as *mut c_void,
                self.out.0,
                &raw const algorithm,
                workspace.0 as *mut c_void,
                workspace.1,
                stream.handle().cast(),
            )
        }
        .named("cublasLtMatmul")
    }

    fn set_rows(&mut self, rows: u32) -> Result<(), CublasLtError> {
        if self.rows != rows {
            self.x.set_columns(rows)?;
            self.out.set_columns(rows)?;
            self.rows = rows;
        }
        Ok(())
    }

    fn set<T: Copy>(&mut self, attribute: DescAttribute, value: &T) -> Result<(), CublasLtError> {
        let from = std::ptr::from_ref(value).cast();
        // SAFETY: the descriptor is alive; the library compares the size with what the attribute has.
        #[allow(unsafe_code)]
        unsafe { result::set_matmul_desc_attribute(self.desc, attribute, from, size_of::<T>()) }
            .named("cublasLtMatmulDescSetAttribute")
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once. It belongs to no device.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_matmul_desc(self.desc) };
    }
}

impl Algorithm {
    /// In how many parts the sum over `k` is computed.
    pub fn split_k(&self) -> Result<u32, CublasLtError> {
        self.config(sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_SPLITK_NUM)
    }

    /// `cublasLtReductionScheme_t`: how the parts are added; 0 if there are none.
    pub fn reduction_scheme(&self) -> Result<u32, CublasLtError> {
        self.config(sys::cublasLtMatmulAlgoConfigAttributes_t::CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME)
    }

    fn config(&self, attribute: sys::cublasLtMatmulAlgoConfigAttributes_t) -> Result<u32, CublasLtError> {
        let algorithm = sys::cublasLtMatmulAlgo_t { data: self.0 };
        let mut value = 0_u32;
        let mut written = 0;
        // SAFETY: the library writes at most the four bytes it is told of.
        #[allow(unsafe_code)]
        unsafe {
            sys::cublasLtMatmulAlgoConfigGetAttribute(
                &raw const algorithm,
                attribute,
                (&raw mut value).cast(),
                size_of::<u32>(),
                &raw mut written,
            )
        }
        .result()
        .named("cublasLtMatmulAlgoConfigGetAttribute")?;
        Ok(value)
    }
}

/// `CUBLAS_OP_T` of `cublasOperation_t`, which the bindings of this library lack.
const TRANSPOSED: i32 = 1;

const EMPTY_RESULT: sys::cublasLtMatmulHeuristicResult_t = sys::cublasLtMatmulHeuristicResult_t {
    algo: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

/// A matrix as the library sees it: columns of `height` elements one behind the other.
#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(dtype: Dtype, height: u32, columns: u32) -> Result<Self, CublasLtError> {
        let dtype = match dtype {
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
        };
        result::create_matrix_layout(dtype, height.into(), columns.into(), height.into())
            .named("cublasLtMatrixLayoutCreate")
            .map(Self)
    }

    fn set_columns(&mut self, columns: u32) -> Result<(), CublasLtError> {
        let columns = u64::from(columns);
        let attribute = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_COLS;
        // SAFETY: the layout is alive; eight bytes are what the attribute has.
        #[allow(unsafe_code)]
        unsafe {
            result::set_matrix_layout_attribute(
                self.0,
                attribute,
                (&raw const columns).cast(),
                size_of::<u64>(),
            )
        }
        .named("cublasLtMatrixLayoutSetAttribute")
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// A [`Search`] as the library takes it.
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(search: &Search) -> Result<Self, CublasLtError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        use sys::cublasLtReductionScheme_t as Reduction;
        let preference = Self(result::create_matmul_pref().named("cublasLtMatmulPreferenceCreate")?);
        preference
            .set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(search.workspace_bytes as u64))?;
        // Never INPLACE or OUTPUT_TYPE: they add the parts in the output's type.
        let reductions = match search.split_k {
            true => Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32,
            false => Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32,
        };
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions)?;
        for attribute in [
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(attribute, &(ALIGNMENT_BYTES as u32))?;
        }
        Ok(preference)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: &T,
    ) -> Result<(), CublasLtError> {
        let from = std::ptr::from_ref(value).cast();
        // SAFETY: the preference is alive; the library compares the size with what the attribute has.
        #[allow(unsafe_code)]
        unsafe { result::set_matmul_pref_attribute(self.0, attribute, from, size_of::<T>()) }
            .named("cublasLtMatmulPreferenceSetAttribute")
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        #[allow(unsafe_code)]
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

/// Names the call in an error of cudarc's.
trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, CublasLtError>;
}

impl<T> Named<T> for Result<T, result::CublasError> {
    fn named(self, call: &'static str) -> Result<T, CublasLtError> {
        self.map_err(|error| CublasLtError::Call { call, status: error.0 as u32 })
    }
}

/// As in cublas_api.h. Not asked of the library, which may be what is broken.
fn status_name(status: u32) -> String {
    let name = match status {
        1 => "CUBLAS_STATUS_NOT_INITIALIZED (no GPU, or a driver too old for this cuBLASLt)",
        3 => "CUBLAS_STATUS_ALLOC_FAILED",
        7 => "CUBLAS_STATUS_INVALID_VALUE",
        8 => "CUBLAS_STATUS_ARCH_MISMATCH",
        11 => "CUBLAS_STATUS_MAPPING_ERROR",
        13 => "CUBLAS_STATUS_EXECUTION_FAILED",
        14 => "CUBLAS_STATUS_INTERNAL_ERROR",
        15 => "CUBLAS_STATUS_NOT_SUPPORTED",
        _ => return format!("status {status}"),
    };
    name.to_owned()
}
