//! Inputs of a pooled model as tokens, each checked; on the text pool, several at a time.

use futures_util::future::try_join_all;

use super::{EmbedError, EmbedInput, EmbedOptions, Pooler, Truncation};
use crate::app::App;
use crate::text::{Keep, Tokenizer, Tokens};
use crate::validate::ParamError;

/// No token of a vocabulary stands for so much text; beyond it a text is not worth encoding.
const MAX_TOKEN_BYTES: usize = 512;
/// Texts tokenized by one job of the text pool.
const TEXTS_PER_JOB: usize = 64;

/// The inputs in tokens, in their order.
pub(super) async fn encode(
    app: &App,
    pooler: &Pooler,
    inputs: Vec<EmbedInput>,
    options: &EmbedOptions,
) -> Result<Vec<Tokens>, EmbedError> {
    let max = app.limits.max_model_len;
    let (keep, cuts) = keep(options, max)?;
    let encoding = Encoding {
        tokenizer: app.tokenizer.clone(),
        max_model_len: max as usize,
        max_prompt_tokens: options.max_prompt_tokens.unwrap_or(max) as usize,
        vocab_size: app.limits.vocab_size,
        param: options.input_param,
        add_special_tokens: options.add_special_tokens,
        joins_pairs: pooler.joins_pairs,
        keep,
        cuts,
        filler: filler(app, options)?,
    };
    let single = inputs.len() == 1;
    let mut jobs = Vec::new();
    let mut inputs = inputs.into_iter();
    for first in (0..inputs.len()).step_by(TEXTS_PER_JOB) {
        let (encoding, part): (_, Vec<_>) = (encoding.clone(), inputs.by_ref().take(TEXTS_PER_JOB).collect());
        jobs.push(app.text_pool.run(move || -> Result<Vec<_>, EmbedError> {
            let index = |at: usize| (!single).then_some(first + at);
            part.into_iter().enumerate().map(|(at, input)| encoding.tokens(input, index(at))).collect()
        }));
    }
    let parts = try_join_all(jobs).await?;
    let mut all = Vec::new();
    for part in parts {
        all.extend(part?);
    }
    Ok(all)
}

/// What of each input is kept, and whether that is less than all.
fn keep(options: &EmbedOptions, max: u32) -> Result<(Keep, bool), ParamError> {
    let Truncation { max_tokens, keep_end } = options.truncate.unwrap_or_default();
    if let Some(asked) = max_tokens.filter(|asked| *asked > max) {
        let message = format!(
            "truncate_prompt_tokens value ({asked}) is greater than the model's maximum context length ({max}). \
             Please request a smaller truncation size."
        );
        return Err(ParamError::new("truncate_prompt_tokens", message));
    }
    let all = options.truncate.map(|_| max_tokens.unwrap_or(max) as usize);
    let each = options.max_text_tokens.map(|limit| limit.map(|limit| limit as usize));
    let cuts = all.is_some() || each.iter().any(Option::is_some);
    Ok((Keep { each, all, from_end: keep_end }, cuts))
}

fn filler(app: &App, options: &EmbedOptions) -> Result<Option<u32>, ParamError> {
    let none = || ParamError::new("padding", "the tokenizer has no token to pad with");
    options.pad.then(|| app.tokenizer.pad_token_id().ok_or_else(none)).transpose()
}

/// How inputs become tokens; shared by the jobs of a request.
#[derive(Clone)]
struct Encoding {
    tokenizer: Tokenizer,
    max_model_len: usize,
    max_prompt_tokens: usize,
    vocab_size: u32,
    param: &'static str,
    add_special_tokens: bool,
    joins_pairs: bool,
    keep: Keep,
    /// Whether [`Self::keep`] asks for anything.
    cuts: bool,
    /// The token that short inputs are filled up with.
    filler: Option<u32>,
}

impl Encoding {
    /// `index` is the input's place, if there are several.
    fn tokens(&self, input: EmbedInput, index: Option<usize>) -> Result<Tokens, EmbedError> {
        let max = self.max_model_len;
        let tokens = match input {
            EmbedInput::Text(text) => self.one(self.shorten(&text, 0, index)?)?,
            EmbedInput::Pair(first, second) => {
                self.pair(self.shorten(&first, 0, index)?, self.shorten(&second, 1, index)?)?
            }
            EmbedInput::Ids(ids) => Tokens { ids: self.cut(ids), second_text_start: None },
        };
        let tokens = self.padded(tokens);
        if tokens.ids.is_empty() {
            return Err(self.wrong(index, "the input is empty; at least one token is needed".into()));
        }
        if let Some(id) = tokens.ids.iter().find(|&&id| id >= self.vocab_size) {
            let last = self.vocab_size - 1;
            let message = format!("token id {id} is out of vocabulary; ids go from 0 to {last}");
            return Err(self.wrong(index, message));
        }
        if tokens.ids.len() > max {
            let message = format!(
                "This model's maximum context length is {max} tokens. However, your input has {} tokens. Please \
                 reduce the length of the input prompt, or set truncate_prompt_tokens.",
                tokens.ids.len()
            );
            return Err(self.wrong(index, message));
        }
        if tokens.ids.len() > self.max_prompt_tokens {
            let (found, most) = (tokens.ids.len(), self.max_prompt_tokens);
            let message = format!("the input has {found} tokens, and max_tokens allows {most}");
            return Err(self.wrong(index, message));
        }
        Ok(tokens)
    }

    fn wrong(&self, index: Option<usize>, message: String) -> EmbedError {
        let param = index.map_or(self.param.to_owned(), |index| format!("{}[{index}]", self.param));
        EmbedError::Param(ParamError::new(param, message))
    }

    fn one(&self, text: &str) -> Result<Tokens, EmbedError> {
        let ids = match self.cuts {
            true => self.tokenizer.encode_part(text, None, self.add_special_tokens, &self.keep)?.ids,
            false => self.tokenizer.encode(text, self.add_special_tokens)?,
        };
        // Whatever the tokenizer says of a single text's type.
        Ok(Tokens { ids, second_text_start: None })
    }

    fn pair(&self, first: &str, second: &str) -> Result<Tokens, EmbedError> {
        if self.joins_pairs {
            let keep = &self.keep;
            return Ok(self.tokenizer.encode_part(first, Some(second), self.add_special_tokens, keep)?);
        }
        let joined = self.own_part(first, 0)? + &self.own_part(second, 1)?;
        let keep = Keep { each: [None; 2], ..self.keep };
        Ok(self.tokenizer.encode_part(&joined, None, self.add_special_tokens, &keep)?)
    }

    /// One text of a pair, cut by its own limit.
    fn own_part(&self, text: &str, which: usize) -> Result<String, EmbedError> {
        if self.keep.each[which].is_none() {
            return Ok(text.to_owned());
        }
        let keep = Keep { each: [self.keep.each[which], None], all: None, from_end: self.keep.from_end };
        Ok(self.tokenizer.decode(&self.tokenizer.encode_part(text, None, false, &keep)?.ids, true))
    }

    /// Fills up the context, if that is wanted. The model sees what it is filled with, as in vLLM.
    fn padded(&self, mut tokens: Tokens) -> Tokens {
        if let Some(filler) = self.filler {
            tokens.ids.resize(tokens.ids.len().max(self.max_model_len), filler);
        }
        tokens
    }

    fn cut(&self, mut ids: Vec<u32>) -> Vec<u32> {
        match self.keep.all {
            Some(keep) if self.keep.from_end => drop(ids.drain(..ids.len().saturating_sub(keep))),
            Some(keep) => ids.truncate(keep),
            None => {}
        }
        ids
    }

    /// Cuts off what will be cut anyway, far from what remains. A text that cannot fit is refused unseen.
    fn shorten<'a>(&self, text: &'a str, which: usize, index: Option<usize>) -> Result<&'a str, EmbedError> {
        let limit = [self.keep.each[which], self.keep.all].into_iter().flatten().min();
        let Some(limit) = limit else {
            let max = self.max_model_len;
            if text.len() <= max * MAX_TOKEN_BYTES {
                return Ok(text);
            }
            let message = format!(
                "This model's maximum context length is {max} tokens, and a text of {} bytes cannot fit. Please \
                 reduce the length of the input prompt.",
                text.len()
            );
            return Err(self.wrong(index, message));
        };
        let bytes = limit.saturating_mul(2 * MAX_TOKEN_BYTES);
        Ok(match self.keep.from_end {
            true => &text[text.ceil_char_boundary(text.len().saturating_sub(bytes))..],
            false => &text[..text.floor_char_boundary(bytes)],
        })
    }
}
