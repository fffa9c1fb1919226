//! [`Report`]: a line of a table on standard output for whoever looks on, and a line of JSON in a file for later.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::Result;

/// What the GPU can do, as measured in the same run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ceilings {
    /// Bytes read and written by a large copy, a second.
    pub(crate) bytes_per_s: f64,
    /// Operations of a large bf16 product, a second.
    pub(crate) flops_per_s: f64,
}

/// What an operation must do at the least, and how that is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Bytes read or written once.
    pub(crate) bytes: f64,
    /// Multiplications and additions of matrix products.
    pub(crate) flops: f64,
    /// How they are counted.
    pub(crate) formula: &'static str,
}

impl Ceilings {
    /// Microseconds that the work takes at the rates of the ceilings, the slower of the two counting.
    pub(crate) fn floor_us(&self, work: &Work) -> f64 {
        (work.bytes / self.bytes_per_s).max(work.flops / self.flops_per_s) * 1e6
    }
}

/// Where figures go.
pub(crate) struct Report {
    file: Option<File>,
    /// Part of every line.
    common: Value,
}

impl Report {
    /// Into a new file, if there is to be one. The fields of `common` are part of every line.
    pub(crate) fn new(path: Option<&Path>, common: Value) -> Result<Self> {
        let file = path.map(File::create).transpose()?;
        Ok(Self { file, common })
    }

    /// A heading of the table.
    pub(crate) fn heading(&self, title: &str, columns: &str) {
        println!("\n{title}\n{columns}");
    }

    /// One kernel's line.
    pub(crate) fn kernel(
        &mut self,
        model: &str,
        kernel: &str,
        case: &str,
        us: f64,
        work: &Work,
        ceilings: &Ceilings,
    ) -> Result<()> {
        let floor_us = ceilings.floor_us(work);
        let (gb_per_s, tflop_per_s) = (work.bytes / us / 1e3, work.flops / us / 1e6);
        let share = floor_us / us;
        println!(
            "{kernel:<18} {case:<44} {us:>10.2} {gb_per_s:>8.0} {tflop_per_s:>8.1} {:>6.1}%",
            100.0 * share
        );
        self.line(json!({
            "piece": "kernels", "model": model, "kernel": kernel, "case": case, "us": us,
            "bytes": work.bytes, "flops": work.flops, "formula": work.formula, "floor_us": floor_us,
            "gb_per_s": gb_per_s, "tflop_per_s": tflop_per_s, "share": share,
        }))
    }

    /// A line of JSON.
    pub(crate) fn line(&mut self, mut fields: Value) -> Result<()> {
        if let (Some(fields), Some(common)) = (fields.as_object_mut(), self.common.as_object()) {
            fields.extend(common.clone());
        }
        match &mut self.file {
            Some(file) => Ok(writeln!(file, "{fields}")?),
            None => Ok(()),
        }
    }
}

/// The columns of [`Report::kernel`].
pub(crate) const KERNEL_COLUMNS: &str = "kernel             case                                                 us \
                                         \x20   GB/s  TFLOP/s   share";
