//! Counts and sizes as people write them: `4096`, `4k`, `4K`, `512M`, `4GiB`.
//!
//! vLLM's rule decides between the two meanings of a bare letter: small letters are decimal (4k = 4000),
//! capitals binary (4K = 4096). Sizes may also be spelt out (`MB` decimal, `MiB` binary).

/// A whole number with an optional letter.
pub(super) fn parse_count(text: &str) -> Result<u64, String> {
    scaled(text, letter_factor)
        .ok_or_else(|| "must be a whole number, like 4096, 4k (4000) or 4K (4096)".into())
}

/// A size in bytes, above 0.
pub(super) fn parse_bytes(text: &str) -> Result<u64, String> {
    let factor = |suffix: &str| match suffix {
        "B" => Some(1),
        _ => match suffix.strip_suffix("iB") {
            Some(letter) => letter_factor(&letter.to_uppercase()),
            None => match suffix.strip_suffix('B') {
                Some(letter) => letter_factor(&letter.to_lowercase()),
                None => letter_factor(suffix),
            },
        },
    };
    scaled(text, factor)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "must be a size above 0, like 4294967296, 512M, 4GiB or 4.5GB".into())
}

fn letter_factor(letter: &str) -> Option<u64> {
    let power = |base: u64, exponent| Some(base.pow(exponent));
    match letter {
        "" => Some(1),
        "k" => power(1000, 1),
        "m" => power(1000, 2),
        "g" => power(1000, 3),
        "t" => power(1000, 4),
        "K" => power(1024, 1),
        "M" => power(1024, 2),
        "G" => power(1024, 3),
        "T" => power(1024, 4),
        _ => None,
    }
}

fn scaled(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor = factor(suffix.trim_start())?;
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor);
    }
    let value = number.parse::<f64>().ok()? * factor as f64;
    // 2^53: beyond it a float no longer tells neighbouring integers apart.
    (value.fract() == 0.0 && value < 9_007_199_254_740_992.0).then_some(value as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_decimal_and_capitals_binary() {
        let cases = [
            ("0", 0),
            ("7", 7),
            ("1k", 1000),
            ("1K", 1024),
            ("25.6k", 25_600),
            ("2M", 2 << 20),
            ("1m", 1_000_000),
        ];
        for (text, value) in cases {
            assert_eq!(parse_count(text), Ok(value), "{text}");
        }
        for text in [
            "",
            "k",
            "-1",
            "1x",
            "1.5",
            "1KiB",
            "1e3",
            "99999999999999999999",
            "0x10",
            "1 2",
            "18446744073709551615k",
        ] {
            assert!(parse_count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_can_be_spelt_out() {
        let gib = 1 << 30;
        let cases = [
            ("4294967296", 4 * gib),
            ("4G", 4 * gib),
            ("4GiB", 4 * gib),
            ("4 gib", 0),
            ("4 GiB", 4 * gib),
            ("512M", 512 << 20),
            ("4g", 4_000_000_000),
            ("4GB", 4_000_000_000),
            ("0.5KiB", 512),
            ("1.5GiB", 3 * gib / 2),
            ("10B", 10),
            ("1TiB", 1024 * gib),
        ];
        for (text, value) in cases {
            assert_eq!(parse_bytes(text).unwrap_or(0), value, "{text}");
        }
        for text in ["", "0", "0GiB", "B", "-4G", "4Gib", "4PiB", "0.3B", "all"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }
}
