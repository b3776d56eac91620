//! ModernBERT: a pre-norm encoder with rotary embedding, fused linears, and windows in two blocks of three.

use super::common::{Defaults, encoder, reaches, two_ropes};
use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Names, NormKind, Positions, Role, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "model.",
    prefixes: &["model.", ""],
    embedding: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    layers: "layers",
    norms: SubLayerNorms::before("attn_norm", "mlp_norm"),
    final_norm: "final_norm",
    head_bias: "decoder.bias",
    head_dense: "head.dense",
    head_norm: "head.norm",
    classes: ClassHead {
        out: "classifier",
        out_bias: "classifier.bias",
        dense: "head.dense",
        dense_bias: false,
        norm: "head.norm",
        activation: Some(Activation::Gelu),
    },
    linears: ["", "", "", "attn.Wqkv", "attn.Wo", "", "", "mlp.Wi", "mlp.Wo"],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let defaults = Defaults { eps: 1e-5, positions: 8192, ..Defaults::BERT };
    let mut a = encoder(config, "modernbert", NAMES, defaults)?;
    let flag = |key: &str| Ok::<_, ConfigError>(config.flag(key)?.unwrap_or(false));
    a.norm = if flag("norm_bias")? { NormKind::Layer } else { NormKind::BareLayer };
    a.bare_first = true;
    a.biased.clear();
    if flag("attention_bias")? {
        a.biased.extend([Role::QueryKeyValue, Role::AttentionOutput]);
    }
    if flag("mlp_bias")? {
        a.biased.extend([Role::GateUp, Role::Down]);
    }
    a.names.head_dense_bias = flag("classifier_bias")?;
    a.names.classes.dense_bias = a.names.head_dense_bias;
    if config.text("classifier_pooling")?.is_some_and(|pooling| pooling != "cls") {
        a.names.classes = ClassHead::NONE;
    }
    a.head_activation = match config.text("classifier_activation")?.as_deref() {
        None | Some("gelu") => Some(Activation::Gelu),
        Some(other) => {
            return Err(config.invalid("classifier_activation", &format!("is \"{other}\"; supported: gelu")));
        }
    };
    if config.flag("decoder_bias")? == Some(false) {
        a.names.head_bias = "";
    }
    let reach = config.optional_size("local_attention")?.unwrap_or(128) / 2;
    let every = config.optional_size("global_attn_every_n_layers")?.unwrap_or(3);
    a.reaches = reaches(config, a.layers, Some(reach), |layer| layer % every != 0)?;
    let keys = ["global_rope_theta", "local_rope_theta"];
    let [rope, local] = two_ropes(config, a.head_dim, keys, [160_000.0, 10_000.0])?;
    (a.positions, a.local_rope) = (Positions::Rotary(rope), Some(local));
    Ok(a)
}
