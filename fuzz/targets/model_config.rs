//! Any text as a config.json: refused with a sentence, or a model whose sizes can be computed with.

use quire_model::{KvDtype, KvLayout, ModelSpec};

/// The whole input is the text.
pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match ModelSpec::from_json(&text, None) {
        Ok(spec) => {
            assert!(spec.num_parameters() > 0);
            assert!(spec.layers.len() < 1 << 20, "{} layers", spec.layers.len());
            for dtype in KvDtype::ALL {
                let layout = KvLayout::new(&spec, 256);
                assert!(layout.num_blocks(1 << 30, dtype) > 0 || layout.block_bytes(dtype) > 1 << 30);
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
