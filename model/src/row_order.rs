//! Orders of rows: how what a checkpoint has in one order becomes what backends expect. An order lists, for each row
//! that is wanted, the row where it is stored.

/// Where the queries, then the keys, then the values are in a matrix that is stored by key-value head: its queries, its
/// key, its value, `head_dim` rows each.
pub(crate) fn ungrouped(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Vec<usize> {
    let group = num_heads / num_kv_heads;
    let head = |kv_head: usize, within: usize| {
        let first = (kv_head * (group + 2) + within) * head_dim;
        first..first + head_dim
    };
    let queries = (0..num_heads).flat_map(|index| head(index / group, index % group));
    let keys = (0..num_kv_heads).flat_map(|kv_head| head(kv_head, group));
    let values = (0..num_kv_heads).flat_map(|kv_head| head(kv_head, group + 1));
    queries.chain(keys).chain(values).collect()
}

/// Where the first of each `parts`, then the second, and so on are in a matrix that is stored part by part: gate, up,
/// gate, up, `rows` of each.
pub(crate) fn grouped(parts: usize, rows: usize) -> Vec<usize> {
    (0..parts).flat_map(|part| (0..rows).map(move |row| row * parts + part)).collect()
}

/// The rows of heads whose first `dim` numbers are rotated in neighbouring pairs, so that each pair's first numbers come
/// before its second ones.
pub(crate) fn halves(rows: &[usize], head_dim: usize, dim: usize) -> Vec<usize> {
    let within = |index: usize| match index {
        index if index < dim / 2 => 2 * index,
        index if index < dim => 2 * (index - dim / 2) + 1,
        index => index,
    };
    let of_head =
        |head: &[usize]| -> Vec<usize> { (0..head.len()).map(|index| head[within(index)]).collect() };
    rows.chunks(head_dim).flat_map(of_head).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_there_once_and_where_it_belongs() {
        // Two key-value heads with two queries each, two rows a head: q0 q1 k v | q2 q3 k v.
        assert_eq!(ungrouped(4, 2, 2), [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]);
        assert_eq!(grouped(2, 3), [0, 2, 4, 1, 3, 5]);
        let rows: Vec<usize> = (10..22).collect();
        assert_eq!(halves(&rows, 6, 4), [10, 12, 11, 13, 14, 15, 16, 18, 17, 19, 20, 21]);
    }
}
