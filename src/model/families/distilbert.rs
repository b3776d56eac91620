//! DistilBERT: BERT without token types.

use super::bert;
use super::common::{Defaults, encoder};
use super::config::{Config, ConfigError};
use crate::kernels::Activation;
use crate::model::architecture::{Architecture, ClassHead, Names, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "distilbert.",
    prefixes: &["distilbert.", ""],
    token_types: "",
    layers: "transformer.layer",
    norms: SubLayerNorms::after("sa_layer_norm", "output_layer_norm"),
    head_bias: "vocab_projector.bias",
    head_dense: "vocab_transform",
    head_norm: "vocab_layer_norm",
    classes: ClassHead { dense: "pre_classifier", activation: Some(Activation::Relu), ..bert::NAMES.classes },
    linears: [
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "",
        "attention.out_lin",
        "",
        "ffn.lin1",
        "",
        "ffn.lin2",
    ],
    ..bert::NAMES
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    encoder(config, "distilbert", NAMES, Defaults::BERT)
}
