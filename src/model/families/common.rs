//! What most families' configurations have in common: sizes by whatever key, activations, rotary embedding, windows.

use super::config::{Config, ConfigError};
use crate::kernels::{Activation, Pairing};
use crate::model::architecture::{
    Architecture, FusedOrder, H0Kind, Head, Llama3Scaling, Names, NormKind, Positions, Role, Rope, RopeScaling,
};
use candle_transformers::models::llama::{Llama3RopeConfig, Llama3RopeType};

/// What a family has where its configuration is silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) norm: NormKind,
    pub(super) eps: f64,
    pub(super) activation: &'static str,
    /// Whether the embedding table is the head too.
    pub(super) tied: bool,
    /// Longest sequence, in tokens.
    pub(super) positions: usize,
}

impl Defaults {
    /// LLaMA and what came after it.
    pub(super) const LLAMA: Self =
        Self { norm: NormKind::Rms, eps: 1e-6, activation: "silu", tied: false, positions: 2048 };
    /// GPT-2, its relatives, and decoders with layer norm in general.
    pub(super) const GPT: Self =
        Self { norm: NormKind::Layer, eps: 1e-5, activation: "gelu_new", tied: true, positions: 1024 };
    /// BERT and its relatives.
    pub(super) const BERT: Self =
        Self { norm: NormKind::Layer, eps: 1e-12, activation: "gelu", tied: true, positions: 512 };
}

const HIDDEN: &[&str] = &["hidden_size", "n_embd", "d_model", "dim"];
const LAYERS: &[&str] = &["num_hidden_layers", "n_layer", "n_layers", "num_layers"];
const HEADS: &[&str] = &["num_attention_heads", "n_head", "n_heads", "num_heads"];
const KV_HEADS: &[&str] = &["num_key_value_heads", "num_kv_heads"];
const INNER: &[&str] = &["intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff", "ffn_hidden_size"];
const POSITIONS: &[&str] = &["max_position_embeddings", "n_positions", "n_ctx", "seq_length"];
const EPS: &[&str] = &["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"];
const ACTIVATION: &[&str] = &["hidden_activation", "hidden_act", "activation_function", "activation"];

/// A decoder with full causal attention, without rotation or biases: the family says what it does otherwise.
pub(super) fn decoder(
    config: &Config<'_>,
    family: &'static str,
    names: Names,
    defaults: Defaults,
) -> Result<Architecture, ConfigError> {
    let (hidden_key, hidden_size) = config.first_size(HIDDEN)?;
    let (layers_key, _) = config.first_size(LAYERS)?;
    let (heads_key, heads) = config.first_size(HEADS)?;
    let kv_heads = match config.first_optional_size(KV_HEADS)? {
        Some((key, kv)) if heads % kv != 0 => {
            return Err(config.invalid(key, &format!("is {kv}, which does not divide the {heads} heads")));
        }
        Some((_, kv)) => kv,
        None => heads,
    };
    let head_dim = match config.optional_size("head_dim")? {
        Some(width) => width,
        None if hidden_size % heads == 0 => hidden_size / heads,
        None => {
            let problem = format!("is {heads}, which does not divide {hidden_key} {hidden_size}; set head_dim");
            return Err(config.invalid(heads_key, &problem));
        }
    };
    let gated = [Role::Gate, Role::GateUp].iter().any(|&role| !names.linear(role).is_empty());
    let intermediate_size = match config.first_optional_size(INNER)? {
        Some((_, width)) => width,
        None if gated => return Err(config.invalid("intermediate_size", "is missing")),
        None => 4 * hidden_size,
    };
    let eps = EPS.iter().find_map(|key| config.positive(key).transpose()).transpose()?;
    Ok(Architecture {
        family,
        vocab_size: config.size("vocab_size")?,
        patches: None,
        partial: false,
        hidden_size,
        embedding_size: hidden_size,
        embedding_scale: None,
        intermediate_size,
        layers: config.layers(layers_key)?,
        heads,
        kv_heads,
        head_dim,
        causal: true,
        attention_scale: 1.0 / (head_dim as f64).sqrt(),
        attention_soft_cap: None,
        reaches: Vec::new(),
        local_rope: None,
        fused_order: FusedOrder::Blocks,
        norm: defaults.norm,
        norm_eps: eps.unwrap_or(defaults.eps),
        parallel: false,
        bare_first: false,
        max_positions: config.first_optional_size(POSITIONS)?.map_or(defaults.positions, |(_, n)| n),
        positions: Positions::Learned { first: 0, padding: None },
        token_types: 0,
        embedding_norm: !names.embedding_norm.is_empty(),
        activation: activation(config, family, defaults.activation)?,
        head: match config.flag("tie_word_embeddings")?.unwrap_or(defaults.tied) {
            true => Head::Tied,
            false => Head::Own,
        },
        classes: None,
        head_activation: None,
        head_soft_cap: None,
        biased: Vec::new(),
        transposed: false,
        official_gate: false,
        h0_kind: H0Kind::Token,
        names,
    })
}

/// An encoder with post-norms, learned positions and a head for masked tokens behind `head_dense`, as BERT is.
pub(super) fn encoder(
    config: &Config<'_>,
    family: &'static str,
    names: Names,
    defaults: Defaults,
) -> Result<Architecture, ConfigError> {
    for key in ["is_decoder", "add_cross_attention"] {
        refuse_flag(config, key, true, &format!("is true; a {family} is read as an encoder only"))?;
    }
    if let Some(kind) = config.text("position_embedding_type")?
        && kind != "absolute"
    {
        return Err(config.invalid("position_embedding_type", &format!("is \"{kind}\"; supported: absolute")));
    }
    // A model that was saved without any head has no prefix; the weights have the last word.
    let bare = config.first_text("architectures").is_some_and(|name| name.ends_with("Model"));
    let names = Names { prefix: if bare { "" } else { names.prefix }, ..names };
    let biased = Role::ALL.into_iter().filter(|&role| !names.linear(role).is_empty()).collect();
    Ok(Architecture {
        causal: false,
        h0_kind: H0Kind::Input,
        head: if bare { Head::Absent } else { Head::Tied },
        head_activation: Some(activation(config, family, defaults.activation)?),
        biased,
        ..decoder(config, family, names, defaults)?
    })
}

/// An error if the flag `key` is `unsupported`.
pub(super) fn refuse_flag(config: &Config<'_>, key: &str, unsupported: bool, problem: &str) -> Result<(), ConfigError> {
    if config.flag(key)? == Some(unsupported) { Err(config.invalid(key, problem)) } else { Ok(()) }
}

/// The activation by transformers' name for it.
fn activation(config: &Config<'_>, family: &str, default: &str) -> Result<Activation, ConfigError> {
    let mut named = ("activation", default.to_owned());
    for &key in ACTIVATION {
        if let Some(name) = config.text(key)? {
            named = (key, name);
            break;
        }
    }
    match named.1.as_str() {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        other => {
            let problem =
                format!("is \"{other}\"; supported for {family}: gelu, gelu_new, gelu_pytorch_tanh, relu, silu");
            Err(config.invalid(named.0, &problem))
        }
    }
}

/// The roles of a gated block that carry a bias by LLaMA's flags.
pub(super) fn llama_biases(config: &Config<'_>) -> Result<Vec<Role>, ConfigError> {
    let mut biased = Vec::new();
    if config.flag("attention_bias")?.unwrap_or(false) {
        biased.extend([Role::Query, Role::Key, Role::Value, Role::AttentionOutput]);
    }
    if config.flag("mlp_bias")?.unwrap_or(false) {
        biased.extend([Role::Gate, Role::Up, Role::Down]);
    }
    Ok(biased)
}

/// What rotates heads of `head_dim` by `rope_theta`, `rope_scaling` and their older names, or by transformers 5's
/// `rope_parameters` that holds all of it.
pub(super) fn rope(config: &Config<'_>, head_dim: usize, pairing: Pairing, theta: f64) -> Result<Rope, ConfigError> {
    let section = config.section("rope_parameters").or_else(|| config.section("rope_scaling"));
    let thetas = [("rope_theta", section.as_ref()), ("rope_theta", Some(config)), ("rotary_emb_base", Some(config))];
    let theta = first(thetas, Config::positive)?.unwrap_or(theta);
    rope_of(config, section.as_ref(), head_dim, pairing, theta)
}

/// What rotates the heads of blocks that see all, and of those that do not: transformers 5 nests `rope_parameters` by the
/// kind of block; before, `keys` named the two bases.
pub(super) fn two_ropes(
    config: &Config<'_>,
    head_dim: usize,
    keys: [&str; 2],
    thetas: [f64; 2],
) -> Result<[Rope; 2], ConfigError> {
    let nested = config.section("rope_parameters");
    let kinds = ["full_attention", "sliding_attention"];
    // Before transformers 5 the scaling was that of the blocks that see all.
    let old = [config.section("rope_scaling"), None];
    let mut ropes = Vec::with_capacity(2);
    for (((kind, key), theta), old) in kinds.into_iter().zip(keys).zip(thetas).zip(old) {
        let section = nested.as_ref().and_then(|nested| nested.section(kind)).or(old);
        let theta = first([("rope_theta", section.as_ref()), (key, Some(config))], Config::positive)?.unwrap_or(theta);
        ropes.push(rope_of(config, section.as_ref(), head_dim, Pairing::Halves, theta)?);
    }
    <[Rope; 2]>::try_from(ropes).map_err(|_| config.invalid("rope_parameters", "cannot be read"))
}

fn rope_of(
    config: &Config<'_>,
    section: Option<&Config<'_>>,
    head_dim: usize,
    pairing: Pairing,
    theta: f64,
) -> Result<Rope, ConfigError> {
    let shares =
        [("partial_rotary_factor", section), ("partial_rotary_factor", Some(config)), ("rotary_pct", Some(config))];
    let dims = match (config.optional_size("rotary_dim")?, first(shares, Config::positive)?) {
        (Some(dims), _) => dims,
        (None, Some(share)) => (head_dim as f64 * share) as usize,
        (None, None) => head_dim,
    };
    if dims % 2 != 0 || dims == 0 || dims > head_dim {
        let key = if dims == head_dim { "head_dim" } else { "rotary_dim" };
        let problem = format!("is {dims}; rotary embedding needs an even width, at most that of a head ({head_dim})");
        return Err(config.invalid(key, &problem));
    }
    let scaling = match section {
        Some(section) => scaling(section)?,
        None => None,
    };
    Ok(Rope { theta, dims, pairing, scaling })
}

/// The first of the keys that is there.
fn first<'a, const N: usize, T>(
    keys: [(&str, Option<&Config<'a>>); N],
    read: impl Fn(&Config<'a>, &str) -> Result<Option<T>, ConfigError>,
) -> Result<Option<T>, ConfigError> {
    for (key, section) in keys {
        if let Some(section) = section
            && let Some(value) = read(section, key)?
        {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

fn scaling(section: &Config<'_>) -> Result<Option<RopeScaling>, ConfigError> {
    let kind = match section.text("rope_type")? {
        Some(kind) => kind,
        None => section.text("type")?.unwrap_or_else(|| "default".to_owned()),
    };
    match kind.as_str() {
        "default" => Ok(None),
        "linear" => Ok(Some(RopeScaling::Linear(section.required_positive("factor")?))),
        "llama3" => {
            let read = Llama3RopeConfig {
                factor: section.required_positive("factor")? as f32,
                low_freq_factor: section.required_positive("low_freq_factor")? as f32,
                high_freq_factor: section.required_positive("high_freq_factor")? as f32,
                original_max_position_embeddings: section.size("original_max_position_embeddings")?,
                rope_type: Llama3RopeType::Llama3,
            };
            if read.high_freq_factor <= read.low_freq_factor {
                return Err(section.invalid("high_freq_factor", "must be larger than low_freq_factor"));
            }
            Ok(Some(RopeScaling::Llama3(Llama3Scaling {
                factor: f64::from(read.factor),
                low_freq_factor: f64::from(read.low_freq_factor),
                high_freq_factor: f64::from(read.high_freq_factor),
                original_max_positions: read.original_max_position_embeddings as f64,
            })))
        }
        other => {
            let problem = format!("is \"{other}\"; supported: default, linear, llama3");
            Err(section.invalid("rope_type", &problem))
        }
    }
}

/// How far the tokens of each block see: those whose entry in `layer_types` is `sliding_attention`, or without that list
/// those that `slides` names by index, see `reach` tokens.
pub(super) fn reaches(
    config: &Config<'_>,
    layers: usize,
    reach: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>, ConfigError> {
    let Some(reach) = reach else { return Ok(Vec::new()) };
    let Some(kinds) = config.texts("layer_types")? else {
        return Ok((0..layers).map(|layer| slides(layer).then_some(reach)).collect());
    };
    if kinds.len() != layers {
        return Err(config.invalid("layer_types", &format!("has {} entries for {layers} layers", kinds.len())));
    }
    let reach_of = |kind: &str| match kind {
        "sliding_attention" => Ok(Some(reach)),
        "full_attention" => Ok(None),
        other => {
            let problem = format!("holds \"{other}\"; supported: full_attention, sliding_attention");
            Err(config.invalid("layer_types", &problem))
        }
    };
    kinds.into_iter().map(reach_of).collect()
}

/// How far a token sees under `sliding_window`, itself not counted; `absent` where the key is missing.
pub(super) fn window(config: &Config<'_>, absent: Option<usize>) -> Result<Option<usize>, ConfigError> {
    let window = if config.has("sliding_window") { config.optional_size("sliding_window")? } else { absent };
    Ok(window.map(|window| window - 1))
}
