//! [`Arch`]: what machine code is made for, by the compilers' names, and which GPUs can run it.

use std::fmt;
use std::str::FromStr;

/// Major and minor, such as (9, 0), as the driver reports it.
pub(crate) type ComputeCapability = (u32, u32);

/// The least compute capability that the kernels are written for (cp.async, mma of bf16).
pub(crate) const LEAST: ComputeCapability = (8, 0);

/// An architecture of machine code: `sm_80`, `sm_90a`. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    /// Ten times major, plus minor.
    number: u32,
    /// The `a` of `sm_90a`: may use what only this very compute capability has.
    specific: bool,
}

impl Arch {
    /// The one to compile for when the device is known and the compiler knows `numbers`: the device's own, or else
    /// the last before it that it can run.
    pub(crate) fn best_for(device: ComputeCapability, numbers: &[u32]) -> Option<Arch> {
        let mine = numbers.iter().map(|&number| Arch { number, specific: false });
        let best = mine.filter(|arch| arch.runs_on(device)).max()?;
        // On Hopper as ahead of time. Later GPUs have an `a` too, but no kernel needs what it adds.
        Some(Arch { specific: best.number == 90, ..best })
    }

    /// Machine code runs on its own compute capability and on later minor ones; specific code on its own alone.
    pub(crate) fn runs_on(&self, device: ComputeCapability) -> bool {
        let (major, minor) = (self.number / 10, self.number % 10);
        if self.specific { device == (major, minor) } else { device.0 == major && device.1 >= minor }
    }

    /// Whether a compiler that knows `numbers` can make it, for a GPU that the kernels are written for.
    pub(crate) fn is_among(&self, numbers: &[u32]) -> bool {
        numbers.contains(&self.number) && *self >= Arch::of(LEAST) && (!self.specific || self.number >= 90)
    }

    /// The architecture of a compute capability.
    pub(crate) fn of(device: ComputeCapability) -> Arch {
        Arch { number: device.0 * 10 + device.1, specific: false }
    }

    /// All that can be asked of a compiler that knows `numbers`, in words.
    pub(crate) fn list(numbers: &[u32]) -> String {
        let both = |&number| [false, true].map(|specific| Arch { number, specific });
        let known = numbers.iter().flat_map(both).filter(|arch| arch.is_among(numbers));
        known.map(|arch| arch.to_string()).collect::<Vec<_>>().join(", ")
    }
}

/// Whether something made for `target` runs on the device: `sm_N`, or `compute_N`, which is PTX and is translated by
/// the driver for any later GPU.
pub(crate) fn target_runs_on(target: &str, device: ComputeCapability) -> bool {
    match target.strip_prefix("compute_").map(|number| format!("sm_{number}").parse::<Arch>()) {
        Some(Ok(arch)) if arch.specific => arch.runs_on(device),
        Some(Ok(arch)) => arch <= Arch::of(device),
        Some(Err(_)) => false,
        None => target.parse::<Arch>().is_ok_and(|arch| arch.runs_on(device)),
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}", self.number, if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = ();

    fn from_str(text: &str) -> Result<Arch, ()> {
        let number = text.strip_prefix("sm_").ok_or(())?;
        let (number, specific) = match number.strip_suffix('a') {
            Some(number) => (number, true),
            None => (number, false),
        };
        let digits = number.bytes().all(|byte| byte.is_ascii_digit()) && (2..=4).contains(&number.len());
        let number = if digits { number.parse().map_err(|_| ())? } else { return Err(()) };
        Ok(Arch { number, specific })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NVRTC 13.0 says it knows.
    const NVRTC_13: [u32; 12] = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];

    fn arch(text: &str) -> Arch {
        text.parse().expect(text)
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["sm_80", "sm_90a", "sm_100", "sm_121a"] {
            assert_eq!(arch(text).to_string(), text);
        }
        for text in ["", "90", "sm_", "sm_9", "sm_90b", "sm_+90", "sm_99999", "compute_90", "sm_a", "SM_90"] {
            assert_eq!(text.parse::<Arch>(), Err(()), "{text}");
        }
    }

    #[test]
    fn a_gpu_runs_its_own_code_and_that_of_earlier_minor_capabilities() {
        let cases = [
            ("sm_80", (8, 0), true),
            ("sm_80", (8, 9), true),
            ("sm_86", (8, 0), false),
            ("sm_80", (9, 0), false),
            ("sm_90a", (9, 0), true),
            ("sm_100", (10, 3), true),
            ("sm_100a", (10, 3), false),
            ("sm_100", (12, 0), false),
            ("compute_80", (12, 0), true),
            ("compute_80", (8, 0), true),
            ("compute_90", (8, 9), false),
            ("compute_90a", (10, 0), false),
            ("compute_90a", (9, 0), true),
            ("nonsense", (9, 0), false),
            ("compute_x", (9, 0), false),
        ];
        for (target, device, runs) in cases {
            assert_eq!(target_runs_on(target, device), runs, "{target} on {device:?}");
        }
    }

    #[test]
    fn the_compiler_is_asked_for_what_the_device_is_or_the_last_before_it() {
        let best = |device, numbers: &[u32]| Arch::best_for(device, numbers).map(|arch| arch.to_string());
        let cases = [
            ((8, 0), Some("sm_80")),
            ((8, 6), Some("sm_86")),
            ((9, 0), Some("sm_90a")),
            ((10, 0), Some("sm_100")),
            ((10, 7), Some("sm_103")),
            ((12, 1), Some("sm_121")),
            ((13, 0), None),
        ];
        for (device, expected) in cases {
            assert_eq!(best(device, &NVRTC_13).as_deref(), expected, "{device:?}");
        }
        assert_eq!(best((9, 0), &[80, 86]), None);
    }

    #[test]
    fn what_can_be_asked_for_is_listed() {
        let list = Arch::list(&NVRTC_13);
        assert!(list.starts_with("sm_80, sm_86, "), "{list}");
        assert!(list.contains("sm_90, sm_90a, sm_100, sm_100a"), "{list}");
        for text in list.split(", ") {
            assert!(arch(text).is_among(&NVRTC_13), "{text}");
        }
        for text in ["sm_75", "sm_80a", "sm_95", "sm_95a"] {
            assert!(!arch(text).is_among(&NVRTC_13), "{text}");
        }
    }
}
