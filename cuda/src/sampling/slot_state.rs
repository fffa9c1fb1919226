//! What the device knows of a slot's request, and of a row: as words, in the order of the structs in
//! kernels/sampling.cuh.

use quire_model::{BackendError, LogitsRow, LogitsTask, Slot, UNKNOWN_TOKEN};

use super::TOP_MAX;
use crate::refusal::refusal;

/// Logits that one request may single out: `logit_bias`, `bad_words`, and with `min_tokens` the end tokens.
/// More than the doors of the server let in (4096 biases, 4096 stop tokens, 128 words), so that memory by
/// slot is fixed.
pub const MAX_RULES: usize = 8448;

/// Bad words of more than one token that a request may have; the doors let in 128.
pub const MAX_WORDS: usize = 32 * ARMED_WORDS;

/// `SlotParams`.
pub(super) const PARAMS_WORDS: usize = 12;
/// `TokenRule`.
pub(super) const RULE_WORDS: usize = 3;
/// `SamplingRow`.
pub(super) const ROW_WORDS: usize = 7 + ARMED_WORDS;
const ARMED_WORDS: usize = 4;

const HAS_PENALTIES: u32 = 1;
const HAS_ALLOWED: u32 = 2;
/// `NO_MASK`.
const NO_MASK: u32 = u32::MAX;
const IS_PROMPT: u32 = 1;
const WANTS_LOGPROBS: u32 = 2;
const LAST_TOKEN_UNKNOWN: u32 = 4;
const RULE_BIAS: u32 = 0;
const RULE_STOP: u32 = 1;
const RULE_WORD: u32 = 2;

/// A change of one logit.
pub(super) type TokenRule = [u32; RULE_WORDS];

/// The slot's parameters, of which `num_rules` rules are a part.
pub(super) fn params_words(slot: &Slot, num_rules: usize) -> [u32; PARAMS_WORDS] {
    let params = slot.params();
    let mut flags = 0;
    if slot.has_penalties() {
        flags |= HAS_PENALTIES;
    }
    if params.allowed_token_ids.is_some() {
        flags |= HAS_ALLOWED;
    }
    [
        params.seed as u32,
        (params.seed >> 32) as u32,
        params.temperature.to_bits(),
        params.top_p.to_bits(),
        params.min_p.to_bits(),
        params.repetition_penalty.to_bits(),
        params.frequency_penalty.to_bits(),
        params.presence_penalty.to_bits(),
        params.top_k,
        params.min_tokens,
        num_rules as u32,
        flags,
    ]
}

/// Everything that changes single logits of the request, by token; a token's biases in the request's order.
/// Tokens that do not exist are left out.
pub(super) fn collect_rules(
    slot: &Slot,
    vocab_size: usize,
    rules: &mut Vec<TokenRule>,
) -> Result<(), BackendError> {
    let params = slot.params();
    rules.clear();
    let masked = f32::NEG_INFINITY.to_bits();
    if params.min_tokens > 0 {
        let ends = params.eos_token_ids.iter().chain(&params.stop_token_ids);
        rules.extend(ends.map(|token| [*token, RULE_STOP, 0]));
    }
    rules.extend(params.logit_bias.iter().map(|(token, bias)| [*token, RULE_BIAS, bias.to_bits()]));
    let mut number = 0;
    for (last, prefix) in params.bad_words.iter().filter_map(|word| word.split_last()) {
        match prefix.last() {
            None => rules.push([*last, RULE_BIAS, masked]),
            Some(before) => {
                rules.push([*last, RULE_WORD | number << 8, *before]);
                number += 1;
            }
        }
    }
    rules.retain(|rule| (rule[0] as usize) < vocab_size);
    rules.sort_by_key(|rule| rule[0]);
    if rules.len() > MAX_RULES {
        let count = rules.len();
        let reason = format!("{count} logits singled out by logit_bias, bad_words and min_tokens");
        return Err(refusal(format!("{reason}; at most {MAX_RULES} are possible on the GPU")));
    }
    if number as usize > MAX_WORDS {
        return Err(refusal(format!(
            "{number} bad_words of several tokens; at most {MAX_WORDS} are possible"
        )));
    }
    Ok(())
}

/// Sets the bit of each allowed token in `words`, which has one for each token of the vocabulary.
pub(super) fn set_allowed(words: &mut [u32], allowed: &[u32]) {
    words.fill(0);
    for token in allowed {
        if let Some(word) = words.get_mut(*token as usize / 32) {
            *word |= 1 << (token % 32);
        }
    }
}

/// Whether the step brings a mask for the row.
pub(super) fn has_mask(row: &LogitsRow, slot: &Slot) -> bool {
    row.task == LogitsTask::Sample && slot.params().grammar.is_some()
}

/// The row's words. Its `num_top` alternatives that the device gives go to `first_top` and on; `mask` is which of
/// the step's masks is its own.
pub(super) fn row_words(
    row: &LogitsRow,
    slot: &Slot,
    num_top: usize,
    first_top: usize,
    mask: Option<usize>,
) -> [u32; ROW_WORDS] {
    let mut words = [0; ROW_WORDS];
    let mut flags = 0;
    words[0] = row.slot;
    match row.task {
        LogitsTask::Prompt { token } => {
            words[2] = token;
            flags |= IS_PROMPT;
        }
        LogitsTask::Sample => {
            let output_position = row.position as usize - slot.prompt_len();
            let output = &slot.tokens()[slot.prompt_len()..row.position as usize];
            words[1] = output_position as u32;
            if output.last() == Some(&UNKNOWN_TOKEN) {
                flags |= LAST_TOKEN_UNKNOWN;
            }
            arm_words(&slot.params().bad_words, output, &mut words[7..]);
        }
    }
    if row.wanted_top(slot).is_some() {
        flags |= WANTS_LOGPROBS;
    }
    words[3] = flags;
    words[4] = num_top as u32;
    words[5] = first_top as u32;
    words[6] = mask.map_or(NO_MASK, |mask| mask as u32);
    words
}

/// How many alternatives come from the device to a row that asks for so many.
pub(super) fn device_top(wanted_top: Option<u32>, vocab_size: usize) -> usize {
    wanted_top
        .map(|count| count as usize)
        .filter(|count| *count <= TOP_MAX)
        .map_or(0, |count| count.min(vocab_size))
}

/// Sets the bit of each bad word of several tokens that the next token may complete. If the last token is not
/// known yet, all but that must agree, and the device compares it itself.
fn arm_words(bad_words: &[Vec<u32>], output: &[u32], armed: &mut [u32]) {
    let prefixes = bad_words.iter().filter_map(|word| word.split_last()).map(|(_, prefix)| prefix);
    for (number, prefix) in prefixes.filter(|prefix| !prefix.is_empty()).enumerate() {
        let agrees = |(known, wanted): (&u32, &u32)| known == wanted || *known == UNKNOWN_TOKEN;
        let matches = prefix.len() <= output.len()
            && output[output.len() - prefix.len()..].iter().zip(prefix).rev().all(agrees);
        if matches {
            armed[number / 32] |= 1 << (number % 32);
        }
    }
}
