//! [`Upload`]: what a step tells the device before it samples: the step's rows, in its packet, and what is new of
//! slots whose request changed.

use std::sync::Arc;

use quire_model::{BackendError, LogitsRow, Slot, StepLimits};

use super::SamplingArrays;
use super::slot_state::{
    MAX_RULES, PARAMS_WORDS, ROW_WORDS, RULE_WORDS, TokenRule, collect_rules, device_top, has_mask,
    params_words, row_words, set_allowed,
};
use crate::driver::{Context, Function, Stream};
use crate::packet::Packet;
use crate::ring::PinnedRing;

/// `SlotUpdate` in kernels/sampling.cu.
const UPDATE_WORDS: usize = PARAMS_WORDS + 8;
const SETS_PARAMS: u32 = 1;
const CLEARS_COUNTS: u32 = 2;
const ADMIT_THREADS: u32 = 256;

/// Tokens of prompts and outputs that one entry of the ring has room for beside one request's rules.
const TOKENS_PER_ENTRY: usize = 16_384;

/// An entry of the ring and its image on the device, in words: `[updates][UPDATE_WORDS]`, then the updates' own
/// words.
#[derive(Debug, Clone, Copy)]
pub(super) struct UploadLayout {
    updates: usize,
    words: usize,
}

/// The ring, and which request of each slot the device knows.
#[derive(Debug)]
pub(super) struct Upload {
    layout: UploadLayout,
    ring: PinnedRing,
    /// Address of the image.
    image: u64,
    vocab_size: usize,
    known_generations: Vec<u64>,
    changed_slots: Vec<u32>,
    rules: Vec<TokenRule>,
}

/// The mirror of `AdmitParams` in kernels/sampling.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AdmitParams {
    arrays: SamplingArrays,
    updates: u64,
    words: u64,
}

const _: () = {
    assert!(size_of::<AdmitParams>() == 112);
    assert!(UPDATE_WORDS * 4 == 80);
};

/// Updates that are on their way together.
#[derive(Default)]
struct Chunk {
    num_updates: usize,
    num_words: usize,
}

/// What is still to be told of a slot.
struct News<'a> {
    slot: u32,
    params: [u32; PARAMS_WORDS],
    rules: &'a [TokenRule],
    allowed: Option<&'a [u32]>,
    prompt: &'a [u32],
    output: &'a [u32],
    flags: u32,
}

impl UploadLayout {
    pub(super) fn new(limits: &StepLimits) -> Self {
        let state = MAX_RULES * RULE_WORDS + limits.vocab_size.div_ceil(32);
        Self { updates: limits.max_num_seqs, words: state + TOKENS_PER_ENTRY }
    }

    /// Of an entry, and of its image.
    pub(super) fn bytes(&self) -> usize {
        4 * (self.first_word() + self.words)
    }

    fn first_word(&self) -> usize {
        self.updates * UPDATE_WORDS
    }
}

impl Upload {
    pub(super) fn new(
        context: &Arc<Context>,
        limits: &StepLimits,
        layout: UploadLayout,
        image: u64,
    ) -> Result<Self, BackendError> {
        Ok(Self {
            layout,
            ring: PinnedRing::new(context, layout.bytes())?,
            image,
            vocab_size: limits.vocab_size,
            known_generations: vec![0; limits.max_num_seqs],
            changed_slots: Vec::with_capacity(limits.max_num_seqs),
            rules: Vec::new(),
        })
    }

    /// Adds the step's rows to its packet, of which they are the first section.
    pub(super) fn push_rows(&self, packet: &mut Packet, rows: &[LogitsRow], slots: &[Slot]) {
        let (words, _) = packet.push(rows.len() * ROW_WORDS);
        let (mut first_top, mut num_masks) = (0, 0);
        for (row, words) in rows.iter().zip(words.as_chunks_mut().0) {
            let slot = &slots[row.slot as usize];
            let num_top = device_top(row.wanted_top(slot), self.vocab_size);
            let mask = has_mask(row, slot).then_some(num_masks);
            *words = row_words(row, slot, num_top, first_top, mask);
            first_top += num_top;
            num_masks += usize::from(mask.is_some());
        }
    }

    /// Tells the device of requests that it does not know.
    pub(super) fn send(
        &mut self,
        stream: &Stream,
        admit: &Function,
        arrays: &SamplingArrays,
        rows: &[LogitsRow],
        slots: &[Slot],
    ) -> Result<(), BackendError> {
        self.find_changed_slots(rows, slots);
        if self.changed_slots.is_empty() {
            return Ok(());
        }
        self.ring.next()?;
        let params = AdmitParams {
            arrays: *arrays,
            updates: self.image,
            words: self.image + 4 * self.layout.first_word() as u64,
        };
        let chunk = self.write_news(stream, admit, &params, slots)?;
        self.send_news(stream, admit, &params, &chunk)?;
        for slot in &self.changed_slots {
            self.known_generations[*slot as usize] = slots[*slot as usize].generation();
        }
        Ok(())
    }

    fn find_changed_slots(&mut self, rows: &[LogitsRow], slots: &[Slot]) {
        self.changed_slots.clear();
        for row in rows {
            let changed = self.known_generations[row.slot as usize] != slots[row.slot as usize].generation();
            // A slot's rows follow one another.
            if changed && self.changed_slots.last() != Some(&row.slot) {
                self.changed_slots.push(row.slot);
            }
        }
    }

    /// Writes what is new of the changed slots into the current entry. If it is too small, sends it and goes
    /// on in the next.
    fn write_news(
        &mut self,
        stream: &Stream,
        admit: &Function,
        params: &AdmitParams,
        slots: &[Slot],
    ) -> Result<Chunk, BackendError> {
        let mut chunk = Chunk::default();
        for i in 0..self.changed_slots.len() {
            let (index, slot) = (self.changed_slots[i], &slots[self.changed_slots[i] as usize]);
            let mut rules = std::mem::take(&mut self.rules);
            collect_rules(slot, self.vocab_size, &mut rules)?;
            let mut news = News::new(index, slot, &rules);
            let layout = self.layout;
            while !chunk.take(&layout, self.ring.current_mut().words_mut(), &mut news, self.vocab_size) {
                self.send_news(stream, admit, params, &chunk)?;
                self.ring.next()?;
                chunk = Chunk::default();
            }
            self.rules = rules;
        }
        Ok(chunk)
    }

    /// Copies the updates in the current entry, for the device to take in.
    fn send_news(
        &self,
        stream: &Stream,
        admit: &Function,
        params: &AdmitParams,
        chunk: &Chunk,
    ) -> Result<(), BackendError> {
        let bytes = 4 * (self.layout.first_word() + chunk.num_words);
        stream.copy_to_device(params.updates, self.ring.current(), 0..bytes)?;
        stream.launch(admit, [chunk.num_updates as u32, 1, 1], ADMIT_THREADS, 0, params)?;
        Ok(self.ring.copied(stream)?)
    }
}

impl<'a> News<'a> {
    fn new(index: u32, slot: &'a Slot, rules: &'a [TokenRule]) -> Self {
        let (prompt, output) = match slot.has_penalties() {
            true => slot.tokens().split_at(slot.prompt_len()),
            false => (&[][..], &[][..]),
        };
        let clears = if slot.has_penalties() { CLEARS_COUNTS } else { 0 };
        Self {
            slot: index,
            params: params_words(slot, rules.len()),
            rules,
            allowed: slot.params().allowed_token_ids.as_deref(),
            prompt,
            output,
            flags: SETS_PARAMS | clears,
        }
    }
}

impl Chunk {
    /// Takes in as much of the news as there is room for; whether that was all. What is left begins a chunk
    /// of its own, so that each launch has one update a slot.
    fn take(&mut self, layout: &UploadLayout, entry: &mut [u32], news: &mut News, vocab_size: usize) -> bool {
        let num_allowed_words = news.allowed.map_or(0, |_| vocab_size.div_ceil(32));
        let state_words = news.rules.len() * RULE_WORDS + num_allowed_words;
        let room = layout.words - self.num_words;
        if self.num_updates == layout.updates || room < state_words {
            return false;
        }
        let (head, words) = entry.split_at_mut(layout.first_word());
        let words = &mut words[self.num_words..layout.words];
        let (rules, words) = words.split_at_mut(news.rules.len() * RULE_WORDS);
        rules.copy_from_slice(news.rules.as_flattened());
        let (allowed, words) = words.split_at_mut(num_allowed_words);
        set_allowed(allowed, news.allowed.unwrap_or_default());
        let num_prompt = news.prompt.len().min(words.len());
        words[..num_prompt].copy_from_slice(&news.prompt[..num_prompt]);
        let num_output = news.output.len().min(words.len() - num_prompt);
        words[num_prompt..num_prompt + num_output].copy_from_slice(&news.output[..num_output]);

        let at = self.num_updates * UPDATE_WORDS;
        let (params, rest) = head[at..at + UPDATE_WORDS].split_at_mut(PARAMS_WORDS);
        params.copy_from_slice(&news.params);
        let counts = [self.num_words, news.rules.len(), num_allowed_words, num_prompt, num_output, 0];
        rest[..2].copy_from_slice(&[news.slot, news.flags]);
        rest[2..].copy_from_slice(&counts.map(|count| count as u32));

        self.num_updates += 1;
        self.num_words += state_words + num_prompt + num_output;
        (news.rules, news.allowed, news.flags) = (&[], None, 0);
        (news.prompt, news.output) = (&news.prompt[num_prompt..], &news.output[num_output..]);
        news.prompt.is_empty() && news.output.is_empty()
    }
}
