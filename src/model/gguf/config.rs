//! A GGUF file's keys in the spelling of Hugging Face's `config.json`.
//!
//! What each key means: llama.cpp's `src/llama-model.cpp` (`load_hparams`) and `src/models/`; what its converter
//! writes: `convert_hf_to_gguf.py` and `conversion/`.

use super::names::Family;
use super::{Gguf, OTHER_EXPORT};
use crate::model::weights::{WeightsError, one_line};
use serde_json::{Map, Value as Json, json};

/// No longer list of blocks is made from a claim; a deeper model is refused when its configuration is read.
const MOST_LISTED: u64 = 1024;

/// Tensors of Phi-3's rotary factors for long texts.
const LONG_FACTORS: [&str; 2] = ["rope_factors_long.weight", "rope_factors_short.weight"];

impl Gguf {
    /// The model's configuration in the spelling of Hugging Face's `config.json`.
    ///
    /// # Errors
    /// A required key is missing or no number, or the rotary scaling is of a kind that is not read.
    pub fn config_json(&self) -> Result<Json, WeightsError> {
        self.refuse_unread()?;
        let hidden = self.whole(&self.key("embedding_length"))?;
        let heads = self.whole(&self.key("attention.head_count"))?;
        let per_head =
            hidden.checked_div(heads).ok_or_else(|| self.bad_key(&self.key("attention.head_count"), "is 0"))?;
        let head_dim = self.head_dim(per_head)?;
        let layers = self.whole(&self.key("block_count"))?;
        let vocab = match self.header.tensors.get("token_embd.weight").and_then(|block| block.shape.first()) {
            Some(&rows) => rows as u64,
            None => self.whole(&self.key("vocab_size"))?,
        };
        let window = self.optional(&self.key("attention.sliding_window"))?;
        let (kind, class) = self.kind(window)?;
        let mut config = Map::new();
        let mut put = |name: &str, value: Json| {
            config.insert(name.to_owned(), value);
        };
        put("architectures", json!([class]));
        put("model_type", json!(kind));
        put("hidden_size", json!(hidden));
        put("intermediate_size", json!(self.whole(&self.key("feed_forward_length"))?));
        put("num_hidden_layers", json!(layers));
        put("num_attention_heads", json!(heads));
        put("num_key_value_heads", json!(self.optional(&self.key("attention.head_count_kv"))?.unwrap_or(heads)));
        put("head_dim", json!(head_dim));
        put("vocab_size", json!(vocab));
        put("max_position_embeddings", json!(self.whole(&self.key("context_length"))?));
        put("rms_norm_eps", json!(self.real(&self.key("attention.layer_norm_rms_epsilon"))?));
        put("rope_theta", json!(self.theta()));
        put("tie_word_embeddings", json!(!self.holds("output.weight")));
        for (name, key) in
            [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")]
        {
            if let Some(id) = self.optional(key)? {
                put(name, json!(id));
            }
        }
        if let Some(scaling) = self.rope_scaling(head_dim)? {
            put("rope_scaling", scaling);
        }
        if let Some(share) = self.rotated_share(head_dim)? {
            put("partial_rotary_factor", json!(share));
        }
        match self.family.is_gemma() {
            true => put("hidden_activation", json!("gelu_pytorch_tanh")),
            false => put("hidden_act", json!("silu")),
        }
        // Qwen 2 has biases always and Phi-3 none; neither has the flag.
        if !matches!(self.family, Family::Qwen2 | Family::Phi3) {
            put("attention_bias", json!(self.holds("blk.0.attn_q.bias")));
        }
        match self.family {
            Family::Llama => put("mlp_bias", json!(self.holds("blk.0.ffn_down.bias"))),
            Family::Gemma2 | Family::Gemma3 => self.put_later_gemma(&mut put, layers, per_head, head_dim)?,
            Family::Phi3 => {
                if let Some(positions) = self.optional(&self.key("rope.scaling.original_context_length"))? {
                    put("original_max_position_embeddings", json!(positions));
                }
            }
            Family::Qwen2 | Family::Qwen3 | Family::Gemma => {}
        }
        match (self.family, window) {
            (Family::Llama | Family::Phi3 | Family::Gemma3, Some(1..)) | (Family::Gemma2, Some(_)) => {
                put("sliding_window", json!(window));
            }
            // Zero is how Phi-3's converter writes that there is none; a Gemma 3 without the key has none either.
            (Family::Phi3 | Family::Gemma3, _) => put("sliding_window", Json::Null),
            _ => {}
        }
        Ok(Json::Object(config))
    }

    /// A key of this family.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.family.name())
    }

    fn holds(&self, stored: &str) -> bool {
        self.header.tensors.contains_key(stored)
    }

    fn theta(&self) -> f64 {
        self.number(&self.key("rope.freq_base")).map_or(10000.0, super::shortest)
    }

    /// `model_type` and class. Mistral's files call themselves `llama`; what has a window is read as Mistral. (Today's
    /// converter leaves Mistral's window out, and llama.cpp runs without it.)
    fn kind(&self, window: Option<u64>) -> Result<(&'static str, &'static str), WeightsError> {
        Ok(match self.family {
            Family::Llama if window.is_some_and(|n| n > 0) => {
                if self.holds("blk.0.attn_q.bias") || self.holds("blk.0.ffn_down.bias") {
                    let problem = "a window is Mistral's, which has no biases, and this file has";
                    return Err(self.bad_key(&self.key("attention.sliding_window"), problem));
                }
                ("mistral", "MistralForCausalLM")
            }
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Family::Gemma => ("gemma", "GemmaForCausalLM"),
            Family::Gemma2 => ("gemma2", "Gemma2ForCausalLM"),
            Family::Gemma3 => ("gemma3_text", "Gemma3ForCausalLM"),
            Family::Phi3 => ("phi3", "Phi3ForCausalLM"),
        })
    }

    /// What would change what is computed, and is not read.
    fn refuse_unread(&self) -> Result<(), WeightsError> {
        for factors in LONG_FACTORS {
            if self.holds(factors) {
                let problem = "rotary factors for long texts (longrope) are not read";
                return Err(WeightsError::tensor(&self.path, factors, problem, OTHER_EXPORT));
            }
        }
        let key = self.key("rope.scaling.attn_factor");
        if self.number(&key).is_some_and(|factor| factor != 1.0) {
            return Err(self.bad_key(&key, "rotary scaling with a factor on attention (longrope, yarn) is not read"));
        }
        if self.family != Family::Llama && self.holds("rope_freqs.weight") {
            let problem = format!("rotary factors are not read for {}", self.family.name());
            return Err(WeightsError::tensor(&self.path, "rope_freqs.weight", problem, OTHER_EXPORT));
        }
        let key = self.key("attention.causal");
        if self.value(&key) == Some(&super::Value::Truth(false)) {
            return Err(self.bad_key(&key, "is false; models that see what follows are not read"));
        }
        Ok(())
    }

    /// The width of a head. LLaMA's old files state the rotated width alone, which is a head's.
    fn head_dim(&self, per_head: u64) -> Result<u64, WeightsError> {
        let stated = match (self.optional(&self.key("attention.key_length"))?, self.family) {
            (None, Family::Llama) => self.optional(&self.key("rope.dimension_count"))?,
            (stated, _) => stated,
        };
        let head_dim = stated.unwrap_or(per_head);
        let key = self.key("attention.value_length");
        match self.optional(&key)? {
            Some(width) if width != head_dim => {
                Err(self.bad_key(&key, &format!("is {width}, and keys have {head_dim}; such heads are not read")))
            }
            _ => Ok(head_dim),
        }
    }

    /// The part of a head that is rotated, where it is not all of it.
    pub(super) fn rotated_share(&self, head_dim: u64) -> Result<Option<f64>, WeightsError> {
        let key = self.key("rope.dimension_count");
        let Some(width) = self.optional(&key)?.filter(|&width| width != head_dim) else { return Ok(None) };
        // LLaMA's converter puts the rows of whole heads into pairs, so that half a head could not be put back.
        if self.family == Family::Llama || width > head_dim {
            return Err(self.bad_key(&key, &format!("is {width}, and a head has {head_dim}; that is not read")));
        }
        let share = width as f64 / head_dim as f64;
        // The product must come out at the width, not just below.
        let exact = (share * head_dim as f64) as u64 == width;
        Ok(Some(if exact { share } else { share.next_up() }))
    }

    /// What Gemma 2 and 3 have and no other: which blocks have a window, scale, caps, the second rotation.
    fn put_later_gemma(
        &self,
        put: &mut impl FnMut(&str, Json),
        layers: u64,
        per_head: u64,
        head_dim: u64,
    ) -> Result<(), WeightsError> {
        let second = self.family == Family::Gemma2;
        // No key holds the scale of attention. As in llama.cpp, a model is known by its depth: in the two of 27 billion
        // weights it is the width over the heads, in all others the width of a head.
        let largest = if second { 46 } else { 62 };
        put("query_pre_attn_scalar", json!(if layers == largest { per_head } else { head_dim }));
        // The last block of every `period` sees all.
        let period =
            self.optional(&self.key("attention.sliding_window_pattern"))?.unwrap_or(if second { 2 } else { 6 });
        let slides = |layer: u64| layer.checked_rem(period).is_none_or(|place| place + 1 < period);
        let kinds = (0..layers.min(MOST_LISTED))
            .map(|layer| if slides(layer) { "sliding_attention" } else { "full_attention" });
        put("layer_types", json!(kinds.collect::<Vec<_>>()));
        for name in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.value(&self.key(name)).is_some() {
                put(name, json!(self.real(&self.key(name))?));
            }
        }
        let key = self.key("rope.freq_base_swa");
        let local = self.number(&key).map(super::shortest);
        match second {
            true if local.is_some_and(|base| base != self.theta()) => {
                Err(self.bad_key(&key, "differs from rope.freq_base, which no Gemma 2 has"))
            }
            true => Ok(()),
            false => {
                put("rope_local_base_freq", json!(local.unwrap_or(10000.0)));
                Ok(())
            }
        }
    }

    /// Hugging Face's `rope_scaling`. LLaMA 3.1's is stored as a factor per frequency; its parameters are
    /// the published ones (low 1, high 4, 8192 positions) and a largest factor, which must reproduce it.
    fn rope_scaling(&self, head_dim: u64) -> Result<Option<Json>, WeightsError> {
        let kind = self.key("rope.scaling.type");
        // A factor without a kind is linear in llama.cpp; its name was another one once.
        let factor = ["rope.scaling.factor", "rope.scale_linear"].map(|name| self.key(name));
        let factor = factor.iter().find(|key| self.value(key).is_some());
        match (self.text(&kind), factor) {
            (Some("none"), _) | (None, None) => {}
            (Some("linear"), None) => return Err(self.bad_key(&self.key("rope.scaling.factor"), "is missing")),
            (None | Some("linear"), Some(key)) => match self.real(key)? {
                // No factor at all is written as 0.
                0.0 | 1.0 => {}
                factor => return Ok(Some(json!({"rope_type": "linear", "factor": factor}))),
            },
            (Some(other), _) => return Err(self.bad_key(&kind, &format!("{} is not read", one_line(other)))),
        }
        let Some(block) = self.header.tensors.get("rope_freqs.weight") else { return Ok(None) };
        let stored = self.widen("rope_freqs.weight", block)?.flatten_all().and_then(|t| t.to_vec1::<f32>());
        let stored = stored.map_err(|e| self.broken("rope_freqs.weight", e))?;
        let factor = stored.iter().copied().fold(1.0f32, f32::max);
        let expected = llama3_factors(head_dim, self.theta(), f64::from(factor));
        let close = |(a, b): (&f32, &f64)| (f64::from(*a) - b).abs() <= 1e-3 * b;
        if stored.len() != expected.len() || !stored.iter().zip(&expected).all(close) {
            let problem = "its rotary factors are not LLaMA 3.1's (low 1, high 4, 8192 positions)";
            return Err(WeightsError::tensor(&self.path, "rope_freqs.weight", problem, OTHER_EXPORT));
        }
        Ok(Some(json!({
            "rope_type": "llama3",
            "factor": f64::from(factor),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        })))
    }
}

/// LLaMA 3.1's division of each rotary frequency (transformers, `_compute_llama3_parameters`).
pub(super) fn llama3_factors(head_dim: u64, theta: f64, factor: f64) -> Vec<f64> {
    let (low, high, positions) = (1.0, 4.0, 8192.0);
    let one = |pair: u64| {
        let wavelength = 2.0 * std::f64::consts::PI * theta.powf(2.0 * pair as f64 / head_dim as f64);
        if wavelength < positions / high {
            1.0
        } else if wavelength > positions / low {
            factor
        } else {
            let smooth = (positions / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    // A head has at most a few hundred pairs; a claim beyond that cannot match what is stored.
    (0..(head_dim / 2).min(65_536)).map(one).collect()
}
