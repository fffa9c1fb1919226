//! [`zeroed`]: large buffers, or a refusal. `vec![0.0; n]` would abort where there is no memory.

use std::alloc::{Layout, alloc_zeroed};

use crate::lanes::Element;

/// `len` zeros. `None` if the system has not so much memory.
pub(crate) fn zeroed<T: Element>(len: usize) -> Option<Vec<T>> {
    if len == 0 {
        return Some(Vec::new());
    }
    let layout = Layout::array::<T>(len).ok()?;
    // SAFETY: the layout is not empty; elements are plain numbers, for which all-zero bytes are valid; the vector
    // frees with this same layout, since its capacity is `len`.
    #[allow(unsafe_code)]
    unsafe {
        let start = alloc_zeroed(layout).cast::<T>();
        (!start.is_null()).then(|| Vec::from_raw_parts(start, len, len))
    }
}

#[cfg(test)]
mod tests {
    use super::zeroed;

    #[test]
    fn zeros_or_a_refusal() {
        assert!(zeroed::<f32>(0).unwrap().is_empty());
        assert_eq!(zeroed::<f32>(3).unwrap(), vec![0.0; 3]);
        assert!(zeroed::<f32>(usize::MAX / 8).is_none());
        assert!(zeroed::<f32>(usize::MAX).is_none());
    }
}
