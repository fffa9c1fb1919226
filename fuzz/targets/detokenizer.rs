//! Detokenising token by token gives what decoding the whole gives, and never half a character.

use std::sync::OnceLock;

use quire::demo;
use quire::text::{Detokenizer, Tokenizer};

use super::input::Input;

const MAX_TOKENS: usize = 256;

/// One byte of options, then tokens as two bytes each.
pub fn run(data: &[u8]) {
    let tokenizer = tokenizer();
    let mut input = Input(data);
    let skip_special_tokens = input.byte() & 1 == 1;
    let vocab_size = tokenizer.vocab_size() as u32;
    let ids: Vec<u32> = input
        .0
        .chunks_exact(2)
        .take(MAX_TOKENS)
        .map(|pair| u32::from(u16::from_le_bytes([pair[0], pair[1]])) % vocab_size)
        .collect();
    let mut detokenizer = Detokenizer::new(tokenizer, &[], skip_special_tokens, true);
    let (mut streamed, mut bytes) = (String::new(), Vec::new());
    for &id in &ids {
        detokenizer.push(id, &mut streamed);
        if !(skip_special_tokens && tokenizer.is_special(id)) {
            bytes.extend_from_slice(&tokenizer.token_bytes(id));
        }
        // What has come is a beginning of what the bytes so far mean: nothing is made up or taken back.
        let whole = String::from_utf8_lossy(&bytes);
        assert!(whole.starts_with(&streamed), "{streamed:?} of {whole:?}");
        assert!(whole.len() - streamed.len() <= 3 * 3, "{streamed:?} lags behind {whole:?}");
    }
    detokenizer.finish(&mut streamed);
    assert_eq!(streamed, String::from_utf8_lossy(&bytes), "{ids:?}");
}

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        Tokenizer::from_bytes(demo::TOKENIZER, Some(demo::TOKENIZER_CONFIG))
            .expect("the demo model's tokenizer")
    })
}
