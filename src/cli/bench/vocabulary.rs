//! Where the tokens of made-up prompts come from, and in what form a prompt is sent.

use std::ops::Range;

use rand::Rng;

use crate::text::Tokenizer;

/// Below this most vocabularies keep their special tokens.
const FIRST_PLAIN_ID: u32 = 10;
/// How often a text may be corrected until it has as many tokens as it should.
const MAX_CORRECTIONS: usize = 10;

/// One prompt, as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// As text.
    Text(String),
    /// As token ids.
    Ids(Vec<u32>),
}

/// The tokens that prompts are made of.
#[derive(Debug)]
pub(crate) enum Vocabulary {
    /// Prompts are sent as ids.
    Ids(Vec<u32>),
    /// Prompts are sent as texts of so many short words; what they are in tokens, only the server knows.
    Words(Range<u32>),
    /// Prompts are sent as texts that this tokenizer turns into as many tokens as asked for.
    Texts {
        /// The model's.
        tokenizer: Tokenizer,
        /// All but special tokens.
        ids: Vec<u32>,
    },
}

impl Vocabulary {
    /// Ids up to `vocab_size`, which is above 10.
    pub(crate) fn ids(vocab_size: u32) -> Self {
        Self::Ids((FIRST_PLAIN_ID..vocab_size).collect())
    }

    /// As many words as ids.
    pub(crate) fn words(vocab_size: u32) -> Self {
        Self::Words(FIRST_PLAIN_ID..vocab_size)
    }

    /// The ids of a tokenizer, sent as ids.
    pub(crate) fn ids_of(tokenizer: &Tokenizer) -> Self {
        Self::Ids(plain_ids(tokenizer))
    }

    /// The tokens of a tokenizer, sent as text.
    pub(crate) fn texts_of(tokenizer: Tokenizer) -> Self {
        Self::Texts { ids: plain_ids(&tokenizer), tokenizer }
    }

    /// That many tokens, each drawn by itself.
    pub(crate) fn draw(&self, count: u32, rng: &mut impl Rng) -> Vec<u32> {
        let ids = match self {
            Self::Ids(ids) | Self::Texts { ids, .. } => ids.as_slice(),
            Self::Words(range) => return (0..count).map(|_| rng.random_range(range.clone())).collect(),
        };
        (0..count).map(|_| ids[rng.random_range(0..ids.len())]).collect()
    }

    /// The prompt that these tokens make, and its length in tokens as far as it is known here.
    pub(crate) fn prompt(&self, ids: Vec<u32>, rng: &mut impl Rng) -> anyhow::Result<(Prompt, u32)> {
        let length = ids.len() as u32;
        match self {
            Self::Ids(_) => Ok((Prompt::Ids(ids), length)),
            Self::Words(_) => {
                let words: Vec<_> = ids.into_iter().map(word).collect();
                Ok((Prompt::Text(words.join(" ")), length))
            }
            Self::Texts { tokenizer, .. } => {
                let (text, length) = self.text_of(tokenizer, ids, rng)?;
                Ok((Prompt::Text(text), length))
            }
        }
    }

    /// A text of tokens drawn at random seldom gives the same tokens again, so it is cut or extended until
    /// at least their number is right.
    fn text_of(
        &self,
        tokenizer: &Tokenizer,
        mut ids: Vec<u32>,
        rng: &mut impl Rng,
    ) -> anyhow::Result<(String, u32)> {
        let target = ids.len();
        let mut corrections = 0;
        loop {
            let text = tokenizer.decode(&ids, false);
            ids = tokenizer.encode(&text, false)?;
            if ids.len() == target || corrections == MAX_CORRECTIONS {
                return Ok((text, ids.len() as u32));
            }
            corrections += 1;
            if ids.len() < target {
                ids.extend(self.draw((target - ids.len()) as u32, rng));
            }
            ids.truncate(target);
        }
    }
}

fn plain_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    (0..tokenizer.vocab_size() as u32).filter(|&id| !tokenizer.is_special(id)).collect()
}

/// A number in syllables: short, and different for different numbers.
fn word(mut number: u32) -> String {
    const CONSONANTS: &[u8] = b"bdfgklmnprstvz";
    const VOWELS: &[u8] = b"aeiou";
    let mut word = String::new();
    loop {
        let syllable = number as usize % (CONSONANTS.len() * VOWELS.len());
        word.push(CONSONANTS[syllable / VOWELS.len()].into());
        word.push(VOWELS[syllable % VOWELS.len()].into());
        number /= (CONSONANTS.len() * VOWELS.len()) as u32;
        if number == 0 {
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn words_are_different() {
        let words: HashSet<_> = (0..10_000).map(word).collect();
        assert_eq!(words.len(), 10_000);
    }

    #[test]
    fn texts_have_as_many_tokens_as_asked_for() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/pebble/model");
        let tokenizer = Tokenizer::from_dir(dir.as_ref()).unwrap();
        let vocabulary = Vocabulary::texts_of(tokenizer.clone());
        let mut rng = StdRng::seed_from_u64(0);
        let mut right = 0;
        for length in [1, 2, 17, 128, 500].repeat(8) {
            let ids = vocabulary.draw(length, &mut rng);
            let (Prompt::Text(text), said) = vocabulary.prompt(ids, &mut rng).unwrap() else { panic!() };
            assert_eq!(tokenizer.encode(&text, false).unwrap().len(), said as usize);
            right += usize::from(said == length);
        }
        assert!(right >= 36, "only {right} of 40 texts have the length asked for");
    }
}
