//! Prints what the output thread spends per token: detokenizing and stop strings over many interleaved streams.
//!
//! ```text
//! cargo run --release --example detokenize_speed -- assets/pebble/model
//! ```

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use quire::text::{Detokenizer, StopMatcher, Tokenizer};

const NUM_STREAMS: usize = 512;
const TOKENS_PER_STREAM: usize = 2048;

fn main() -> anyhow::Result<()> {
    let dir = std::env::args().nth(1).map_or_else(|| PathBuf::from("assets/pebble/model"), PathBuf::from);
    let tokenizer = Tokenizer::from_dir(&dir)?;
    let english =
        tokenizer.encode(&"Once upon a time, there was a fox. She said 12 + 30 = 42!\n".repeat(64), false)?;
    let mixed = tokenizer.encode(&"日本の狐 🦊 said: voilà, naïve café! ".repeat(64), false)?;
    for (name, text) in [("English text", english), ("text of split characters", mixed)] {
        for stops in [vec![], vec!["</s>".to_string(), "\n\nUser:".to_string()]] {
            let nanoseconds = measure(&tokenizer, &text, &stops);
            println!("{name}, {} stop strings: {nanoseconds:.1} ns per token", stops.len());
        }
    }
    Ok(())
}

/// Best of five, as other programs may run at the same time. Each step pushes one token to every stream, as the
/// engine does.
fn measure(tokenizer: &Tokenizer, text: &[u32], stops: &[String]) -> f64 {
    let run = || {
        let stream = || (Detokenizer::new(tokenizer, &text[..8], true, true), StopMatcher::new(stops, false));
        let mut streams: Vec<_> = (0..NUM_STREAMS).map(|_| stream()).collect();
        let (mut piece, mut delta) = (String::new(), String::new());
        let started = Instant::now();
        for step in 0..TOKENS_PER_STREAM {
            for (index, (detokenizer, matcher)) in streams.iter_mut().enumerate() {
                piece.clear();
                delta.clear();
                detokenizer.push(text[(step + index) % text.len()], &mut piece);
                black_box(matcher.push(&piece, &mut delta));
                black_box(&delta);
            }
        }
        started.elapsed().as_secs_f64() * 1e9 / (NUM_STREAMS * TOKENS_PER_STREAM) as f64
    };
    (0..5).map(|_| run()).fold(f64::INFINITY, f64::min)
}
