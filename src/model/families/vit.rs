//! ViT: an encoder of images, whose tokens are patches behind a class token.

use super::common::{Defaults, encoder};
use super::config::{Config, ConfigError};
use crate::data::PatchGrid;
use crate::model::architecture::{Architecture, ClassHead, Head, Modules, Names, Role, SubLayerNorms};

const NAMES: Names = Names {
    prefix: "vit.",
    prefixes: &["vit.", ""],
    embedding: "embeddings.patch_embeddings.projection",
    class_token: "embeddings.cls_token",
    positions: "embeddings.position_embeddings",
    layers: "encoder.layer",
    norms: SubLayerNorms::before("layernorm_before", "layernorm_after"),
    final_norm: "layernorm",
    classes: ClassHead { out: "classifier", out_bias: "classifier.bias", ..ClassHead::NONE },
    linears: [
        "attention.attention.query",
        "attention.attention.key",
        "attention.attention.value",
        "",
        "attention.output.dense",
        "",
        "intermediate.dense",
        "",
        "output.dense",
    ],
    // transformers 5 renamed the modules and kept the files.
    modules: Some(Modules {
        layers: "layers",
        linears: [
            "attention.q_proj",
            "attention.k_proj",
            "attention.v_proj",
            "",
            "attention.o_proj",
            "",
            "mlp.fc1",
            "",
            "mlp.fc2",
        ],
    }),
    ..Names::NONE
};

pub(super) fn architecture(config: &Config<'_>) -> Result<Architecture, ConfigError> {
    let grid = PatchGrid {
        image: config.height_width("image_size", 224)?,
        patch: config.height_width("patch_size", 16)?,
        channels: config.optional_size("num_channels")?.unwrap_or(3),
    };
    if grid.channels != 3 {
        return Err(config.invalid("num_channels", &format!("is {}; supported: 3 (RGB)", grid.channels)));
    }
    if grid.image.iter().zip(grid.patch).any(|(image, patch)| image % patch != 0) {
        let ([tall, wide], [high, broad]) = (grid.image, grid.patch);
        let problem = format!("is {high} × {broad}, which does not divide the image of {tall} × {wide}");
        return Err(config.invalid("patch_size", &problem));
    }
    let places = grid.patches() + 1;
    let mut a = encoder(&config.with_default("vocab_size", places), "vit", NAMES, Defaults::BERT)?;
    if config.flag("qkv_bias")? == Some(false) {
        a.biased.retain(|role| !matches!(role, Role::Query | Role::Key | Role::Value));
    }
    Ok(Architecture {
        vocab_size: places,
        max_positions: places,
        patches: Some(grid),
        head: Head::Absent,
        head_activation: None,
        ..a
    })
}
