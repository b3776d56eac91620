//! Gemma 1, 2 and 3 (text): scaled embeddings, RMS norms of 1 + weight; from 2 on sandwich norms and every other block
//! with a window, soft caps in 2, norms of queries and keys and a second rotation in 3.

use super::common::{Defaults, reaches, refuse_flag, two_ropes, window};
use super::config::{Config, ConfigError};
use super::llama::{self, like_llama};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, Names, NormKind, Positions, SubLayerNorms};

/// Names of text models, and of the text part of models that also see images.
const NAMES: Names =
    Names { prefixes: &["model.", "", "language_model.model.", "model.language_model."], ..llama::NAMES };

const SANDWICH: Names = Names {
    norms: [
        SubLayerNorms { before: "input_layernorm", added: "post_attention_layernorm", after: "" },
        SubLayerNorms { before: "pre_feedforward_layernorm", added: "post_feedforward_layernorm", after: "" },
    ],
    ..NAMES
};

const GEMMA3: Names = Names { query_norm: "self_attn.q_norm", key_norm: "self_attn.k_norm", ..SANDWICH };

const DEFAULTS: Defaults =
    Defaults { norm: NormKind::ShiftedRms, eps: 1e-6, activation: "gelu_pytorch_tanh", tied: true, positions: 8192 };

pub(super) fn gemma(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = first(config, "gemma", NAMES)?;
    if a.activation == Activation::Gelu {
        // Old files name the exact GELU and mean the approximation.
        a.activation = Activation::GeluTanh;
    }
    Ok(a)
}

pub(super) fn gemma2(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let mut a = first(config, "gemma2", SANDWICH)?;
    scale(config, &mut a)?;
    a.attention_soft_cap = soft_cap(config, "attn_logit_softcapping", Some(50.0))?;
    a.head_soft_cap = soft_cap(config, "final_logit_softcapping", Some(30.0))?;
    a.reaches = reaches(config, a.layers, window(config, Some(4096))?, |layer| layer % 2 == 0)?;
    Ok(a)
}

pub(super) fn gemma3(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    // A model that also sees images keeps its text model's configuration apart.
    let text = config.section("text_config");
    let config = text.as_ref().unwrap_or(config);
    let mut a = first(config, "gemma3_text", GEMMA3)?;
    scale(config, &mut a)?;
    a.attention_soft_cap = soft_cap(config, "attn_logit_softcapping", None)?;
    a.head_soft_cap = soft_cap(config, "final_logit_softcapping", None)?;
    let pattern = config.optional_size("sliding_window_pattern")?.unwrap_or(6);
    a.reaches = reaches(config, a.layers, window(config, Some(4096))?, |layer| (layer + 1) % pattern != 0)?;
    let [rope, local] = two_ropes(config, a.head_dim, ["rope_theta", "rope_local_base_freq"], [1e6, 1e4])?;
    (a.positions, a.local_rope) = (Positions::Rotary(rope), Some(local));
    Ok(a)
}

fn first(config: &Config<'_>, family: &'static str, names: Names) -> Result<Architecture, ConfigError> {
    refuse_flag(config, "use_bidirectional_attention", true, "is true, which is not supported")?;
    let config = &config.with_default("head_dim", 256);
    let mut a = like_llama(config, family, names, DEFAULTS)?;
    a.embedding_scale = Some((a.hidden_size as f64).sqrt());
    Ok(a)
}

fn scale(config: &Config<'_>, a: &mut Architecture) -> Result<(), ConfigError> {
    a.attention_scale = config.positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5);
    Ok(())
}

fn soft_cap(config: &Config<'_>, key: &str, absent: Option<f64>) -> Result<Option<f64>, ConfigError> {
    if config.has(key) { config.positive(key) } else { Ok(absent) }
}
