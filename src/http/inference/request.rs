//! What a client may send to `/inference/v1/generate`: [`TokensRequest`].

use crate::http::error::{ApiError, excerpt};
use crate::http::fields::Fields;
use crate::http::sampling::{priority, request_id, sampling_params, stream_options};
use crate::http::structured::{self, Structured};
use crate::validate::SamplingFields;

/// A request, typed but not yet checked against the model.
#[derive(Debug)]
pub(super) struct TokensRequest {
    pub(super) model: Option<String>,
    pub(super) request_id: Option<String>,
    pub(super) token_ids: Vec<u32>,
    pub(super) sampling: SamplingFields,
    pub(super) bad_words: Vec<String>,
    pub(super) structured: Option<Structured>,
    /// `output_mode` is `text`: text besides the tokens.
    pub(super) text: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
    pub(super) continuous_usage: bool,
    pub(super) priority: i32,
    pub(super) cache_salt: Option<String>,
}

impl TokensRequest {
    pub(super) fn read(mut fields: Fields) -> Result<Self, ApiError> {
        let stream = fields.bool("stream").unwrap_or(false);
        let (include_usage, continuous_usage) = stream_options(&mut fields, stream);
        let text = output_mode(&mut fields);
        let mut request = Self {
            model: fields.string("model"),
            request_id: request_id(&mut fields),
            token_ids: token_ids(&mut fields),
            sampling: SamplingFields::default(),
            bad_words: Vec::new(),
            structured: None,
            text,
            stream,
            include_usage,
            continuous_usage: include_usage && continuous_usage,
            priority: priority(&mut fields),
            cache_salt: fields.string("cache_salt"),
        };
        if let Some(mut params) = fields.nested("sampling_params") {
            request.read_sampling(&mut params);
            fields.absorb_checked(params);
        }
        for name in ["features", "content_parts"] {
            if fields.take(name).is_some_and(|value| value.as_array().is_none_or(|list| !list.is_empty())) {
                fields.wrong(name, "not supported: the model reads text only");
            }
        }
        // What comes back are token ids in any case.
        fields.bool("return_token_ids");
        fields.finish()?;
        Ok(request)
    }

    fn read_sampling(&mut self, params: &mut Fields) {
        self.sampling = sampling_params(params);
        self.sampling.logprobs = params.int("logprobs");
        self.sampling.logprobs_param = "logprobs";
        if let Some(ids) = &self.sampling.logprob_token_ids {
            let count = ids.len() as i64;
            if *self.sampling.logprobs.get_or_insert(count) != count {
                params.wrong("logprob_token_ids", "needs logprobs to be the number of its entries");
            }
        }
        self.bad_words = params.strings("bad_words").unwrap_or_default();
        self.structured = structured::read(params);
        let detokenize = params.bool("detokenize");
        if self.text && detokenize == Some(false) {
            params.wrong("detokenize", "cannot be false with output_mode \"text\"");
        }
        self.sampling.detokenize = detokenize;
    }
}

/// The body of `/inference/v1/abort_requests`.
pub(super) fn read_abort(mut fields: Fields) -> Result<Vec<String>, ApiError> {
    let ids = fields.strings("request_ids");
    if ids.is_none() {
        fields.missing("request_ids");
    }
    fields.finish()?;
    Ok(ids.unwrap_or_default())
}

/// Whether text is wanted.
fn output_mode(fields: &mut Fields) -> bool {
    match fields.string("output_mode").as_deref() {
        None | Some("tokens") => false,
        Some("text") => true,
        Some(other) => {
            let message = format!("must be \"tokens\" or \"text\", got {:?}", excerpt(other));
            fields.wrong("output_mode", message);
            false
        }
    }
}

fn token_ids(fields: &mut Fields) -> Vec<u32> {
    let Some(given) = fields.ints("token_ids") else {
        fields.missing("token_ids");
        return Vec::new();
    };
    let mut ids = Vec::with_capacity(given.len());
    for (index, id) in given.into_iter().enumerate() {
        match u32::try_from(id) {
            Ok(id) => ids.push(id),
            Err(_) => {
                fields.wrong(format!("token_ids[{index}]"), format!("token id {id} is out of vocabulary"));
                break;
            }
        }
    }
    ids
}
