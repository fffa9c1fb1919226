//! [`zeroed`]: large buffers as the system gives them.
//!
//! `vec![0.0; n]` would abort where there is no memory, and filling a reserved vector would touch every page:
//! a server would pay at its start, in time and in memory, for a KV cache that nobody has used yet.

use std::alloc::{Layout, alloc_zeroed};

/// `len` zeros, in pages that the system provides when they are first used. `None` if it refuses.
pub(crate) fn zeroed(len: usize) -> Option<Vec<f32>> {
    if len == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<f32>(len).ok()?;
    // SAFETY: the layout is not empty; all-zero bytes are `len` valid f32; the vector frees with this same
    // layout, since its capacity is `len`.
    #[allow(unsafe_code)]
    unsafe {
        let start = alloc_zeroed(layout).cast::<f32>();
        (!start.is_null()).then(|| Vec::from_raw_parts(start, len, len))
    }
}

#[cfg(test)]
mod tests {
    use super::zeroed;

    #[test]
    fn zeros_or_a_refusal() {
        assert_eq!(zeroed(0).unwrap(), []);
        assert_eq!(zeroed(3).unwrap(), [0.0; 3]);
        assert!(zeroed(usize::MAX / 8).is_none());
        assert!(zeroed(usize::MAX).is_none());
    }
}
