//! The encoder of T5, FLAN-T5 and mT5: biases by distance, unscaled scores, no language-model head.

use super::common::{Defaults, decoder};
use super::config::{Config, ConfigError};
use crate::model::architecture::{Architecture, ClassHead, H0Kind, Head, Names, NormKind, Positions, SubLayerNorms};

const NAMES: Names = Names {
    prefixes: &["transformer.", ""],
    embedding: "shared",
    positions: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    layers: "encoder.block",
    norms: SubLayerNorms::before("layer.0.layer_norm", "layer.1.layer_norm"),
    final_norm: "encoder.final_layer_norm",
    // That of T5ForTokenClassification, of the text's first token.
    classes: ClassHead { out: "classifier", out_bias: "classifier.bias", ..ClassHead::NONE },
    linears: [
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "",
        "layer.0.SelfAttention.o",
        "",
        "layer.1.DenseReluDense.wi",
        "",
        "layer.1.DenseReluDense.wo",
    ],
    ..Names::NONE
};

/// From T5 1.1 on the feed-forward has a gate.
const GATED: Names = Names {
    linears: [
        "layer.0.SelfAttention.q",
        "layer.0.SelfAttention.k",
        "layer.0.SelfAttention.v",
        "",
        "layer.0.SelfAttention.o",
        "layer.1.DenseReluDense.wi_0",
        "layer.1.DenseReluDense.wi_1",
        "",
        "layer.1.DenseReluDense.wo",
    ],
    ..NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let form = config.text("feed_forward_proj")?.unwrap_or_else(|| "relu".to_owned());
    let (names, activation) = match form.as_str() {
        "relu" => (NAMES, "relu"),
        "gated-gelu" => (GATED, "gelu_new"),
        "gated-silu" => (GATED, "silu"),
        other => {
            let problem = format!("is \"{other}\"; supported: relu, gated-gelu, gated-silu");
            return Err(config.invalid("feed_forward_proj", &problem));
        }
    };
    let config = &config.with_default("head_dim", config.optional_size("d_kv")?.unwrap_or(64));
    let defaults = Defaults { norm: NormKind::Rms, eps: 1e-6, activation, tied: false, positions: 512 };
    let mut a = decoder(config, "t5", names, defaults)?;
    (a.causal, a.official_gate) = (false, true);
    (a.head, a.h0_kind, a.attention_scale) = (Head::Absent, H0Kind::Input, 1.0);
    a.positions = Positions::Buckets {
        buckets: config.optional_size("relative_attention_num_buckets")?.unwrap_or(32),
        max_distance: config.optional_size("relative_attention_max_distance")?.unwrap_or(128),
    };
    Ok(a)
}
