//! [`Slot`]: what the runner remembers of one running request between steps.

use std::sync::Arc;

use quire_scheduler::{Adapter, AdmittedRequest, RequestId, SamplingParams, TokenId};

/// Stands in [`Slot::tokens`] for a token that is being sampled in a step not yet collected.
pub const UNKNOWN_TOKEN: TokenId = TokenId::MAX;

/// One running request: its tokens, its parameters and how often each token occurred.
#[derive(Debug, Default)]
pub struct Slot {
    id: Option<RequestId>,
    generation: u64,
    tokens: Vec<TokenId>,
    prompt_len: usize,
    resumed: bool,
    params: Arc<SamplingParams>,
    adapter: Option<Adapter>,
    counts: TokenCounts,
    mask: Vec<u32>,
    is_masked: bool,
    pub(crate) num_blocks: usize,
}

impl Slot {
    /// Takes in a request. Allocates for its whole life, so that its tokens do not.
    pub fn admit(&mut self, request: &AdmittedRequest, vocab_size: usize) {
        self.id = Some(request.id);
        self.generation += 1;
        self.params = request.sampling.clone();
        self.adapter.clone_from(&request.adapter);
        self.prompt_len = request.prompt_token_ids.len();
        self.resumed = !request.output_token_ids.is_empty();
        self.num_blocks = 0;
        self.is_masked = false;
        self.tokens.clear();
        self.tokens.reserve(self.prompt_len + self.params.max_tokens.min(MAX_RESERVED_TOKENS) as usize + 1);
        self.tokens.extend_from_slice(&request.prompt_token_ids);
        self.counts.clear();
        if has_penalties(&self.params) {
            self.counts.grow(vocab_size);
            request.prompt_token_ids.iter().for_each(|token| self.counts.add_prompt(*token));
        }
        for token in &request.output_token_ids {
            self.tokens.push(*token);
            self.count_output(*token);
        }
    }

    /// Forgets the request; the memory stays for the next.
    pub fn release(&mut self) {
        self.id = None;
        self.adapter = None;
        self.tokens.clear();
        self.counts.clear();
        self.num_blocks = 0;
    }

    /// Who is here.
    pub fn id(&self) -> Option<RequestId> {
        self.id
    }

    /// Changes with each request that is admitted here, and with tokens that penalties must count though no
    /// device sampled them: one that keeps state by slot knows by it that its own is out of date.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Prompt and output so far; [`UNKNOWN_TOKEN`] for what is still being sampled.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Tokens of the prompt; the output starts there.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Whether it came with output of its own (after a preemption): its prompt was reported before.
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// How its tokens are chosen.
    pub fn params(&self) -> &SamplingParams {
        &self.params
    }

    /// Whose weights are added to the model's.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// Whether a penalty is in force, which needs to know what occurred.
    pub fn has_penalties(&self) -> bool {
        has_penalties(&self.params)
    }

    /// Each distinct token of prompt and output with its number of occurrences in the output. Empty unless a
    /// penalty is in force.
    pub fn occurrences(&self) -> impl Iterator<Item = (TokenId, u32)> + '_ {
        self.counts.distinct.iter().map(|token| (*token, self.counts.output[*token as usize]))
    }

    /// What the request's grammar allows as the next token: bit `t % 32` of word `t / 32` for token `t`. None if
    /// it has no grammar, or if everything may come.
    pub fn mask(&self) -> Option<&[u32]> {
        self.is_masked.then_some(&*self.mask)
    }

    /// Sets [`Self::mask`], and gives the memory of an earlier one in exchange.
    pub fn set_mask(&mut self, mask: Option<&mut Vec<u32>>) {
        self.is_masked = mask.is_some();
        if let Some(mask) = mask {
            std::mem::swap(&mut self.mask, mask);
        }
    }

    /// Adds a token that no step sampled.
    pub(crate) fn push_forced(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.count_output(token);
        if self.has_penalties() {
            // Whoever counts as it samples has not seen this one.
            self.generation += 1;
        }
    }

    /// Makes room for a token that a submitted step will give.
    pub(crate) fn expect_token(&mut self) {
        self.tokens.push(UNKNOWN_TOKEN);
    }

    /// Puts a token where [`Self::expect_token`] made room.
    pub(crate) fn set_token(&mut self, position: usize, token: TokenId) {
        self.tokens[position] = token;
        self.count_output(token);
    }

    fn count_output(&mut self, token: TokenId) {
        if has_penalties(&self.params) {
            self.counts.add_output(token);
        }
    }
}

/// Tokens for which memory is reserved at admission; a longer output grows its vector now and then, which
/// is cheaper than believing every `max_tokens`.
const MAX_RESERVED_TOKENS: u32 = 16_384;

/// Whether a penalty needs to know what occurred.
fn has_penalties(params: &SamplingParams) -> bool {
    params.repetition_penalty != 1.0 || params.frequency_penalty != 0.0 || params.presence_penalty != 0.0
}

/// Occurrences by token, kept up to date token by token. `output` is as long as the vocabulary once a
/// request with penalties has been in the slot; only `distinct` tokens' entries are not 0.
#[derive(Debug, Default)]
struct TokenCounts {
    output: Vec<u32>,
    seen: Vec<bool>,
    distinct: Vec<TokenId>,
}

impl TokenCounts {
    fn grow(&mut self, vocab_size: usize) {
        self.output.resize(vocab_size, 0);
        self.seen.resize(vocab_size, false);
        self.distinct.reserve(vocab_size);
    }

    fn clear(&mut self) {
        for token in self.distinct.drain(..) {
            self.output[token as usize] = 0;
            self.seen[token as usize] = false;
        }
    }

    fn add_prompt(&mut self, token: TokenId) {
        if !std::mem::replace(&mut self.seen[token as usize], true) {
            self.distinct.push(token);
        }
    }

    fn add_output(&mut self, token: TokenId) {
        self.add_prompt(token);
        self.output[token as usize] += 1;
    }
}
