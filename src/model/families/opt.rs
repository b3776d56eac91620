//! OPT: learned positions; the 350M model has post-norms and a narrower embedding table.

use super::common::{Defaults, decoder, refuse_flag};
use super::config::{Config, ConfigError};
use crate::model::architecture::{Architecture, ClassHead, H0Kind, Names, Positions, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "model.decoder.",
    prefixes: &["model.decoder.", "decoder."],
    embedding: "embed_tokens",
    positions: "embed_positions",
    embedding_projection: "project_in",
    layers: "layers",
    norms: SubLayerNorms::before("self_attn_layer_norm", "final_layer_norm"),
    final_norm: "final_layer_norm",
    head: "lm_head",
    classes: ClassHead::SCORE,
    linears: [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "",
        "self_attn.out_proj",
        "",
        "fc1",
        "",
        "fc2",
    ],
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    refuse_flag(config, "layer_norm_elementwise_affine", false, "is false, which is not supported")?;
    let mut a = decoder(config, "opt", NAMES, Defaults { activation: "relu", positions: 2048, ..Defaults::GPT })?;
    // The table's first two rows belong to no position.
    a.positions = Positions::Learned { first: 2, padding: None };
    a.h0_kind = H0Kind::Input;
    a.embedding_size = config.optional_size("word_embed_proj_dim")?.unwrap_or(a.hidden_size);
    if a.embedding_size != a.hidden_size {
        (a.names.head_dense, a.names.head_dense_bias) = ("model.decoder.project_out", false);
    }
    let before = config.flag("do_layer_norm_before")?.unwrap_or(true);
    if !before {
        a.names.norms = SubLayerNorms::after("self_attn_layer_norm", "final_layer_norm");
    }
    if !before || config.flag("_remove_final_layer_norm")?.unwrap_or(false) {
        a.names.final_norm = "";
    }
    if config.flag("enable_bias")?.unwrap_or(true) {
        a.biased = a.roles();
    }
    Ok(a)
}

#[cfg(test)]
mod tests {
    use crate::model::Role;
    use crate::model::families::parse_config;
    use serde_json::json;

    #[test]
    fn every_linear_has_a_bias() {
        let config = json!({"model_type": "opt", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "ffn_dim": 16, "vocab_size": 20});
        let a = parse_config("c", &config).unwrap();
        let linears = [Role::Query, Role::Key, Role::Value, Role::AttentionOutput, Role::Up, Role::Down];
        assert_eq!(a.biased, linears);
    }
}
