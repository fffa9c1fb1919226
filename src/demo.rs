//! Pebble, the demo model, as bytes in the program: `quire` serves it from any directory, without a download.

/// config.json.
pub const CONFIG: &str = include_str!("../assets/pebble/model/config.json");
/// generation_config.json.
pub const GENERATION_CONFIG: &str = include_str!("../assets/pebble/model/generation_config.json");
/// tokenizer.json.
pub const TOKENIZER: &[u8] = include_bytes!("../assets/pebble/model/tokenizer.json");
/// tokenizer_config.json, with the chat template in it.
pub const TOKENIZER_CONFIG: &[u8] = include_bytes!("../assets/pebble/model/tokenizer_config.json");
/// model.safetensors.
pub const WEIGHTS: &[u8] = include_bytes!("../assets/pebble/model/model.safetensors");
/// What clients call it.
pub const NAME: &str = "pebble";
