//! Choosing the algorithms of [`Gemm`]: from the table, by timing, or as the library proposes.

use std::sync::Arc;
use std::time::Instant;

use super::bench::Bench;
use super::table::{Key, Table};
use super::{Choice, Gemm, GemmError, GemmOptions, GemmReport, GemmShape, Product};
use crate::cublaslt::{Algorithm, CublasLt, CublasLtError, Operation, Search};
use crate::driver::Stream;

/// The library seldom proposes more than a dozen.
const PROPOSALS_MAX: usize = 32;

/// Rows for which the one algorithm of the batch-invariant mode is sought and timed: a batch of decodes, bound by
/// reading the weights, and a prompt, bound by arithmetic.
const INVARIANT_ROWS: [u32; 2] = [64, 2048];

/// Chooses algorithms for every product of `gemm`.
pub(super) fn choose(
    gemm: &mut Gemm,
    library: &Arc<CublasLt>,
    stream: &Stream,
    options: &GemmOptions,
) -> Result<GemmReport, GemmError> {
    let started = Instant::now();
    let mut report = GemmReport::default();
    let directory = options.tuning.as_ref().and_then(|tuning| tuning.table_directory.as_deref());
    let table = directory.map(|directory| {
        let (table, warning) = Table::read(directory, stream.context().attributes(), library.version());
        report.warnings.extend(warning);
        table
    });
    let workspace = gemm.workspace();
    let shapes: Vec<GemmShape> = gemm.products.iter().map(|product| product.shape).collect();
    let mut chooser = Chooser {
        stream,
        options,
        workspace,
        shapes: &shapes,
        table,
        bench: None,
        loaded: Vec::new(),
        started,
        report,
    };
    for product in &mut gemm.products {
        product.choices = chooser.product(product)?;
    }
    let Chooser { table, mut report, .. } = chooser;
    if let Some(mut table) = table.filter(|_| report.timed > 0)
        && let Err(error) = table.write()
    {
        report.warnings.push(format!("the table of matrix products could not be saved: {error}"));
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

struct Chooser<'a> {
    stream: &'a Stream,
    options: &'a GemmOptions,
    /// Address and size in bytes.
    workspace: (u64, usize),
    shapes: &'a [GemmShape],
    table: Option<Table>,
    /// Made when first needed: it takes memory.
    bench: Option<Bench<'a>>,
    /// Algorithms of the product at hand that have run.
    loaded: Vec<Algorithm>,
    started: Instant,
    report: GemmReport,
}

impl<'a> Chooser<'a> {
    fn product(&mut self, product: &mut Product) -> Result<Vec<Choice>, GemmError> {
        let rows_max = product.shape.rows_max;
        let mut choices = Vec::new();
        self.loaded.clear();
        let mut first = 1;
        while first <= rows_max {
            let last = match self.options.batch_invariant {
                true => rows_max,
                false => first.next_power_of_two().min(rows_max),
            };
            self.range(product, (first, last), &mut choices)?;
            first = last + 1;
        }
        Ok(choices)
    }

    /// One algorithm for a range of rows; several for its parts, if none can do them all.
    fn range(
        &mut self,
        product: &mut Product,
        rows: (u32, u32),
        choices: &mut Vec<Choice>,
    ) -> Result<(), GemmError> {
        let batch_invariant = self.options.batch_invariant;
        let key = Key { shape: product.shape, rows, batch_invariant };
        let (first, last) = rows;
        let algorithm = match self.saved(product, &key)? {
            Some(algorithm) => Some(algorithm),
            None => self.search(product, &key)?,
        };
        if let Some(algorithm) = algorithm {
            choices.push(Choice { rows_last: last, algorithm });
            return Ok(());
        }
        if batch_invariant || first == last {
            let which = match batch_invariant {
                true => {
                    "has no split-k and gives a row the same bits in any batch; --batch-invariant needs one"
                }
                false => "needs no more than 32 MiB of workspace",
            };
            return Err(GemmError::NoAlgorithm { shape: product.shape, first, last, which });
        }
        let middle = first + (last - first) / 2;
        self.range(product, (first, middle), choices)?;
        self.range(product, (middle + 1, last), choices)
    }

    /// What an earlier start chose.
    fn saved(&mut self, product: &mut Product, key: &Key) -> Result<Option<Algorithm>, GemmError> {
        let Some(algorithm) = self.table.as_ref().and_then(|table| table.get(key)) else {
            return Ok(None);
        };
        if self.accepts(product, key, &algorithm)? {
            self.report.from_table += 1;
            return Ok(Some(algorithm));
        }
        let (first, last) = key.rows;
        self.report.warnings.push(format!(
            "{}: cuBLASLt refuses the algorithm saved for {first} to {last} rows; choosing anew",
            product.shape
        ));
        Ok(None)
    }

    /// The best of what the library proposes; `None` if nothing can do the whole range.
    fn search(&mut self, product: &mut Product, key: &Key) -> Result<Option<Algorithm>, GemmError> {
        let (_, last) = key.rows;
        let mut typical = match key.batch_invariant {
            true => INVARIANT_ROWS.map(|rows| rows.min(last)).to_vec(),
            false => vec![last],
        };
        typical.dedup();
        let proposed = self.propose(product, key, &typical)?;
        let tuning = self.options.tuning.as_ref();
        let timed = tuning.is_some_and(|tuning| self.started.elapsed().as_secs_f64() < tuning.seconds_max);
        let ranked = if timed { self.rank(product, &typical, proposed)? } else { proposed };
        for algorithm in ranked {
            if !self.accepts(product, key, &algorithm)? {
                continue;
            }
            if key.batch_invariant && !self.bench()?.treats_rows_alike(product, &algorithm)? {
                self.report.warnings.push(format!(
                    "{}: an algorithm without split-k gave a row other bits in another batch; left out",
                    product.shape
                ));
                continue;
            }
            match timed {
                true => self.report.timed += 1,
                false => self.report.first_proposals += 1,
            }
            if let Some(table) = self.table.as_mut().filter(|_| timed) {
                table.insert(key, algorithm);
            }
            return Ok(Some(algorithm));
        }
        Ok(None)
    }

    /// What the library proposes for those numbers of rows, each algorithm once.
    fn propose(
        &self,
        product: &mut Product,
        key: &Key,
        typical: &[u32],
    ) -> Result<Vec<Algorithm>, GemmError> {
        let search = Search {
            workspace_bytes: self.workspace.1,
            split_k: !key.batch_invariant,
            results_max: PROPOSALS_MAX,
        };
        let mut proposed = Vec::new();
        for rows in typical {
            for found in product.operation.search(*rows, &search).map_err(of(product.shape))? {
                if !proposed.contains(&found) {
                    proposed.push(found);
                }
            }
        }
        Ok(proposed)
    }

    /// By the time for each of the numbers of rows, as a share of the fastest one's, all together. Leaves out what
    /// cannot do one of them.
    fn rank(
        &mut self,
        product: &mut Product,
        typical: &[u32],
        mut algorithms: Vec<Algorithm>,
    ) -> Result<Vec<Algorithm>, GemmError> {
        for rows in typical {
            let mut able = Vec::new();
            for algorithm in algorithms {
                if fits(&mut product.operation, *rows, &algorithm, self.workspace.1)
                    .map_err(of(product.shape))?
                {
                    able.push(algorithm);
                }
            }
            algorithms = able;
        }
        let mut ranked: Vec<(f32, Algorithm)> =
            algorithms.iter().map(|algorithm| (0.0, *algorithm)).collect();
        for rows in typical {
            let times = self.bench()?.times(product, *rows, &algorithms)?;
            let fastest = times.iter().copied().fold(f32::INFINITY, f32::min);
            for ((shares, _), ms) in ranked.iter_mut().zip(times) {
                *shares += ms / fastest;
            }
        }
        ranked.retain(|(shares, _)| shares.is_finite());
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        Ok(ranked.into_iter().map(|(_, algorithm)| algorithm).collect())
    }

    /// Whether the algorithm can compute every number of rows of the range in the way that is asked for. The
    /// library is asked about all of them, as nothing says that one who can do 64 and 128 can do 65; it takes
    /// microseconds each. Then one is computed, which also loads the kernel: a later capture could not.
    fn accepts(
        &mut self,
        product: &mut Product,
        key: &Key,
        algorithm: &Algorithm,
    ) -> Result<bool, GemmError> {
        if !self.checks(&mut product.operation, key, algorithm).map_err(of(product.shape))? {
            return Ok(false);
        }
        if self.loaded.contains(algorithm) {
            return Ok(true);
        }
        let runs = self.bench()?.runs(product, key.rows.0, algorithm)?;
        if runs {
            self.loaded.push(*algorithm);
        }
        Ok(runs)
    }

    fn checks(
        &self,
        operation: &mut Operation,
        key: &Key,
        algorithm: &Algorithm,
    ) -> Result<bool, CublasLtError> {
        if key.batch_invariant && (algorithm.split_k()? > 1 || algorithm.reduction_scheme()? != 0) {
            return Ok(false);
        }
        for rows in key.rows.0..=key.rows.1 {
            if !fits(operation, rows, algorithm, self.workspace.1)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn bench(&mut self) -> Result<&mut Bench<'a>, GemmError> {
        match &mut self.bench {
            Some(bench) => Ok(bench),
            none => Ok(none.insert(Bench::new(
                self.stream,
                self.shapes,
                self.workspace,
                self.options.tuning.is_some(),
            )?)),
        }
    }
}

fn fits(
    operation: &mut Operation,
    rows: u32,
    algorithm: &Algorithm,
    workspace_bytes: usize,
) -> Result<bool, CublasLtError> {
    Ok(operation.check(rows, algorithm)?.is_some_and(|needed_bytes| needed_bytes <= workspace_bytes))
}

fn of(shape: GemmShape) -> impl Fn(CublasLtError) -> GemmError {
    move |error| GemmError::Product { shape, error }
}
