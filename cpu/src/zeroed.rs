//! [`zeroed`]: large buffers, or a refusal. `vec![0.0; n]` would abort where there is no memory.

use std::alloc::{Layout, alloc_zeroed};

/// `len` zeros. `None` if the system has not so much memory.
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
        assert!(zeroed(0).unwrap().is_empty());
        assert_eq!(zeroed(3).unwrap(), vec![0.0; 3]);
        assert!(zeroed(usize::MAX / 8).is_none());
        assert!(zeroed(usize::MAX).is_none());
    }
}
