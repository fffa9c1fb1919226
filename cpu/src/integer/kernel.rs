//! Products of integer weights and rounded activations: tiles of some rows of `x` and some panels of the weight.
//!
//! An element of the result is a sum over blocks of 32 columns, in their order: the exact sum of a block's products
//! of integers, times its scales, is added in f32. So no tile and no instruction set changes a bit.

use std::ops::Range;

use super::activations::Activations;
use super::dots::{Dots, Plain};
#[cfg(target_arch = "x86_64")]
use super::dots::{Madd, Vnni};
use super::pack::{BLOCK, IntegerMatrix, PANEL, UNIT, Width};
use crate::lanes::{Isa, LANES, Lanes};
use crate::shared::SharedSlice;

/// What multiplies integers: an instruction set, and whether it has instructions of its own for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Madd,
    Plain,
}

impl Engine {
    /// The best that there is within an instruction set.
    fn of(isa: Isa) -> Self {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => Self::Vnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => Self::Madd,
            Isa::Portable => Self::Plain,
        }
    }
}

/// Where results go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// `[weight.rows]`.
    pub(super) bias: Option<&'a [f32]>,
    pub(super) out: SharedSlice<'a, f32>,
    /// Where in `out` the first of the columns of the first row goes. Nobody else may write what this writes.
    pub(super) out_at: usize,
    /// From one row of `out` to the next.
    pub(super) out_stride: usize,
}

/// Computes some columns (rows of the weight) of all rows of `x`.
pub(super) fn multiply(
    isa: Isa,
    x: Activations<'_>,
    weight: &IntegerMatrix,
    columns: Range<usize>,
    to: Target<'_>,
) {
    let args = Args { x, weight, columns, to };
    match Engine::of(isa) {
        // SAFETY: the features were found, here and by `Isa::available`.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Engine::Vnni => unsafe { vnni(&args) },
        // SAFETY: `Isa::available` found the features, and an `Isa` comes from nowhere else.
        #[cfg(target_arch = "x86_64")]
        #[allow(unsafe_code)]
        Engine::Madd => unsafe { madd(&args) },
        Engine::Plain => run::<Plain>(&args),
    }
}

struct Args<'a> {
    x: Activations<'a>,
    weight: &'a IntegerMatrix,
    columns: Range<usize>,
    to: Target<'a>,
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn vnni(args: &Args<'_>) {
    run::<Vnni>(args);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn madd(args: &Args<'_>) {
    run::<Madd>(args);
}

#[inline(always)]
fn run<D: Dots>(args: &Args<'_>) {
    match args.weight.width {
        Width::Eight if args.weight.has_one_run() => panels::<D, false, true>(args),
        Width::Eight => panels::<D, false, false>(args),
        Width::Four => panels::<D, true, false>(args),
    }
}

/// All panels that the columns touch, some at a time, and all rows over these before the next.
#[inline(always)]
fn panels<D: Dots, const FOUR: bool, const ONE_RUN: bool>(args: &Args<'_>) {
    let (mut panel, end) = (args.columns.start / PANEL, args.columns.end.div_ceil(PANEL));
    if args.x.rows <= 2 {
        while panel + 4 <= end {
            rows::<D, FOUR, ONE_RUN, 2, 4>(args, panel);
            panel += 4;
        }
    }
    while panel + 2 <= end {
        rows::<D, FOUR, ONE_RUN, 8, 2>(args, panel);
        panel += 2;
    }
    if panel < end {
        rows::<D, FOUR, ONE_RUN, 8, 1>(args, panel);
    }
}

/// All rows, at most `M` at a time, times `N` panels. Where scales are loaded for each block, there are registers for
/// four rows at a time; else for eight.
#[inline(always)]
fn rows<D: Dots, const FOUR: bool, const ONE_RUN: bool, const M: usize, const N: usize>(
    args: &Args<'_>,
    panel: usize,
) {
    let mut row = 0;
    while row < args.x.rows {
        row += match args.x.rows - row {
            left if left >= 8 && M >= 8 && ONE_RUN => tile::<D, FOUR, ONE_RUN, 8, N>(args, row, panel),
            left if left >= 4 && M >= 4 => tile::<D, FOUR, ONE_RUN, 4, N>(args, row, panel),
            left if left >= 2 => tile::<D, FOUR, ONE_RUN, 2, N>(args, row, panel),
            _ => tile::<D, FOUR, ONE_RUN, 1, N>(args, row, panel),
        };
    }
}

/// Gives `M`. `ONE_RUN`: a row of the weight has one scale, which can wait for the end.
///
#[allow(
    clippy::needless_range_loop,
    reason = "a closure is not always compiled for its caller's instruction set"
)]
#[inline(always)]
fn tile<D: Dots, const FOUR: bool, const ONE_RUN: bool, const M: usize, const N: usize>(
    args: &Args<'_>,
    row: usize,
    panel: usize,
) -> usize {
    let Args { x, weight, .. } = args;
    let (units, blocks) = (if FOUR { BLOCK / 8 } else { BLOCK / 4 }, x.blocks);
    let (mut rows, mut codes) = ([x.row(row); M], [weight.panel(panel); N]);
    for m in 1..M {
        rows[m] = x.row(row + m);
    }
    for n in 1..N {
        codes[n] = weight.panel(panel + n);
    }
    let mut sums = [[D::Floats::splat(0.0); N]; M];
    let mut scales = [D::Floats::splat(1.0); N];
    for block in 0..blocks {
        let (mut quads, mut begins, mut block_codes) = ([&rows[0].quads[block]; M], [0; M], codes);
        for m in 0..M {
            quads[m] = &rows[m].quads[block];
            begins[m] = rows[m].sums[block];
        }
        for n in 0..N {
            block_codes[n] = &codes[n][block * units..][..units];
        }
        let dots = block_dots::<D, FOUR, M, N>(quads, begins, block_codes);
        let run = block / weight.run_blocks;
        if !ONE_RUN {
            for n in 0..N {
                scales[n] = weight.scales.load(weight.run_index(panel + n, run));
            }
        }
        for m in 0..M {
            let scale = D::Floats::splat(rows[m].scales[block]);
            for n in 0..N {
                let scale = if ONE_RUN { scale } else { scale.mul(scales[n]) };
                sums[m][n] = dots[m][n].to_floats().mul_add(scale, sums[m][n]);
            }
        }
        if !ONE_RUN && let Some(offsets) = &weight.offsets {
            for n in 0..N {
                let offset = D::Floats::load(&offsets.as_chunks().0[weight.run_index(panel + n, run)]);
                for m in 0..M {
                    let sum = D::Floats::splat(-rows[m].scales[block] * rows[m].sums[block] as f32);
                    sums[m][n] = offset.mul_add(sum, sums[m][n]);
                }
            }
        }
    }
    for n in 0..N {
        for m in 0..M {
            let sum = match ONE_RUN {
                true => sums[m][n].mul(weight.scales.load(weight.run_index(panel + n, 0))),
                false => sums[m][n],
            };
            store(args, row + m, panel + n, sum);
        }
    }
    M
}

/// The sums of one block's products.
#[inline(always)]
fn block_dots<D: Dots, const FOUR: bool, const M: usize, const N: usize>(
    quads: [&[i32; BLOCK / 4]; M],
    begins: [i32; M],
    codes: [&[[u8; UNIT]]; N],
) -> [[D; N]; M] {
    let mut dots = [[D::begin8(0); N]; M];
    for m in 0..M {
        dots[m] = [if FOUR { D::begin4(begins[m]) } else { D::begin8(begins[m]) }; N];
    }
    if FOUR {
        for unit in 0..BLOCK / 8 {
            let mut loaded = [D::load4(&codes[0][unit]); N];
            for n in 1..N {
                loaded[n] = D::load4(&codes[n][unit]);
            }
            for half in 0..2 {
                for m in 0..M {
                    let quad = D::quad(quads[m][2 * unit + half]);
                    for n in 0..N {
                        dots[m][n] = dots[m][n].add4(loaded[n][half], quad);
                    }
                }
            }
        }
    } else {
        for unit in 0..BLOCK / 4 {
            let mut loaded = [D::load8(&codes[0][unit]); N];
            for n in 1..N {
                loaded[n] = D::load8(&codes[n][unit]);
            }
            for m in 0..M {
                let quad = D::quad(quads[m][unit]);
                for n in 0..N {
                    dots[m][n] = dots[m][n].add8(loaded[n], quad);
                }
            }
        }
    }
    dots
}

/// Writes those of a panel's results that are among the columns.
#[inline(always)]
fn store<V: Lanes>(args: &Args<'_>, row: usize, panel: usize, sums: V) {
    let Args { columns, to, .. } = args;
    let mut values = [0.0; LANES];
    sums.store(&mut values);
    let first = panel * PANEL;
    let (start, end) = (columns.start.max(first), columns.end.min(first + PANEL));
    let at = to.out_at + row * to.out_stride + (start - columns.start);
    // SAFETY: as `Target::out_at` asks, these are written by this call alone.
    #[allow(unsafe_code)]
    let out = unsafe { to.out.part(at, end - start) };
    out.copy_from_slice(&values[start - first..end - first]);
    if let Some(bias) = to.bias {
        out.iter_mut().zip(&bias[start..end]).for_each(|(out, bias)| *out += bias);
    }
}
