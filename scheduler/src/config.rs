//! [`SchedulerConfig`]: the limits within which the scheduler plans, checked once at the start.

use crate::kv::{KvCacheConfig, KvGroup, MAX_KV_GROUPS};

/// Which waiting request is admitted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchedulingPolicy {
    /// In order of arrival.
    #[default]
    Fcfs,
    /// By (priority, arrival): lower first.
    Priority,
}

/// Limits and policies. [`SchedulerConfig::validate`] says what goes together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchedulerConfig {
    /// Requests that may hold blocks at once = slots of the runner = rows of a plan.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, over all rows.
    pub max_num_batched_tokens: u32,
    /// Tokens of one sequence, prompt and output together.
    pub max_model_len: u32,
    /// Tokens in a KV block.
    pub block_size: u32,
    /// KV blocks, the padding block included.
    pub num_blocks: u32,
    /// The groups of the model's layers; each sequence has blocks in every one. At least one and at most
    /// [`MAX_KV_GROUPS`].
    pub kv_groups: Vec<KvGroup>,
    /// Keep and look up the content of full blocks.
    pub enable_prefix_caching: bool,
    /// Report what enters and leaves the prefix cache in [`crate::StepOutputs::kv_events`].
    pub enable_kv_events: bool,
    /// Order of admission, and who may be preempted for whom.
    pub policy: SchedulingPolicy,
    /// A request computes at most this many tokens in a step while there are others; 0 = no such limit.
    pub long_prefill_token_threshold: u32,
    /// A request's priority improves by 1 for every so many microseconds since its arrival; 0 = never.
    /// With it, no stream of urgent requests can starve an unimportant one for ever.
    pub priority_ageing_us: u64,
    /// Every prompt is computed in one step: the model's attention looks ahead, so that a part of a prompt has
    /// no hidden states of its own (and no block can be shared).
    pub whole_prompts: bool,
    /// Different adapters among the requests that run at once, at least 1.
    pub max_loras: u32,
    /// After having been passed over for so long because all places for adapters were taken, a request is the next to
    /// get one: those behind it no longer go ahead.
    pub adapter_patience_us: u64,
}

impl SchedulerConfig {
    /// Checks the limits against each other.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (field, value) in [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("block_size", self.block_size),
            ("max_loras", self.max_loras),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero { field });
            }
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::ModelLenTooShort { max_model_len: self.max_model_len });
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::BatchedTokensBelowSeqs {
                max_num_batched_tokens: self.max_num_batched_tokens,
                max_num_seqs: self.max_num_seqs,
            });
        }
        self.check_kv_cache()?;
        if self.long_prefill_token_threshold > self.max_model_len {
            return Err(ConfigError::ThresholdAboveModelLen {
                long_prefill_token_threshold: self.long_prefill_token_threshold,
                max_model_len: self.max_model_len,
            });
        }
        if self.priority_ageing_us > 0 && self.policy != SchedulingPolicy::Priority {
            return Err(ConfigError::AgeingWithoutPriority { priority_ageing_us: self.priority_ageing_us });
        }
        if self.enable_kv_events && !self.enable_prefix_caching {
            return Err(ConfigError::EventsWithoutCache);
        }
        if self.whole_prompts {
            self.check_whole_prompts()?;
        }
        Ok(())
    }

    /// What there is to manage in blocks.
    pub fn kv_cache(&self) -> KvCacheConfig {
        KvCacheConfig {
            num_blocks: self.num_blocks,
            block_size: self.block_size,
            groups: self.kv_groups.clone(),
            max_step_tokens: self.max_num_batched_tokens,
            enable_prefix_caching: self.enable_prefix_caching,
            record_events: self.enable_kv_events,
        }
    }

    /// The most blocks that a sequence of the greatest length holds at a time, over all groups of layers.
    pub fn blocks_per_sequence(&self) -> u32 {
        self.kv_cache().max_blocks(self.max_model_len) as u32
    }

    fn check_kv_cache(&self) -> Result<(), ConfigError> {
        let num_groups = self.kv_groups.len();
        if !(1..=MAX_KV_GROUPS).contains(&num_groups) {
            return Err(ConfigError::KvGroups { num_groups });
        }
        if self.kv_groups.iter().any(|group| group.sliding_window == Some(0)) {
            return Err(ConfigError::Zero { field: "sliding_window" });
        }
        let needed = self.kv_cache().max_blocks(self.max_model_len);
        if (self.num_blocks as usize) <= needed {
            return Err(ConfigError::KvCacheTooSmall {
                max_model_len: self.max_model_len,
                needed,
                num_blocks: self.num_blocks,
                block_size: self.block_size,
            });
        }
        Ok(())
    }

    fn check_whole_prompts(&self) -> Result<(), ConfigError> {
        let (field, found, allowed) = if self.max_num_batched_tokens < self.max_model_len {
            ("max_num_batched_tokens", self.max_num_batched_tokens, "at least max_model_len")
        } else if self.long_prefill_token_threshold > 0 {
            ("long_prefill_token_threshold", self.long_prefill_token_threshold, "0")
        } else if self.enable_prefix_caching {
            ("enable_prefix_caching", 1, "off")
        } else {
            return Ok(());
        };
        Err(ConfigError::WholePrompts { field, found, allowed })
    }
}

/// Why a [`SchedulerConfig`] cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A limit that must be positive.
    #[error("{field} is 0; it must be at least 1")]
    Zero {
        /// Its name.
        field: &'static str,
    },
    /// No room for a prompt token and an output token.
    #[error("max_model_len is {max_model_len}; it must be at least 2 (one prompt and one output token)")]
    ModelLenTooShort {
        /// As configured.
        max_model_len: u32,
    },
    /// A step could not hold one token of each running request.
    #[error(
        "max_num_batched_tokens ({max_num_batched_tokens}) must be at least max_num_seqs ({max_num_seqs})"
    )]
    BatchedTokensBelowSeqs {
        /// As configured.
        max_num_batched_tokens: u32,
        /// As configured.
        max_num_seqs: u32,
    },
    /// One request of the greatest length does not fit, so it could outgrow the cache with nobody to preempt.
    #[error(
        "the KV cache has {num_blocks} blocks of {block_size} tokens, one of them padding; a sequence of \
         max_model_len ({max_model_len}) needs {needed}: lower max_model_len or give the cache more memory"
    )]
    KvCacheTooSmall {
        /// As configured.
        max_model_len: u32,
        /// Blocks that it holds at a time, over all groups of layers.
        needed: usize,
        /// As configured.
        num_blocks: u32,
        /// As configured.
        block_size: u32,
    },
    /// A number of groups that cannot be.
    #[error("kv_groups has {num_groups} groups of layers; it must have 1 to {MAX_KV_GROUPS}")]
    KvGroups {
        /// As configured.
        num_groups: usize,
    },
    /// A threshold that no request can reach.
    #[error(
        "long_prefill_token_threshold ({long_prefill_token_threshold}) must not exceed max_model_len \
         ({max_model_len}); 0 turns it off"
    )]
    ThresholdAboveModelLen {
        /// As configured.
        long_prefill_token_threshold: u32,
        /// As configured.
        max_model_len: u32,
    },
    /// Ageing changes priorities, and there are none.
    #[error("priority_ageing_us ({priority_ageing_us}) needs the priority policy; 0 turns it off")]
    AgeingWithoutPriority {
        /// As configured.
        priority_ageing_us: u64,
    },
    /// A limit that would cut a prompt, where prompts must not be cut.
    #[error(
        "{field} is {found}; a model whose attention looks ahead computes prompts whole: it must be {allowed}"
    )]
    WholePrompts {
        /// Its name.
        field: &'static str,
        /// As configured.
        found: u32,
        /// What is possible.
        allowed: &'static str,
    },
    /// Events tell of the prefix cache, and there is none.
    #[error("enable_kv_events needs enable_prefix_caching")]
    EventsWithoutCache,
}
