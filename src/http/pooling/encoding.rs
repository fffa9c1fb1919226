//! How the numbers of vectors are written: [`Encoding`], which requests choose, and [`Vector`] as part of an answer.

use axum::body::Bytes;
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;

use super::request::{Pooled, PoolingUsage};
use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::reply::now;

/// `encoding_format`, `embed_dtype` and `endianness`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Encoding {
    format: Format,
    number: Number,
    endianness: Endianness,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    /// A list of numbers.
    Float,
    /// The numbers' bytes in base64: what OpenAI's clients ask for, since it is smaller.
    Base64,
    /// The bytes as the body, and what else there is to say in a header.
    Bytes,
    /// The bytes and nothing else.
    BytesOnly,
}

/// Floating-point formats that bytes may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    Float32,
    Float16,
    Bfloat16,
    Fp8E4m3,
    Fp8E5m2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endianness {
    /// The server's.
    Native,
    Little,
    Big,
}

const FORMATS: &[(&str, Format)] = &[
    ("float", Format::Float),
    ("base64", Format::Base64),
    ("bytes", Format::Bytes),
    ("bytes_only", Format::BytesOnly),
];
const NUMBERS: &[(&str, Number)] = &[
    ("float32", Number::Float32),
    ("float16", Number::Float16),
    ("bfloat16", Number::Bfloat16),
    ("fp8_e4m3", Number::Fp8E4m3),
    ("fp8_e5m2", Number::Fp8E5m2),
];
const ENDIANNESSES: &[(&str, Endianness)] =
    &[("native", Endianness::Native), ("little", Endianness::Little), ("big", Endianness::Big)];

impl Encoding {
    /// What base64 means where nothing more is said: little-endian float32.
    pub(super) const BASE64: Self =
        Self { format: Format::Base64, number: Number::Float32, endianness: Endianness::Little };

    /// Reads the fields; errors stay in `fields`.
    pub(super) fn read(fields: &mut Fields) -> Self {
        Self {
            format: one_of(fields, "encoding_format", FORMATS),
            number: one_of(fields, "embed_dtype", NUMBERS),
            endianness: one_of(fields, "endianness", ENDIANNESSES),
        }
    }

    /// Whether the answer is bytes and no JSON.
    pub(super) fn is_bytes(self) -> bool {
        matches!(self.format, Format::Bytes | Format::BytesOnly)
    }

    fn bytes(self, values: &[f32]) -> Vec<u8> {
        let big = match self.endianness {
            Endianness::Native => cfg!(target_endian = "big"),
            Endianness::Little => false,
            Endianness::Big => true,
        };
        let mut bytes = Vec::with_capacity(values.len() * self.number.width());
        for value in values {
            let code = self.number.encode(*value);
            match big {
                true => bytes.extend_from_slice(&code.to_be_bytes()[4 - self.number.width()..]),
                false => bytes.extend_from_slice(&code.to_le_bytes()[..self.number.width()]),
            }
        }
        bytes
    }
}

/// The first of the values allowed is the default.
fn one_of<T: Copy>(fields: &mut Fields, name: &str, allowed: &[(&str, T)]) -> T {
    let names = || allowed.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let given = fields.string(name);
    fields.describe(name, |_| json!({ "enum": names() }));
    let Some(given) = given else { return allowed[0].1 };
    match allowed.iter().find(|(name, _)| *name == given) {
        Some((_, value)) => *value,
        None => {
            fields.wrong(name, format!("must be one of {}, got {:?}", names().join(", "), excerpt(&given)));
            allowed[0].1
        }
    }
}

impl Number {
    /// Bytes of one number.
    fn width(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
            Self::Fp8E4m3 | Self::Fp8E5m2 => 1,
        }
    }

    /// Bits of the exponent and of the mantissa, and the code of what is too large: infinity, or in E4M3, which has
    /// none, NaN.
    fn layout(self) -> (u32, u32, u32) {
        match self {
            Self::Float32 => (8, 23, 0x7f80_0000),
            Self::Float16 => (5, 10, 0x7c00),
            Self::Bfloat16 => (8, 7, 0x7f80),
            Self::Fp8E4m3 => (4, 3, 0x7f),
            Self::Fp8E5m2 => (5, 2, 0x7c),
        }
    }

    /// The nearest number of this format, of two equally near ones the even one.
    fn encode(self, value: f32) -> u32 {
        let (exponent_bits, mantissa_bits, too_large) = self.layout();
        if self == Self::Float32 {
            return value.to_bits();
        }
        let sign = (value.to_bits() >> 31) << (exponent_bits + mantissa_bits);
        if value.is_nan() {
            return sign | ((1 << (exponent_bits + mantissa_bits)) - 1);
        }
        let bias = (1 << (exponent_bits - 1)) - 1;
        let magnitude = value.to_bits() & 0x7fff_ffff;
        // What is subnormal in f32 has the exponent of the least normal number, without the implicit bit.
        let (stored, fraction) = ((magnitude >> 23) as i32, magnitude & 0x007f_ffff);
        let (own, whole) = if stored == 0 { (-126, fraction) } else { (stored - 127, fraction | 1 << 23) };
        let exponent = own.max(1 - bias);
        let dropped = 23 - mantissa_bits as i32 + (exponent - own);
        if dropped > 25 {
            return sign;
        }
        let (kept, rest, half) = (whole >> dropped, whole & ((1 << dropped) - 1), 1 << (dropped - 1));
        let rounded = kept + u32::from(rest > half || rest == half && kept & 1 == 1);
        // The implicit bit of a normal number counts one up in the exponent, and so does a carry.
        let code = (((exponent + bias - 1) as u32) << mantissa_bits) + rounded;
        sign | code.min(too_large)
    }
}

/// A vector in one of its forms.
#[derive(Debug, Clone, PartialEq, Serialize, schemars::JsonSchema)]
#[serde(untagged)]
pub(crate) enum Vector {
    Float(Vec<f32>),
    Base64(String),
}

impl Vector {
    pub(super) fn new(values: Vec<f32>, encoding: Encoding) -> Self {
        match encoding.format {
            Format::Float => Self::Float(values),
            Format::Base64 | Format::Bytes | Format::BytesOnly => {
                Self::Base64(STANDARD.encode(encoding.bytes(&values)))
            }
        }
    }
}

/// The answer in bytes, vector after vector. vLLM says in the header `metadata` where each is.
pub(super) fn bytes_response(pooled: Pooled, encoding: Encoding) -> Result<Response, ApiError> {
    let Pooled { id, model, vectors } = pooled;
    let name = |of: &str| of.to_owned();
    let number = NUMBERS.iter().find(|(_, number)| *number == encoding.number).map(|(of, _)| name(of));
    let endianness =
        ENDIANNESSES.iter().find(|(_, order)| *order == encoding.endianness).map(|(of, _)| name(of));
    let mut body = Vec::new();
    let mut items = Vec::with_capacity(vectors.len());
    for (index, one) in vectors.iter().enumerate() {
        let start = body.len();
        body.extend(encoding.bytes(&one.values));
        items.push(json!({
            "index": index, "embed_dtype": number, "endianness": endianness, "start": start, "end": body.len(),
            "shape": [one.values.len()],
        }));
    }
    let mut response = ([(CONTENT_TYPE, "application/octet-stream")], Bytes::from(body)).into_response();
    if encoding.format == Format::Bytes {
        let usage = PoolingUsage::of(&vectors);
        let metadata =
            json!({ "id": id, "created": now(), "model": model, "data": items, "usage": usage }).to_string();
        let metadata = HeaderValue::from_bytes(metadata.as_bytes())
            .map_err(|_| ApiError::internal("the answer's metadata do not fit into a header"))?;
        response.headers_mut().insert("metadata", metadata);
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Number; 4] = [Number::Float16, Number::Bfloat16, Number::Fp8E4m3, Number::Fp8E5m2];

    #[test]
    fn base64_is_little_endian_float32() {
        let values = vec![1.0, -2.5];
        assert_eq!(Vector::new(values.clone(), Encoding::BASE64), Vector::Base64("AACAPwAAIMA=".into()));
        let float = Encoding { format: Format::Float, ..Encoding::BASE64 };
        assert_eq!(serde_json::to_string(&Vector::new(values, float)).unwrap(), "[1.0,-2.5]");
    }

    #[test]
    fn endianness_turns_each_number_round() {
        for number in [ALL.as_slice(), &[Number::Float32]].concat() {
            let bytes = |endianness| {
                Encoding { format: Format::Bytes, number, endianness }.bytes(&[0.1, -3.75, 300.0])
            };
            let (mut big, little) = (bytes(Endianness::Big), bytes(Endianness::Little));
            assert_eq!(big.len(), 3 * number.width());
            big.chunks_mut(number.width()).for_each(<[u8]>::reverse);
            assert_eq!(big, little);
            let native = if cfg!(target_endian = "big") { Endianness::Big } else { Endianness::Little };
            assert_eq!(bytes(Endianness::Native), bytes(native));
        }
    }

    /// What a code stands for, by the definition of the format.
    fn decode(number: Number, code: u32) -> f64 {
        let (exponent_bits, mantissa_bits, _) = number.layout();
        let mantissa = f64::from(code & ((1 << mantissa_bits) - 1)) / f64::from(1u32 << mantissa_bits);
        let bias = (1 << (exponent_bits - 1)) - 1;
        match (code >> mantissa_bits) as i32 {
            0 => mantissa * 2f64.powi(1 - bias),
            exponent => (1.0 + mantissa) * 2f64.powi(exponent - bias),
        }
    }

    #[test]
    fn every_number_is_rounded_to_the_nearest_and_ties_to_the_even_one() {
        for number in ALL {
            let too_large = number.layout().2;
            for code in 0..too_large {
                let value = decode(number, code);
                assert_eq!(number.encode(value as f32), code, "{number:?} {value}");
                let sign = 1 << (8 * number.width() - 1);
                assert_eq!(number.encode(-value as f32), code | sign, "{number:?} -{value}");
                let middle = (value + decode(number, code + 1)) / 2.0;
                // Where f32 can hold the middle: it has more bits, but bfloat16 goes as far down.
                if f64::from(middle as f32) == middle {
                    assert_eq!(number.encode(middle as f32), code + (code & 1), "{number:?} {middle}");
                    let above = (middle as f32).next_up();
                    assert_eq!(number.encode(above), code + 1, "{number:?} {above}");
                }
            }
            assert_eq!(number.encode(f32::INFINITY), too_large, "{number:?}");
            assert!(number.encode(f32::NAN) >= too_large, "{number:?}");
        }
    }
}
