//! [`Vector`]: how the numbers of an embedding are written.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

/// `encoding_format`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// The numbers as little-endian float32, in base64: what OpenAI's clients ask for, since it is smaller.
    Base64,
}

/// An embedding in one of its forms.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    pub(crate) fn new(values: Vec<f32>, format: EncodingFormat) -> Self {
        match format {
            EncodingFormat::Float => Self::Float(values),
            EncodingFormat::Base64 => {
                let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
                Self::Base64(STANDARD.encode(bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_little_endian_float32() {
        let values = vec![1.0, -2.5];
        assert_eq!(
            Vector::new(values.clone(), EncodingFormat::Base64),
            Vector::Base64("AACAPwAAIMA=".into())
        );
        assert_eq!(serde_json::to_string(&Vector::new(values, EncodingFormat::Float)).unwrap(), "[1.0,-2.5]");
    }
}
