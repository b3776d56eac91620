//! OLMo 2: LLaMA that norms what attention and feed-forward add, and queries and keys over all heads at once.

use super::common::Defaults;
use super::config::{Config, ConfigError};
use super::llama::{self, like_llama};
use crate::model::architecture::{Architecture, Names, SubLayerNorms};

const NAMES: Names = Names {
    norms: SubLayerNorms::added("post_attention_layernorm", "post_feedforward_layernorm"),
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    norms_of_heads: false,
    ..llama::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    like_llama(config, "olmo2", NAMES, Defaults { eps: 1e-5, ..Defaults::LLAMA })
}
