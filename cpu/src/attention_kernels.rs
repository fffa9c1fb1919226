//! The two products of attention, scores and weighted values, for several rows at a time. What a row gets is the same
//! number for number whichever rows are beside it.
#![allow(clippy::needless_range_loop, reason = "loops of known length over registers")]

use crate::attention::{Kv, PART_LEN, sums_len};
use crate::lanes::{Element, LANES, Lanes, padded};

/// Positions of a part that a row sees: the first, and the one after the last.
pub(crate) type Seen = (usize, usize);

/// `scores[row][position] = queries[row] · key` of the keys that some row sees, and others of the same sixteen.
/// `queries` are in whole lanes; `offsets` are where keys are.
#[inline(always)]
pub(crate) fn score_keys<V: Lanes, T: Element>(
    kv: &Kv<'_, T>,
    head_dim: usize,
    seen: &[Seen],
    queries: &[f32],
    offsets: &[usize],
    scores: &mut [f32],
) {
    let width = head_dim.next_multiple_of(LANES);
    for (group, offsets) in offsets.as_chunks::<LANES>().0.iter().enumerate() {
        let at = group * LANES;
        let is_seen = |seen: &Seen| seen.0 < (at + LANES).min(seen.1) && seen.1 > at;
        let mut first = 0;
        while first < seen.len() {
            let rows = V::ROWS.min(seen.len() - first);
            if seen[first..first + rows].iter().any(is_seen) {
                let queries = &queries[first * width..][..rows * width];
                let scores = &mut scores[first * PART_LEN + at..];
                match rows {
                    4 => score_rows::<V, T, 4>(kv, head_dim, queries, offsets, scores),
                    3 => score_rows::<V, T, 3>(kv, head_dim, queries, offsets, scores),
                    2 => score_rows::<V, T, 2>(kv, head_dim, queries, offsets, scores),
                    _ => score_rows::<V, T, 1>(kv, head_dim, queries, offsets, scores),
                }
            }
            first += rows;
        }
    }
}

/// `R` rows times sixteen keys. Four keys at a time, whose sums over lanes are folded together.
#[inline(always)]
fn score_rows<V: Lanes, T: Element, const R: usize>(
    kv: &Kv<'_, T>,
    head_dim: usize,
    queries: &[f32],
    offsets: &[usize; LANES],
    scores: &mut [f32],
) {
    let (whole, width) = (head_dim / LANES, head_dim.next_multiple_of(LANES));
    let zero = V::splat(0.0);
    let queries: &[[f32; LANES]] = queries.as_chunks().0;
    let row_groups = width / LANES;
    let mut folded = [[zero; 4]; R];
    for quarter in 0..4 {
        let key = |i: usize| &kv.data[offsets[4 * i + quarter]..][..head_dim];
        let keys = [key(0), key(1), key(2), key(3)];
        let groups = [
            &keys[0].as_chunks::<LANES>().0[..whole],
            &keys[1].as_chunks::<LANES>().0[..whole],
            &keys[2].as_chunks::<LANES>().0[..whole],
            &keys[3].as_chunks::<LANES>().0[..whole],
        ];
        let mut sums = [[zero; 4]; R];
        for group in 0..whole {
            let mut key = [zero; 4];
            for i in 0..4 {
                key[i] = T::load(&groups[i][group]);
            }
            add_products(&mut sums, key, queries, row_groups, group);
        }
        if whole < row_groups {
            let mut key = [zero; 4];
            for i in 0..4 {
                key[i] = T::load(&padded(&keys[i][whole * LANES..]));
            }
            add_products(&mut sums, key, queries, row_groups, whole);
        }
        for row in 0..R {
            folded[row][quarter] = V::fold_to_fours(sums[row]);
        }
    }
    for row in 0..R {
        let to = scores[row * PART_LEN..].first_chunk_mut().expect("room for sixteen scores");
        V::sum_fours(folded[row]).store(to);
    }
}

#[inline(always)]
fn add_products<V: Lanes, const R: usize>(
    sums: &mut [[V; 4]; R],
    key: [V; 4],
    queries: &[[f32; LANES]],
    row_groups: usize,
    group: usize,
) {
    for row in 0..R {
        let query = V::load(&queries[row * row_groups + group]);
        for i in 0..4 {
            sums[row][i] = query.mul_add(key[i], sums[row][i]);
        }
    }
}

/// `out[row][..width] += weights[row][position] * value` of what each row sees, value after value; rows of `out` are
/// as long as [`sums_len`] says.
#[inline(always)]
pub(crate) fn add_values<V: Lanes, T: Element>(
    kv: &Kv<'_, T>,
    width: usize,
    seen: &[Seen],
    offsets: &[usize],
    weights: &[f32],
    out: &mut [f32],
) {
    let data = &kv.data[kv.value_offset()..];
    for (index, seen) in seen.chunks(V::ROWS).enumerate() {
        let weights = &weights[index * V::ROWS * PART_LEN..];
        let out = &mut out[index * V::ROWS * sums_len(width)..];
        // What all of these rows see is read once for all; what comes before and behind is added row by row.
        let common = seen.iter().fold((0, PART_LEN), |all, seen| (all.0.max(seen.0), all.1.min(seen.1)));
        let (from, to) = common;
        if from < to {
            add_alone::<V, T>(data, width, seen, (0, from), offsets, weights, out);
            let (offsets, weights) = (&offsets[from..to], &weights[from..]);
            match seen.len() {
                4 => add_to_rows::<V, T, 4>(data, width, offsets, weights, out),
                3 => add_to_rows::<V, T, 3>(data, width, offsets, weights, out),
                2 => add_to_rows::<V, T, 2>(data, width, offsets, weights, out),
                _ => add_to_rows::<V, T, 1>(data, width, offsets, weights, out),
            }
        }
        let behind = if from < to { to } else { 0 };
        add_alone::<V, T>(data, width, seen, (behind, PART_LEN), offsets, weights, out);
    }
}

/// The same, row by row, for positions in a range.
#[inline(always)]
fn add_alone<V: Lanes, T: Element>(
    data: &[T],
    width: usize,
    seen: &[Seen],
    (first, end): Seen,
    offsets: &[usize],
    weights: &[f32],
    out: &mut [f32],
) {
    for (row, seen) in seen.iter().enumerate() {
        let (from, to) = (seen.0.max(first), seen.1.min(end));
        if from < to {
            let (weights, out) = (&weights[row * PART_LEN + from..], &mut out[row * sums_len(width)..]);
            add_to_rows::<V, T, 1>(data, width, &offsets[from..to], weights, out);
        }
    }
}

/// `R` rows that see all of these positions; weights of a row are [`PART_LEN`] behind those of the one before.
#[inline(always)]
fn add_to_rows<V: Lanes, T: Element, const R: usize>(
    data: &[T],
    width: usize,
    offsets: &[usize],
    weights: &[f32],
    out: &mut [f32],
) {
    let whole = width / LANES;
    let mut group = 0;
    while group + 4 <= whole {
        add_to_groups::<V, T, R, 4>(data, group, width, offsets, weights, out);
        group += 4;
    }
    if group + 2 <= whole {
        add_to_groups::<V, T, R, 2>(data, group, width, offsets, weights, out);
        group += 2;
    }
    if group < whole {
        add_to_groups::<V, T, R, 1>(data, group, width, offsets, weights, out);
    }
    if whole * LANES < width {
        let tail = width - whole * LANES;
        for row in 0..R {
            let weights = &weights[row * PART_LEN..][..offsets.len()];
            let out = out[row * sums_len(width) + whole * LANES..].first_chunk_mut().expect("whole lanes");
            let mut sum = V::load(out);
            for (weight, offset) in weights.iter().zip(offsets) {
                let value = &data[offset + whole * LANES..][..tail];
                sum = V::splat(*weight).mul_add(T::load(&padded(value)), sum);
            }
            sum.store(out);
        }
    }
}

/// `N` groups of sixteen, from number `group` on.
#[inline(always)]
fn add_to_groups<V: Lanes, T: Element, const R: usize, const N: usize>(
    data: &[T],
    group: usize,
    width: usize,
    offsets: &[usize],
    weights: &[f32],
    out: &mut [f32],
) {
    let zero = V::splat(0.0);
    let at = |row: usize| row * sums_len(width) + group * LANES;
    let of_row = |row: usize| &weights[row * PART_LEN..][..offsets.len()];
    // Rows there are not stand for the first, and are not looked at.
    let by_row = [of_row(0), of_row(1.min(R - 1)), of_row(2.min(R - 1)), of_row(3.min(R - 1))];
    let mut sums = [[zero; N]; R];
    for row in 0..R {
        let out: &[[f32; LANES]] = out[at(row)..].as_chunks().0;
        for i in 0..N {
            sums[row][i] = V::load(&out[i]);
        }
    }
    for (index, offset) in offsets.iter().enumerate() {
        let value = &data[offset + group * LANES..][..N * LANES].as_chunks::<LANES>().0[..N];
        let mut loaded = [zero; N];
        for i in 0..N {
            loaded[i] = T::load(&value[i]);
        }
        for row in 0..R {
            let weight = V::splat(by_row[row][index]);
            for i in 0..N {
                sums[row][i] = weight.mul_add(loaded[i], sums[row][i]);
            }
        }
    }
    for row in 0..R {
        let out: &mut [[f32; LANES]] = out[at(row)..].as_chunks_mut().0;
        for i in 0..N {
            sums[row][i].store(&mut out[i]);
        }
    }
}
