//! [`StepPointers`]: where the metadata of the step lies on the device.

/// Device addresses of the step's arrays, as kernels take them; the mirror of `Step` in kernels/step.cuh, which
/// says their shapes. They are the same for every step.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct StepPointers {
    pub(crate) counts: u64,
    pub(crate) token_ids: u64,
    pub(crate) positions: u64,
    pub(crate) token_slots: u64,
    pub(crate) row_slots: u64,
    pub(crate) row_starts: u64,
    pub(crate) row_positions: u64,
    pub(crate) logits_tokens: u64,
    pub(crate) block_tables: u64,
    pub(crate) block_table_stride: i64,
}

const _: () = assert!(size_of::<StepPointers>() == 80);
